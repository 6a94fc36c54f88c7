//! A point in time to give up at: the only clock of the data plane, used while it opens, and of vaults.

use std::time::{Duration, Instant};

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(wait: Duration) -> Self {
        Self(now() + wait)
    }

    /// Time left; `None` once it is over. Never zero, which sockets refuse as a time-out.
    pub(crate) fn left(self) -> Option<Duration> {
        self.0.checked_duration_since(now()).filter(|left| !left.is_zero())
    }

    /// This deadline, or `wait` from now if that is earlier.
    pub(crate) fn within(self, wait: Duration) -> Self {
        Self(self.0.min(now() + wait))
    }
}

#[expect(clippy::disallowed_methods, reason = "sockets wait in real time")]
fn now() -> Instant {
    Instant::now()
}
