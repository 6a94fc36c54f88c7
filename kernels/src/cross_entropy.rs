//! The output head and its softmax cross entropy, fused: the logits of all rows are never alive
//! together. T rows, D width, V vocabulary.
//!
//! The head is a linear layer in F32 or BF16, never in FP8 (DeepSeek-V3 report 3.3.1); softmax and
//! loss are FP32, the sum over rows f64. With a BF16 head the gradient of the logits is rounded to
//! BF16 before it is multiplied, as the operand of any BF16 product is.

use crate::bf16;
use crate::exp::exp;
use crate::gemm::{View, add_product_by_rows, product};
use crate::lanes;
use crate::linear::{self, Operand, Weight};
use crate::scratch::Scratch;
use crate::simd::vectorised;
use crate::spread;
use crate::tensor::{DType, RowsMut, Tensor};

/// A row without a target: padding, or the last token of a text.
pub const IGNORE: u32 = u32::MAX;

/// Logits alive at once, unless one chunk of rows needs more: 16 MiB.
const LOGITS: usize = 4 << 20;

/// Rows that one task takes.
const ROWS: usize = 64;

/// Rows of the weight's gradient that one task computes.
const WEIGHT_ROWS: usize = 128;

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
    let panel = w.panel();
    let head = Head { w: View::new(&panel, w.n(), w.k()), round: false };
    let losses = spread::map(targets.chunks(ROWS).enumerate(), |(i, targets)| {
        let mut logits = Scratch::new(targets.len() * w.n());
        head.losses(h, i * ROWS, targets, &mut logits, None)
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
    let panel = w.panel();
    let round = matches!(w, Weight::Bf16(_));
    let head = Head { w: View::new(&panel, v, d), round };
    let mut d_h = Tensor::zeros(out, &[t, d]);
    let rows_alive = (LOGITS / v.max(1) / ROWS).max(1) * ROWS;
    let mut logits = Scratch::new(rows_alive.min(t) * v);
    let mut losses = Vec::new();
    let mut d_h_chunks = d_h.row_chunks_mut(ROWS).into_iter();
    for first in (0..t).step_by(rows_alive) {
        let rows = first..(first + rows_alive).min(t);
        let logits = &mut logits[..rows.len() * v];
        let chunks = targets[rows.clone()].chunks(ROWS).zip(logits.chunks_mut((ROWS * v).max(1)));
        let tasks: Vec<_> = chunks.zip(d_h_chunks.by_ref()).enumerate().collect();
        losses.extend(spread::map(tasks, |(i, ((targets, logits), d_h))| {
            head.losses(h, first + i * ROWS, targets, logits, Some((scale, d_h)))
        }));
        let h_panel = h.panel(rows.clone());
        let d_logits = View::new(logits, rows.len(), v).transposed();
        add_product_by_rows(dw, d_logits, View::new(&h_panel, rows.len(), d), WEIGHT_ROWS);
    }
    drop(d_h_chunks);
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

struct Head<'a> {
    /// `(V, D)`
    w: View<'a>,
    /// Round the gradient of the logits to BF16.
    round: bool,
}

impl Head<'_> {
    /// The sum of the losses of some rows from `first` on. With `gradient`, a scale and a place for
    /// `d_h`, the logits are replaced by their gradient and `d_h` is written.
    fn losses(
        &self,
        h: &Operand,
        first: usize,
        targets: &[u32],
        logits: &mut [f32],
        gradient: Option<(f32, RowsMut<'_>)>,
    ) -> f64 {
        let rows = first..first + targets.len();
        let h_panel = h.panel(rows);
        let v = logits.len() / targets.len();
        product(logits, View::new(&h_panel, targets.len(), h.cols()), self.w.transposed(), false);
        let scale = gradient.as_ref().map(|(scale, _)| *scale);
        let mut loss = 0.0;
        for (logits, target) in logits.chunks_exact_mut(v).zip(targets) {
            if *target == IGNORE {
                logits.fill(0.0);
                continue;
            }
            loss += f64::from(row_loss(logits, *target as usize, scale));
        }
        if let Some((_, d_h)) = gradient {
            if self.round {
                bf16::round(logits);
            }
            d_h.fill(|d_h| product(d_h, View::new(logits, targets.len(), v), self.w, false));
        }
        loss
    }
}

/// `ln sum exp(logits) - logits[target]`. With a scale, the logits become
/// `scale (softmax(logits) - onehot(target))`.
fn row_loss(logits: &mut [f32], target: usize, scale: Option<f32>) -> f32 {
    let of_target = logits[target];
    vectorised(
        #[inline(always)]
        || {
            let max = lanes::max(logits);
            for x in logits.iter_mut() {
                *x = exp(*x - max);
            }
            let sum = lanes::sum(logits);
            if let Some(scale) = scale {
                let factor = scale / sum;
                for x in logits.iter_mut() {
                    *x *= factor;
                }
                logits[target] -= scale;
            }
            sum.ln() + (max - of_target)
        },
    )
}

#[cfg(test)]
#[path = "cross_entropy/tests.rs"]
mod tests;
