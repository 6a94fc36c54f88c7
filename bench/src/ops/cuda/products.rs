//! The products on a GPU: Linears, and the head with its loss.

use shoal_kernels::cuda::gemm::{Output, Shape};
use shoal_kernels::cuda::{DeviceError, cross_entropy};
use shoal_kernels::{DType, Tiling};

use super::{Bench, Work};
use crate::cuda::Unit;
use crate::ops::linears::{self, Linear, element};
use crate::train::random_tokens;

/// Logits alive at once, unless one row has more: as in the model.
const LOGITS: usize = 16 << 20;

/// Measures every product but those of experts.
pub(super) fn each(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    for linear in linears::linears(bench.shapes) {
        of_linear(bench, &linear)?;
    }
    head(bench)
}

/// Over what is there.
pub(super) fn over(values: &shoal_kernels::cuda::Buffer, dtype: DType) -> Output<'_> {
    Output { values: values.all(), dtype, accumulate: false }
}

/// Added to FP32 sums.
pub(super) fn onto(values: &shoal_kernels::cuda::Buffer) -> Output<'_> {
    Output { values: values.all(), dtype: DType::F32, accumulate: true }
}

fn of_linear(bench: &mut Bench<'_>, linear: &Linear) -> Result<(), DeviceError> {
    let (card, math, bound) = (bench.card, bench.shapes.math(), bench.shapes.unit());
    let (gemm, stream) = (&card.kernels.gemm, &card.stream);
    let (t, k, n) = (bench.shapes.rows(), linear.inputs, linear.outputs);
    let shape = Shape { t, n, k };
    let (e, tk, tn, nk) = (element(math), (t * k) as f64, (t * n) as f64, (n * k) as f64);
    let work = |part: &str, times, bytes| Work {
        name: format!("{} {part}", linear.name),
        shape: format!("{t} x {k} x {n}"),
        times,
        flops: 2.0 * (t * n * k) as f64,
        bytes,
        bound,
    };
    let w = card.side("a weight", (n, k), (math, Tiling::Block))?;
    {
        let x = card.side("an input", (t, k), (math, Tiling::Row))?;
        let y = card.zeros("an output", 2 * t * n)?;
        let times = if linear.again { 2 * linear.times } else { linear.times };
        bench.measure(work("forward", times, e * (tk + nk) + 2.0 * tn), || {
            let y = over(&y, DType::Bf16);
            gemm.forward(stream, x.operand(), w.operand(), y, shape, None)
        })?;
    }
    {
        let dy = card.side("a gradient", (t, n), (math, Tiling::Row))?;
        // Gradients of what several Linears read are summed in FP32.
        let out = if k == bench.shapes.d() { DType::F32 } else { DType::Bf16 };
        let dx = card.zeros("an input's gradient", out.size() * t * k)?;
        let bytes = e * (tn + nk) + out.size() as f64 * tk;
        bench.measure(work("d_x", linear.times, bytes), || {
            gemm.input_grad(stream, dy.operand(), w.operand(), over(&dx, out), shape, None)
        })?;
    }
    let x = card.side("an input", (t, k), (math, Tiling::Column))?;
    let dy = card.side("a gradient", (t, n), (math, Tiling::Column))?;
    let dw = card.zeros("a weight's gradient", 4 * n * k)?;
    bench.measure(work("d_w", linear.times, e * (tk + tn) + 8.0 * nk), || {
        gemm.weight_grad(stream, dy.operand(), x.operand(), onto(&dw), shape, None)
    })
}

/// Head and loss, forward and backward in one: three products, in BF16 in any precision.
fn head(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (card, shapes) = (bench.card, bench.shapes);
    let (t, d, v) = (shapes.rows(), shapes.d(), shapes.model.vocab_size as usize);
    let alive = (LOGITS / v).clamp(1, t);
    let noise = |what, n| card.noise(what, DType::Bf16, n);
    let (h, w) = (noise("what the head reads", t * d)?, noise("the head", v * d)?);
    let targets: Vec<u8> =
        random_tokens(t, v as u32, 3).into_iter().flat_map(u32::to_le_bytes).collect();
    let targets = card.bytes("targets", &targets)?;
    let (losses, total) = (card.zeros("losses", 4 * t)?, card.zeros("their sum", 8)?);
    let (d_h, dw) = (card.zeros("d_h", 2 * t * d)?, card.zeros("the head's gradient", 4 * v * d)?);
    let (logits, d_logits) =
        (card.zeros("logits", 4 * alive * v)?, card.zeros("d_logits", 2 * alive * v)?);
    let (td, vd, tv) = ((t * d) as f64, (v * d) as f64, (t * v) as f64);
    let work = Work {
        name: "head and loss".to_owned(),
        shape: format!("{t} x {d} x {v}"),
        times: 1 + shapes.model.num_nextn_predict_layers as usize,
        flops: 6.0 * td * v as f64,
        // Logits are written and read, their gradient is written and read twice.
        bytes: 4.0 * td + 2.0 * vd + 8.0 * vd + 14.0 * tv,
        bound: Unit::Bf16Products,
    };
    let (kernels, stream) = (&card.kernels, &card.stream);
    bench.measure(work, || {
        let inputs = cross_entropy::Inputs { h: h.all(), w: w.all(), targets: targets.all() };
        let to = cross_entropy::Losses { losses: losses.all(), total: total.all() };
        let d_h = over(&d_h, DType::Bf16);
        let gradients = cross_entropy::Gradients { scale: 1.0 / t as f32, d_h, dw: dw.all() };
        let room = cross_entropy::Room { logits: logits.all(), d_logits: d_logits.all() };
        let shape = cross_entropy::Shape { t, d, v };
        let (of_rows, gemm) = (&kernels.cross_entropy, &kernels.gemm);
        of_rows.forward_backward(stream, gemm, inputs, to, gradients, room, shape)
    })
}
