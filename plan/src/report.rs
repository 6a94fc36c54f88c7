//! What a run tells the person: one row a step, and the evaluation at the end.

use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`, but for the rate, which the rim measures. Losses are in nats per
/// target token; every figure is global and the same on all cells.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
}

/// The loss of the main head on text that was never trained on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Nats per target token.
    pub loss: f64,
    pub tokens: u64,
    /// Bytes of text behind those tokens.
    pub bytes: u64,
}
