//! What one cell keeps in memory while it trains, from the plan alone. An estimate: buffers that
//! live for one operation, and the allocator's own needs, come on top.

use crate::arithmetic::{dense_linears, layer_norms, mtp_own, routed_linears, router};
use crate::grid::CellId;
use crate::job::{Job, Precision};
use crate::model::ModelConfig;
use crate::numerics::{ScaleFormat, Scales};
use crate::plan::Plan;
use crate::schedule::Slot;

/// A process before it holds any model: the binary, its pools, its buffers.
pub const PROCESS_BYTES: u64 = 60 << 20;

/// The memory of one cell, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellBytes {
    /// The weights that the arithmetic reads: FP8, BF16 or FP32 in Linears, BF16 or FP32
    /// elsewhere.
    pub weights: u64,
    /// FP32 masters.
    pub masters: u64,
    /// FP32 gradients.
    pub gradients: u64,
    /// Two moments, in BF16 or FP32.
    pub moments: u64,
    /// The FP32 average of the masters, where one is kept.
    pub average: u64,
    /// Kept between forward and backward, for all microbatches in flight; and what deferred
    /// weight halves still need.
    pub activations: u64,
}

impl CellBytes {
    pub fn total(&self) -> u64 {
        (self.weights + self.gradients + self.snapshot()).saturating_add(self.activations)
    }
}

impl CellBytes {
    /// A snapshot of the cell's state, without the router biases: what is not computed again.
    pub fn snapshot(&self) -> u64 {
        self.masters + self.moments + self.average
    }
}

/// Bytes that a microbatch leaves behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct TokenBytes {
    /// For each token of the cell's own sequences.
    own: u64,
    /// For each token of the group that has sent a row to this shard.
    received: u64,
    /// For each token of the group in the routed experts, all of them together; a shard has its part.
    routed: u64,
}

#[cfg(test)]
impl TokenBytes {
    /// Where every token of the group comes to one shard.
    fn all(self) -> u64 {
        self.own + self.received + self.routed
    }
}

/// The memory of a cell.
pub fn cell_bytes(job: &Job, plan: &Plan, id: CellId) -> CellBytes {
    let model = &job.model;
    let at = plan.grid.cell(id);
    let d = u64::from(model.hidden_size);
    let (first, last) = (at.stage == 0, at.stage + 1 == plan.grid.stages);
    let chunks = chunks(job, plan, id);
    // What the arithmetic reads in BF16 (f32: FP32): embedding, head, norms, router, eh_proj.
    let mut wide = 0;
    let table = u64::from(model.vocab_size) * d;
    if first || (last && model.embedding_is_at_both_ends()) {
        wide += table;
    }
    if last {
        wide += if model.tie_word_embeddings { d } else { table + d };
        wide += u64::from(model.num_nextn_predict_layers) * mtp_own(model);
    }
    let experts = &plan.experts[at.expert_shard as usize];
    let experts = experts.end - experts.start;
    let mut linears = 0;
    for layer in chunks.iter().flatten() {
        wide += layer_norms(model) + router(model, *layer);
        linears += dense_linears(model, *layer) - router(model, *layer)
            + routed_linears(model, *layer, experts);
    }
    let n = wide + linears;
    let weights = match job.training.precision {
        Precision::Fp8 => linears + 2 * wide,
        Precision::Bf16 => 2 * n,
        Precision::F32 => 4 * n,
    };
    let average = if job.training.ema > 0.0 { 4 * n } else { 0 };
    let moments = job.training.moments.bytes() * n;
    let activations = activations(job, plan, id, &chunks);
    CellBytes { weights, masters: 4 * n, gradients: 4 * n, moments, average, activations }
}

/// The layers of a cell, with those of the MTP modules on the network's last.
pub(crate) fn layers_of(job: &Job, plan: &Plan, id: CellId) -> Vec<u32> {
    chunks(job, plan, id).concat()
}

/// The layers of each chunk of a cell, with those of the MTP modules on the network's last.
fn chunks(job: &Job, plan: &Plan, id: CellId) -> Vec<Vec<u32>> {
    let stage = plan.grid.cell(id).stage;
    let own = plan.chunks_of(stage).map(|chunk| chunk.layers.clone());
    let mut chunks: Vec<Vec<u32>> = own.map(Iterator::collect).collect();
    if stage + 1 == plan.grid.stages {
        chunks.last_mut().expect("a stage has a chunk").extend(job.model.mtp_layers());
    }
    chunks
}

/// The most that microbatches leave behind at any moment of a step, and the heads' logits.
fn activations(job: &Job, plan: &Plan, id: CellId, chunks: &[Vec<u32>]) -> u64 {
    let model = &job.model;
    let at = plan.grid.cell(id);
    let division = job.largest_division();
    let sequence = u64::from(job.training.sequence);
    let tokens = |column: u32| division.largest_microbatch(column) * sequence;
    let own = tokens(plan.grid.column(id));
    let experts = &plan.experts[at.expert_shard as usize];
    // Tokens of the whole group come to a shard as often as it owns their experts.
    let group = plan.grid.expert_group(id).into_iter().map(|cell| tokens(plan.grid.column(cell)));
    let group = group.sum::<u64>();
    let routed = group * u64::from(experts.end - experts.start);
    let routed = routed.div_ceil(u64::from(model.n_routed_experts.max(1)));
    // A token sends one row to a shard, whatever it chose there; of many shards, it chose some.
    let received = routed.saturating_mul(model.num_experts_per_tok.into()).min(group);
    // A silly batch of a silly model is more bytes than 64 bits can count.
    let bytes = |layers: &[u32], of: fn(&Job, u32) -> TokenBytes| {
        let layers = layers.iter().map(|layer| of(job, *layer));
        layers.fold(0_u64, |sum, layer| {
            let parts = [(layer.own, own), (layer.received, received), (layer.routed, routed)];
            parts
                .into_iter()
                .fold(sum, |sum, (bytes, n)| sum.saturating_add(bytes.saturating_mul(n)))
        })
    };
    let mut kept: Vec<u64> = chunks.iter().map(|layers| bytes(layers, layer_activations)).collect();
    let mut operands: Vec<u64> =
        chunks.iter().map(|layers| bytes(layers, layer_operands)).collect();
    if let (true, Some(kept), Some(operands)) =
        (at.stage + 1 == plan.grid.stages, kept.last_mut(), operands.last_mut())
    {
        let (row, d) = (Widths::of(job), u64::from(model.hidden_size));
        let modules = u64::from(model.num_nextn_predict_layers);
        // What each head's norm read, the gradient of what the head read, and `eh_proj`'s input.
        let heads = 2 * row.plain(d) + modules * (2 * row.plain(d) + row.plain(2 * d));
        *kept = kept.saturating_add(heads.saturating_mul(own));
        let projections = modules * (row.plain(2 * d) + row.plain(d));
        *operands = operands.saturating_add(projections.saturating_mul(own));
    }
    let logits = if at.stage + 1 == plan.grid.stages { logits(model, own) } else { 0 };
    largest_moment(job, at.stage, &kept, &operands).saturating_add(logits)
}

/// What a microbatch leaves behind in one layer of a cell between forward and backward, if its group of `shards` cells share
/// tokens and experts evenly: no less than a schedule ever holds.
pub(crate) fn kept_by_layer(job: &Job, layer: u32, own: u64, shards: u32) -> u64 {
    let bytes = layer_activations(job, layer);
    (bytes.own + bytes.routed) * own + if shards > 1 { bytes.received * own } else { 0 }
}

/// Walks a stage's slots and adds up what they leave behind: `kept` by a chunk's forward until its
/// input half, `operands` from there to its weight half.
fn largest_moment(job: &Job, stage: u32, kept: &[u64], operands: &[u64]) -> u64 {
    let n_micro = job.largest_division().n_microbatches();
    // After a few rounds every schedule repeats itself, one microbatch or one group at a time; of
    // so few, a group that takes a remainder in is no smaller than of all.
    let steady = 3 * job.grid.stages;
    let n_micro = if n_micro > steady { steady + n_micro % job.grid.stages } else { n_micro };
    let (mut now, mut most) = (0_u128, 0);
    for slot in job.pipeline().slots(stage, n_micro) {
        let chunk = slot.work().chunk as usize;
        let (kept, operands) = (u128::from(kept[chunk]), u128::from(operands[chunk]));
        match slot {
            Slot::Forward(_) => now += kept,
            Slot::BackwardInput(_) => now = now + operands - kept,
            Slot::BackwardWeight(_) => now -= operands,
            Slot::RecvForward(_)
            | Slot::SendForward(_)
            | Slot::RecvBackward(_)
            | Slot::SendBackward(_) => {}
        }
        most = most.max(now);
    }
    u64::try_from(most).unwrap_or(u64::MAX)
}

/// FP32 logits of as many rows as the heads have alive at a time: four million values, or 64 rows
/// (`kernels/src/cross_entropy.rs`).
fn logits(model: &ModelConfig, tokens: u64) -> u64 {
    let vocabulary = u64::from(model.vocab_size);
    4 * tokens.saturating_mul(vocabulary).min((64 * vocabulary).max(4 << 20))
}

/// How wide rows of values are.
#[derive(Clone, Copy)]
struct Widths {
    precision: Precision,
    /// Of activations and of gradients.
    scales: [ScaleFormat; 2],
}

impl Widths {
    fn of(job: &Job) -> Self {
        let Scales { activations, gradients, .. } = job.training.scales;
        Self { precision: job.training.precision, scales: [activations, gradients] }
    }

    /// A row that a Linear reads.
    fn input(self, columns: u64) -> u64 {
        self.operand(columns, self.scales[0])
    }

    /// A row of the gradient of what a Linear gives.
    fn gradient(self, columns: u64) -> u64 {
        self.operand(columns, self.scales[1])
    }

    fn operand(self, columns: u64, scale: ScaleFormat) -> u64 {
        match self.precision {
            Precision::Fp8 => columns + columns.div_ceil(128) * scale.bytes(),
            Precision::Bf16 => 2 * columns,
            Precision::F32 => 4 * columns,
        }
    }

    /// A row between operations.
    fn plain(self, columns: u64) -> u64 {
        match self.precision {
            Precision::Fp8 | Precision::Bf16 => 2 * columns,
            Precision::F32 => 4 * columns,
        }
    }
}

/// What tokens leave behind in one layer between forward and backward: what enters the two norms,
/// what enters the Linears, the output of attention, what the router decided, and the inputs of
/// `SwiGLU`, but for what `training.recompute` leaves out. Queries, keys and values are computed again in any case.
fn layer_activations(job: &Job, layer: u32) -> TokenBytes {
    let (model, row) = (&job.model, Widths::of(job));
    let (d, heads) = (u64::from(model.hidden_size), u64::from(model.num_attention_heads));
    let latent = |rank: u64| row.plain(rank) + row.input(rank);
    let latents = model.q_lora_rank.map_or(0, |rank| latent(rank.into()))
        + latent(model.kv_lora_rank.into())
        + row.plain(model.qk_rope_head_dim.into());
    let attention = row.plain(heads * u64::from(model.v_head_dim)) + 4 * heads;
    let recompute = job.training.recompute;
    // Of what is computed again nothing is kept.
    let unless = |again: bool, bytes: u64| if again { 0 } else { bytes };
    let own = 2 * row.plain(d)
        + unless(recompute.attention(), row.input(d) + latents + attention)
        + unless(recompute.feed_forward(), row.input(d));
    let hidden = |width: u64| unless(recompute.feed_forward(), 2 * row.input(width));
    let moe = u64::from(model.moe_intermediate_size);
    if !model.is_moe(layer) {
        let hidden = hidden(model.intermediate_size.into());
        return TokenBytes { own: own + hidden, ..TokenBytes::default() };
    }
    let chosen = u64::from(model.num_experts_per_tok);
    let router = 4 * u64::from(model.n_routed_experts) + 8 * chosen;
    let shared = match model.n_shared_experts {
        0 => 0,
        shared => hidden(u64::from(shared) * moe),
    };
    TokenBytes { own: own + router + shared, received: row.input(d), routed: chosen * hidden(moe) }
}

/// What tokens leave behind in one layer between the halves of backward: of each Linear, its input
/// and the gradient of its output.
fn layer_operands(job: &Job, layer: u32) -> TokenBytes {
    let (model, row) = (&job.model, Widths::of(job));
    let (d, heads) = (u64::from(model.hidden_size), u64::from(model.num_attention_heads));
    let (qk, v) = (u64::from(model.qk_head_dim()), u64::from(model.v_head_dim));
    let (nope, rope) = (u64::from(model.qk_nope_head_dim), u64::from(model.qk_rope_head_dim));
    let kv = u64::from(model.kv_lora_rank);
    let query =
        model.q_lora_rank.map_or(0, |rank| row.input(rank.into()) + row.gradient(rank.into()));
    let inputs = row.input(d) + row.input(kv) + row.plain(heads * v);
    let gradients = row.gradient(heads * qk)
        + row.gradient(kv + rope)
        + row.gradient(heads * (nope + v))
        + row.gradient(d);
    let attention = query + inputs + gradients;
    // Both of the block's ends, and of each Linear between them.
    let ends = row.input(d) + row.gradient(d);
    let between = |width: u64| row.input(width) + 2 * row.gradient(width);
    let moe = u64::from(model.moe_intermediate_size);
    if !model.is_moe(layer) {
        let hidden = ends + between(model.intermediate_size.into());
        return TokenBytes { own: attention + hidden, ..TokenBytes::default() };
    }
    let shared = match model.n_shared_experts {
        0 => 0,
        shared => ends + between(u64::from(shared) * moe),
    };
    TokenBytes {
        own: attention + shared,
        received: ends,
        routed: u64::from(model.num_experts_per_tok) * between(moe),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arithmetic::parameters;
    use crate::grid::Grid;
    use crate::numerics::Moments;
    use crate::placement::make_plan;
    use crate::plan::{Generation, WorkerId};
    use crate::schedule::Schedule;

    fn bytes_of(job: &Job, cell: u32) -> CellBytes {
        let plan = make_plan(job, &[WorkerId(0)], Generation(1)).unwrap();
        cell_bytes(job, &plan, CellId(cell))
    }

    fn of_stages(stages: u32) -> Job {
        let grid = Grid { stages, expert_shards: 1, replicas: 1 };
        Job { grid, ..Job::example() }
    }

    #[test]
    fn a_parameter_takes_thirteen_bytes_in_fp8_fourteen_in_bf16_and_sixteen_in_f32() {
        let mut job = Job::example();
        // Wide enough that norms and routers, which are never FP8, hardly count.
        job.model = ModelConfig {
            hidden_size: 4096,
            moe_intermediate_size: 2048,
            num_hidden_layers: 40,
            ..job.model
        };
        let all = |job: &Job| {
            let bytes = bytes_of(job, 0);
            (bytes.total() - bytes.activations) as f64 / parameters(&job.model).total as f64
        };
        assert!((13.0..13.05).contains(&all(&job)), "{}", all(&job));
        for (precision, bytes) in [(Precision::Bf16, 14.0), (Precision::F32, 16.0)] {
            job.training.precision = precision;
            assert!((all(&job) - bytes).abs() < 1e-9, "{precision}: {}", all(&job));
        }
    }

    #[test]
    fn fp32_moments_and_an_average_take_four_bytes_a_parameter_more_each() {
        let mut job = Job::example();
        let plain = bytes_of(&job, 0);
        let n = parameters(&job.model).total;
        assert_eq!((plain.moments, plain.average), (4 * n, 0));
        let mut more = |moments, ema| {
            (job.training.moments, job.training.ema) = (moments, ema);
            bytes_of(&job, 0).total() - plain.total()
        };
        assert_eq!(more(Moments::Bf16, 0.0), 0);
        assert_eq!(more(Moments::F32, 0.0), 4 * n);
        assert_eq!(more(Moments::Bf16, 0.9), 4 * n);
        assert_eq!(more(Moments::F32, 0.9), 8 * n);
    }

    #[test]
    fn bf16_leaves_half_the_activations_of_f32_behind_and_fp8_less_still() {
        let mut job = Job::example();
        let mut bytes = |precision, layer| {
            job.training.precision = precision;
            layer_activations(&job, layer).all()
        };
        // Scores, choices, gates and log-sum-exps are FP32 in every precision.
        let model = ModelConfig::tiny();
        let router = 4 * model.n_routed_experts + 8 * model.num_experts_per_tok;
        for (layer, same) in [(0, 0), (1, router)] {
            let same = u64::from(same + 4 * model.num_attention_heads);
            let [fp8, bf16, f32] = Precision::ALL.map(|precision| bytes(precision, layer) - same);
            assert_eq!(2 * bf16, f32, "layer {layer}");
            assert!(fp8 < bf16, "layer {layer}: {fp8} and {bf16}");
        }
    }

    #[test]
    fn zb_h1_keeps_the_operands_of_a_microbatch_more_for_each_stage_before() {
        let mut job = of_stages(4);
        let plain: Vec<CellBytes> = (0..4).map(|stage| bytes_of(&job, stage)).collect();
        job.schedule = Schedule::ZbH1;
        for (stage, plain) in (0..3).zip(&plain) {
            let operands = u64::from(job.training.sequence) * layer_operands(&job, stage).all();
            let wanted = plain.activations + u64::from(stage) * operands;
            assert_eq!(bytes_of(&job, stage), CellBytes { activations: wanted, ..*plain });
        }
        // One microbatch a step: nothing is left to defer beside it.
        job.training.microbatch = 8;
        let zb = bytes_of(&job, 3);
        job.schedule = Schedule::OneFOneB;
        assert_eq!(bytes_of(&job, 3), zb);
    }

    #[test]
    fn interleaving_keeps_more_microbatches_of_smaller_chunks() {
        let mut job = of_stages(2);
        job.model.num_nextn_predict_layers = 0;
        job.model.first_k_dense_replace = 0;
        let plain = bytes_of(&job, 0);
        (job.schedule, job.division.chunks) = (Schedule::Interleaved, 2);
        let interleaved = bytes_of(&job, 0);
        assert_eq!(CellBytes { activations: plain.activations, ..interleaved }, plain);
        // Equal layers. Before a backward half of a stage is in flight five times, where 1F1B has a
        // whole one twice; in the middle of it, one of them is between its halves.
        let bytes = |of: TokenBytes| u64::from(job.training.sequence) * of.all();
        let (kept, operands) = (bytes(layer_activations(&job, 0)), bytes(layer_operands(&job, 0)));
        assert_eq!(plain.activations, 2 * kept + 2 * kept.max(operands));
        assert_eq!(interleaved.activations, 4 * kept + kept.max(operands));
        // The walk's shortcut: a thousand microbatches hold no more than eight.
        job.training.batch = 1000;
        assert_eq!(bytes_of(&job, 0), interleaved);
    }

    #[test]
    fn a_cell_without_sequences_keeps_only_what_its_experts_are_sent() {
        let mut job = Job::example();
        job.grid = Grid { stages: 1, expert_shards: 2, replicas: 1 };
        job.training.batch = 1;
        let even = bytes_of(&job, 0).activations + bytes_of(&job, 1).activations;
        job.division.shares = vec![0, 1];
        let (idle, busy) = (bytes_of(&job, 0).activations, bytes_of(&job, 1).activations);
        assert!(0 < idle && idle < busy);
        assert_eq!(idle + busy, even, "the same sequence on the other cell");
    }

    #[test]
    fn cells_together_hold_experts_once_and_the_rest_once_a_shard() {
        let mut job = Job::example();
        job.grid = Grid { stages: 2, expert_shards: 3, replicas: 1 };
        let both: u64 = (0..6).map(|cell| bytes_of(&job, cell).masters / 4).sum();
        let model = &job.model;
        let routed: u64 =
            (0..5).map(|layer| routed_linears(model, layer, model.n_routed_experts)).sum();
        let embedding = u64::from(model.vocab_size * model.hidden_size);
        let rest = parameters(model).total - routed + embedding;
        assert_eq!(both, routed + 3 * rest);
    }

    /// A copy at each end of the pipeline, whatever reads the second; one on a single stage.
    #[test]
    fn a_tied_table_is_held_once_by_each_end() {
        for (stages, mtp, copies) in [(1, 1, 1), (1, 0, 1), (2, 0, 2), (2, 1, 2), (3, 0, 2)] {
            let mut job = Job::example();
            job.grid = Grid { stages, expert_shards: 1, replicas: 1 };
            (job.model.tie_word_embeddings, job.model.num_nextn_predict_layers) = (true, mtp);
            let masters: u64 = (0..stages).map(|cell| bytes_of(&job, cell).masters / 4).sum();
            let table = u64::from(job.model.vocab_size * job.model.hidden_size);
            assert_eq!(masters, parameters(&job.model).total + (copies - 1) * table);
        }
    }
}
