//! The output head and its softmax cross entropy, fused: the logits of all rows are never alive
//! together. T rows, D width, V vocabulary.
//!
//! The head is a linear layer in F32 or BF16, never in FP8 (DeepSeek-V3 report 3.3.1); softmax and
//! loss are FP32, the sum over rows f64. With a BF16 head the gradient of the logits is rounded to
//! BF16 before it is multiplied, as the operand of any BF16 product is.
//!
//! The vocabulary is cut into strips of columns. A task computes the logits of a few rows, strip by
//! strip, in memory of its own. It leaves their gradient, in BF16 where products read BF16; the
//! gradient of the weight reads it once for each strip and some hundred rows.

mod head;

use self::head::{Gradient, Head, Kept};
use crate::linear::{self, Operand, Weight};
use crate::scratch::Scratch;
use crate::spread;
use crate::tensor::{DType, Tensor};

/// A row without a target: padding, or the last token of a text.
pub const IGNORE: u32 = u32::MAX;

/// Gradients of logits alive at once, unless one chunk of rows needs more.
const LOGITS: usize = 4 << 20;

/// Rows that one task takes.
const ROWS: usize = 128;

/// A sum of losses, and the gradient of what it was computed from.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadLoss {
    /// In nats, over all rows with a target; the caller divides.
    pub loss_sum: f64,
    /// Rows with a target.
    pub targets: u64,
    /// `(T, D)`: the gradient of `scale * loss_sum`.
    pub d_h: Option<Tensor>,
}

/// The loss alone.
///
/// - `h`: `(T, D)`; `w`: `(V, D)`; `targets`: `(T)`, each below V or `IGNORE`.
pub fn evaluate(h: &Operand, w: &Weight, targets: &[u32]) -> HeadLoss {
    assert_inputs(h, w, targets);
    let head = Head::new(h, w, false);
    let losses = spread::map(targets.chunks(ROWS).enumerate(), |(i, targets)| {
        let mut logits = Scratch::new(targets.len() * w.n());
        head.logits(h, i * ROWS..i * ROWS + targets.len(), &mut logits);
        head.losses(targets, &mut logits, None)
    });
    sum_losses(&losses, targets, None)
}

/// The loss and both gradients, those of `scale * loss_sum`.
///
/// - `h`: `(T, D)`; `w`: `(V, D)`; `targets`: `(T)`, each below V or `IGNORE`.
/// - `d_h` is rounded to `out`; `dw`: `(V, D)`, accumulated.
pub fn forward_backward(
    h: &Operand,
    w: &Weight,
    targets: &[u32],
    scale: f32,
    out: DType,
    dw: &mut [f32],
) -> HeadLoss {
    assert_inputs(h, w, targets);
    let (t, d, v) = (h.rows(), h.cols(), w.n());
    assert_eq!(dw.len(), v * d, "cross entropy: dw is ({v}, {d})");
    let head = Head::new(h, w, true);
    let mut d_h = Tensor::zeros(out, &[t, d]);
    let rows_alive = (LOGITS / v.max(1) / ROWS).max(1) * ROWS;
    let mut kept = Kept::new(&head, rows_alive.min(t) * v);
    let mut losses = Vec::new();
    let mut d_h_chunks = d_h.row_chunks_mut(ROWS);
    for first in (0..t).step_by(rows_alive) {
        let rows = first..(first + rows_alive).min(t);
        let pieces = kept.pieces(&head, rows.len(), ROWS);
        let tasks = targets[rows.clone()].chunks(ROWS).zip(pieces).zip(d_h_chunks.by_ref());
        losses.extend(spread::map(tasks.enumerate(), |(i, ((targets, pieces), d_h))| {
            let start = first + i * ROWS;
            let mut logits = Scratch::new(targets.len() * v);
            head.logits(h, start..start + targets.len(), &mut logits);
            let mut gradient = Gradient { scale, pieces };
            let loss = head.losses(targets, &mut logits, Some(&mut gradient));
            d_h.fill(|d_h| head.input_gradient(&gradient, targets.len(), d_h));
            loss
        }));
        head.weight_gradient(h, rows, &kept, dw);
    }
    sum_losses(&losses, targets, Some(d_h))
}

/// The logits themselves, `(T, V)` in F32: for sampling from a few rows.
pub fn logits(h: &Operand, w: &Weight) -> Tensor {
    linear::forward(h, w, DType::F32)
}

fn assert_inputs(h: &Operand, w: &Weight, targets: &[u32]) {
    assert_eq!(h.rows(), targets.len(), "cross entropy: one target per row");
    assert_eq!(h.cols(), w.k(), "cross entropy: h and w have one D");
    let bad = targets.iter().find(|target| **target != IGNORE && **target as usize >= w.n());
    assert!(bad.is_none(), "cross entropy: target {bad:?} of a vocabulary of {}", w.n());
}

fn sum_losses(losses: &[f64], targets: &[u32], d_h: Option<Tensor>) -> HeadLoss {
    let targets = targets.iter().filter(|target| **target != IGNORE).count() as u64;
    HeadLoss { loss_sum: losses.iter().sum(), targets, d_h }
}

#[cfg(test)]
#[path = "cross_entropy/tests.rs"]
mod tests;
