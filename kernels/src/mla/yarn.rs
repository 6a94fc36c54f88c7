//! `YaRN`: rotation frequencies for texts longer than those of pre-training.
//!
//! Source: arXiv:2309.00071, section 3.2, with the corrected dimensions rounded outwards as in the code
//! of DeepSeek-V3 and of `transformers`. Pair i of a head turns by `position * theta^(-2i / rope)`. Pairs
//! that turn often within the original length keep that, pairs that hardly turn are slowed down by the
//! whole factor, and between the two the frequency is blended along a line.

use std::f64::consts::TAU;

/// How frequencies and magnitudes change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// At least 1.
    pub factor: f64,
    /// Turns within the original length above which a pair keeps its frequency.
    pub beta_fast: f64,
    /// Turns below which it is slowed down by all of `factor`.
    pub beta_slow: f64,
    /// Positions of pre-training.
    pub original_positions: f64,
    /// What sines and cosines are multiplied by.
    pub magnitude: f64,
}

impl Yarn {
    /// What the frequency of pair `i` is multiplied by: from `1 / factor` to 1.
    pub(super) fn slowing(&self, i: usize, rope: usize, theta: f64) -> f64 {
        let (low, high) = self.ramp(rope, theta);
        // Both ends may be one pair: a step instead of a line.
        let width = if high - low == 0.0 { 0.001 } else { high - low };
        let slowed = ((i as f64 - low) / width).clamp(0.0, 1.0);
        slowed / self.factor + (1.0 - slowed)
    }

    /// The last pair that keeps its frequency and the first that is slowed down by all of `factor`.
    fn ramp(&self, rope: usize, theta: f64) -> (f64, f64) {
        let turning = |turns: f64| {
            rope as f64 * (self.original_positions / (turns * TAU)).ln() / (2.0 * theta.ln())
        };
        let (low, high) = (turning(self.beta_fast).floor(), turning(self.beta_slow).ceil());
        (low.max(0.0), high.min(rope as f64 - 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASED: Yarn = Yarn {
        factor: 40.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_positions: 4096.0,
        magnitude: 1.0,
    };

    /// DeepSeek-V3's released configuration: 64 rotated columns, base 10,000.
    #[test]
    fn the_released_models_ramp_goes_from_pair_10_to_pair_23() {
        assert_eq!(RELEASED.ramp(64, 1e4), (10.0, 23.0));
        let slowing: Vec<f64> = (0..32).map(|i| RELEASED.slowing(i, 64, 1e4)).collect();
        assert!(slowing[..=10].iter().all(|s| s.to_bits() == 1_f64.to_bits()), "{slowing:?}");
        assert!(slowing[23..].iter().all(|s| (s - 0.025).abs() < 1e-15), "{slowing:?}");
        // 5 of 13 steps down the line.
        assert!((slowing[15] - (5.0 / 13.0 / 40.0 + 8.0 / 13.0)).abs() < 1e-15, "{slowing:?}");
    }

    /// So few positions that no pair turns once: the ramp has no length, and pair 0 alone keeps its
    /// frequency.
    #[test]
    fn a_ramp_without_length_is_a_step() {
        let yarn = Yarn { original_positions: 6.0, ..RELEASED };
        assert_eq!(yarn.ramp(8, 1e4), (0.0, 0.0));
        let slowing: Vec<f64> = (0..4).map(|i| yarn.slowing(i, 8, 1e4)).collect();
        assert_eq!(slowing, [1.0, 0.025, 0.025, 0.025]);
    }
}
