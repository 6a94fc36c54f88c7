//! The binary's clock: the one place where it is read.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Measures from when it was started.
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "the rim reads the clock for those who decide")]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn seconds(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// Seconds since 1970, as HTTP interfaces date their answers.
pub(crate) fn unix_seconds() -> u64 {
    unix_time() as u64
}

/// Seconds since 1970, to compare with what others have written down.
#[expect(clippy::disallowed_methods, reason = "the rim reads the clock for those who decide")]
pub(crate) fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// What the calendar says: certificates have dates.
#[expect(clippy::disallowed_methods, reason = "the rim reads the clock for those who decide")]
pub(crate) fn calendar() -> SystemTime {
    SystemTime::now()
}

/// Seconds since a file was last written; none for one from the future.
pub(crate) fn age_seconds(written: SystemTime) -> u64 {
    unix_seconds().saturating_sub(written.duration_since(UNIX_EPOCH).map_or(0, |at| at.as_secs()))
}
