//! A layer of experts on a GPU: the router, rows laid out by expert, and all experts in grouped products. All experts are
//! here, each with an equal share of the rows. How rows get there: `super::rows`.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::{Buffer, DeviceError, Slice, dispatch, gemm, router};
use shoal_kernels::{DType, Tiling};
use shoal_model::router_shape;

use super::products::{onto, over};
use super::{Bench, Shapes, Work};
use crate::cuda::{Card, Unit};
use crate::ops::linears::element;

/// Rows of an expert begin at multiples of this: as in the model.
const TILE: usize = 128;

/// Rows laid out by expert.
struct Layout {
    experts: usize,
    /// Of each expert the first row and the end: u32.
    ranges: Buffer,
    /// Of each row its token, or none: u32.
    sources: Buffer,
    /// Of each token where its terms begin, and the rows that these are: u32.
    first: Buffer,
    terms: Buffer,
    /// With those that are nobody's.
    rows: usize,
}

/// Equal shares; what is left over goes to the first.
fn share(pairs: usize, experts: usize, expert: usize) -> usize {
    pairs / experts + usize::from(expert < pairs % experts)
}

/// Rows of a layout, with those that are nobody's.
pub(super) fn rows(shapes: &Shapes) -> usize {
    let experts = shapes.model.n_routed_experts as usize;
    let pairs = shapes.rows() * shapes.model.num_experts_per_tok as usize;
    (0..experts).map(|expert| share(pairs, experts, expert).next_multiple_of(TILE)).sum()
}

/// Numbers as the device reads them.
pub(super) fn words(card: &Card, what: &str, words: &[u32]) -> Result<Buffer, DeviceError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    card.bytes(what, &bytes)
}

impl Layout {
    /// Choice c of token t is expert `(t K + c) % E`.
    fn new(bench: &Bench<'_>) -> Result<Self, DeviceError> {
        let (m, t) = (&bench.shapes.model, bench.shapes.rows());
        let (experts, choices) = (m.n_routed_experts as usize, m.num_experts_per_tok as usize);
        let pairs = t * choices;
        let (mut ranges, mut next, mut rows) = (Vec::new(), Vec::new(), 0);
        for expert in 0..experts {
            let count = share(pairs, experts, expert);
            next.push(rows);
            ranges.extend([rows as u32, (rows + count) as u32]);
            rows = (rows + count).next_multiple_of(TILE);
        }
        let (mut sources, mut terms) = (vec![dispatch::NONE; rows], Vec::with_capacity(pairs));
        for pair in 0..pairs {
            let place = &mut next[pair % experts];
            sources[*place] = (pair / choices) as u32;
            terms.push(*place as u32);
            *place += 1;
        }
        let first: Vec<u32> = (0..=t).map(|token| (token * choices) as u32).collect();
        Ok(Self {
            experts,
            ranges: words(bench.card, "the rows of experts", &ranges)?,
            sources: words(bench.card, "the sources of rows", &sources)?,
            first: words(bench.card, "the first terms", &first)?,
            terms: words(bench.card, "the terms", &terms)?,
            rows,
        })
    }

    fn groups(&self) -> gemm::Groups<'_> {
        gemm::Groups { ranges: self.ranges.all(), experts: self.experts }
    }
}

/// Measures them.
pub(super) fn each(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let layout = Layout::new(bench)?;
    let (d, f) = (bench.shapes.d(), bench.shapes.model.moe_intermediate_size as usize);
    products(bench, &layout, ("experts gate, up", d, f, 2))?;
    products(bench, &layout, ("experts down", f, d, 1))?;
    route(bench)?;
    gather(bench, &layout)?;
    sums(bench, &layout)
}

/// One Linear of every expert of a layer.
fn products(
    bench: &mut Bench<'_>,
    layout: &Layout,
    (name, k, n, copies): (&str, usize, usize, usize),
) -> Result<(), DeviceError> {
    let (card, math, bound) = (bench.card, bench.shapes.math(), bench.shapes.unit());
    let (gemm, stream) = (&card.kernels.gemm, &card.stream);
    let (experts, t) = (layout.experts, layout.rows);
    let all_rows = bench.shapes.rows() * bench.shapes.model.num_experts_per_tok as usize;
    let shape = gemm::Shape { t, n, k };
    let e = element(math);
    let (tk, tn, nk) = ((all_rows * k) as f64, (all_rows * n) as f64, (experts * n * k) as f64);
    let times = copies * bench.shapes.moe_layers();
    let work = |part: &str, bytes| Work {
        name: format!("{name} {part}"),
        shape: format!("{experts} x ({} x {k} x {n})", all_rows / experts),
        times,
        flops: 2.0 * (all_rows * n * k) as f64,
        bytes,
        bound,
    };
    // What experts give is summed in FP32, what is between their Linears is BF16.
    let wide = |cols: usize| if cols == bench.shapes.d() { DType::F32 } else { DType::Bf16 };
    let (y_dtype, dx_dtype) = (wide(n), wide(k));
    {
        let w = card.sides("weights of experts", (experts, n, k), math)?;
        let x = card.side("rows of experts", (t, k), (math, Tiling::Row))?;
        let y = card.zeros("what experts give", y_dtype.size() * t * n)?;
        let bytes = e * (tk + nk) + y_dtype.size() as f64 * tn;
        bench.measure(work("forward", bytes), || {
            let (x, w, y) = (x.operand(), w.operand(), over(&y, y_dtype));
            gemm.forward(stream, x, w, y, shape, Some(layout.groups()))
        })?;
        drop((x, y));
        let dy = card.side("gradients of experts", (t, n), (math, Tiling::Row))?;
        let dx = card.zeros("gradients of rows", dx_dtype.size() * t * k)?;
        let bytes = e * (tn + nk) + dx_dtype.size() as f64 * tk;
        bench.measure(work("d_x", bytes), || {
            let (dy, w, dx) = (dy.operand(), w.operand(), over(&dx, dx_dtype));
            gemm.input_grad(stream, dy, w, dx, shape, Some(layout.groups()))
        })?;
    }
    let x = card.side("rows of experts", (t, k), (math, Tiling::Column))?;
    let dy = card.side("gradients of experts", (t, n), (math, Tiling::Column))?;
    let dw = card.zeros("gradients of experts' weights", 4 * experts * n * k)?;
    bench.measure(work("d_w", e * (tk + tn) + 8.0 * nk), || {
        gemm.weight_grad(stream, dy.operand(), x.operand(), onto(&dw), shape, Some(layout.groups()))
    })
}

fn route(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (card, shapes) = (bench.card, bench.shapes);
    let s = router_shape(&shapes.model, shapes.tokens);
    let (t, d, e, k) = (shapes.rows(), shapes.d(), s.experts, s.top_k);
    let x = card.noise("what the router reads", DType::Bf16, t * d)?;
    // Logits of about 1.
    let w: Vec<f32> = Random::new(4).normal(e * d).iter().map(|w| w / (d as f32).sqrt()).collect();
    let w: Vec<u8> = w.into_iter().flat_map(f32::to_le_bytes).collect();
    let w = card.bytes("the router", &w)?;
    let (bias, d_gates) =
        (card.zeros("biases", 4 * e)?, card.noise("gradients of gates", DType::F32, t * k)?);
    let zeros = |what, bytes: usize| card.zeros(what, bytes);
    let (scores, chosen) = (zeros("scores", 4 * t * e)?, zeros("choices", 4 * t * k)?);
    let (gates, counts) = (zeros("gates", 4 * t * k)?, zeros("counts", 4 * e)?);
    let (load, balance) = (zeros("load", 4 * shapes.batch * e)?, zeros("balance", 8)?);
    let (terms, d_logits) = (zeros("terms", 4 * t)?, zeros("d_logits", 4 * t * e)?);
    let (dx, d_w) = (zeros("dx", 4 * t * d)?, zeros("the router's gradient", 4 * e * d)?);
    let routing = || router::Routing {
        scores: scores.all(),
        chosen: chosen.all(),
        gates: gates.all(),
        counts: counts.all(),
        load: load.all(),
        balance: balance.all(),
    };
    let (product, size) = (2.0 * (t * d * e) as f64, router::Size { t, d });
    let work = |name: &str, flops, bytes: usize| Work {
        name: name.to_owned(),
        shape: format!("{t} x {d} x {e}"),
        times: shapes.moe_layers(),
        flops,
        bytes: bytes as f64,
        bound: Unit::F32Products,
    };
    let (kernels, stream) = (&card.kernels.router, &card.stream);
    let read = 2 * t * d + 4 * e * (t + d);
    bench.measure(work("router forward", product, read), || {
        let inputs = (x.all(), w.all(), bias.all());
        kernels.forward(stream, inputs, routing(), terms.all(), size, &s)
    })?;
    let moved = read + 8 * t * d + 8 * e * d;
    bench.measure(work("router backward", 2.0 * product, moved), || {
        let back = router::Back { d_gates: d_gates.all(), balance_weight: 1e-4 };
        let out = router::Gradients {
            dx: dx.all(),
            accumulate: true,
            d_w: d_w.all(),
            d_logits: d_logits.all(),
        };
        kernels.backward(stream, (x.all(), w.all()), routing(), back, out, size, &s)
    })
}

/// Rows by expert: forward, and both sides of the weight half again; gradients backward.
fn gather(bench: &mut Bench<'_>, layout: &Layout) -> Result<(), DeviceError> {
    let (card, math, t, d) =
        (bench.card, bench.shapes.math(), bench.shapes.rows(), bench.shapes.d());
    let from = card.side("rows", (t, d), (math, Tiling::Row))?;
    let to = card.side("rows by expert", (layout.rows, d), (math, Tiling::Row))?;
    let pairs = t * bench.shapes.model.num_experts_per_tok as usize;
    let bytes = (element(math) * (d * (pairs + layout.rows)) as f64) as usize;
    let moved = dispatch::Moved { from: t, to: layout.rows, columns: d };
    let (kernels, stream, times) =
        (&card.kernels.dispatch, &card.stream, 4 * bench.shapes.moe_layers());
    let shape = format!("{pairs} x {d}");
    bench.stream(("rows by expert", shape), times, bytes, || {
        let (from, to) = (from.operand(), to.operand());
        kernels.gather_rows(stream, from, to, layout.sources.all(), moved)
    })
}

fn of(values: Slice<'_>, dtype: DType) -> dispatch::Values<'_> {
    dispatch::Values { values, dtype }
}

/// What experts gave for each row that came, and what came back for each token.
fn sums(bench: &mut Bench<'_>, layout: &Layout) -> Result<(), DeviceError> {
    let (card, t, d) = (bench.card, bench.shapes.rows(), bench.shapes.d());
    let (kernels, stream, times) =
        (&card.kernels.dispatch, &card.stream, 2 * bench.shapes.moe_layers());
    let pairs = t * bench.shapes.model.num_experts_per_tok as usize;
    let values = card.noise("what experts gave", DType::F32, layout.rows * d)?;
    let sums = card.zeros("sums of rows", 2 * t * d)?;
    let bytes = 4 * pairs * d + 2 * t * d;
    bench.stream(("sums over experts", format!("{pairs} x {d}")), times, bytes, || {
        let terms = dispatch::Terms { first: layout.first.all(), index: layout.terms.all() };
        let (from, to) = (of(values.all(), DType::F32), of(sums.all(), DType::Bf16));
        let moved = dispatch::Moved { from: layout.rows, to: t, columns: d };
        kernels.sum_rows(stream, from, terms, None, to, moved)
    })?;
    // One shard, and the shared expert's; forward to BF16, backward to FP32.
    let each: Vec<u32> = (0..=t as u32).collect();
    let each = words(card, "the terms of tokens", &each)?;
    let returned = card.noise("rows returned", DType::Bf16, t * d)?;
    let also = card.noise("what the shared expert gave", DType::F32, t * d)?;
    let names = ["sums over shards", "sums over shards, back"];
    for (name, dtype) in names.into_iter().zip([DType::Bf16, DType::F32]) {
        let sums = card.zeros("sums of rows", dtype.size() * t * d)?;
        let bytes = (6 + dtype.size()) * t * d;
        bench.stream((name, format!("{t} x {d}")), times / 2, bytes, || {
            let terms = dispatch::Terms { first: each.all(), index: each.slice(0..4 * t) };
            let (from, to) = (of(returned.all(), DType::Bf16), of(sums.all(), dtype));
            let moved = dispatch::Moved { from: t, to: t, columns: d };
            kernels.sum_rows(stream, from, terms, Some(also.all()), to, moved)
        })?;
    }
    Ok(())
}
