//! What only passes over memory on a GPU: norms, activations, sums, quantising, checks, the update.

use shoal_kernels::adamw::AdamStep;
use shoal_kernels::cuda::elementwise::Vector;
use shoal_kernels::cuda::quantise::Shape;
use shoal_kernels::cuda::rmsnorm::{Gradients, Norm, Upstream};
use shoal_kernels::cuda::swiglu::{Gates, Hidden, Sides};
use shoal_kernels::cuda::{DeviceError, Rows, adamw, embedding};
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, Tiling};
use shoal_plan::arithmetic::parameters;
use shoal_plan::job::Precision;

use super::{Bench, Work, experts};
use crate::cuda::{Side, Unit};
use crate::ops::linears::element;
use crate::train::random_tokens;

/// Measures them.
pub(super) fn each(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    norms(bench)?;
    elements(bench)?;
    for (name, rows, cols, times, gated) in activations(bench) {
        swiglu(bench, (name, times), (rows, cols), gated)?;
    }
    embeddings(bench)?;
    if bench.shapes.precision == Precision::Fp8 {
        forms(bench)?;
    }
    update(bench)
}

/// In the form of a Linear's input.
fn norms(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (card, math) = (bench.card, bench.shapes.math());
    let (t, d) = (bench.shapes.rows(), bench.shapes.d());
    let norm = Norm { rows: t, cols: d, eps: bench.shapes.model.rms_norm_eps };
    let noise = |what| card.noise(what, DType::Bf16, t * d);
    let (x, dy, residual) = (noise("x")?, noise("dy")?, noise("a residual")?);
    let (gain, d_gain) = (card.noise("a gain", DType::F32, d)?, card.zeros("d_gain", 4 * d)?);
    let (dx, scratch) = (card.zeros("dx", 2 * t * d)?, card.zeros("sums", norm.scratch_bytes())?);
    let y = card.side("y", (t, d), (math, Tiling::Row))?;
    let (kernels, stream) = (&card.kernels.rmsnorm, &card.stream);
    let (shape, times) = (format!("{t} x {d}"), 2 * bench.shapes.layers() + 1);
    let rows = |buffer| Rows::packed(buffer, d);
    let bytes = ((2.0 + element(math)) * (t * d) as f64) as usize;
    bench.stream(("rmsnorm forward", shape.clone()), times, bytes, || {
        let from = (rows(x.all()), gain.all(), None);
        match &y {
            Side::Bf16(y) => kernels.forward(stream, from, Some(rows(y.all())), None, norm),
            y @ Side::Fp8(..) => kernels.forward(stream, from, None, Some(y.codes()), norm),
        }
    })?;
    bench.stream(("rmsnorm backward", shape), times, 8 * t * d, || {
        let residual = Some(residual.all());
        let from = Upstream { x: rows(x.all()), gain: gain.all(), dy: rows(dy.all()), residual };
        let (d_gain, scratch) = (d_gain.all(), scratch.all());
        kernels.backward(stream, from, Gradients { dx: rows(dx.all()), d_gain, scratch }, norm)
    })
}

/// Residual adds, FP32 sums rounded, and looks for what is not finite.
fn elements(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (card, t, d) = (bench.card, bench.shapes.rows(), bench.shapes.d());
    let (shape, layers, n) = (format!("{t} x {d}"), bench.shapes.layers(), t * d);
    // What is added is zero: a sum of many runs stays finite.
    let (sum, zero) = (card.noise("a sum", DType::Bf16, n)?, card.zeros("zeros", 2 * n)?);
    let (wide, place) = (card.noise("a wide sum", DType::F32, n)?, card.zeros("a place", 8)?);
    let vector = |slice, dtype| Vector { slice, dtype };
    let (kernels, stream) = (&card.kernels, &card.stream);
    bench.stream(("residual add", shape.clone()), 2 * layers, 6 * n, || {
        let (sum, x) = (vector(sum.all(), DType::Bf16), vector(zero.all(), DType::Bf16));
        kernels.elementwise.add(stream, sum, x, n)
    })?;
    bench.stream(("round to BF16", shape.clone()), 2 * layers, 6 * n, || {
        let (x, y) = (vector(wide.all(), DType::F32), vector(sum.all(), DType::Bf16));
        kernels.elementwise.cast(stream, x, y, n)
    })?;
    bench.stream(("look for what is not finite", shape), 4 * layers, 2 * n, || {
        kernels.reduce.first_nonfinite(stream, vector(sum.all(), DType::Bf16), place.all(), n)
    })
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
    let tokens = embedding::Tokens::new(&arena, &card.stream, &ids, v)?;
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

/// Quantising by itself, of what is as wide as the model: gradients of both blocks and what experts read; and the other way
/// round for the weight half, of what several Linears read once.
fn forms(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (card, math) = (bench.card, bench.shapes.math());
    let (t, d) = (bench.shapes.rows(), bench.shapes.d());
    let (size, shape) = (Shape { rows: t, cols: d }, format!("{t} x {d}"));
    let (layers, moe) = (bench.shapes.layers(), bench.shapes.moe_layers());
    let x = card.noise("x", DType::Bf16, t * d)?;
    let by_row = card.side("tiles", (t, d), (math, Tiling::Row))?;
    let by_column = card.side("tiles", (t, d), (math, Tiling::Column))?;
    let (kernels, stream) = (&card.kernels.quantise, &card.stream);
    bench.stream(("quantise 1 x 128", shape.clone()), 2 * layers + moe, 3 * t * d, || {
        kernels.rows(stream, x.all(), by_row.codes(), size)
    })?;
    bench.stream(("128 x 1 from 1 x 128", shape), 4 * layers, 2 * t * d, || {
        kernels.requantise_columns(stream, by_row.codes(), by_column.codes(), size)
    })
}

/// The update, and gradients on their way to the host, which sums them over cells, and back. On part of the parameters where
/// there are many.
fn update(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (card, is_fp8) = (bench.card, bench.shapes.precision == Precision::Fp8);
    let total = parameters(&bench.shapes.model).total as usize;
    // Whole blocks of 128 x 128.
    let cols = 1024;
    let rows = (total.min(bench.effort.parameters_max) / cols).next_multiple_of(128).max(128);
    let (n, math) = (rows * cols, bench.shapes.math());
    let times = total.div_ceil(n);
    let shape = format!("{:.1} M of {:.1} M", n as f64 / 1e6, total as f64 / 1e6);
    let masters = card.noise("masters", DType::F32, n)?;
    let gradients = card.zeros("gradients", 4 * n)?;
    let (first, second) = (card.zeros("moments", 2 * n)?, card.zeros("moments", 2 * n)?);
    let weight = card.side("weights", (rows, cols), (math, Tiling::Block))?;
    let adam = AdamStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 1.0,
    };
    let (kernels, stream) = (&card.kernels.adamw, &card.stream);
    let bytes = if is_fp8 { 25 } else { 26 } * n;
    bench.stream(("adamw", shape.clone()), times, bytes, || {
        let state = adamw::State {
            masters: masters.all(),
            first: first.all(),
            second: second.all(),
            moments: DType::Bf16,
            gradients: gradients.all(),
            average: None,
            checksum: None,
        };
        let weight = match &weight {
            Side::Bf16(copy) => adamw::Weight::Bf16(copy.all(), n),
            weight @ Side::Fp8(..) => adamw::Weight::Fp8(weight.codes(), Shape { rows, cols }),
        };
        kernels.step(stream, state, weight, &adam)
    })?;
    let mut host = vec![0; 4 * n];
    let work = |name: &str| Work {
        name: name.to_owned(),
        shape: shape.clone(),
        times,
        flops: 0.0,
        bytes: 4.0 * n as f64,
        bound: Unit::Link,
    };
    bench.measure(work("gradients to the host"), || stream.download(gradients.all(), &mut host))?;
    bench.measure(work("gradients from the host"), || stream.upload(gradients.all(), &host))
}
