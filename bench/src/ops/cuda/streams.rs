//! What only passes over memory on a GPU: norms, activations, sums, checks, the embedding.

use shoal_kernels::cuda::elementwise::Vector;
use shoal_kernels::cuda::quantise::Shape;
use shoal_kernels::cuda::rmsnorm::{Gradients, Norm, Upstream};
use shoal_kernels::cuda::swiglu::{Gates, Hidden, Sides};
use shoal_kernels::cuda::{Buffer, DeviceError, Rows, Slice, embedding};
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, Tiling};

use super::{Bench, experts};
use crate::cuda::Side;
use crate::ops::linears::element;
use crate::train::random_tokens;

/// Measures them.
pub(super) fn each(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    norms(bench)?;
    elements(bench)?;
    for (name, rows, cols, times, gated) in activations(bench) {
        swiglu(bench, (name, times), (rows, cols), gated)?;
    }
    embeddings(bench)
}

/// In the form of a Linear's input, and where a router reads them, which is told again backward, in BF16; of latents; and back.
fn norms(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (shapes, math) = (bench.shapes, bench.shapes.math());
    let (d, layers, moe) = (shapes.d(), shapes.layers(), shapes.moe_layers());
    let rank = shapes.model.kv_lora_rank as usize;
    let low = shapes.model.q_lora_rank.map(|rank| rank as usize);
    norm(bench, ("rmsnorm forward", math), d, 2 * layers - moe)?;
    norm(bench, ("rmsnorm forward, router", Math::Bf16), d, 2 * moe + 1)?;
    norm(bench, ("rmsnorm forward, latents", math), rank, layers)?;
    if let Some(rank) = low {
        norm(bench, ("rmsnorm forward, queries", math), rank, layers)?;
    }
    norm_back(bench, ("rmsnorm backward", true), d, 2 * layers + 1)?;
    norm_back(bench, ("rmsnorm backward, latents", false), rank, layers)?;
    match low {
        Some(rank) => norm_back(bench, ("rmsnorm backward, queries", false), rank, layers),
        None => Ok(()),
    }
}

fn norm(
    bench: &mut Bench<'_>,
    (name, math): (&str, Math),
    cols: usize,
    times: usize,
) -> Result<(), DeviceError> {
    let (card, t) = (bench.card, bench.shapes.rows());
    let norm = Norm { rows: t, cols, eps: bench.shapes.model.rms_norm_eps };
    let x = card.noise("x", DType::Bf16, t * cols)?;
    let gain = card.noise("a gain", DType::F32, cols)?;
    let y = card.side("y", (t, cols), (math, Tiling::Row))?;
    let (kernels, stream) = (&card.kernels.rmsnorm, &card.stream);
    let bytes = ((2.0 + element(math)) * (t * cols) as f64) as usize;
    bench.stream((name, format!("{t} x {cols}")), times, bytes, || {
        let from = (Rows::packed(x.all(), cols), gain.all(), None);
        match &y {
            Side::Bf16(y) => {
                kernels.forward(stream, from, Some(Rows::packed(y.all(), cols)), None, norm)
            }
            y @ Side::Fp8(..) => kernels.forward(stream, from, None, Some(y.codes()), norm),
        }
    })
}

fn norm_back(
    bench: &mut Bench<'_>,
    (name, onto_residual): (&str, bool),
    cols: usize,
    times: usize,
) -> Result<(), DeviceError> {
    let (card, t) = (bench.card, bench.shapes.rows());
    let norm = Norm { rows: t, cols, eps: bench.shapes.model.rms_norm_eps };
    let noise = |what| card.noise(what, DType::Bf16, t * cols);
    let (x, dy, residual) = (noise("x")?, noise("dy")?, noise("a residual")?);
    let (gain, d_gain) = (card.noise("a gain", DType::F32, cols)?, card.zeros("d_gain", 4 * cols)?);
    let (dx, scratch) =
        (card.zeros("dx", 2 * t * cols)?, card.zeros("sums", norm.scratch_bytes())?);
    let (kernels, stream) = (&card.kernels.rmsnorm, &card.stream);
    let rows = |slice| Rows::packed(slice, cols);
    let bytes = if onto_residual { 8 } else { 6 } * t * cols;
    bench.stream((name, format!("{t} x {cols}")), times, bytes, || {
        let residual = onto_residual.then(|| residual.all());
        let from = Upstream { x: rows(x.all()), gain: gain.all(), dy: rows(dy.all()), residual };
        let (d_gain, scratch) = (d_gain.all(), scratch.all());
        kernels.backward(stream, from, Gradients { dx: rows(dx.all()), d_gain, scratch }, norm)
    })
}

fn vector(slice: Slice<'_>, dtype: DType) -> Vector<'_> {
    Vector { slice, dtype }
}

/// Residual adds, FP32 sums rounded, and looks for what is not finite.
fn elements(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (card, t, d) = (bench.card, bench.shapes.rows(), bench.shapes.d());
    let (shape, layers, n) = (format!("{t} x {d}"), bench.shapes.layers(), t * d);
    // What is added is zero: a sum of many runs stays finite.
    let (sum, zero) = (card.noise("a sum", DType::Bf16, n)?, card.zeros("zeros", 2 * n)?);
    let (wide, place) = (card.noise("a wide sum", DType::F32, n)?, card.zeros("a place", 8)?);
    let (kernels, stream) = (&card.kernels, &card.stream);
    bench.stream(("residual add", shape.clone()), 2 * layers, 6 * n, || {
        let (sum, x) = (vector(sum.all(), DType::Bf16), vector(zero.all(), DType::Bf16));
        kernels.elementwise.add(stream, sum, x, n)
    })?;
    bench.stream(("round to BF16", shape.clone()), 2 * layers, 6 * n, || {
        let (x, y) = (vector(wide.all(), DType::F32), vector(sum.all(), DType::Bf16));
        kernels.elementwise.cast(stream, x, y, n)
    })?;
    let (moe, heads) = (bench.shapes.moe_layers(), 1 + mtp(bench));
    let mut look = |name, x: &Buffer, dtype: DType, times| {
        bench.stream((name, shape.clone()), times, dtype.size() * n, || {
            kernels.reduce.first_nonfinite(stream, vector(x.all(), dtype), place.all(), n)
        })
    };
    look("look for what is not finite", &sum, DType::Bf16, 4 * layers + 2 * moe)?;
    look("the same in FP32", &wide, DType::F32, heads)
}

fn mtp(bench: &Bench<'_>) -> usize {
    bench.shapes.model.num_nextn_predict_layers as usize
}

type Activation = (&'static str, usize, usize, usize, bool);

/// Name, rows, columns, layers, whether rows have gates.
fn activations(bench: &Bench<'_>) -> Vec<Activation> {
    let (m, t) = (&bench.shapes.model, bench.shapes.rows());
    let (layers, moe) = (bench.shapes.layers(), bench.shapes.moe_layers());
    let narrow = m.moe_intermediate_size as usize;
    let mut all = Vec::new();
    if layers > moe {
        all.push(("swiglu, dense", t, m.intermediate_size as usize, layers - moe, false));
    }
    if moe > 0 {
        all.push(("swiglu, experts", experts::rows(bench.shapes), narrow, moe, true));
        if m.n_shared_experts > 0 {
            all.push(("swiglu, shared", t, narrow * m.n_shared_experts as usize, moe, false));
        }
    }
    all
}

fn swiglu(
    bench: &mut Bench<'_>,
    (name, times): (&str, usize),
    (rows, cols): (usize, usize),
    gated: bool,
) -> Result<(), DeviceError> {
    let (card, math) = (bench.card, bench.shapes.math());
    let (size, n) = (Shape { rows, cols }, rows * cols);
    let noise = |what| card.noise(what, DType::Bf16, n);
    let side = |what| card.side(what, (rows, cols), (math, Tiling::Row));
    let (g, u, dh) = (noise("g")?, noise("u")?, noise("dh")?);
    let (gates, d_gates) =
        (card.noise("gates", DType::F32, rows)?, card.zeros("d_gates", 4 * rows)?);
    let (h, dg, du) = (side("h")?, side("dg")?, side("du")?);
    let kept = [side("kept g")?, side("kept u")?];
    let (kernels, stream, shape) = (&card.kernels.swiglu, &card.stream, format!("{rows} x {cols}"));
    let is_fp8 = matches!(math, Math::Fp8(_));
    let forward = format!("{name} forward");
    bench.stream((&forward, shape.clone()), times, if is_fp8 { 7 } else { 6 } * n, || {
        let hidden = match &h {
            Side::Bf16(h) => Hidden::Bf16(h.all()),
            h @ Side::Fp8(..) => {
                Hidden::Fp8 { h: h.codes(), kept: Some([kept[0].codes(), kept[1].codes()]) }
            }
        };
        let gates = gated.then(|| gates.all());
        kernels.forward(stream, (g.all(), u.all(), gates), hidden, size)
    })?;
    let backward = format!("{name} backward");
    bench.stream((&backward, shape), times, if is_fp8 { 7 } else { 12 } * n, || {
        let sides = match (&h, &dg, &du) {
            (Side::Bf16(h), Side::Bf16(dg), Side::Bf16(du)) => {
                Sides::Bf16 { g: g.all(), u: u.all(), h: h.all(), dg: dg.all(), du: du.all() }
            }
            (h, dg, du) => {
                let (g, u) = (kept[0].codes(), kept[1].codes());
                Sides::Fp8 { g, u, h: h.codes(), dg: dg.codes(), du: du.codes() }
            }
        };
        let gates = gated.then(|| Gates { gates: gates.all(), d_gates: d_gates.all() });
        kernels.backward(stream, (dh.all(), gates), sides, size)
    })
}

fn embeddings(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (card, t, d) = (bench.card, bench.shapes.rows(), bench.shapes.d());
    let v = bench.shapes.model.vocab_size as usize;
    let ids = random_tokens(t, v as u32, 6);
    let touched = {
        let mut ids = ids.clone();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    };
    // Four lists of words, none longer than the tokens and one.
    let arena = card.arena(16 * (t + 1) + 256)?;
    let tokens = embedding::Tokens::new(&arena, &card.stream, (&ids, 0), v)?;
    let table = card.noise("the embedding", DType::Bf16, v * d)?;
    let (y, d_table) = (card.zeros("y", 2 * t * d)?, card.zeros("d_table", 4 * v * d)?);
    let (kernels, stream, shape) = (&card.kernels.embedding, &card.stream, format!("{t} x {d}"));
    bench.stream(("embedding forward", shape.clone()), 1, 4 * t * d, || {
        kernels.forward(stream, table.all(), &tokens, y.all(), d)
    })?;
    bench.stream(("embedding backward", shape), 1, (2 * t + 8 * touched) * d, || {
        kernels.backward(stream, &tokens, y.all(), d_table.all(), d)
    })
}
