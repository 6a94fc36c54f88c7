//! The end of the last stage on a device: final norm, head and loss, multi-token-prediction modules. `crate::tail`
//! judges it.

use std::sync::Arc;

use shoal_kernels::DType;
use shoal_kernels::cuda::{Block, DeviceError, cross_entropy, gemm};
use shoal_plan::model::ModelConfig;

use super::gpu::Gpu;
use super::halves::Deferred;
use super::matrix::Matrix;
use super::mtp::{Mtp, MtpKept};
use super::parameters::{GroupId, Parameters};
use super::room::Extent;
use super::run::Run;
use crate::arithmetic::Arithmetic;
use crate::batch::Batch;
use crate::cut::Cut;
use crate::error::Error;
use crate::findings::NonFinite;
use crate::names::{self, FINAL_NORM};

/// Logits alive at once, unless one row has more.
const LOGITS: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Tail {
    /// The number after the last layer's, to name the heads in findings.
    layer: u32,
    eps: f32,
    norm: GroupId,
    /// The embedding's, where they are tied.
    head: GroupId,
    /// By depth, from 1.
    pub(super) mtp: Vec<Mtp>,
}

/// Kept after forward.
#[derive(Debug)]
pub(super) struct TailKept {
    /// The last layer's output [T, D], before the final norm.
    x: Matrix,
    /// Gradient of what the main head read.
    d_n: Matrix,
    /// By depth: the module's memory, and the gradient of what its head read.
    pub(super) mtp: Vec<(MtpKept, Matrix)>,
}

/// A sum of losses on its way: where it will be, and what it is multiplied by.
#[derive(Debug)]
pub(super) struct LossSum {
    pub(super) sum: Block,
    pub(super) share: f64,
}

/// Of one microbatch.
#[derive(Debug)]
pub(super) struct LossSums {
    pub(super) main: LossSum,
    pub(super) mtp: Vec<LossSum>,
}

impl Tail {
    pub(super) fn new(
        p: &Parameters,
        config: &Arc<ModelConfig>,
        arithmetic: Arithmetic,
        cut: &Cut,
    ) -> Self {
        let mtp = |number| Mtp::new(p, config, arithmetic, cut, number);
        Self {
            layer: config.num_hidden_layers,
            eps: config.rms_norm_eps,
            norm: p.id(FINAL_NORM),
            head: p.id(names::head(config)),
            mtp: cut.mtp_layers().map(mtp).collect(),
        }
    }

    /// All losses, and their gradients down to what the heads read. `biases` are the modules' routers'.
    pub(super) fn forward(
        &self,
        p: &Parameters,
        biases: &[Option<&[f32]>],
        x: Matrix,
        batch: &Batch<'_>,
        run: &mut Run<'_>,
    ) -> Result<(TailKept, LossSums), Error> {
        let n = self.normed(run.gpu, p, &x)?;
        let what = "main head's loss";
        let (sum, d_n) = self.loss(p, &n, (batch.targets, run.scale.main), what, run)?;
        let main = LossSum { sum, share: 1.0 };
        let mut sums = LossSums { main, mtp: Vec::new() };
        let mut kept = TailKept { x, d_n, mtp: Vec::new() };
        let mut hidden = n;
        for (depth, (mtp, bias)) in (1..).zip(self.mtp.iter().zip(biases)) {
            let tokens = batch.mtp(depth, run.shape);
            let (normed, mtp_kept) = mtp.forward(p, *bias, &hidden, &tokens.inputs, run)?;
            let share = crate::tail::share(depth, run.shape.tokens, self.mtp.len());
            let scale = (f64::from(run.scale.mtp) * share) as f32;
            let what = "multi-token-prediction head's loss";
            let (sum, d_normed) = self.loss(p, &normed, (&tokens.targets, scale), what, run)?;
            kept.mtp.push((mtp_kept, d_normed));
            sums.mtp.push(LossSum { sum, share });
            hidden = normed;
        }
        Ok((kept, sums))
    }

    /// The input half: gradient of the last layer's output.
    pub(super) fn backward_input(
        &self,
        p: &Parameters,
        kept: TailKept,
        run: &mut Run<'_>,
        deferred: &mut Vec<Deferred>,
    ) -> Result<Matrix, Error> {
        let gpu = run.gpu;
        let d_n = kept.d_n;
        run.check(&d_n, NonFinite::backward(self.layer, "main head backward"))?;
        // What each module read: the final norm's output, then the one of the module before.
        let mut hidden = Vec::with_capacity(self.mtp.len());
        for at in 0..self.mtp.len() {
            hidden.push(match at.checked_sub(1) {
                None => self.normed(gpu, p, &kept.x)?,
                Some(before) => self.mtp[before].normed(gpu, p, &kept.mtp[before].0)?,
            });
        }
        // The gradient of a module's output that comes from the module behind it.
        let mut behind: Option<Matrix> = None;
        let modules = self.mtp.iter().zip(kept.mtp).zip(&hidden);
        for ((mtp, (mtp_kept, d_normed)), hidden) in modules.rev() {
            if let Some(behind) = behind {
                gpu.add(&d_normed, &behind)?;
            }
            let place = "multi-token-prediction head backward";
            run.check(&d_normed, NonFinite::backward(self.layer, place))?;
            behind = Some(mtp.backward_input(p, mtp_kept, (hidden, &d_normed), run, deferred)?);
        }
        if let Some(behind) = behind {
            gpu.add(&d_n, &behind)?;
        }
        let d_x =
            gpu.matrix("the gradient of the last layer", DType::Bf16, (d_n.extent(), d_n.cols))?;
        let (sides, norm) = ((kept.x.packed(), d_n.packed()), d_n.norm(self.eps));
        gpu.norm_backward(p, (self.norm, norm), sides, d_x.packed(), None)?;
        run.check(&d_x, NonFinite::backward(self.layer, "heads backward"))?;
        Ok(d_x)
    }

    /// The main head's loss sum and targets, without any gradient; waits for the device.
    pub(super) fn evaluate(
        &self,
        gpu: &Gpu,
        p: &Parameters,
        x: &Matrix,
        targets: &[u32],
    ) -> Result<(f64, u64), DeviceError> {
        let n = self.normed(gpu, p, x)?;
        let head = Loss::new(gpu, p.weight(self.head).n, &n, targets)?;
        let (inputs, out) = (head.inputs(self.weight(p), &n), head.out());
        let (room, gemm) = (head.logits.all(), &gpu.kernels.gemm);
        gpu.kernels.cross_entropy.evaluate(&gpu.stream, gemm, inputs, out, room, head.shape)?;
        let targets =
            targets.iter().filter(|target| **target != shoal_kernels::cross_entropy::IGNORE);
        Ok((gpu.number(&head.total)?, targets.count() as u64))
    }

    fn normed(&self, gpu: &Gpu, p: &Parameters, x: &Matrix) -> Result<Matrix, DeviceError> {
        gpu.plain_norm(p, self.norm, x.norm(self.eps), x.packed())
    }

    fn weight<'a>(&self, p: &'a Parameters) -> gemm::Operand<'a> {
        p.weight(self.head).side()
    }

    /// Loss sum of one head and gradient of what it read; accumulates the head's gradient.
    fn loss(
        &self,
        p: &Parameters,
        n: &Matrix,
        (targets, scale): (&[u32], f32),
        what: &'static str,
        run: &mut Run<'_>,
    ) -> Result<(Block, Matrix), Error> {
        let gpu = run.gpu;
        let loss = Loss::new(gpu, p.weight(self.head).n, n, targets)?;
        let size = (n.extent(), n.cols);
        let d_n = gpu.matrix("the gradient of what a head read", DType::Bf16, size)?;
        let d_logits = gpu.rows("gradients of logits", loss.alive, 2 * loss.shape.v)?;
        let gradients =
            cross_entropy::Gradients { scale, d_h: d_n.output(false), dw: p.gradient(self.head) };
        let room = cross_entropy::Room { logits: loss.logits.all(), d_logits: d_logits.all() };
        let (inputs, out) = (loss.inputs(self.weight(p), n), loss.out());
        gpu.kernels.cross_entropy.forward_backward(
            &gpu.stream,
            &gpu.kernels.gemm,
            inputs,
            out,
            gradients,
            room,
            loss.shape,
        )?;
        run.check(&loss.losses, NonFinite::forward(self.layer, what))?;
        Ok((loss.total, d_n))
    }
}

/// One head's loss under way.
struct Loss {
    targets: Block,
    losses: Matrix,
    total: Block,
    logits: Block,
    /// Rows of logits.
    alive: Extent,
    shape: cross_entropy::Shape,
}

impl Loss {
    fn new(gpu: &Gpu, vocabulary: usize, n: &Matrix, targets: &[u32]) -> Result<Self, DeviceError> {
        let shape = cross_entropy::Shape { t: n.rows, d: n.cols, v: vocabulary };
        let most = |rows: usize| (LOGITS / vocabulary.max(1)).clamp(1, rows.max(1));
        let alive = Extent { rows: most(n.rows), room: most(n.room) };
        Ok(Self {
            targets: gpu.upload_words("targets", targets, n.room)?,
            losses: gpu.matrix("losses", DType::F32, (n.extent(), 1))?,
            total: gpu.block("a sum of losses", 8)?,
            logits: gpu.rows("logits", alive, 4 * vocabulary)?,
            alive,
            shape,
        })
    }

    fn inputs<'a>(&'a self, head: gemm::Operand<'a>, n: &'a Matrix) -> cross_entropy::Inputs<'a> {
        let gemm::Operand::Bf16(w) = head else { panic!("the head is never in FP8") };
        cross_entropy::Inputs { h: n.slice(), w, targets: self.targets.all() }
    }

    fn out(&self) -> cross_entropy::Losses<'_> {
        cross_entropy::Losses { losses: self.losses.slice(), total: self.total.all() }
    }
}
