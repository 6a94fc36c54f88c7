//! One engine at a time: a new one waits until the one before it has given back its memory, though
//! not for ever. Who is told to wait, and how long, stands in `engine.rs`.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Where the engines of a process take turns.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// The last one that came.
    last: Mutex<Ended>,
}

/// Whether an engine's threads are gone.
#[derive(Clone, Debug)]
pub(super) struct Ended(Arc<(Mutex<bool>, Condvar)>);

/// Held by an engine's thread: it has ended when this is dropped.
pub(super) struct Ticket {
    before: Ended,
    mine: Ended,
}

impl Default for Ended {
    /// Nobody was there.
    fn default() -> Self {
        Self::new(true)
    }
}

impl Seat {
    /// The next engine's ticket, and what others see of it.
    pub(super) fn queue(&self) -> (Ticket, Ended) {
        let mine = Ended::new(false);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *last, mine.clone());
        (Ticket { before, mine: mine.clone() }, mine)
    }
}

impl Ended {
    fn new(ended: bool) -> Self {
        Self(Arc::new((Mutex::new(ended), Condvar::new())))
    }

    /// Waits for the end, but no longer than `wait`. True if it has come.
    pub(super) fn wait(&self, wait: Duration) -> bool {
        let (ended, changed) = &*self.0;
        let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(ended, wait, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Ticket {
    /// Waits for the engine before this one, but no longer than `wait`.
    pub(super) fn wait(&self, wait: Duration) {
        self.before.wait(wait);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let (ended, changed) = &*self.mine.0;
        *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_waits_for_the_one_before_and_for_no_other() {
        let seat = Seat::default();
        let (first, first_ended) = seat.queue();
        first.wait(Duration::from_hours(1));
        let (second, second_ended) = seat.queue();
        assert!(!first_ended.wait(Duration::ZERO));
        let waiting = std::thread::spawn(move || second.wait(Duration::from_hours(1)));
        drop(first);
        waiting.join().unwrap();
        assert!(first_ended.wait(Duration::ZERO) && second_ended.wait(Duration::from_hours(1)));
    }
}
