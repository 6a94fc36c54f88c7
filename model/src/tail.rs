//! The end of the last stage: final norm, head and loss, and the multi-token-prediction modules.
//!
//! Head and loss run forward and backward in one pass over chunks of rows, so logits are never all
//! alive: the head's weight gradient and the gradient of what it reads exist after forward.
//!
//! Every module has its own mean over its own targets, and the loss is the mean over the modules
//! (report, equation 25): a sequence of T tokens has T - k targets at depth k.

use std::sync::Arc;

use shoal_kernels::cross_entropy;
use shoal_kernels::linear::Operand;
use shoal_kernels::rmsnorm;
use shoal_kernels::spread;
use shoal_kernels::tensor::Tensor;
use shoal_plan::model::ModelConfig;

use crate::arithmetic::Arithmetic;
use crate::batch::Batch;
use crate::cut::Cut;
use crate::error::Error;
use crate::findings::NonFinite;
use crate::halves::Deferred;
use crate::memory::Memory;
use crate::mtp::{Mtp, MtpKept};
use crate::names::{self, FINAL_NORM};
use crate::parameters::{Id, Parameters};
use crate::run::Run;

#[derive(Clone, Debug)]
pub(crate) struct Tail {
    arithmetic: Arithmetic,
    /// The number after the last layer's, to name the heads in findings.
    layer: u32,
    eps: f32,
    norm: Id,
    /// The embedding's, where they are tied.
    head: Id,
    /// By depth, from 1.
    pub(crate) mtp: Vec<Mtp>,
}

/// Kept after forward.
#[derive(Clone, Debug)]
pub(crate) struct TailKept {
    /// The last layer's output [T, D], before the final norm.
    x: Tensor,
    /// Gradient of what the main head read.
    d_n: Tensor,
    /// By depth: the module's memory, and the gradient of what its head read.
    pub(crate) mtp: Vec<(MtpKept, Tensor)>,
    /// Unweighted sum over targets, in nats.
    pub(crate) main_sum: f64,
    /// As in `Losses`.
    pub(crate) mtp_sum: f64,
}

impl TailKept {
    pub(crate) fn add_to(&self, memory: &mut Memory) {
        memory.cached_residual += self.x.bytes().len();
        memory.cached_heads += self.d_n.bytes().len();
        for (mtp, d_normed) in &self.mtp {
            memory.cached_heads += d_normed.bytes().len();
            mtp.add_to(memory);
        }
    }
}

impl Tail {
    pub(crate) fn new(
        p: &Parameters,
        config: &Arc<ModelConfig>,
        arithmetic: Arithmetic,
        cut: &Cut,
    ) -> Self {
        let mtp = |number| Mtp::new(p, config, arithmetic, cut, number);
        Self {
            arithmetic,
            layer: config.num_hidden_layers,
            eps: config.rms_norm_eps,
            norm: p.id(FINAL_NORM),
            head: p.id(names::head(config)),
            mtp: cut.mtp_layers().map(mtp).collect(),
        }
    }

    /// All losses, and their gradients down to what the heads read.
    pub(crate) fn forward(
        &self,
        p: &mut Parameters,
        x: Tensor,
        batch: &Batch<'_>,
        run: &mut Run<'_>,
    ) -> Result<TailKept, Error> {
        let n = rmsnorm::forward(&x, p.values(self.norm), self.eps);
        let (main_sum, d_n) = self.loss(p, &n, batch.targets, run.scale.main);
        if !main_sum.is_finite() {
            run.findings.note(|| NonFinite::forward(self.layer, "main head's loss"));
        }
        let mut kept = TailKept { x, d_n, mtp: Vec::new(), main_sum, mtp_sum: 0.0 };
        let mut hidden = n;
        for (depth, mtp) in (1..).zip(&self.mtp) {
            let tokens = batch.mtp(depth, run.shape);
            let (normed, mtp_kept) = mtp.forward(p, &hidden, tokens.inputs, run)?;
            let share = share(depth, run.shape.tokens, self.mtp.len());
            let (sum, d_normed) =
                self.loss(p, &normed, &tokens.targets, (f64::from(run.scale.mtp) * share) as f32);
            if !sum.is_finite() {
                run.findings
                    .note(|| NonFinite::forward(self.layer, "multi-token-prediction head's loss"));
            }
            kept.mtp.push((mtp_kept, d_normed));
            kept.mtp_sum += sum * share;
            hidden = normed;
        }
        Ok(kept)
    }

    /// The input half: gradient of the last layer's output.
    pub(crate) fn backward_input(
        &self,
        p: &mut Parameters,
        kept: TailKept,
        run: &mut Run<'_>,
        deferred: &mut Vec<Deferred>,
    ) -> Result<Tensor, Error> {
        let mut d_n = kept.d_n;
        run.findings.check(&d_n, || NonFinite::backward(self.layer, "main head backward"));
        // What each module read: the final norm's output, then the one of the module before.
        let mut hidden = Vec::with_capacity(self.mtp.len());
        for at in 0..self.mtp.len() {
            hidden.push(match at.checked_sub(1) {
                None => rmsnorm::forward(&kept.x, p.values(self.norm), self.eps),
                Some(before) => self.mtp[before].normed(p, &kept.mtp[before].0),
            });
        }
        // The gradient of a module's output that comes from the module behind it.
        let mut behind: Option<Tensor> = None;
        let modules = self.mtp.iter().zip(kept.mtp).zip(&hidden);
        for ((mtp, (mtp_kept, mut d_normed)), hidden) in modules.rev() {
            if let Some(behind) = behind {
                d_normed.add_assign(&behind);
            }
            run.findings.check(&d_normed, || {
                NonFinite::backward(self.layer, "multi-token-prediction head backward")
            });
            let read = (hidden, d_normed);
            behind = Some(mtp.backward_input(p, mtp_kept, read, run, deferred)?);
        }
        if let Some(behind) = behind {
            d_n.add_assign(&behind);
        }
        let (gain, d_gain) = p.values_and_gradient(self.norm);
        let d_x = rmsnorm::backward(&kept.x, gain, self.eps, &d_n, d_gain);
        run.findings.check(&d_x, || NonFinite::backward(self.layer, "heads backward"));
        Ok(d_x)
    }

    /// The main head's loss sum and targets, without any gradient.
    pub(crate) fn evaluate(&self, p: &Parameters, x: &Tensor, targets: &[u32]) -> (f64, u64) {
        let loss = cross_entropy::evaluate(&self.operand(p, x), p.weight(self.head), targets);
        (loss.loss_sum, loss.targets)
    }

    /// The main head's logits [T, V].
    pub(crate) fn logits(&self, p: &Parameters, x: &Tensor) -> Vec<f32> {
        cross_entropy::logits(&self.operand(p, x), p.weight(self.head)).to_f32()
    }

    fn operand(&self, p: &Parameters, x: &Tensor) -> Operand {
        let n = rmsnorm::forward(x, p.values(self.norm), self.eps);
        Operand::prepare(&n, self.arithmetic.wide)
    }

    /// Loss sum of one head and gradient of what it read; accumulates the head's gradient.
    fn loss(&self, p: &mut Parameters, n: &Tensor, targets: &[u32], scale: f32) -> (f64, Tensor) {
        let out = self.arithmetic.activation;
        let loss = spread::inside(|| {
            let n = Operand::prepare(n, self.arithmetic.wide);
            let (weight, d_weight) = p.weight_and_gradient(self.head);
            cross_entropy::forward_backward(&n, weight, targets, scale, out, d_weight)
        });
        (loss.loss_sum, loss.d_h.expect("a backward pass gives the input's gradient"))
    }
}

/// The factor of one depth's sum over targets in `Losses::mtp_sum`: 1 where depth 1 is the only one of `depths`.
/// Divided by the targets of depth 1, the sums become the mean over depths of their means.
pub(crate) fn share(depth: usize, tokens: usize, depths: usize) -> f64 {
    // A sequence that is too short has no target at this depth: the sum is 0.
    let targets = |depth: usize| tokens.saturating_sub(depth).max(1) as f64;
    targets(1) / targets(depth) / depths as f64
}
