//! Working memory that a thread keeps between operations: no lock, and still in its caches.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Buffers kept per thread; no operation holds more at once.
const KEPT: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A slice of `len` floats with unspecified contents.
pub(crate) struct Scratch {
    /// As long as its longest use, so that it is cleared only where it grows.
    buffer: Vec<f32>,
    /// The first float on a cache line, where the slice begins: no vector straddles two.
    start: usize,
    len: usize,
}

/// Floats of a cache line.
const LINE: usize = 16;

impl Scratch {
    pub(crate) fn new(len: usize) -> Self {
        let room = len + LINE;
        let mut buffer = FREE.with_borrow_mut(|free| best(free, room)).unwrap_or_default();
        if buffer.len() < room {
            // The old contents are not worth copying.
            buffer = vec![0.0; room.next_multiple_of(1024)];
        }
        let start = buffer.as_ptr().align_offset(LINE * 4).min(LINE);
        Self { buffer, start, len }
    }
}

/// The smallest buffer that is long enough; else, of a full list, the smallest, to be replaced.
fn best(free: &mut Vec<Vec<f32>>, len: usize) -> Option<Vec<f32>> {
    let places = || free.iter().map(Vec::len).enumerate();
    let fits = places().filter(|(_, have)| len <= *have).min_by_key(|(_, have)| *have);
    let at = match fits {
        None if free.len() < KEPT => None,
        None => places().min_by_key(|(_, have)| *have),
        Some(fits) => Some(fits),
    };
    at.map(|(at, _)| free.swap_remove(at))
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[self.start..][..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.start..][..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // While a thread ends its list may be gone already; then the buffer is simply freed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

/// A slice of `len` 16-bit numbers with unspecified contents.
pub(crate) struct HalfScratch {
    pairs: Scratch,
    len: usize,
}

impl HalfScratch {
    pub(crate) fn new(len: usize) -> Self {
        Self { pairs: Scratch::new(len.div_ceil(2)), len }
    }
}

impl Deref for HalfScratch {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        &bytemuck::cast_slice(&self.pairs)[..self.len]
    }
}

impl DerefMut for HalfScratch {
    fn deref_mut(&mut self) -> &mut [u16] {
        &mut bytemuck::cast_slice_mut(&mut self.pairs)[..self.len]
    }
}
