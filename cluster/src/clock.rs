//! The calendar, for certificates and tokens, and a clock that does not go back, for quotas: the one place here where
//! they are read.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[expect(clippy::disallowed_methods, reason = "the rim reads the clock for those who decide")]
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Since this was asked first. Does not go back.
pub(crate) fn running() -> Duration {
    STARTED.elapsed()
}

#[expect(clippy::disallowed_methods, reason = "the rim reads the clock for those who decide")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Seconds of the calendar.
pub(crate) fn unix() -> u64 {
    unix_of(now())
}

/// The same of another time.
pub(crate) fn unix_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Milliseconds of the calendar.
pub(crate) fn unix_ms() -> u64 {
    now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
