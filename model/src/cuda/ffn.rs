//! The SwiGLU feed-forward on a device: `crate::ffn`, which judges it.

use std::sync::Arc;

use shoal_kernels::cuda::quantise::Shape;
use shoal_kernels::cuda::{DeviceError, Slice, gemm, swiglu};
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, Tiling};

use super::gpu::Gpu;
use super::halves::{Cached, Deferred};
use super::matrix::{Matrix, Operand, Tiles};
use super::parameters::{GroupId, Parameters};
use crate::arithmetic::Arithmetic;
use crate::names::of_layer;

/// Three Linears, or those of all local experts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ffn {
    arithmetic: Arithmetic,
    pub(super) gate: GroupId,
    pub(super) up: GroupId,
    pub(super) down: GroupId,
}

/// Kept after forward; nothing where backward computes it again.
#[derive(Debug)]
pub(super) struct FfnKept(Option<Inputs>);

/// SwiGLU's inputs [T, F], in the form of a Linear's input.
#[derive(Debug)]
struct Inputs {
    g: Operand,
    u: Operand,
}

/// The gates of rows, and the experts that they belong to.
type ByExpert<'a, G> = (Option<G>, Option<gemm::Groups<'a>>);

/// What the input half gives.
#[derive(Debug)]
pub(super) struct FfnGradients {
    /// FP32 [T, D], so that several can be summed before they are rounded.
    pub(super) d_x: Matrix,
    h: Operand,
    d_g: Operand,
    d_u: Operand,
}

impl Ffn {
    /// The Linears `{prefix}.gate_proj`, `up_proj` and `down_proj` of a layer.
    pub(super) fn new(p: &Parameters, arithmetic: Arithmetic, layer: u32, prefix: &str) -> Self {
        let id = |linear: &str| p.id(&of_layer(layer, &format!("{prefix}.{linear}.weight")));
        Self { arithmetic, gate: id("gate_proj"), up: id("up_proj"), down: id("down_proj") }
    }

    /// y [T, D] in `out`. With groups, rows of none of them hold anything.
    pub(super) fn forward(
        &self,
        (gpu, p): (&Gpu, &Parameters),
        x: &Operand,
        by_expert: ByExpert<'_, Slice<'_>>,
        out: DType,
    ) -> Result<(Matrix, FfnKept), DeviceError> {
        let keeps = !self.arithmetic.recompute.feed_forward();
        let (h, inputs) = self.hidden((gpu, p), x, by_expert, keeps)?;
        let y = gpu.grouped_linear(p.weight(self.down), &h, out, by_expert.1)?;
        Ok((y, FfnKept(inputs)))
    }

    /// The output of SwiGLU, and its inputs where they are wanted.
    fn hidden(
        &self,
        (gpu, p): (&Gpu, &Parameters),
        x: &Operand,
        (gates, groups): ByExpert<'_, Slice<'_>>,
        wanted: bool,
    ) -> Result<(Operand, Option<Inputs>), DeviceError> {
        let g = gpu.grouped_linear(p.weight(self.gate), x, DType::Bf16, groups)?;
        let u = gpu.grouped_linear(p.weight(self.up), x, DType::Bf16, groups)?;
        let shape = Shape { rows: g.rows, cols: g.cols };
        let inputs = (g.slice(), u.slice(), gates);
        Ok(match self.arithmetic.input {
            Math::F32 => panic!("precision f32 stays on the CPU"),
            Math::Bf16 => {
                let h = gpu.matrix("the output of SwiGLU", DType::Bf16, (g.extent(), g.cols))?;
                let hidden = swiglu::Hidden::Bf16(h.slice());
                gpu.kernels.swiglu.forward(&gpu.stream, inputs, hidden, shape)?;
                let inputs = Inputs { g: Operand::Bf16(g), u: Operand::Bf16(u) };
                (Operand::Bf16(h), wanted.then_some(inputs))
            }
            Math::Fp8(_) => {
                let codes = |what| like(gpu, what, &g, self.arithmetic.input);
                let h = codes("the output of SwiGLU")?;
                let both = || Ok([codes("an input of SwiGLU")?, codes("an input of SwiGLU")?]);
                let kept = wanted.then(both).transpose()?;
                let slices = kept.as_ref().map(|kept| kept.each_ref().map(Tiles::slices));
                let hidden = swiglu::Hidden::Fp8 { h: h.slices(), kept: slices };
                gpu.kernels.swiglu.forward(&gpu.stream, inputs, hidden, shape)?;
                let kept = kept.map(|kept| kept.map(Operand::Fp8));
                (Operand::Fp8(h), kept.map(|[g, u]| Inputs { g, u }))
            }
        })
    }

    /// Whether the input half reads what forward read.
    pub(super) fn reads_again(&self) -> bool {
        self.arithmetic.recompute.feed_forward()
    }

    /// The input half. SwiGLU's output is computed again from what was kept, and its inputs from `x` if they were
    /// not.
    pub(super) fn backward_input(
        &self,
        (gpu, p): (&Gpu, &Parameters),
        (x, kept): (Option<&Operand>, &FfnKept),
        (gates, groups): ByExpert<'_, swiglu::Gates<'_>>,
        d_y: &Operand,
    ) -> Result<FfnGradients, DeviceError> {
        let again = match (&kept.0, x) {
            (None, Some(x)) => {
                let by_expert = (gates.map(|gates| gates.gates), groups);
                self.hidden((gpu, p), x, by_expert, true)?.1
            }
            (Some(_), _) | (None, None) => None,
        };
        let Inputs { g, u } = kept.0.as_ref().or(again.as_ref()).expect("kept, or computed again");
        let d_h = gpu.grouped_input_gradient(p.weight(self.down), d_y, DType::Bf16, groups)?;
        let shape = Shape { rows: d_h.rows, cols: d_h.cols };
        let (h, d_g, d_u) = match (g, u) {
            (Operand::Bf16(g), Operand::Bf16(u)) => {
                let plain = |what| gpu.matrix(what, DType::Bf16, (d_h.extent(), d_h.cols));
                let (h, d_g, d_u) = (
                    plain("the output of SwiGLU")?,
                    plain("a gradient of SwiGLU")?,
                    plain("a gradient of SwiGLU")?,
                );
                let sides = swiglu::Sides::Bf16 {
                    g: g.slice(),
                    u: u.slice(),
                    h: h.slice(),
                    dg: d_g.slice(),
                    du: d_u.slice(),
                };
                gpu.kernels.swiglu.backward(&gpu.stream, (d_h.slice(), gates), sides, shape)?;
                (Operand::Bf16(h), Operand::Bf16(d_g), Operand::Bf16(d_u))
            }
            (Operand::Fp8(g), Operand::Fp8(u)) => {
                let h = like(gpu, "the output of SwiGLU", &d_h, self.arithmetic.input)?;
                let like = || like(gpu, "a gradient of SwiGLU", &d_h, self.arithmetic.gradient);
                let (d_g, d_u) = (like()?, like()?);
                let sides = swiglu::Sides::Fp8 {
                    g: g.slices(),
                    u: u.slices(),
                    h: h.slices(),
                    dg: d_g.slices(),
                    du: d_u.slices(),
                };
                gpu.kernels.swiglu.backward(&gpu.stream, (d_h.slice(), gates), sides, shape)?;
                (Operand::Fp8(h), Operand::Fp8(d_g), Operand::Fp8(d_u))
            }
            (Operand::Bf16(_) | Operand::Fp8(_), _) => panic!("both inputs are kept alike"),
        };
        let d_x = gpu.grouped_input_gradient(p.weight(self.gate), &d_g, DType::F32, groups)?;
        gpu.add_grouped_input_gradient(p.weight(self.up), &d_u, &d_x, groups)?;
        Ok(FfnGradients { d_x, h, d_g, d_u })
    }

    /// Puts off the three weight gradients; returns `d_x`.
    pub(super) fn defer(
        &self,
        gradients: FfnGradients,
        (x, d_y): (Cached, Cached),
        experts: Option<&Arc<super::moe::Gathered>>,
        deferred: &mut Vec<Deferred>,
    ) -> Matrix {
        let FfnGradients { d_x, h, d_g, d_u } = gradients;
        let whole = |operand| Cached::Whole(Arc::new(operand));
        for (group, x, d_y) in [
            (self.gate, x.clone(), whole(d_g)),
            (self.up, x, whole(d_u)),
            (self.down, whole(h), d_y),
        ] {
            deferred.push(Deferred { group, x, d_y, experts: experts.cloned() });
        }
        d_x
    }
}

/// Room for codes of a matrix's shape.
fn like(gpu: &Gpu, what: &'static str, x: &Matrix, math: Math) -> Result<Tiles, DeviceError> {
    let Math::Fp8(format) = math else { panic!("precision fp8 has FP8 on all sides") };
    gpu.codes(what, (Tiling::Row, format), (x.extent(), x.cols))
}

/// A dense layer's feed-forward as a residual block: x + ffn(norm(x)).
#[derive(Clone, Copy, Debug)]
pub(super) struct Dense {
    arithmetic: Arithmetic,
    norm: GroupId,
    eps: f32,
    ffn: Ffn,
}

/// Kept after forward.
#[derive(Debug)]
pub(super) struct DenseKept {
    x: Matrix,
    /// `None` where backward computes it again.
    n: Option<Arc<Operand>>,
    ffn: FfnKept,
}

impl Dense {
    pub(super) fn new(p: &Parameters, arithmetic: Arithmetic, layer: u32, eps: f32) -> Self {
        let norm = p.id(&of_layer(layer, "post_attention_layernorm.weight"));
        Self { arithmetic, norm, eps, ffn: Ffn::new(p, arithmetic, layer, "mlp") }
    }

    pub(super) fn forward(
        &self,
        (gpu, p): (&Gpu, &Parameters),
        x: Matrix,
    ) -> Result<(Matrix, DenseKept), DeviceError> {
        let n = self.normed((gpu, p), &x)?;
        let (y, ffn) = self.ffn.forward((gpu, p), &n, (None, None), DType::Bf16)?;
        gpu.add(&y, &x)?;
        let n = (!self.ffn.reads_again()).then_some(n);
        Ok((y, DenseKept { x, n, ffn }))
    }

    fn normed(
        &self,
        (gpu, p): (&Gpu, &Parameters),
        x: &Matrix,
    ) -> Result<Arc<Operand>, DeviceError> {
        let gain = p.master(self.norm);
        Ok(Arc::new(gpu.normed(x.packed(), gain, x.norm(self.eps), self.arithmetic.input)?))
    }

    pub(super) fn backward_input(
        &self,
        (gpu, p): (&Gpu, &Parameters),
        kept: DenseKept,
        d_y: &Matrix,
        deferred: &mut Vec<Deferred>,
    ) -> Result<Matrix, DeviceError> {
        let d_y_operand = Arc::new(gpu.operand(d_y, self.arithmetic.gradient)?);
        let n = kept.n.map_or_else(|| self.normed((gpu, p), &kept.x), Ok)?;
        let kept_of_ffn = (Some(&*n), &kept.ffn);
        let gradients =
            self.ffn.backward_input((gpu, p), kept_of_ffn, (None, None), &d_y_operand)?;
        let sides = (Cached::Whole(n), Cached::Whole(d_y_operand));
        let d_n = self.ffn.defer(gradients, sides, None, deferred);
        gpu.norm_backward_onto(p, self.norm, kept.x.norm(self.eps), (&kept.x, &d_n), d_y)
    }
}
