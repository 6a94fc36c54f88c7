//! Rows on their way to experts and back, on the device. The judges are the model's own lists (`model/src/moe/dispatch.rs`:
//! one row for each token and shard, pairs of a row and an expert ascending) and [`crate::row_sums`].
//!
//! T tokens, K choices, S shards; shard s owns experts `bounds[s] .. bounds[s + 1]`. All numbers are u32 unless said.
//! *Sender*, [`Kernels::lists`]. Rows and pairs lie shard after shard, in a shard token after token, in a row expert after
//! expert; totals `(S)` are pairs (rows, pairs), which the host reads to know what to send.
//! *Receiver*, [`Kernels::segments`]. N pairs of R rows came from `sources` cells, one after another. A stable sort by
//! expert gives each pair a place; an expert's places begin at a multiple of 128, for tiles along the rows, and
//! ranges `(E)` of first place and end are what [`super::gemm::Groups`] takes. Places that are nobody's are [`NONE`]'s.
//! *Both.* [`Kernels::gather_rows`] and [`Kernels::gather_numbers`] read by an index, and make zeros of what it does not
//! name; [`Kernels::sum_rows`] adds rows in FP32 in the order listed, and rounds once: an expert shard's sum for each
//! row that came, a cell's for each token, and the same backward. Gates travel beside rows; SwiGLU applies them before
//! the down projection.
//!
//! Choices of a token are different experts. An expert or a row that a peer made up gets no place. Any sizes; at most
//! 512 experts in a shard and 32 choices. Deterministic, without atomics. Source: `DeepSeek`-V3 report 3.3.2.
#![expect(unsafe_code, reason = "launches kernels")]

use crate::tensor::DType;

use super::gemm::Operand;
use super::given::Given;
use super::image::DISPATCH;
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// As in `dispatch.cu`.
const THREADS: usize = 512;
const ALIGNMENT: usize = 128;
const EXPERTS_MAX: usize = 512;
const TOP_K_MAX: usize = 32;
/// Rows that one block moves, a warp each.
const ROWS: usize = THREADS / 32;

/// What an index says of nothing.
pub const NONE: u32 = u32::MAX;

/// Chosen, bounds, ranks, totals; T, K.
type Rank = Function<(Address, Address, Address, Address, u32, u32)>;
/// Chosen, gates, bounds, ranks, totals, seven lists; T, K, S.
#[rustfmt::skip]
type MakeLists = Function<(
    Address, Address, Address, Address, Address, Address,
    Address, Address, Address, Address, Address, Address,
    u32, u32, u32,
)>;
/// Experts of pairs, ranks, counts; pairs.
type ExpertRank = Function<(Address, Address, Address, u32)>;
/// Row and expert of pairs, rows and pairs before, ranks, counts, five lists; sources, pairs, rows, experts.
#[rustfmt::skip]
type Places = Function<(
    Address, Address, Address, Address, Address, Address,
    Address, Address, Address, Address, Address,
    u32, u32, u32, u32,
)>;
/// Rows and scales, result and its scales, index; rows of both, bytes of a row and of its scales.
type GatherRows = Function<(Address, Address, Address, Address, Address, u32, u32, u32, u32)>;
/// Numbers, index, result; how many of both.
type GatherNumbers = Function<(Address, Address, Address, u32, u32)>;
/// Rows, first, index, also, result; rows there are, terms, columns.
type SumRows = Function<(Address, Address, Address, Address, Address, u32, u32, u32)>;

/// The kernels of `dispatch.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    rank: Rank,
    lists: MakeLists,
    expert_rank: ExpertRank,
    places: Places,
    gather_rows: GatherRows,
    gather_numbers: GatherNumbers,
    /// By dtype of rows, then of the result: FP32, BF16.
    sum_rows: [[SumRows; 2]; 2],
}

/// What the router decided, and who owns which experts.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a> {
    /// `(T, K)`
    pub chosen: Slice<'a>,
    /// `(T, K)`, FP32.
    pub gates: Slice<'a>,
    /// `(S + 1)`, ascending.
    pub bounds: Slice<'a>,
}

/// Tokens, choices of each, shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    pub t: usize,
    pub top_k: usize,
    pub shards: usize,
}

/// What a sender knows, overwritten.
#[derive(Clone, Copy, Debug)]
pub struct Lists<'a> {
    /// Room: `(S, T)` pairs.
    pub ranks: Slice<'a>,
    /// `(S)` pairs: rows and pairs for each shard.
    pub totals: Slice<'a>,
    /// Of each row its token; room for `Sending::rows_max`, as many as the totals say are written.
    pub token_of_row: Slice<'a>,
    /// `(T + 1)`: which of `rows_of_token` are a token's.
    pub first_of_token: Slice<'a>,
    /// The rows of each token, shard by shard; as many as `token_of_row`.
    pub rows_of_token: Slice<'a>,
    /// `(T K)`, of each pair: its row, counted from the shard's first.
    pub row_of_pair: Slice<'a>,
    /// `(T K)`: its expert, counted from the shard's first.
    pub expert_of_pair: Slice<'a>,
    /// `(T K)`, FP32.
    pub gate_of_pair: Slice<'a>,
    /// `(T, K)`: where each choice's pair is; `NONE` if nobody owns it.
    pub pair_of_slot: Slice<'a>,
}

impl Sending {
    /// Most rows there can be.
    pub fn rows_max(&self) -> usize {
        self.t * self.top_k.min(self.shards)
    }
}

/// What arrived, one source after another.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    /// `(N)`: as in `Lists`.
    pub row_of_pair: Slice<'a>,
    pub expert_of_pair: Slice<'a>,
    /// `(sources + 1)`: rows and pairs of the sources before.
    pub rows_before: Slice<'a>,
    pub pairs_before: Slice<'a>,
}

/// How much arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receiving {
    pub sources: usize,
    pub rows: usize,
    pub pairs: usize,
    /// Experts of this shard.
    pub experts: usize,
}

/// What a receiver knows, overwritten.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    /// Room, `(N)`.
    pub ranks: Slice<'a>,
    /// `(E)`: pairs of each expert.
    pub counts: Slice<'a>,
    /// `(R + 1)`: which pairs are a row's.
    pub first_of_row: Slice<'a>,
    /// `(N)`
    pub place_of_pair: Slice<'a>,
    /// As many as `Receiving::places`: which row and which pair is there, or `NONE`.
    pub row_of_place: Slice<'a>,
    pub pair_of_place: Slice<'a>,
    /// `(E)` pairs: first place and end.
    pub ranges: Slice<'a>,
}

impl Receiving {
    /// Most places there can be: every expert may end in up to 127 that are nobody's.
    pub fn places(&self) -> usize {
        self.pairs + self.experts * (ALIGNMENT - 1)
    }
}

/// Rows of which there are `from`, and `to` that are made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    pub from: usize,
    pub to: usize,
    pub columns: usize,
}

/// A matrix, and what its elements are.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    pub values: Slice<'a>,
    pub dtype: DType,
}

/// Which rows make up each row of a sum: row r of those that `index[first[r] .. first[r + 1]]` names.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// One more than there are rows.
    pub first: Slice<'a>,
    pub index: Slice<'a>,
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&DISPATCH)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        let sums = |name: &str| module.function(&format!("dispatch_sum_rows_{name}"), 0);
        Ok(Self {
            rank: module.function("dispatch_rank", 0)?,
            lists: module.function("dispatch_lists", 0)?,
            expert_rank: module.function("dispatch_expert_rank", 0)?,
            places: module.function("dispatch_places", 0)?,
            gather_rows: module.function("dispatch_gather_rows", 0)?,
            gather_numbers: module.function("dispatch_gather_numbers", 0)?,
            sum_rows: [
                [sums("f32_to_f32")?, sums("f32_to_bf16")?],
                [sums("bf16_to_f32")?, sums("bf16_to_bf16")?],
            ],
        })
    }

    /// What goes where.
    ///
    /// # Errors
    /// When a slice has another size than `s` says, or a result overlaps with another slice.
    pub fn lists(
        &self,
        stream: &Stream,
        choices: Choices<'_>,
        out: Lists<'_>,
        s: Sending,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("dispatch lists");
        let Sending { t, top_k, shards } = s;
        let (pairs, rows) = (4 * t * top_k, 4 * s.rows_max());
        given.reads("chosen", choices.chosen, pairs, 4)?;
        given.reads("gates", choices.gates, pairs, 4)?;
        given.reads("bounds", choices.bounds, 4 * (shards + 1), 4)?;
        given.writes("ranks", out.ranks, 8 * shards * t, 8)?;
        given.writes("totals", out.totals, 8 * shards, 8)?;
        given.writes("token_of_row", out.token_of_row, rows, 4)?;
        given.writes("first_of_token", out.first_of_token, 4 * (t + 1), 4)?;
        given.writes("rows_of_token", out.rows_of_token, rows, 4)?;
        given.writes("row_of_pair", out.row_of_pair, pairs, 4)?;
        given.writes("expert_of_pair", out.expert_of_pair, pairs, 4)?;
        given.writes("gate_of_pair", out.gate_of_pair, pairs, 4)?;
        given.writes("pair_of_slot", out.pair_of_slot, pairs, 4)?;
        given.wants(top_k <= TOP_K_MAX, || format!("{top_k} choices, want at most {TOP_K_MAX}"))?;
        given.size("the number of choices", t * top_k)?;
        stream.fill(out.pair_of_slot, 0xff)?;
        if t == 0 {
            stream.fill(out.first_of_token, 0)?;
        }
        let (t, top_k) = (given.size("the number of tokens", t)?, top_k as u32);
        let shards = given.size("the number of shards", shards)?;
        let [chosen, gates, bounds] =
            [choices.chosen, choices.gates, choices.bounds].map(Slice::address);
        let (ranks, totals) = (out.ranks.address(), out.totals.address());
        let [token_of_row, first, rows] =
            [out.token_of_row, out.first_of_token, out.rows_of_token].map(Slice::address);
        let [row, expert, gate, slot] =
            [out.row_of_pair, out.expert_of_pair, out.gate_of_pair, out.pair_of_slot]
                .map(Slice::address);
        let of_rank = (chosen, bounds, ranks, totals, t, top_k);
        #[rustfmt::skip]
        let of_lists = (
            chosen, gates, bounds, ranks, totals, token_of_row,
            first, rows, row, expert, gate, slot, t, top_k, shards,
        );
        // SAFETY: the kernel stays inside matrices of these sizes, which were checked above, whatever the choices are.
        unsafe { self.rank.launch(stream, Grid::line(shards, THREADS as u32), of_rank) }?;
        // SAFETY: as above.
        unsafe { self.lists.launch(stream, lines(t as usize), of_lists) }
    }

    /// Groups what arrived by expert.
    ///
    /// # Errors
    /// As for `lists`.
    pub fn segments(
        &self,
        stream: &Stream,
        pairs: Pairs<'_>,
        out: Segments<'_>,
        s: Receiving,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("dispatch segments");
        given.reads("row_of_pair", pairs.row_of_pair, 4 * s.pairs, 4)?;
        given.reads("expert_of_pair", pairs.expert_of_pair, 4 * s.pairs, 4)?;
        given.reads("rows_before", pairs.rows_before, 4 * (s.sources + 1), 4)?;
        given.reads("pairs_before", pairs.pairs_before, 4 * (s.sources + 1), 4)?;
        given.writes("ranks", out.ranks, 4 * s.pairs, 4)?;
        given.writes("counts", out.counts, 4 * s.experts, 4)?;
        given.writes("first_of_row", out.first_of_row, 4 * (s.rows + 1), 4)?;
        given.writes("place_of_pair", out.place_of_pair, 4 * s.pairs, 4)?;
        given.writes("row_of_place", out.row_of_place, 4 * s.places(), 4)?;
        given.writes("pair_of_place", out.pair_of_place, 4 * s.places(), 4)?;
        given.writes("ranges", out.ranges, 8 * s.experts, 8)?;
        given.wants(s.experts <= EXPERTS_MAX, || {
            format!("{} experts in a shard, want at most {EXPERTS_MAX}", s.experts)
        })?;
        given.size("the number of places", s.places())?;
        let n_pairs = s.pairs as u32;
        let n_rows = given.size("the number of rows", s.rows)?;
        let n_sources = given.size("the number of sources", s.sources)?;
        stream.fill(out.row_of_place, 0xff)?;
        stream.fill(out.pair_of_place, 0xff)?;
        let Pairs { row_of_pair, expert_of_pair, rows_before, pairs_before } = pairs;
        let [row, expert, rows, before] =
            [row_of_pair, expert_of_pair, rows_before, pairs_before].map(Slice::address);
        let (ranks, counts) = (out.ranks.address(), out.counts.address());
        let [first, place] = [out.first_of_row, out.place_of_pair].map(Slice::address);
        let [row_of, pair_of, ranges] =
            [out.row_of_place, out.pair_of_place, out.ranges].map(Slice::address);
        let experts = s.experts as u32;
        #[rustfmt::skip]
        let of_places = (
            row, expert, rows, before, ranks, counts,
            first, place, row_of, pair_of, ranges, n_sources, n_pairs, n_rows, experts,
        );
        let blocks = Grid::line(experts, THREADS as u32);
        // SAFETY: the kernel stays inside lists of these sizes, which were checked above, whatever arrived.
        unsafe { self.expert_rank.launch(stream, blocks, (expert, ranks, counts, n_pairs)) }?;
        // SAFETY: as above.
        unsafe { self.places.launch(stream, lines(s.pairs.max(1)), of_places) }
    }

    /// `out[r] = x[index[r]]`, with its scales, in 1 x 128 tiles; zeros where the index names no row.
    ///
    /// # Errors
    /// When a slice has another size, a result overlaps with what is read, or the two are not of one kind.
    pub fn gather_rows(
        &self,
        stream: &Stream,
        x: Operand<'_>,
        out: Operand<'_>,
        index: Slice<'_>,
        n: Moved,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("dispatch gather rows");
        let Moved { from, to, columns } = n;
        given.reads("the index", index, 4 * to, 4)?;
        let (bytes, scale_bytes, addresses) = match (x, out) {
            (Operand::Bf16(x), Operand::Bf16(out)) => {
                given.reads("rows", x, 2 * from * columns, 2)?;
                given.writes("the result", out, 2 * to * columns, 2)?;
                (2 * columns, 0, [x.address(), Address(0), out.address(), Address(0)])
            }
            (Operand::Fp8(x), Operand::Fp8(out)) if x.format == out.format => {
                let (size, scales) = (x.format.bytes(), columns.div_ceil(128) * x.format.bytes());
                given.reads("codes", x.codes, from * columns, 1)?;
                given.reads("scales", x.scales, from * scales, size as u64)?;
                given.writes("codes of the result", out.codes, to * columns, 1)?;
                given.writes("scales of the result", out.scales, to * scales, size as u64)?;
                (columns, scales, [x.codes, x.scales, out.codes, out.scales].map(Slice::address))
            }
            (Operand::Bf16(_) | Operand::Fp8(_), _) => {
                return Err(given.problem("rows and result of two kinds".to_owned()));
            }
        };
        let [x, x_scales, out, out_scales] = addresses;
        let arguments = (
            x,
            x_scales,
            out,
            out_scales,
            index.address(),
            given.size("the number of rows", from)?,
            given.size("the number of rows of the result", to)?,
            given.size("bytes of a row", bytes)?,
            scale_bytes as u32,
        );
        let grid = Grid::line(to.div_ceil(ROWS) as u32, THREADS as u32);
        // SAFETY: the kernel stays inside rows of these sizes, which were checked above, whatever the index names.
        unsafe { self.gather_rows.launch(stream, grid, arguments) }
    }

    /// `out[i] = x[index[i]]`, FP32; 0 where the index names no number.
    ///
    /// # Errors
    /// When a slice has another size, or the result overlaps with what is read.
    pub fn gather_numbers(
        &self,
        stream: &Stream,
        x: Slice<'_>,
        index: Slice<'_>,
        out: Slice<'_>,
        (from, to): (usize, usize),
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("dispatch gather numbers");
        given.reads("numbers", x, 4 * from, 4)?;
        given.reads("the index", index, 4 * to, 4)?;
        given.writes("the result", out, 4 * to, 4)?;
        let from = given.size("how many numbers", from)?;
        let n = given.size("how many results", to)?;
        let arguments = (x.address(), index.address(), out.address(), from, n);
        // SAFETY: the kernel stays inside vectors of these sizes, whatever the index names.
        unsafe { self.gather_numbers.launch(stream, lines(to), arguments) }
    }

    /// Rows that are sums of rows, in FP32 in the order listed, and of a row of `also`, FP32; rounded once. A row without
    /// terms starts from zero, and what the index names beyond the last row is left out.
    ///
    /// # Errors
    /// When a slice has another size, or the result overlaps with what is read.
    #[expect(clippy::too_many_arguments, reason = "what is added, and where it goes")]
    pub fn sum_rows(
        &self,
        stream: &Stream,
        x: Values<'_>,
        terms: Terms<'_>,
        also: Option<Slice<'_>>,
        out: Values<'_>,
        n: Moved,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("dispatch sum rows");
        let Moved { from, to, columns } = n;
        let size = |values: Values<'_>| values.dtype.size();
        given.reads("rows", x.values, size(x) * from * columns, size(x) as u64)?;
        given.reads("the first terms", terms.first, 4 * (to + 1), 4)?;
        given.reads("the index", terms.index, terms.index.bytes() / 4 * 4, 4)?;
        if let Some(also) = also {
            given.reads("what is added last", also, 4 * to * columns, 4)?;
        }
        given.writes("the result", out.values, size(out) * to * columns, size(out) as u64)?;
        let at = |dtype: DType| usize::from(dtype == DType::Bf16);
        let arguments = (
            x.values.address(),
            terms.first.address(),
            terms.index.address(),
            also.map_or(Address(0), Slice::address),
            out.values.address(),
            given.size("the number of rows", from)?,
            given.size("the number of terms", terms.index.bytes() / 4)?,
            given.size("the number of columns", columns)?,
        );
        let grid = Grid::line(given.size("the number of sums", to)?, THREADS as u32);
        // SAFETY: the kernel stays inside rows of these sizes, whatever the lists name.
        unsafe { self.sum_rows[at(x.dtype)][at(out.dtype)].launch(stream, grid, arguments) }
    }
}

/// A thread for each of so many things.
fn lines(n: usize) -> Grid {
    Grid::line(n.div_ceil(THREADS) as u32, THREADS as u32)
}
