//! What a message carries, and the buffers that are used again: fresh memory costs a fault for each page of 4 KiB, and
//! that is as much as sending it.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// The bytes of a message.
#[derive(Debug)]
pub(super) enum Payload {
    Own(Vec<u8>),
    /// The same to several cells.
    Shared(Arc<Vec<u8>>),
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl Payload {
    /// For a cell of this worker.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => Arc::unwrap_or_clone(bytes),
        }
    }
}

/// Buffers below that come from the allocator as fast.
const BUFFER_BYTES_MIN: usize = 4 << 10;

const BUFFERS_MAX: usize = 64;

/// Together, so that one large message does not hold its memory for good.
const BYTES_MAX: usize = 64 << 20;

/// Buffers of a mesh that nobody uses now.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    /// A buffer of so many bytes, whatever they are.
    pub(super) fn take(&self, n: usize) -> Vec<u8> {
        let mut buffer = self.find(n).unwrap_or_default();
        // Bytes that it had are as good as zeros, and cost nothing.
        buffer.resize(n, 0);
        buffer
    }

    /// A buffer that holds a copy.
    pub(super) fn copy(&self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = self.find(bytes.len()).unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// The smallest that holds `n` bytes, and not many times that.
    fn find(&self, n: usize) -> Option<Vec<u8>> {
        if n < BUFFER_BYTES_MIN {
            return None;
        }
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Vec<u8>| (n..=4 * n).contains(&buffer.capacity());
        let found = free.iter().enumerate().filter(|(_, buffer)| fits(buffer));
        let (at, _) = found.min_by_key(|(_, buffer)| buffer.capacity())?;
        Some(free.swap_remove(at))
    }

    /// Keeps a buffer for later, if nobody else has it and there is room.
    pub(super) fn put(&self, payload: Payload) {
        let buffer = match payload {
            Payload::Own(bytes) => Some(bytes),
            Payload::Shared(bytes) => Arc::into_inner(bytes),
        };
        let Some(buffer) = buffer.filter(|buffer| buffer.capacity() >= BUFFER_BYTES_MIN) else {
            return;
        };
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = free.iter().map(Vec::capacity).sum();
        if free.len() < BUFFERS_MAX && held + buffer.capacity() <= BYTES_MAX {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_where_it_fits_and_kept_within_bounds() {
        let spare = Spare::default();
        let mut first = spare.take(100_000);
        first.fill(7);
        let place = first.as_ptr();
        spare.put(Payload::Own(first));
        let again = spare.take(60_000);
        assert_eq!((again.as_ptr(), again.len()), (place, 60_000));
        spare.put(Payload::Own(again));
        let small = spare.take(10_000);
        assert_ne!(small.as_ptr(), place, "ten times too large");
        let threes = vec![3; 50_000];
        assert_eq!(spare.copy(&threes), threes);

        for _ in 0..2 * BUFFERS_MAX {
            spare.put(Payload::Own(vec![0; 1 << 20]));
        }
        assert_eq!(spare.0.lock().unwrap().len(), BUFFERS_MAX);
        spare.put(Payload::Own(vec![0; BYTES_MAX + 1]));
        let shared = Arc::new(vec![1; 8 << 10]);
        let other = Spare::default();
        other.put(Payload::Shared(Arc::clone(&shared)));
        assert!(other.0.lock().unwrap().is_empty(), "somebody reads it still");
        other.put(Payload::Shared(shared));
        assert_eq!(other.0.lock().unwrap().len(), 1);
    }
}
