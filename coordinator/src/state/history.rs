//! What is remembered of a worker when it is gone: whoever is lost again and again is given no
//! cells for a while, so that the others keep their plan.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use shoal_proto::FailureKind;

use crate::news::Cause;

/// So many evictions within the window are flapping.
const FLAPS: usize = 3;
const WINDOW_MS: u64 = 120_000;

/// The first quarantine; each further one is twice as long, up to the longest.
const QUARANTINE_MS: u64 = 60_000;
const DOUBLINGS_MAX: u32 = 6;

/// A worker that fails so often by its own word fails the run: it would do so for ever.
const OWN_FAILURES_MAX: u32 = 3;

/// One worker's past.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct History {
    evictions_ms: VecDeque<u64>,
    own_failures: u32,
    quarantines: u32,
    until_ms: u64,
    /// Whose past it is, where the worker is a seat that rigs of a cluster take.
    #[serde(default)]
    pub(super) rig: Option<String>,
    /// How often it was evicted.
    pub(super) losses: u32,
    /// It was evicted, or let go, and has not come back.
    pub(super) gone: bool,
    /// It was let go, and has not come back.
    pub(super) left: bool,
    /// Somebody wants it to go: whatever process comes in its place goes, too.
    pub(super) drained: bool,
}

/// It hosts nothing for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quarantine {
    pub(super) seconds: u64,
    pub(super) times: u32,
}

impl History {
    /// Of another machine in the place of the one before.
    pub(super) fn of(rig: Option<String>) -> Self {
        Self { rig, ..Self::default() }
    }

    pub(super) fn evicted(&mut self, now_ms: u64, cause: Cause) -> Option<Quarantine> {
        self.gone = true;
        self.losses += 1;
        self.own_failures += u32::from(cause == Cause::Reported(FailureKind::Internal));
        self.evictions_ms.push_back(now_ms);
        while self.evictions_ms.front().is_some_and(|then| then + WINDOW_MS < now_ms) {
            self.evictions_ms.pop_front();
        }
        let times = self.evictions_ms.len();
        if times < FLAPS {
            return None;
        }
        let long_ms = QUARANTINE_MS << self.quarantines.min(DOUBLINGS_MAX);
        self.quarantines += 1;
        self.until_ms = now_ms + long_ms;
        Some(Quarantine { seconds: long_ms / 1_000, times: times as u32 })
    }

    /// Whether it has failed by its own word too often.
    pub(super) fn is_hopeless(&self) -> bool {
        self.own_failures >= OWN_FAILURES_MAX
    }

    /// It is given nothing for so many seconds, if it is not.
    pub(super) fn quarantine(&self, now_ms: u64) -> Option<u64> {
        self.is_quarantined(now_ms).then(|| (self.until_ms - now_ms).div_ceil(1_000))
    }

    pub(super) fn is_quarantined(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_loss_in_two_minutes_is_flapping_and_each_quarantine_is_longer() {
        let mut history = History::default();
        let mut lost = |at_ms| history.evicted(at_ms, Cause::Exited);
        assert_eq!([lost(0), lost(10), lost(WINDOW_MS + 11)], [None; 3]);
        assert_eq!(lost(WINDOW_MS + 12), None);
        let now_ms = WINDOW_MS + 13;
        assert_eq!(lost(now_ms), Some(Quarantine { seconds: 60, times: 3 }));
        assert!(history.is_quarantined(now_ms + QUARANTINE_MS - 1));
        assert!(!history.is_quarantined(now_ms + QUARANTINE_MS));
        let again = history.evicted(now_ms + QUARANTINE_MS, Cause::Exited);
        assert_eq!(again, Some(Quarantine { seconds: 120, times: 4 }));
    }

    #[test]
    fn only_its_own_word_makes_a_worker_hopeless() {
        let mut history = History::default();
        for _ in 0..10 {
            history.evicted(0, Cause::Exited);
        }
        assert!(!history.is_hopeless());
        for _ in 0..OWN_FAILURES_MAX {
            history.evicted(0, Cause::Reported(FailureKind::Internal));
        }
        assert!(history.is_hopeless());
    }
}
