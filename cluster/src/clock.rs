//! The calendar, for certificates and tokens: the one place here where it is read.

use std::time::{SystemTime, UNIX_EPOCH};

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
