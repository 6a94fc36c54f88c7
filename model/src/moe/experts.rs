//! The cell's own routed experts at work on the rows received from the whole group. Experts run at
//! the same time; each sums in its own order, so threads do not change a bit.

use std::ops::Range;
use std::sync::Arc;

use shoal_kernels::linear::{Operand, Rows};
use shoal_kernels::row_sums::{self, Terms};
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
    arithmetic: Arithmetic,
    numbers: Range<u32>,
    ffns: Vec<Ffn>,
}

/// Kept after forward.
#[derive(Clone, Debug)]
pub(super) struct ExpertsKept {
    pub(super) received: Received,
    segments: Vec<Segment>,
    /// Of each pair of a row and an expert: the expert, and the place among its rows.
    places: Vec<(u32, u32)>,
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
        Self { layer, arithmetic, ffns: numbers.clone().map(ffn).collect(), numbers }
    }

    pub(super) fn len(&self) -> usize {
        self.ffns.len()
    }

    /// Per received row the sum over its local experts [R, D], FP32 in ascending expert order,
    /// rounded once as it travels back.
    pub(super) fn forward(
        &self,
        p: &Parameters,
        received: Received,
        findings: &mut Findings,
    ) -> (Tensor, ExpertsKept) {
        let (segments, places) = received.segments(self.len());
        let outputs = self.each(&segments, |expert, segment| {
            let x = Rows::gathered(&received.rows, &segment.rows);
            let (y, kept) = self.ffns[expert].forward(p, x, Some(&segment.gates), DType::F32);
            let is_finite = y.all_finite();
            (y, kept, is_finite)
        });
        let mut values = Vec::with_capacity(self.len());
        let mut activations = Vec::with_capacity(self.len());
        for ((output, segment), expert) in
            outputs.into_iter().zip(&segments).zip(self.numbers.clone())
        {
            let (value, kept) = output.map_or((None, None), |(y, kept, is_finite)| {
                if !is_finite {
                    self.note(&received.rows, segment, (expert, findings));
                }
                (Some(y), Some(kept))
            });
            values.push(value);
            activations.push(kept);
        }
        let sums = self.by_row(&received, &places, &values);
        (sums, ExpertsKept { received, segments, places, activations })
    }

    /// Runs all experts that have rows, those with most first; results in the order of experts.
    fn each<R: Send>(
        &self,
        segments: &[Segment],
        work: impl Fn(usize, &Segment) -> R + Sync + Send,
    ) -> Vec<Option<R>> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|expert| std::cmp::Reverse(segments[*expert].rows.len()));
        order.retain(|expert| !segments[*expert].rows.is_empty());
        let results = spread::map(order, |expert| (expert, work(expert, &segments[expert])));
        let mut by_expert: Vec<Option<R>> = (0..self.len()).map(|_| None).collect();
        for (expert, result) in results {
            by_expert[expert] = Some(result);
        }
        by_expert
    }

    /// Adds the experts' rows to the rows they were made from.
    fn by_row(
        &self,
        received: &Received,
        places: &[(u32, u32)],
        values: &[Option<Tensor>],
    ) -> Tensor {
        let sources: Vec<Option<&Tensor>> = values.iter().map(Option::as_ref).collect();
        let terms = Terms { first: received.first(), places, sources: &sources };
        row_sums::sum(&terms, received.rows.cols(), None, self.arithmetic.activation)
    }

    /// Notes an expert that made bad numbers, if it made them of good ones: its owner is the one to
    /// look at.
    fn note(&self, rows: &Operand, segment: &Segment, (expert, findings): (u32, &mut Findings)) {
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

    /// The input half: per received row its gradient [R, D], as it travels back, and per pair its
    /// gate's.
    pub(super) fn backward_input(
        &self,
        p: &Parameters,
        kept: ExpertsKept,
        d_rows: Arc<Operand>,
        deferred: &mut Vec<Deferred>,
    ) -> (Tensor, Vec<f32>) {
        let ExpertsKept { received, segments, places, activations } = kept;
        let gradients = self.each(&segments, |expert, segment| {
            let kept = activations[expert].as_ref().expect("an expert with rows kept its inputs");
            let x = Rows::gathered(&received.rows, &segment.rows);
            let d_y = Rows::gathered(&d_rows, &segment.rows);
            self.ffns[expert].backward_input(p, (x, kept), Some(&segment.gates), d_y)
        });
        let mut d_pairs = vec![0.0; received.n_pairs()];
        let mut values = Vec::with_capacity(self.len());
        for ((gradients, segment), ffn) in gradients.into_iter().zip(&segments).zip(&self.ffns) {
            values.push(gradients.map(|gradients| {
                let x = Cached::Rows(Arc::clone(&received.rows), Arc::clone(&segment.rows));
                let d_y = Cached::Rows(Arc::clone(&d_rows), Arc::clone(&segment.rows));
                let (d_x, d_gates) = ffn.defer(gradients, x, d_y, deferred);
                for (pair, d_gate) in segment.pairs.iter().zip(d_gates) {
                    d_pairs[*pair] = d_gate;
                }
                d_x
            }));
        }
        (self.by_row(&received, &places, &values), d_pairs)
    }
}
