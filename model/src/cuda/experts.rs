//! The cell's own routed experts on a device, at work on the rows received from the whole group: `crate::moe::experts`
//! judges it. All experts run in one grouped product.

use std::sync::Arc;

use shoal_kernels::DType;
use shoal_kernels::cuda::{Block, DeviceError, dispatch, gemm, swiglu};
use shoal_kernels::linear;

use super::ffn::{Ffn, FfnKept};
use super::gpu::Gpu;
use super::halves::{Cached, Deferred};
use super::matrix::{Matrix, Operand};
use super::parameters::Parameters;
use super::room::Extent;
use crate::moe::Received;

/// Rows of an expert begin at multiples of this, so that no tile of 128 x 1 has rows of two.
const TILE: usize = 128;

/// Which received row is where when rows are laid out by expert.
#[derive(Debug)]
pub(super) struct Gathered {
    /// Of each expert the first row and the end: u32.
    ranges: Block,
    experts: usize,
    /// Of each row the received row that it is a copy of, or none: u32.
    sources: Block,
    rows: Extent,
    /// Of each received row where its terms begin, and the rows that these are: u32.
    first: Block,
    terms: Block,
    received: Extent,
    /// Of each pair of a received row and an expert, in the order in which they came, its row.
    places: Vec<u32>,
}

impl Gathered {
    /// Of `experts`, of which each token chooses `top_k` of all there are.
    pub(super) fn new(
        gpu: &Gpu,
        received: &Received,
        (experts, top_k): (usize, usize),
    ) -> Result<Self, DeviceError> {
        let pairs = received.experts();
        let mut counts = vec![0; experts];
        for expert in pairs {
            counts[usize::from(*expert)] += 1;
        }
        let mut ranges = Vec::with_capacity(2 * experts);
        let mut next = Vec::with_capacity(experts);
        let mut rows: usize = 0;
        for count in counts {
            next.push(rows);
            ranges.extend([rows as u32, (rows + count) as u32]);
            rows = (rows + count).next_multiple_of(TILE);
        }
        let mut sources = vec![dispatch::NONE; rows];
        let mut places = Vec::with_capacity(pairs.len());
        let first = received.first();
        for (row, bounds) in first.windows(2).enumerate() {
            for expert in &pairs[bounds[0]..bounds[1]] {
                let place = &mut next[usize::from(*expert)];
                sources[*place] = row as u32;
                places.push(*place as u32);
                *place += 1;
            }
        }
        let first: Vec<u32> = first.iter().map(|at| *at as u32).collect();
        let received = gpu.received_extent(first.len() - 1);
        let (mut rows, mut room) = (Extent::from(rows), places.len());
        if let Some(most) = gpu.room() {
            room = most.pairs(experts, top_k);
            // Of each expert that has any row, up to one tile less one are none.
            rows.room = (room + (TILE - 1) * experts.min(room)) / TILE * TILE;
        }
        let upload = |what, words: &[u32], room| gpu.upload_words(what, words, room);
        Ok(Self {
            ranges: upload("the rows of experts", &ranges, 2 * experts)?,
            experts,
            sources: upload("the sources of rows", &sources, rows.room)?,
            rows,
            received,
            first: upload("the terms of rows", &first, received.room + 1)?,
            terms: upload("the terms of rows", &places, room)?,
            places,
        })
    }

    pub(super) fn groups(&self) -> gemm::Groups<'_> {
        gemm::Groups { ranges: self.ranges.all(), experts: self.experts }
    }

    /// Received rows by expert; gaps are zero.
    pub(super) fn gather(&self, gpu: &Gpu, x: &Operand) -> Result<Operand, DeviceError> {
        gpu.gather(x, self.sources.all(), self.rows)
    }

    /// Per received row the sum of its rows [R, D], FP32 in ascending order of experts, rounded to BF16.
    fn sum(&self, gpu: &Gpu, values: &Matrix) -> Result<Matrix, DeviceError> {
        let terms = (self.first.all(), self.terms.all());
        gpu.sum_rows(values, terms, self.received, None, DType::Bf16)
    }

    /// What belongs to pairs, by row; zero in gaps.
    fn by_row(&self, pairs: &[f32]) -> Vec<f32> {
        let mut rows = vec![0.0; self.rows.rows];
        for (place, value) in self.places.iter().zip(pairs) {
            rows[*place as usize] = *value;
        }
        rows
    }

    /// And back.
    fn by_pair(&self, rows: &[f32]) -> Vec<f32> {
        self.places.iter().map(|place| rows[*place as usize]).collect()
    }
}

/// Kept after forward.
#[derive(Debug)]
pub(super) struct ExpertsKept {
    /// [R, D].
    rows: Arc<Operand>,
    gathered: Arc<Gathered>,
    gates: Block,
    activations: FfnKept,
    rows_from: Vec<usize>,
    pairs_from: Vec<usize>,
}

impl ExpertsKept {
    /// Rows by source cell.
    pub(super) fn rows_from(&self) -> &[usize] {
        &self.rows_from
    }

    /// Gradients of what the rows' experts gave, as they came.
    pub(super) fn upload_gradients(
        &self,
        gpu: &Gpu,
        d_rows: &linear::Operand,
    ) -> Result<Operand, DeviceError> {
        let room = self.gathered.received.room;
        gpu.upload_operand("gradients received by experts", d_rows, room)
    }

    /// Pairs of a row and an expert by source cell.
    pub(super) fn pairs_from(&self) -> &[usize] {
        &self.pairs_from
    }
}

/// Per received row the sum over its local experts [R, D], as it travels back.
pub(super) fn forward(
    (gpu, p): (&Gpu, &Parameters),
    ffn: &Ffn,
    received: Received,
    experts: (usize, usize),
) -> Result<(Matrix, ExpertsKept), DeviceError> {
    let room = gpu.received_extent(received.rows.rows()).room;
    let rows = gpu.upload_operand("rows received by experts", &received.rows, room)?;
    let rows = Arc::new(rows);
    let gathered = Arc::new(Gathered::new(gpu, &received, experts)?);
    let gates = gathered.by_row(received.gates());
    let gates = gpu.upload_words("gates of rows", &gates, gathered.rows.room)?;
    let x = gathered.gather(gpu, &rows)?;
    let by_expert = (Some(gates.all()), Some(gathered.groups()));
    let (y, activations) = ffn.forward((gpu, p), &x, by_expert, DType::F32)?;
    let sums = gathered.sum(gpu, &y)?;
    let (rows_from, pairs_from) = (received.rows_from().to_vec(), received.pairs_from());
    Ok((sums, ExpertsKept { rows, gathered, gates, activations, rows_from, pairs_from }))
}

/// The input half: per received row its gradient [R, D], as it travels back, and per pair its gate's. Waits for the
/// device.
pub(super) fn backward_input(
    (gpu, p): (&Gpu, &Parameters),
    ffn: &Ffn,
    kept: ExpertsKept,
    d_rows: Arc<Operand>,
    deferred: &mut Vec<Deferred>,
) -> Result<(Matrix, Vec<f32>), DeviceError> {
    let ExpertsKept { rows, gathered, gates, activations, .. } = kept;
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
    let d_gates: Vec<f32> = gpu.download_all(d_gates.all())?;
    Ok((sums, gathered.by_pair(&d_gates)))
}
