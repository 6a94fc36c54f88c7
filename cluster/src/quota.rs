//! What one member may ask of the coordinator in a time. Whoever asks for more waits: its own calls become slow,
//! nobody else's. Pure: time comes from outside.

use std::time::Duration;

/// What is owed grows no further: whoever asks and runs away is not locked out for hours.
const OWED_MOST_S: f64 = 30.0;

/// A bucket that fills at a steady rate and holds so much. What is taken beyond it is owed, and must be waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Units a second, and at most.
    rate: f64,
    most: f64,
    /// Below nothing while something is owed.
    left: f64,
    /// When `left` was right, in seconds since whatever the caller counts from.
    at_s: f64,
}

impl Bucket {
    /// Full.
    pub(crate) const fn new(rate: f64, most: f64) -> Self {
        Self { rate, most, left: most, at_s: 0.0 }
    }

    /// Takes so many units now. How long to wait before they are used.
    pub(crate) fn take(&mut self, units: f64, now: Duration) -> Duration {
        let now_s = now.as_secs_f64();
        let passed = (now_s - self.at_s).max(0.0);
        let left = (self.left + passed * self.rate).min(self.most) - units;
        self.left = left.max(-OWED_MOST_S * self.rate);
        self.at_s = self.at_s.max(now_s);
        Duration::from_secs_f64((-self.left).max(0.0) / self.rate)
    }

    /// Whether nothing of what was taken counts any more.
    pub(crate) fn is_full(&self, now: Duration) -> bool {
        let passed = (now.as_secs_f64() - self.at_s).max(0.0);
        self.left + passed * self.rate >= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_free_and_the_rest_comes_at_its_rate() {
        let mut bucket = Bucket::new(10.0, 5.0);
        let at = Duration::from_millis;
        for _ in 0..5 {
            assert_eq!(bucket.take(1.0, at(0)), Duration::ZERO);
        }
        assert_eq!(bucket.take(1.0, at(0)), at(100));
        assert_eq!(bucket.take(1.0, at(0)), at(200));
        // 0.2 s give two units back; a long rest gives no more than it holds.
        assert_eq!(bucket.take(1.0, at(200)), at(100));
        assert_eq!(bucket.take(5.0, at(60_000)), Duration::ZERO);
        assert_eq!(bucket.take(1.0, at(60_000)), at(100));
        // A clock that seems to go back gives nothing.
        assert_eq!(bucket.take(1.0, at(59_000)), at(200));
        assert!(!bucket.is_full(at(60_600)) && bucket.is_full(at(60_700)));
        assert_eq!(bucket.take(1e9, at(60_000)), at(30_000), "there is an end to it");
    }
}
