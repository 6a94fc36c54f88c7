//! Multi-token prediction on a device: `crate::mtp`, which judges it.

use std::sync::Arc;

use shoal_kernels::DType;
use shoal_kernels::cuda::{DeviceError, embedding};
use shoal_plan::model::ModelConfig;

use super::gpu::Gpu;
use super::halves::{Cached, Deferred};
use super::layer::{Layer, LayerKept};
use super::matrix::{Matrix, Operand};
use super::parameters::{GroupId, Parameters};
use super::run::Run;
use crate::arithmetic::Arithmetic;
use crate::cut::Cut;
use crate::error::Error;
use crate::findings::NonFinite;
use crate::names::{EMBEDDING, of_layer};

#[derive(Debug)]
pub(super) struct Mtp {
    eps: f32,
    embedding: GroupId,
    e_norm: GroupId,
    h_norm: GroupId,
    eh_proj: GroupId,
    pub(super) layer: Layer,
    /// The norm before the shared head.
    norm: GroupId,
}

/// Kept after forward.
#[derive(Debug)]
pub(super) struct MtpKept {
    /// Token i + k.
    inputs: embedding::Tokens,
    /// `eh_proj`'s input [T, 2D].
    eh: Arc<Operand>,
    pub(super) layer: LayerKept,
    /// The layer's output, before the norm.
    x: Matrix,
}

impl Mtp {
    pub(super) fn new(
        p: &Parameters,
        config: &Arc<ModelConfig>,
        arithmetic: Arithmetic,
        cut: &Cut,
        number: u32,
    ) -> Self {
        let id = |rest: &str| p.id(&of_layer(number, rest));
        Self {
            eps: config.rms_norm_eps,
            embedding: p.id(EMBEDDING),
            e_norm: id("enorm.weight"),
            h_norm: id("hnorm.weight"),
            eh_proj: id("eh_proj.weight"),
            layer: Layer::new(p, config, arithmetic, cut, number),
            norm: id("shared_head.norm.weight"),
        }
    }

    /// What the shared head and the next module read [T, D], from the `hidden` of the depth before.
    pub(super) fn forward(
        &self,
        p: &Parameters,
        bias: Option<&[f32]>,
        hidden: &Matrix,
        inputs: &[u32],
        run: &mut Run<'_>,
    ) -> Result<(Matrix, MtpKept), Error> {
        let gpu = run.gpu;
        let inputs = gpu.tokens(inputs, p.weight(self.embedding).n)?;
        let e = gpu.embedded(p, self.embedding, &inputs)?;
        let (d, sizes) = (hidden.cols, hidden.norm(self.eps));
        let eh = gpu.matrix("embedding and hidden", DType::Bf16, (hidden.extent(), 2 * d))?;
        let norm = |x: &Matrix, gain, first| {
            let inputs = (x.packed(), p.master(gain), None);
            gpu.kernels.rmsnorm.forward(&gpu.stream, inputs, Some(eh.rows_from(first)), None, sizes)
        };
        norm(&e, self.e_norm, 0)?;
        norm(hidden, self.h_norm, d)?;
        let eh = Arc::new(Operand::Bf16(eh));
        let x = gpu.linear(p.weight(self.eh_proj), &eh, DType::Bf16)?;
        let (x, layer) = self.layer.forward(p, bias, x, run)?;
        let kept = MtpKept { inputs, eh, layer, x };
        Ok((self.normed(gpu, p, &kept)?, kept))
    }

    /// What `forward` returned, from what it kept.
    pub(super) fn normed(
        &self,
        gpu: &Gpu,
        p: &Parameters,
        kept: &MtpKept,
    ) -> Result<Matrix, DeviceError> {
        gpu.plain_norm(p, self.norm, kept.x.norm(self.eps), kept.x.packed())
    }

    /// The input half: the gradient of `hidden`, which is computed again by the caller, from that of
    /// what `forward` returned.
    pub(super) fn backward_input(
        &self,
        p: &Parameters,
        kept: MtpKept,
        (hidden, d_normed): (&Matrix, &Matrix),
        run: &mut Run<'_>,
        deferred: &mut Vec<Deferred>,
    ) -> Result<Matrix, Error> {
        let (gpu, sizes) = (run.gpu, hidden.norm(self.eps));
        let like = |what| gpu.matrix(what, DType::Bf16, (hidden.extent(), hidden.cols));
        let d_x = like("the gradient of a module's layer")?;
        let sides = (kept.x.packed(), d_normed.packed());
        gpu.norm_backward(p, (self.norm, sizes), sides, d_x.packed(), None)?;
        let place = "multi-token-prediction head's norm, backward";
        run.check(&d_x, NonFinite::backward(self.layer.number(), place))?;
        let d_x = self.layer.backward_input(p, kept.layer, &d_x, run, deferred)?;

        let d_y = Arc::new(Operand::Bf16(d_x));
        let d_eh = gpu.linear_input_gradient(p.weight(self.eh_proj), &d_y, DType::Bf16)?;
        let (x, d_y) = (Cached::Whole(kept.eh), Cached::Whole(d_y));
        deferred.push(Deferred { group: self.eh_proj, x, d_y, experts: None });

        let e = gpu.embedded(p, self.embedding, &kept.inputs)?;
        let d_e = like("the gradient of embeddings")?;
        let sides = (e.packed(), d_eh.rows_from(0));
        gpu.norm_backward(p, (self.e_norm, sizes), sides, d_e.packed(), None)?;
        gpu.add_embedding_gradient(p, self.embedding, &kept.inputs, &d_e)?;

        let d_hidden = like("the gradient of a hidden state")?;
        let sides = (hidden.packed(), d_eh.rows_from(hidden.cols));
        gpu.norm_backward(p, (self.h_norm, sizes), sides, d_hidden.packed(), None)?;
        Ok(d_hidden)
    }
}
