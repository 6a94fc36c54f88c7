//! What a run tells the person: what became of each step, every evaluation, and how it ended.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::WorkerId;
use crate::routing::Routing;

/// What follows a set's name where the average of the parameters was held against it.
pub const OF_AVERAGE: &str = "-ema";

/// The set of text that is kept back from the training data.
pub const HELDOUT: &str = "heldout";

/// One line of `metrics.jsonl`, but for the rate, which the rim measures. Losses are in nats per
/// target token; every figure is global and the same on all cells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// 1-based.
    pub step: u64,
    /// main + weight x mtp + balance.
    pub loss: f64,
    pub main_loss: f64,
    pub mtp_loss: f64,
    pub balance_loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// Target tokens of this step.
    pub tokens: u64,
    /// By layer; none of a dense model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub router: Vec<Routing>,
}

/// Where in a step a value was met. In the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    Forward,
    Backward,
    /// In an accumulated gradient, after passes that were finite everywhere.
    Gradient,
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Gradient => "gradient",
        })
    }
}

/// A step without an update: a value was not finite, so all cells left everything as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedStep {
    /// 1-based.
    pub step: u64,
    /// Where the value was met first: `layer 3 expert 5 forward`.
    pub skipped: String,
    pub worker: WorkerId,
    /// Skipped steps in a row, this one included.
    pub in_a_row: u32,
    pub pass: Pass,
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Trained(StepRow),
    Skipped(SkippedStep),
}

/// One step and the sequences it drew, trained or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Index in the sample order.
    pub first_sequence: u64,
    pub sequences: u64,
    pub outcome: Outcome,
}

impl StepReport {
    pub fn step(&self) -> u64 {
        match &self.outcome {
            Outcome::Trained(row) => row.step,
            Outcome::Skipped(skipped) => skipped.step,
        }
    }
}

/// JSON has no infinity: there it is null.
mod or_infinite {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        Some(value).filter(|value| value.is_finite()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(f64::INFINITY))
    }
}

/// The loss of the main head on text that was never trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The name of the set.
    pub set: String,
    /// Nats per target token. Infinite where a value was not finite.
    #[serde(with = "or_infinite")]
    pub loss: f64,
    pub tokens: u64,
    /// Bytes of text behind those tokens.
    pub bytes: u64,
}

impl Evaluation {
    /// The loss per byte of text: comparable between tokenizers.
    pub fn nats_per_byte(&self) -> f64 {
        self.loss * self.tokens as f64 / self.bytes.max(1) as f64
    }

    pub fn bits_per_byte(&self) -> f64 {
        self.nats_per_byte() / std::f64::consts::LN_2
    }

    /// Per token: among how many equally likely tokens the model hesitates.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Why a run that did not fail has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// After its last step.
    Completed,
    /// Somebody asked for it.
    Stopped,
    /// `evaluation.patience` evaluations in a row were no better than the best.
    NoImprovement,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_is_told_in_three_units() {
        let evaluation = Evaluation { set: HELDOUT.into(), loss: 2.0, tokens: 100, bytes: 400 };
        assert!((evaluation.nats_per_byte() - 0.5).abs() < 1e-12);
        assert!((evaluation.bits_per_byte() - 0.5 / 2_f64.ln()).abs() < 1e-12);
        assert!((evaluation.perplexity() - 7.389_056_098_930_65).abs() < 1e-12);
    }
}
