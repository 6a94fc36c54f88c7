//! Quantising by itself on a GPU: what no norm and no activation has quantised already, and the other way round for the weight
//! half. Latents are left out.

use shoal_kernels::cuda::DeviceError;
use shoal_kernels::cuda::quantise::Shape;
use shoal_kernels::{DType, Tiling};
use shoal_model::head_shape;

use super::{Bench, experts};

/// Measures it.
pub(super) fn each(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (shapes, m) = (bench.shapes, &bench.shapes.model);
    let (t, d, layers, moe) = (shapes.rows(), shapes.d(), shapes.layers(), shapes.moe_layers());
    let s = head_shape(m, shapes.tokens);
    let (q, kv) = (s.heads * (s.nope + s.rope), s.heads * (s.nope + s.value));
    let o = s.heads * s.value;
    // Gradients of both blocks, what experts read; attention's output, twice; gradients of queries, of keys and values.
    for (cols, times) in [(d, 2 * layers + moe), (o, 2 * layers), (q, layers), (kv, layers)] {
        by_rows(bench, cols, times)?;
    }
    // Attention: its input twice, its output's gradient; the three as above. Feed-forward: its input and its output's gradient;
    // what is between its Linears.
    let (wide, narrow) = (m.intermediate_size as usize, m.moe_intermediate_size as usize);
    let shared = if m.n_shared_experts > 0 { moe } else { 0 };
    let of_d = 3 * layers + 2 * (layers - moe) + 2 * shared;
    for (rows, cols, times) in [
        (t, d, of_d),
        (t, o, layers),
        (t, q, layers),
        (t, kv, layers),
        (t, wide, 3 * (layers - moe)),
        (t, narrow * m.n_shared_experts as usize, 3 * shared),
        (experts::rows(shapes), d, 2 * moe),
        (experts::rows(shapes), narrow, 3 * moe),
    ] {
        by_columns(bench, (rows, cols), times)?;
    }
    Ok(())
}

fn by_rows(bench: &mut Bench<'_>, cols: usize, times: usize) -> Result<(), DeviceError> {
    let (card, math, rows) = (bench.card, bench.shapes.math(), bench.shapes.rows());
    let x = card.noise("x", DType::Bf16, rows * cols)?;
    let tiles = card.side("tiles", (rows, cols), (math, Tiling::Row))?;
    let (kernels, stream, size) = (&card.kernels.quantise, &card.stream, Shape { rows, cols });
    let label = ("quantise 1 x 128", format!("{rows} x {cols}"));
    bench.stream(label, times, 3 * rows * cols, || {
        kernels.rows(stream, x.all(), tiles.codes(), size)
    })
}

fn by_columns(
    bench: &mut Bench<'_>,
    (rows, cols): (usize, usize),
    times: usize,
) -> Result<(), DeviceError> {
    if times == 0 {
        return Ok(());
    }
    let (card, math) = (bench.card, bench.shapes.math());
    let from = card.side("tiles", (rows, cols), (math, Tiling::Row))?;
    let to = card.side("tiles", (rows, cols), (math, Tiling::Column))?;
    let (kernels, stream, size) = (&card.kernels.quantise, &card.stream, Shape { rows, cols });
    let label = ("128 x 1 from 1 x 128", format!("{rows} x {cols}"));
    bench.stream(label, times, 2 * rows * cols, || {
        kernels.requantise_columns(stream, from.codes(), to.codes(), size)
    })
}
