//! The cell's own routed experts on a device, at work on the rows received from the whole group: `crate::moe::experts`
//! judges it. All experts run in one grouped product.

use std::sync::Arc;

use shoal_kernels::DType;
use shoal_kernels::cuda::{Block, DeviceError, dispatch, gemm, swiglu};
use shoal_kernels::linear::Math;

use super::ffn::{Ffn, FfnKept};
use super::gpu::Gpu;
use super::halves::{Cached, Deferred};
use super::legs::{Plane, Shares};
use super::matrix::{Matrix, Operand};
use super::parameters::Parameters;
use super::room::Extent;
use super::sent::Pairs;
use crate::moe::RowForm;
use crate::moe::dispatch::Counts;

/// Rows of an expert begin at multiples of this, so that no tile of 128 x 1 has rows of two.
const TILE: usize = 128;

/// The rows that cells of the group sent here, one cell's after the other's.
#[derive(Debug)]
pub(super) struct Received {
    rows: Operand,
    pairs: Pairs,
    shares: Shares,
}

impl Received {
    /// Room for them. A token chooses `top_k` of all experts there are.
    pub(super) fn unwritten(
        gpu: &Gpu,
        form: &RowForm,
        top_k: usize,
        shares: Shares,
    ) -> Result<Self, DeviceError> {
        let size = (gpu.received_extent(shares.total().rows), form.cols);
        let rows = gpu.unwritten("rows received by experts", form.math, size)?;
        let pairs = shares.total().pairs;
        let room = gpu.room().map_or(pairs, |most| most.pairs(form.n_experts, top_k));
        let pairs = Pairs::unwritten(gpu, Extent { rows: pairs, room })?;
        Ok(Self { rows, pairs, shares })
    }

    pub(super) fn planes(&self) -> Vec<Plane<'_>> {
        let Pairs { rows, experts, gates } = &self.pairs;
        let mut planes = Plane::of_operand(&self.rows);
        planes.extend([rows, experts, gates].map(|list| Plane::of_pairs(list.all())));
        planes
    }

    pub(super) fn shares(&self) -> &Shares {
        &self.shares
    }
}

/// Which received row is where when rows are laid out by expert.
#[derive(Debug)]
pub(super) struct Gathered {
    /// Of each expert the first row and the end: u32.
    ranges: Block,
    experts: usize,
    /// Of each row the received row that it is a copy of, or none: u32.
    sources: Block,
    rows: Extent,
    /// Of each received row where its terms begin, and of each pair of a received row and an expert, in the order in which
    /// they came, the row that it is: u32.
    first: Block,
    places: Block,
    received: Extent,
    pairs: Extent,
}

impl Gathered {
    /// Of so many experts. Also the gates of rows.
    fn new(gpu: &Gpu, received: &Received, experts: usize) -> Result<(Self, Block), DeviceError> {
        let Received { rows, pairs, shares } = received;
        let (rows, total) = (rows.extent(), shares.total());
        let n = Extent { rows: total.pairs, room: pairs.gates.room() / 4 };
        let s = dispatch::Receiving {
            sources: shares.cells().len(),
            rows: rows.rows,
            pairs: n.rows,
            experts,
        };
        let all =
            Extent { rows: s.places(), room: dispatch::Receiving { pairs: n.room, ..s }.places() };
        let [ranks, places] =
            ["ranks of pairs", "the terms of rows"].map(|what| gpu.rows(what, n, 4));
        let (ranks, places) = (ranks?, places?);
        let counts = gpu.block("counts of experts", 4 * experts)?;
        let up_to = Extent { rows: rows.rows + 1, room: rows.room + 1 };
        let first = gpu.rows("the terms of rows", up_to, 4)?;
        let sources = gpu.rows("the sources of rows", all, 4)?;
        let pair_of_place = gpu.rows("the pairs of rows", all, 4)?;
        let ranges = gpu.block("the rows of experts", 8 * experts)?;
        let before = |of: fn(&Counts) -> usize| -> Vec<u32> {
            shares.before().iter().map(|counts| of(counts) as u32).collect()
        };
        let what = "what came from each cell";
        let upload = |list: Vec<u32>| gpu.upload_bytes(what, bytemuck::cast_slice(&list));
        let rows_before = upload(before(|counts| counts.rows))?;
        let pairs_before = upload(before(|counts| counts.pairs))?;
        let given = dispatch::Pairs {
            row_of_pair: pairs.rows.all(),
            expert_of_pair: pairs.experts.all(),
            rows_before: rows_before.all(),
            pairs_before: pairs_before.all(),
        };
        let out = dispatch::Segments {
            ranks: ranks.all(),
            counts: counts.all(),
            first_of_row: first.all(),
            place_of_pair: places.all(),
            row_of_place: sources.all(),
            pair_of_place: pair_of_place.all(),
            ranges: ranges.all(),
        };
        gpu.kernels.dispatch.segments(&gpu.stream, given, out, s)?;
        let by_expert = Extent { rows: laid_out(n.rows, experts), room: laid_out(n.room, experts) };
        let gates = gpu.rows("gates of rows", by_expert, 4)?;
        let index = pair_of_place.slice(0..4 * by_expert.rows);
        gpu.gather_numbers(pairs.gates.all(), index, gates.all())?;
        let (received, rows, pairs) = (rows, by_expert, n);
        Ok((Self { ranges, experts, sources, rows, first, places, received, pairs }, gates))
    }

    pub(super) fn groups(&self) -> gemm::Groups<'_> {
        gemm::Groups { ranges: self.ranges.all(), experts: self.experts }
    }

    /// Received rows by expert; gaps are zero.
    pub(super) fn gather(&self, gpu: &Gpu, x: &Operand) -> Result<Operand, DeviceError> {
        gpu.gather("rows by expert", x, self.sources.slice(0..4 * self.rows.rows), self.rows)
    }

    /// Per received row the sum of its rows [R, D], FP32 in ascending order of experts, rounded to BF16.
    fn sum(&self, gpu: &Gpu, values: &Matrix) -> Result<Matrix, DeviceError> {
        let terms = (self.first.all(), self.places.all());
        gpu.sum_rows(values, terms, self.received, None, DType::Bf16)
    }

    /// What belongs to rows, by pair.
    fn by_pair(&self, gpu: &Gpu, rows: &Block) -> Result<Block, DeviceError> {
        let pairs = gpu.rows("gradients of gates", self.pairs, 4)?;
        gpu.gather_numbers(rows.all(), self.places.all(), pairs.all())?;
        Ok(pairs)
    }
}

/// Rows that so many pairs take at most, laid out by expert: of each that has any, up to one tile less one are none.
fn laid_out(pairs: usize, experts: usize) -> usize {
    (pairs + (TILE - 1) * experts.min(pairs)) / TILE * TILE
}

/// Kept after forward.
#[derive(Debug)]
pub(super) struct ExpertsKept {
    /// [R, D].
    rows: Arc<Operand>,
    gathered: Arc<Gathered>,
    gates: Block,
    activations: FfnKept,
    shares: Shares,
}

impl ExpertsKept {
    /// What came from each cell.
    pub(super) fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Room for the gradients of what the rows' experts gave, as they come.
    pub(super) fn gradients(&self, gpu: &Gpu, math: Math) -> Result<Operand, DeviceError> {
        let size = (self.gathered.received, self.rows.cols());
        gpu.unwritten("gradients received by experts", math, size)
    }
}

/// Per received row the sum over its local experts [R, D], as it travels back.
pub(super) fn forward(
    (gpu, p): (&Gpu, &Parameters),
    ffn: &Ffn,
    received: Received,
    experts: usize,
) -> Result<(Matrix, ExpertsKept), DeviceError> {
    let (gathered, gates) = Gathered::new(gpu, &received, experts)?;
    let Received { rows, shares, .. } = received;
    let (rows, gathered) = (Arc::new(rows), Arc::new(gathered));
    let x = gathered.gather(gpu, &rows)?;
    let by_expert = (Some(gates.all()), Some(gathered.groups()));
    let (y, activations) = ffn.forward((gpu, p), &x, by_expert, DType::F32)?;
    let sums = gathered.sum(gpu, &y)?;
    Ok((sums, ExpertsKept { rows, gathered, gates, activations, shares }))
}

/// The input half: per received row its gradient [R, D], as it travels back, and per pair its gate's.
pub(super) fn backward_input(
    (gpu, p): (&Gpu, &Parameters),
    ffn: &Ffn,
    kept: ExpertsKept,
    d_rows: Arc<Operand>,
    deferred: &mut Vec<Deferred>,
) -> Result<(Matrix, Block, Shares), DeviceError> {
    let ExpertsKept { rows, gathered, gates, activations, shares } = kept;
    let d_y = gathered.gather(gpu, &d_rows)?;
    let d_gates = gpu.rows("gradients of gates", gathered.rows, 4)?;
    let both = swiglu::Gates { gates: gates.all(), d_gates: d_gates.all() };
    let by_expert = (Some(both), Some(gathered.groups()));
    let x = ffn.reads_again().then(|| gathered.gather(gpu, &rows)).transpose()?;
    let kept = (x.as_ref(), &activations);
    let gradients = ffn.backward_input((gpu, p), kept, by_expert, &d_y)?;
    drop(x);
    let sides = (
        Cached::ByExpert(rows, Arc::clone(&gathered)),
        Cached::ByExpert(d_rows, Arc::clone(&gathered)),
    );
    let d_x = ffn.defer(gradients, sides, Some(&gathered), deferred);
    let sums = gathered.sum(gpu, &d_x)?;
    let d_gates = gathered.by_pair(gpu, &d_gates)?;
    Ok((sums, d_gates, shares))
}
