//! The order of the training samples: a pure function of the seed and the sequence number, so
//! that any cell, after any restart, finds the same window without having kept anything.
//!
//! An epoch visits every window once, in an order drawn for that epoch: a Feistel network permutes
//! the next larger power of four, and values outside the range are permuted again until they fall
//! inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", cycle walking).

mod mixture;

pub use mixture::{BLOCK, Mixture, Place};

/// Rounds of the Feistel network. Four make it pseudorandom (Luby and Rackoff 1988); the halves
/// are a few bits here, so twice as many.
const ROUNDS: u64 = 8;

/// Which window each sequence of a run reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleOrder {
    pub seed: u64,
    /// Windows in the training data. Never zero.
    pub windows: u64,
}

impl SampleOrder {
    /// The order over `windows` windows. Panics when there are none: data with less text than a
    /// batch is refused before.
    pub fn new(seed: u64, windows: u64) -> Self {
        assert!(windows > 0, "there is no order over zero windows");
        assert!(windows <= 1 << 62, "{windows} windows do not fit the permutation");
        Self { seed, windows }
    }

    /// The window of a sequence. `index` counts the sequences of the whole run, as `batch` does:
    /// `sequences_before(step) + place in the batch`.
    pub fn window(&self, index: u64) -> u64 {
        let key = mix(self.seed ^ mix(self.epoch(index)));
        let mut window = index % self.windows;
        // The permutation of the larger range maps this cycle onto itself, so it comes back inside.
        loop {
            window = self.permute(window, key);
            if window < self.windows {
                return window;
            }
        }
    }

    /// How often the data has been seen before this sequence.
    pub fn epoch(&self, index: u64) -> u64 {
        index / self.windows
    }

    /// A permutation of `0..4^half_bits`, the smallest such range that holds all windows.
    fn permute(&self, value: u64, key: u64) -> u64 {
        let bits = u64::BITS - (self.windows - 1).leading_zeros();
        let half_bits = bits.div_ceil(2);
        let mask = (1_u64 << half_bits) - 1;
        let (mut left, mut right) = (value >> half_bits, value & mask);
        for round in 0..ROUNDS {
            let scrambled = mix(key ^ mix(right ^ (round << 56))) & mask;
            (left, right) = (right, left ^ scrambled);
        }
        (left << half_bits) | right
    }
}

/// The finaliser of `SplitMix64`. Steele, Lea and Flood 2014, "Fast splittable pseudorandom
/// number generators".
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_epoch_visits_every_window_once() {
        for windows in (1..=70).chain([127, 128, 129, 255, 256, 257, 1000, 1024, 1025]) {
            let order = SampleOrder::new(7, windows);
            for epoch in 0..3 {
                let start = epoch * windows;
                let seen: BTreeSet<u64> =
                    (start..start + windows).map(|index| order.window(index)).collect();
                assert_eq!(seen.len() as u64, windows, "{windows} windows, epoch {epoch}");
                assert!(seen.iter().all(|window| *window < windows));
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let windows = 1000;
        let epoch = |seed: u64, epoch: u64| -> Vec<u64> {
            let order = SampleOrder::new(seed, windows);
            (0..windows).map(|i| order.window(epoch * windows + i)).collect()
        };
        assert_ne!(epoch(1, 0), epoch(1, 1));
        assert_ne!(epoch(1, 0), epoch(2, 0));
        assert_ne!(epoch(1, 0), (0..windows).collect::<Vec<_>>());
    }

    #[test]
    fn neighbours_are_spread_over_the_data() {
        // Two random windows are a third of the range apart on average; in file order, 1.
        let windows = 10_000;
        let order = SampleOrder::new(3, windows);
        let apart: u64 =
            (0..windows - 1).map(|i| order.window(i).abs_diff(order.window(i + 1))).sum();
        let mean = apart as f64 / (windows - 1) as f64;
        assert!((0.30..0.37).contains(&(mean / windows as f64)), "{mean}");
    }

    #[test]
    fn epochs_are_counted_from_zero() {
        let order = SampleOrder::new(1, 10);
        assert_eq!([0, 9, 10, 25].map(|index| order.epoch(index)), [0, 0, 1, 2]);
    }

    #[test]
    fn the_order_never_changes_between_versions() {
        // A run that resumes under a newer build must go on where it was.
        let order = SampleOrder::new(1, 1000);
        let first: Vec<u64> = (0..8).map(|index| order.window(index)).collect();
        assert_eq!(first, [568, 4, 304, 422, 174, 199, 757, 604]);
    }
}
