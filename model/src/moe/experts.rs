//! The cell's own routed experts at work on the rows received from the whole group. Experts run at
//! the same time; each sums in its own order, so threads do not change a bit.

use std::ops::Range;
use std::sync::Arc;

use shoal_kernels::linear::Operand;
use shoal_kernels::spread;
use shoal_kernels::tensor::{DType, Tensor};

use super::dispatch::{Received, Segment};
use crate::arithmetic::Arithmetic;
use crate::ffn::{Ffn, FfnKept};
use crate::findings::{Findings, NonFinite};
use crate::halves::{Cached, Deferred};
use crate::memory::Memory;
use crate::parameters::Parameters;

/// The experts this cell owns, ascending.
#[derive(Clone, Debug)]
pub(super) struct Experts {
    layer: u32,
    numbers: Range<u32>,
    ffns: Vec<Ffn>,
}

/// Kept after forward.
#[derive(Clone, Debug)]
pub(super) struct ExpertsKept {
    pub(super) received: Received,
    segments: Vec<Segment>,
    /// `None` for an expert without rows.
    activations: Vec<Option<FfnKept>>,
}

impl ExpertsKept {
    pub(super) fn add_to(&self, memory: &mut Memory) {
        memory.cached_linear_inputs += self.received.rows.bytes();
        for kept in self.activations.iter().flatten() {
            kept.add_to(memory);
        }
    }
}

impl Experts {
    pub(super) fn new(
        p: &Parameters,
        arithmetic: Arithmetic,
        layer: u32,
        numbers: Range<u32>,
    ) -> Self {
        let ffn = |expert| Ffn::new(p, arithmetic, layer, &format!("mlp.experts.{expert}"));
        Self { layer, ffns: numbers.clone().map(ffn).collect(), numbers }
    }

    pub(super) fn len(&self) -> usize {
        self.ffns.len()
    }

    /// Per received row the sum over its local experts, FP32 [R, D], in ascending expert order.
    pub(super) fn forward(
        &self,
        p: &Parameters,
        received: Received,
        findings: &mut Findings,
    ) -> (Vec<f32>, ExpertsKept) {
        let segments = received.segments(self.len());
        let outputs = spread::map(self.ffns.iter().zip(&segments), |(ffn, segment)| {
            if segment.rows.is_empty() {
                return None;
            }
            let x = received.rows.gather_rows(&segment.rows);
            Some(ffn.forward(p, &x, Some(&segment.gates), DType::F32))
        });
        let mut sums = vec![0.0; received.n_rows() * received.rows.cols()];
        let mut activations = Vec::with_capacity(self.len());
        for ((output, segment), expert) in
            outputs.into_iter().zip(&segments).zip(self.numbers.clone())
        {
            activations.push(output.map(|(y, kept)| {
                self.check(&y, &received.rows, segment, (expert, findings));
                add_rows(&y, segment, &mut sums);
                kept
            }));
        }
        (sums, ExpertsKept { received, segments, activations })
    }

    /// Notes an expert that makes bad numbers of good ones: its owner is the one to look at.
    fn check(
        &self,
        y: &Tensor,
        rows: &Operand,
        segment: &Segment,
        (expert, findings): (u32, &mut Findings),
    ) {
        if y.all_finite() {
            return;
        }
        let x = rows.gather_rows(&segment.rows).to_f32();
        if x.iter().chain(&segment.gates).all(|value| value.is_finite()) {
            findings.note(|| {
                NonFinite::forward(
                    self.layer,
                    format!("layer {} expert {expert} forward", self.layer),
                )
            });
        }
    }

    /// The input half: per received row its gradient, FP32 [R, D], and per pair its gate's.
    pub(super) fn backward_input(
        &self,
        p: &Parameters,
        kept: ExpertsKept,
        d_rows: Arc<Operand>,
        deferred: &mut Vec<Deferred>,
    ) -> (Vec<f32>, Vec<f32>) {
        let ExpertsKept { received, segments, activations } = kept;
        let tasks = self.ffns.iter().zip(&segments).zip(&activations);
        let gradients = spread::map(tasks, |((ffn, segment), activations)| {
            activations.as_ref().map(|activations| {
                let d_y = d_rows.gather_rows(&segment.rows);
                ffn.backward_input(p, activations, Some(&segment.gates), &d_y)
            })
        });
        let mut d_sums = vec![0.0; received.n_rows() * received.rows.cols()];
        let mut d_pairs = vec![0.0; received.n_pairs()];
        for ((gradients, segment), ffn) in gradients.into_iter().zip(&segments).zip(&self.ffns) {
            let Some(gradients) = gradients else { continue };
            let x = Cached::Rows(Arc::clone(&received.rows), Arc::clone(&segment.rows));
            let d_y = Cached::Rows(Arc::clone(&d_rows), Arc::clone(&segment.rows));
            let (d_x, d_gates) = ffn.defer(gradients, x, d_y, deferred);
            add_rows(&d_x, segment, &mut d_sums);
            for (pair, d_gate) in segment.pairs.iter().zip(d_gates) {
                d_pairs[*pair] = d_gate;
            }
        }
        (d_sums, d_pairs)
    }
}

/// Adds an expert's FP32 rows to the rows they were made from.
fn add_rows(values: &Tensor, segment: &Segment, sums: &mut [f32]) {
    let d = values.cols();
    for (row, value_d) in segment.rows.iter().zip(values.f32s().chunks_exact(d)) {
        let sum_d = &mut sums[*row as usize * d..][..d];
        for (sum, value) in sum_d.iter_mut().zip(value_d) {
            *sum += value;
        }
    }
}
