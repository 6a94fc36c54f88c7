//! Multi-token prediction: one more decoder layer for each depth k, which predicts token i + 1 + k
//! from the hidden state of token i one depth before and the embedding of token i + k.
//!
//! Source: DeepSeek-V3 report, section 2.2. A hidden state is what the head reads at its depth: of
//! the main model after the final norm, of a module after its own. `eh_proj` reads
//! [embedding ; hidden], as in the released weights. Embedding and head are the main model's; their
//! gradients are summed.

use std::sync::Arc;

use shoal_kernels::embedding;
use shoal_kernels::linear::Operand;
use shoal_kernels::rmsnorm;
use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::model::ModelConfig;

use crate::arithmetic::Arithmetic;
use crate::columns::{columns, joined};
use crate::cut::Cut;
use crate::error::Error;
use crate::findings::NonFinite;
use crate::halves::{Cached, Deferred};
use crate::layer::{Layer, LayerKept};
use crate::memory::Memory;
use crate::names::{EMBEDDING, of_layer};
use crate::parameters::{Id, Parameters};
use crate::run::Run;

#[derive(Clone, Debug)]
pub(crate) struct Mtp {
    arithmetic: Arithmetic,
    eps: f32,
    embedding: Id,
    e_norm: Id,
    h_norm: Id,
    eh_proj: Id,
    pub(crate) layer: Layer,
    /// The norm before the shared head.
    norm: Id,
}

/// Kept after forward.
#[derive(Clone, Debug)]
pub(crate) struct MtpKept {
    /// Token i + k.
    inputs: Vec<u32>,
    /// `eh_proj`'s input [T, 2D].
    eh: Arc<Operand>,
    pub(crate) layer: LayerKept,
    /// The layer's output, before the norm.
    x: Tensor,
}

impl MtpKept {
    pub(crate) fn add_to(&self, memory: &mut Memory) {
        memory.cached_residual += self.x.bytes().len();
        memory.cached_heads += self.eh.bytes();
        self.layer.add_to(memory);
    }
}

impl Mtp {
    pub(crate) fn new(
        p: &Parameters,
        config: &Arc<ModelConfig>,
        arithmetic: Arithmetic,
        cut: &Cut,
        number: u32,
    ) -> Self {
        let id = |rest: &str| p.id(&of_layer(number, rest));
        Self {
            arithmetic,
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
    pub(crate) fn forward(
        &self,
        p: &Parameters,
        hidden: &Tensor,
        inputs: Vec<u32>,
        run: &mut Run<'_>,
    ) -> Result<(Tensor, MtpKept), Error> {
        let out = self.arithmetic.activation;
        let e = p.embedded(self.embedding, &inputs, out);
        let e = rmsnorm::forward(&e, p.values(self.e_norm), self.eps);
        let h = rmsnorm::forward(hidden, p.values(self.h_norm), self.eps);
        let eh = Arc::new(Operand::prepare(&joined(&e, &h), self.arithmetic.wide));
        let (x, layer) = self.layer.forward(p, p.linear(self.eh_proj, &eh, out), run)?;
        let kept = MtpKept { inputs, eh, layer, x };
        Ok((self.normed(p, &kept), kept))
    }

    /// What `forward` returned, from what it kept.
    pub(crate) fn normed(&self, p: &Parameters, kept: &MtpKept) -> Tensor {
        rmsnorm::forward(&kept.x, p.values(self.norm), self.eps)
    }

    /// The input half: the gradient of `hidden`, which is computed again by the caller, from that of
    /// what `forward` returned.
    pub(crate) fn backward_input(
        &self,
        p: &mut Parameters,
        kept: MtpKept,
        (hidden, d_normed): (&Tensor, Tensor),
        run: &mut Run<'_>,
        deferred: &mut Vec<Deferred>,
    ) -> Result<Tensor, Error> {
        let out = self.arithmetic.activation;
        let (gain, d_gain) = p.values_and_gradient(self.norm);
        let d_x = rmsnorm::backward(&kept.x, gain, self.eps, &d_normed, d_gain);
        run.findings.check(&d_x, || {
            let place = "multi-token-prediction head's norm, backward";
            NonFinite::backward(self.layer.number(), place)
        });
        let d_x = self.layer.backward_input(p, kept.layer, d_x, run, deferred)?;

        let d_y = Arc::new(Operand::prepare(&d_x, self.arithmetic.wide));
        let d_eh = p.linear_input_gradient(self.eh_proj, &d_y, DType::F32);
        let (x, d_y) = (Cached::Whole(kept.eh), Cached::Whole(d_y));
        deferred.push(Deferred { parameter: self.eh_proj, x, d_y });
        let d_eh = self.arithmetic.round(d_eh);
        let d = hidden.cols();

        let e = p.embedded(self.embedding, &kept.inputs, out);
        let (gain, d_gain) = p.values_and_gradient(self.e_norm);
        let d_e = rmsnorm::backward(&e, gain, self.eps, &columns(&d_eh, 0..d), d_gain);
        embedding::backward(&kept.inputs, &d_e, p.values_and_gradient(self.embedding).1);

        let (gain, d_gain) = p.values_and_gradient(self.h_norm);
        Ok(rmsnorm::backward(hidden, gain, self.eps, &columns(&d_eh, d..2 * d), d_gain))
    }
}
