//! The SwiGLU feed-forward, `down(silu(gate x) * up x)`, used by dense layers, shared experts and
//! routed experts. A routed expert multiplies by the token's gate before `down`.

use std::sync::Arc;

use shoal_kernels::linear::{Operand, Rows};
use shoal_kernels::rmsnorm;
use shoal_kernels::swiglu;
use shoal_kernels::tensor::{DType, Tensor};

use crate::arithmetic::Arithmetic;
use crate::halves::{Cached, Deferred};
use crate::memory::Memory;
use crate::names::of_layer;
use crate::parameters::{Id, Parameters};

/// Three Linears.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ffn {
    arithmetic: Arithmetic,
    gate: Id,
    up: Id,
    down: Id,
}

/// Kept after forward; nothing where backward computes it again.
#[derive(Clone, Debug)]
pub(crate) struct FfnKept(Option<Inputs>);

/// SwiGLU's inputs [T, F], in the form of a Linear's input.
#[derive(Clone, Debug)]
struct Inputs {
    g: Operand,
    u: Operand,
}

/// What the input half gives.
#[derive(Debug)]
pub(crate) struct FfnGradients {
    /// FP32, so that several can be summed before they are rounded.
    pub(crate) d_x: Tensor,
    /// One per row, or none if there were no gates.
    pub(crate) d_gates: Vec<f32>,
    h: Operand,
    d_g: Operand,
    d_u: Operand,
}

impl FfnKept {
    pub(crate) fn add_to(&self, memory: &mut Memory) {
        let bytes = |inputs: &Inputs| inputs.g.bytes() + inputs.u.bytes();
        memory.cached_linear_inputs += self.0.as_ref().map_or(0, bytes);
    }
}

impl Ffn {
    /// The Linears `{prefix}.gate_proj`, `up_proj` and `down_proj` of a layer.
    pub(crate) fn new(p: &Parameters, arithmetic: Arithmetic, layer: u32, prefix: &str) -> Self {
        let id = |linear: &str| p.id(&of_layer(layer, &format!("{prefix}.{linear}.weight")));
        Self { arithmetic, gate: id("gate_proj"), up: id("up_proj"), down: id("down_proj") }
    }

    /// y [T, D] in `out`.
    pub(crate) fn forward<'a>(
        &self,
        p: &Parameters,
        x: impl Into<Rows<'a>>,
        gates: Option<&[f32]>,
        out: DType,
    ) -> (Tensor, FfnKept) {
        let [g, u] = p.linear_pair([self.gate, self.up], x, self.arithmetic.activation);
        let h = self.arithmetic.into_operand(swiglu::forward(&g, &u, gates));
        let keeps = !self.arithmetic.recompute.feed_forward();
        let kept = FfnKept(keeps.then(|| self.inputs([g, u])));
        (p.linear(self.down, &h, out), kept)
    }

    fn inputs(&self, [g, u]: [Tensor; 2]) -> Inputs {
        Inputs { g: self.arithmetic.into_operand(g), u: self.arithmetic.into_operand(u) }
    }

    /// The input half. SwiGLU's output is computed again from what was kept, and its inputs from `x` if they were
    /// not.
    pub(crate) fn backward_input<'a>(
        &self,
        p: &Parameters,
        (x, kept): (impl Into<Rows<'a>>, &FfnKept),
        gates: Option<&[f32]>,
        d_y: impl Into<Rows<'a>>,
    ) -> FfnGradients {
        let again = kept.0.is_none().then(|| {
            self.inputs(p.linear_pair([self.gate, self.up], x, self.arithmetic.activation))
        });
        let Inputs { g, u } = kept.0.as_ref().or(again.as_ref()).expect("kept, or computed again");
        let (g, u) = (self.arithmetic.activations(g), self.arithmetic.activations(u));
        let d_h = p.linear_input_gradient(self.down, d_y, self.arithmetic.activation);
        let back = swiglu::backward(&g, &u, gates, &d_h);
        let h = self.arithmetic.into_operand(back.h);
        let own = |gradient| self.arithmetic.into_gradient_operand(gradient);
        let (d_g, d_u, d_gates) = (own(back.dg), own(back.du), back.d_gate);
        let mut d_x = p.linear_input_gradient(self.gate, &d_g, DType::F32);
        p.add_linear_input_gradient(self.up, &d_u, &mut d_x);
        FfnGradients { d_x, d_gates, h, d_g, d_u }
    }

    /// Puts off the three weight gradients; returns `d_x` and the gates' gradients.
    pub(crate) fn defer(
        &self,
        gradients: FfnGradients,
        x: Cached,
        d_y: Cached,
        deferred: &mut Vec<Deferred>,
    ) -> (Tensor, Vec<f32>) {
        let FfnGradients { d_x, d_gates, h, d_g, d_u } = gradients;
        let whole = |operand| Cached::Whole(Arc::new(operand));
        deferred.push(Deferred { parameter: self.gate, x: x.clone(), d_y: whole(d_g) });
        deferred.push(Deferred { parameter: self.up, x, d_y: whole(d_u) });
        deferred.push(Deferred { parameter: self.down, x: whole(h), d_y });
        (d_x, d_gates)
    }
}

/// A dense layer's feed-forward as a residual block: x + ffn(norm(x)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dense {
    arithmetic: Arithmetic,
    norm: Id,
    eps: f32,
    ffn: Ffn,
}

/// Kept after forward.
#[derive(Clone, Debug)]
pub(crate) struct DenseKept {
    x: Tensor,
    /// `None` where backward computes it again.
    n: Option<Arc<Operand>>,
    ffn: FfnKept,
}

impl DenseKept {
    pub(crate) fn add_to(&self, memory: &mut Memory) {
        memory.cached_residual += self.x.bytes().len();
        memory.cached_linear_inputs += self.n.as_ref().map_or(0, |n| n.bytes());
        self.ffn.add_to(memory);
    }
}

impl Dense {
    pub(crate) fn new(p: &Parameters, arithmetic: Arithmetic, layer: u32, eps: f32) -> Self {
        let norm = p.id(&of_layer(layer, "post_attention_layernorm.weight"));
        Self { arithmetic, norm, eps, ffn: Ffn::new(p, arithmetic, layer, "mlp") }
    }

    pub(crate) fn forward(&self, p: &Parameters, x: Tensor) -> (Tensor, DenseKept) {
        let n = self.normed(p, &x);
        let (mut y, ffn) = self.ffn.forward(p, &*n, None, self.arithmetic.activation);
        y.add_assign(&x);
        let keeps = !self.arithmetic.recompute.feed_forward();
        (y, DenseKept { x, n: keeps.then_some(n), ffn })
    }

    fn normed(&self, p: &Parameters, x: &Tensor) -> Arc<Operand> {
        let n = rmsnorm::forward(x, p.values(self.norm), self.eps);
        Arc::new(self.arithmetic.into_operand(n))
    }

    pub(crate) fn backward_input(
        &self,
        p: &mut Parameters,
        kept: DenseKept,
        d_y: Tensor,
        deferred: &mut Vec<Deferred>,
    ) -> Tensor {
        let d_y_operand = Arc::new(self.arithmetic.gradient_operand(&d_y));
        let n = kept.n.unwrap_or_else(|| self.normed(p, &kept.x));
        let gradients = self.ffn.backward_input(p, (&*n, &kept.ffn), None, &*d_y_operand);
        let (x, d_y_cached) = (Cached::Whole(n), Cached::Whole(d_y_operand));
        let (d_n, _) = self.ffn.defer(gradients, x, d_y_cached, deferred);
        let (gain, d_gain) = p.values_and_gradient(self.norm);
        rmsnorm::backward_onto(&d_y, &kept.x, (gain, self.eps), &d_n, d_gain)
    }
}
