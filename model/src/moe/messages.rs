//! The bytes of messages, used again: those that came in are the room of those that go out.

use std::sync::{Mutex, PoisonError};

/// Messages kept; a layer's legs need one or two for each shard of the group.
const KEPT: usize = 64;

static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// So many bytes with unspecified contents.
pub(crate) fn take(length: usize) -> Vec<u8> {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let capacities = free.iter().map(Vec::capacity).enumerate();
    let fits = capacities.filter(|(_, have)| length <= *have).min_by_key(|(_, have)| *have);
    let mut message = fits.map(|(at, _)| free.swap_remove(at)).unwrap_or_default();
    drop(free);
    message.resize(length, 0);
    message
}

/// Gives back messages that were read.
pub(crate) fn give(messages: Vec<Vec<u8>>) {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    for message in messages.into_iter().filter(|message| 0 < message.capacity()) {
        if free.len() < KEPT {
            free.push(message);
        } else if let Some(smallest) = free.iter_mut().min_by_key(|kept| kept.capacity()) {
            // The largest ones fit most.
            if smallest.capacity() < message.capacity() {
                *smallest = message;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_length_that_was_asked_for() {
        give(vec![vec![7; 1 << 20], Vec::new()]);
        for length in [0, 1, 1000, 1 << 20, (1 << 20) + 1] {
            assert_eq!(take(length).len(), length);
        }
    }
}
