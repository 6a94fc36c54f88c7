//! How evenly a step's tokens fell on the experts: the health of the routers, from their counts.
//!
//! Source: DeepSeek-V3 report, arXiv:2412.19437, sections 2.1.2 (the bias that balances) and 4.5.3
//! (load as a multiple of the mean).

use serde::{Deserialize, Serialize};

/// One mixture-of-experts layer in one step, over the whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Routing {
    /// 0-based; the multi-token-prediction modules are numbered on from the main model's layers.
    pub layer: u32,
    /// Entropy of the experts' shares of the tokens, divided by that of equal shares: 1 is even,
    /// 0 is one expert for all.
    pub load_entropy: f64,
    /// The busiest expert's tokens as a multiple of the mean.
    pub load_max: f64,
    /// Choices of an expert that no expert has counted. Nothing here drops a token, so anything but
    /// 0 is a bug.
    pub dropped: u64,
    /// The least and the largest of the biases that these tokens were routed with.
    pub bias_min: f32,
    pub bias_max: f32,
}

/// The layers of one step together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterHealth {
    /// The mean over the layers.
    pub load_entropy: f64,
    /// Of the worst layer.
    pub load_max: f64,
    /// Over all layers.
    pub dropped: u64,
    pub bias_min: f32,
    pub bias_max: f32,
}

impl Routing {
    /// `counts`: tokens that each expert took, over the whole batch. `choices`: tokens of the batch
    /// times experts that a token chooses. `bias`: one for each expert.
    pub fn of(layer: u32, counts: &[u64], choices: u64, bias: &[f32]) -> Self {
        let total = counts.iter().sum::<u64>();
        let mean = total as f64 / counts.len().max(1) as f64;
        let shares = counts.iter().filter(|n| **n > 0).map(|n| *n as f64 / total as f64);
        let entropy = -shares.map(|share| share * share.ln()).sum::<f64>();
        // One expert, or no token: there is nothing uneven.
        let load_entropy = match (counts.len(), total) {
            (0 | 1, _) | (_, 0) => 1.0,
            (n, _) => (entropy / (n as f64).ln()).clamp(0.0, 1.0),
        };
        let most = counts.iter().copied().max().unwrap_or(0);
        let bounds = bias.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), bias| {
            (low.min(*bias), high.max(*bias))
        });
        let (bias_min, bias_max) = if bias.is_empty() { (0.0, 0.0) } else { bounds };
        let load_max = if total == 0 { 1.0 } else { most as f64 / mean };
        let dropped = choices.abs_diff(total);
        Self { layer, load_entropy, load_max, dropped, bias_min, bias_max }
    }
}

impl RouterHealth {
    /// `None` for a dense model.
    pub fn of(layers: &[Routing]) -> Option<Self> {
        let first = layers.first()?;
        let none = Self {
            load_entropy: 0.0,
            load_max: first.load_max,
            dropped: 0,
            bias_min: first.bias_min,
            bias_max: first.bias_max,
        };
        Some(layers.iter().fold(none, |sum, layer| Self {
            load_entropy: sum.load_entropy + layer.load_entropy / layers.len() as f64,
            load_max: sum.load_max.max(layer.load_max),
            dropped: sum.dropped + layer.dropped,
            bias_min: sum.bias_min.min(layer.bias_min),
            bias_max: sum.bias_max.max(layer.bias_max),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(counts: &[u64], choices: u64, (entropy, max, dropped): (f64, f64, u64)) {
        let routing = Routing::of(1, counts, choices, &[0.5, -0.25]);
        assert!((routing.load_entropy - entropy).abs() < 1e-12, "{routing:?}");
        assert!((routing.load_max - max).abs() < 1e-12, "{routing:?}");
        assert_eq!(routing.dropped, dropped);
        assert_eq!((routing.bias_min.to_bits(), routing.bias_max.to_bits()), bits(-0.25, 0.5));
    }

    fn bits(a: f32, b: f32) -> (u32, u32) {
        (a.to_bits(), b.to_bits())
    }

    #[test]
    fn an_even_load_has_entropy_one_and_a_single_expert_none() {
        check(&[4, 4, 4, 4], 16, (1.0, 1.0, 0));
        check(&[16, 0, 0, 0], 16, (0.0, 4.0, 0));
        // Two of four experts: log 2 / log 4.
        check(&[8, 8, 0, 0], 16, (0.5, 2.0, 0));
        check(&[9, 3, 3, 0], 16, (0.685_475_297_227_334, 2.4, 1));
        check(&[0, 0], 0, (1.0, 1.0, 0));
        check(&[7], 7, (1.0, 1.0, 0));
    }

    #[test]
    fn the_layers_together_are_their_mean_and_their_worst() {
        assert_eq!(RouterHealth::of(&[]), None);
        let even = Routing::of(1, &[2, 2], 4, &[0.5, 0.0]);
        let uneven = Routing::of(2, &[4, 0], 5, &[0.25, -1.0]);
        let health = RouterHealth::of(&[even, uneven]).unwrap();
        assert!((health.load_entropy - 0.5).abs() < 1e-12, "{health:?}");
        assert!((health.load_max - 2.0).abs() < 1e-12, "{health:?}");
        assert_eq!(health.dropped, 1);
        assert_eq!((health.bias_min.to_bits(), health.bias_max.to_bits()), bits(-1.0, 0.5));
    }
}
