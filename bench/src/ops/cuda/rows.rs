//! Rows on their way to experts and back on a GPU: who gets which, and what moves them. There is one shard, the card's own, so
//! that nothing crosses to the host: what a cell sends to itself stays there.

use shoal_kernels::cuda::{Buffer, DeviceError, dispatch};
use shoal_kernels::{DType, Tiling};

use super::Bench;
use super::experts::words;
use crate::ops::linears::element;

/// What `dispatch` lists of one microbatch.
struct Lists {
    chosen: Buffer,
    gates: Buffer,
    bounds: Buffer,
    ranks: Buffer,
    totals: Buffer,
    token_of_row: Buffer,
    first_of_token: Buffer,
    rows_of_token: Buffer,
    /// Row, expert and gate of each pair, and the pair of each choice.
    pairs: [Buffer; 4],
}

impl Lists {
    /// Choice c of token t is expert `(t K + c) % E`.
    fn new(bench: &Bench<'_>) -> Result<Self, DeviceError> {
        let (card, t) = (bench.card, bench.shapes.rows());
        let model = &bench.shapes.model;
        let (experts, pairs) = (model.n_routed_experts, t * model.num_experts_per_tok as usize);
        let chosen: Vec<u32> = (0..pairs as u32).map(|pair| pair % experts).collect();
        let list = |what, words: usize| card.zeros(what, 4 * words);
        let of_pairs = || list("a list of pairs", pairs);
        Ok(Self {
            chosen: words(card, "choices", &chosen)?,
            gates: card.noise("gates", DType::F32, pairs)?,
            bounds: words(card, "the owners of experts", &[0, experts])?,
            ranks: list("ranks of tokens", 2 * t)?,
            totals: list("how much goes where", 2)?,
            token_of_row: list("the tokens of rows", t)?,
            first_of_token: list("the rows of tokens", t + 1)?,
            rows_of_token: list("the rows of tokens", t)?,
            pairs: [of_pairs()?, of_pairs()?, of_pairs()?, of_pairs()?],
        })
    }

    fn choices(&self) -> dispatch::Choices<'_> {
        let Self { chosen, gates, bounds, .. } = self;
        dispatch::Choices { chosen: chosen.all(), gates: gates.all(), bounds: bounds.all() }
    }

    fn out(&self) -> dispatch::Lists<'_> {
        let [row, expert, gate, slot] = &self.pairs;
        dispatch::Lists {
            ranks: self.ranks.all(),
            totals: self.totals.all(),
            token_of_row: self.token_of_row.all(),
            first_of_token: self.first_of_token.all(),
            rows_of_token: self.rows_of_token.all(),
            row_of_pair: row.all(),
            expert_of_pair: expert.all(),
            gate_of_pair: gate.all(),
            pair_of_slot: slot.all(),
        }
    }
}

/// Measures them.
pub(super) fn each(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let lists = Lists::new(bench)?;
    let (card, t) = (bench.card, bench.shapes.rows());
    let top_k = bench.shapes.model.num_experts_per_tok as usize;
    let (kernels, stream) = (&card.kernels.dispatch, &card.stream);
    let (times, shape) = (bench.shapes.moe_layers(), format!("{t} x {top_k}"));
    let sending = dispatch::Sending { t, top_k, shards: 1 };
    // Choices twice and gates; four lists of pairs, and of tokens ranks twice and three lists.
    let bytes = 4 * (7 * t * top_k + 7 * t);
    bench.stream(("who gets which rows", shape.clone()), times, bytes, || {
        kernels.lists(stream, lists.choices(), lists.out(), sending)
    })?;
    segments(bench, &lists)?;
    to_shards(bench, &lists)?;
    // Gates by row; their gradients by pair, and by choice.
    let numbers = t * top_k;
    let (from, to) =
        (card.noise("numbers", DType::F32, numbers)?, card.zeros("numbers", 4 * numbers)?);
    bench.stream(("gates by an index", shape), 3 * times, 12 * numbers, || {
        let index = lists.pairs[3].all();
        kernels.gather_numbers(stream, from.all(), index, to.all(), (numbers, numbers))
    })
}

/// Which rows are which expert's, as the receiver finds out.
fn segments(bench: &mut Bench<'_>, lists: &Lists) -> Result<(), DeviceError> {
    let (card, t) = (bench.card, bench.shapes.rows());
    let model = &bench.shapes.model;
    let (top_k, experts) = (model.num_experts_per_tok as usize, model.n_routed_experts as usize);
    let s = dispatch::Receiving { sources: 1, rows: t, pairs: t * top_k, experts };
    let list = |what, words: usize| card.zeros(what, 4 * words);
    let (ranks, counts) = (list("ranks of pairs", s.pairs)?, list("counts", experts)?);
    let (first, place) = (list("the terms of rows", t + 1)?, list("places of pairs", s.pairs)?);
    let (rows, pairs) = (list("rows of places", s.places())?, list("pairs of places", s.places())?);
    let ranges = list("the rows of experts", 2 * experts)?;
    let rows_before = words(card, "rows before", &[0, t as u32])?;
    let pairs_before = words(card, "pairs before", &[0, s.pairs as u32])?;
    // Two lists that came, the experts once more for each expert; ranks twice, places, and two lists of places.
    let bytes = 4 * ((6 + experts) * s.pairs + 2 * s.places());
    let shape = format!("{t} x {top_k}");
    bench.stream(("which rows are an expert's", shape), bench.shapes.moe_layers(), bytes, || {
        let given = dispatch::Pairs {
            row_of_pair: lists.pairs[0].all(),
            expert_of_pair: lists.pairs[1].all(),
            rows_before: rows_before.all(),
            pairs_before: pairs_before.all(),
        };
        let out = dispatch::Segments {
            ranks: ranks.all(),
            counts: counts.all(),
            first_of_row: first.all(),
            place_of_pair: place.all(),
            row_of_place: rows.all(),
            pair_of_place: pairs.all(),
            ranges: ranges.all(),
        };
        card.kernels.dispatch.segments(&card.stream, given, out, s)
    })
}

/// Tokens and gradients in the order of the shards that they go to; what this one keeps, each way.
fn to_shards(bench: &mut Bench<'_>, lists: &Lists) -> Result<(), DeviceError> {
    let (card, math, t, d) =
        (bench.card, bench.shapes.math(), bench.shapes.rows(), bench.shapes.d());
    let times = 2 * bench.shapes.moe_layers();
    let from = card.side("rows", (t, d), (math, Tiling::Row))?;
    let to = card.side("rows by shard", (t, d), (math, Tiling::Row))?;
    let moved = dispatch::Moved { from: t, to: t, columns: d };
    let bytes = (2.0 * element(math) * (t * d) as f64) as usize;
    let shape = format!("{t} x {d}");
    bench.stream(("rows by shard", shape.clone()), times, bytes, || {
        let (from, to) = (from.operand(), to.operand());
        let kernels = &card.kernels.dispatch;
        kernels.gather_rows(&card.stream, from, to, lists.token_of_row.all(), moved)
    })?;
    for (name, bytes) in [("rows kept", bytes / 2), ("rows kept, back", 2 * t * d)] {
        let (from, to) = (card.zeros("rows", bytes)?, card.zeros("rows", bytes)?);
        bench.stream((name, shape.clone()), times, 2 * bytes, || {
            card.stream.copy(to.all(), from.all())
        })?;
    }
    Ok(())
}
