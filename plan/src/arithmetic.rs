//! What a network costs: parameters, arithmetic and memory, from its sizes alone.
//!
//! Counts follow DeepSeek-V3's released tensors; FLOPs are 2 for each multiply-add, forward and
//! backward together. Sizes are bounded by the manifest's rules, so that no count overflows.

use std::ops::Range;

use crate::grid::Cell;
use crate::job::{Job, Precision};
use crate::model::ModelConfig;
use crate::numerics::Moments;

/// Forward once, backward twice (gradients of inputs and of weights), 2 FLOPs a multiply-add.
const FLOPS_PER_WEIGHT: f64 = 6.0;

/// Parameters of a network. Router biases are not parameters: no gradient moves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// All of them, each once (the MTP modules share embedding and head).
    pub total: u64,
    /// Those that one token meets: its chosen experts instead of all.
    pub active: u64,
}

/// What one cell keeps in memory while it trains, in bytes. An estimate: buffers that live for
/// one operation, and the allocator's own needs, come on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellBytes {
    /// The weights that the arithmetic reads: FP8, BF16 or FP32 in Linears, BF16 or FP32
    /// elsewhere.
    pub weights: u64,
    /// FP32 masters.
    pub masters: u64,
    /// FP32 gradients.
    pub gradients: u64,
    /// Two moments, BF16 unless `with_state` says otherwise.
    pub moments: u64,
    /// The FP32 average of the masters, where one is kept.
    pub average: u64,
    /// Kept between forward and backward, for all microbatches in flight; and what deferred
    /// weight halves still need.
    pub activations: u64,
}

impl CellBytes {
    pub fn total(&self) -> u64 {
        let state = self.masters + self.moments + self.average;
        (self.weights + self.gradients + state).saturating_add(self.activations)
    }

    /// The same with moments of this dtype, and with an average of the masters or without.
    #[must_use]
    pub fn with_state(self, moments: Moments, averaged: bool) -> Self {
        let n = self.masters / 4;
        Self { moments: moments.bytes() * n, average: if averaged { 4 * n } else { 0 }, ..self }
    }
}

/// The parameters of the whole network, MTP modules included.
pub fn parameters(model: &ModelConfig) -> Parameters {
    let d = u64::from(model.hidden_size);
    let outside = 2 * u64::from(model.vocab_size) * d + d;
    let mut sum = Parameters { total: outside, active: outside };
    for layer in 0..model.num_hidden_layers + model.num_nextn_predict_layers {
        let shared = dense_linears(model, layer) + layer_norms(model);
        sum.total += shared + routed_linears(model, layer, model.n_routed_experts);
        sum.active += shared + routed_linears(model, layer, model.num_experts_per_tok);
    }
    let own = u64::from(model.num_nextn_predict_layers) * mtp_own(model);
    Parameters { total: sum.total + own, active: sum.active + own }
}

/// FLOPs of one token through layer `layer`, forward and backward. The MTP modules' layers are
/// `ModelConfig::mtp_layers`. `sequence` is in tokens: a token attends to half of it on average.
pub fn layer_flops(model: &ModelConfig, layer: u32, sequence: u32) -> f64 {
    let weights =
        dense_linears(model, layer) + routed_linears(model, layer, model.num_experts_per_tok);
    let head = f64::from(model.qk_head_dim()) + f64::from(model.v_head_dim);
    let attended = f64::from(sequence) / 2.0;
    let attention = FLOPS_PER_WEIGHT * f64::from(model.num_attention_heads) * head * attended;
    FLOPS_PER_WEIGHT * weights as f64 + attention
}

/// The part of `layer_flops` that the cells of an expert group share: the chosen routed experts.
pub(crate) fn routed_flops(model: &ModelConfig, layer: u32) -> f64 {
    FLOPS_PER_WEIGHT * routed_linears(model, layer, model.num_experts_per_tok) as f64
}

/// FLOPs of one token through what the last stage has besides its layers: the head, and the MTP
/// modules, each with its own pass through the head.
pub fn last_stage_flops(model: &ModelConfig, sequence: u32) -> f64 {
    let head = FLOPS_PER_WEIGHT * f64::from(model.vocab_size) * f64::from(model.hidden_size);
    let projection = FLOPS_PER_WEIGHT * mtp_projection(model) as f64;
    let module = |layer| head + projection + layer_flops(model, layer, sequence);
    head + model.mtp_layers().map(module).sum::<f64>()
}

/// FLOPs of one token through the whole network.
pub fn flops_per_token(model: &ModelConfig, sequence: u32) -> f64 {
    let layers: f64 =
        (0..model.num_hidden_layers).map(|layer| layer_flops(model, layer, sequence)).sum();
    layers + last_stage_flops(model, sequence)
}

/// The memory of a cell whose stage has these layers.
pub fn cell_bytes(job: &Job, cell: Cell, layers: Range<u32>) -> CellBytes {
    let model = &job.model;
    let d = u64::from(model.hidden_size);
    let (first, last) = (cell.stage == 0, cell.stage + 1 == job.grid.stages);
    let mut layers: Vec<u32> = layers.collect();
    // What the arithmetic reads in BF16 (f32: FP32): embedding, head, norms, router, eh_proj.
    let mut wide = 0;
    if first || (last && 0 < model.num_nextn_predict_layers) {
        wide += u64::from(model.vocab_size) * d;
    }
    if last {
        wide += u64::from(model.vocab_size) * d + d;
        layers.extend(model.mtp_layers());
        wide += u64::from(model.num_nextn_predict_layers) * mtp_own(model);
    }
    let experts = model.n_routed_experts / job.grid.expert_shards;
    let mut linears = 0;
    for layer in &layers {
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
    let division = job.largest_division();
    let column = cell.replica * job.grid.expert_shards + cell.expert_shard;
    let tokens = division.largest_microbatch(column) * u64::from(job.training.sequence);
    let n_micro = division.n_microbatches();
    let in_flight = (job.grid.stages - cell.stage).min(n_micro);
    let deferred = job.schedule.weights_deferred(cell.stage).min(n_micro - in_flight);
    let kept: u64 = layers.iter().map(|layer| layer_activations(job, *layer)).sum();
    let operands: u64 = layers.iter().map(|layer| layer_operands(job, *layer)).sum();
    let heads = if last { 1 + u64::from(model.num_nextn_predict_layers) } else { 0 };
    let logits = heads * tokens * u64::from(model.vocab_size) * 4;
    // A silly batch of a silly model is more bytes than 64 bits can count.
    let all = |n: u32, per_token| u64::from(n).saturating_mul(tokens).saturating_mul(per_token);
    let activations = all(in_flight, kept).saturating_add(all(deferred, operands));
    let activations = activations.saturating_add(logits);
    let state = CellBytes {
        weights,
        masters: 4 * n,
        gradients: 4 * n,
        moments: 0,
        average: 0,
        activations,
    };
    state.with_state(Moments::default(), false)
}

/// Bytes of one value that a Linear reads, and of one between operations.
fn widths(precision: Precision) -> (u64, u64) {
    match precision {
        Precision::Fp8 => (1, 2),
        Precision::Bf16 => (2, 2),
        Precision::F32 => (4, 4),
    }
}

/// Bytes that one token leaves behind in one layer between forward and backward: what enters the
/// two norms, what enters the Linears, queries, keys and values, and the inputs of `SwiGLU`.
fn layer_activations(job: &Job, layer: u32) -> u64 {
    let model = &job.model;
    let (narrow, wide) = widths(job.training.precision);
    let (d, heads) = (u64::from(model.hidden_size), u64::from(model.num_attention_heads));
    let (qk, v) = (u64::from(model.qk_head_dim()), u64::from(model.v_head_dim));
    let latents = u64::from(model.q_lora_rank.unwrap_or(0)) + u64::from(model.kv_lora_rank);
    let attention = narrow * d + (narrow + wide) * latents + wide * heads * (2 * qk + 2 * v);
    let hidden = if model.is_moe(layer) {
        let rows = u64::from(model.num_experts_per_tok);
        let shared = u64::from(model.n_shared_experts);
        narrow * (rows * d + 2 * u64::from(model.moe_intermediate_size) * (rows + shared))
    } else {
        narrow * 2 * u64::from(model.intermediate_size)
    };
    2 * wide * d + attention + narrow * d + hidden
}

/// Bytes that one token leaves behind in one layer between the halves of backward: of each Linear,
/// its input and the gradient of its output.
fn layer_operands(job: &Job, layer: u32) -> u64 {
    let model = &job.model;
    let (narrow, wide) = widths(job.training.precision);
    let (d, heads) = (u64::from(model.hidden_size), u64::from(model.num_attention_heads));
    let (qk, v) = (u64::from(model.qk_head_dim()), u64::from(model.v_head_dim));
    let (nope, rope) = (u64::from(model.qk_nope_head_dim), u64::from(model.qk_rope_head_dim));
    let latents = u64::from(model.q_lora_rank.unwrap_or(0)) + u64::from(model.kv_lora_rank);
    let inputs = narrow * (d + latents) + wide * heads * v;
    let gradients = narrow * (latents + rope + heads * (qk + nope + v) + d);
    let hidden = if model.is_moe(layer) {
        let rows = u64::from(model.num_experts_per_tok);
        let shared = u64::from(model.n_shared_experts);
        2 * (rows + shared.min(1)) * d
            + 3 * u64::from(model.moe_intermediate_size) * (rows + shared)
    } else {
        2 * d + 3 * u64::from(model.intermediate_size)
    };
    inputs + gradients + narrow * hidden
}

/// Weights of a layer that every cell of its stage holds and every token meets: attention, the
/// dense feed-forward or the shared experts and the router.
fn dense_linears(model: &ModelConfig, layer: u32) -> u64 {
    let (d, heads) = (u64::from(model.hidden_size), u64::from(model.num_attention_heads));
    let (qk, v) = (u64::from(model.qk_head_dim()), u64::from(model.v_head_dim));
    let (nope, rope) = (u64::from(model.qk_nope_head_dim), u64::from(model.qk_rope_head_dim));
    let kv = u64::from(model.kv_lora_rank);
    let query = match model.q_lora_rank.map(u64::from) {
        Some(rank) => rank * (d + heads * qk),
        None => d * heads * qk,
    };
    let attention = query + d * (kv + rope) + kv * heads * (nope + v) + heads * v * d;
    let feed_forward = if model.is_moe(layer) {
        3 * d * u64::from(model.moe_intermediate_size) * u64::from(model.n_shared_experts)
    } else {
        3 * d * u64::from(model.intermediate_size)
    };
    attention + feed_forward + router(model, layer)
}

/// Weights of `n_experts` routed experts; none in a dense layer.
fn routed_linears(model: &ModelConfig, layer: u32, n_experts: u32) -> u64 {
    let one = 3 * u64::from(model.hidden_size) * u64::from(model.moe_intermediate_size);
    if model.is_moe(layer) { one * u64::from(n_experts) } else { 0 }
}

fn router(model: &ModelConfig, layer: u32) -> u64 {
    let size = u64::from(model.n_routed_experts) * u64::from(model.hidden_size);
    if model.is_moe(layer) { size } else { 0 }
}

/// Gains of a layer: before attention and feed-forward, and of the two latents.
fn layer_norms(model: &ModelConfig) -> u64 {
    let latents = u64::from(model.q_lora_rank.unwrap_or(0)) + u64::from(model.kv_lora_rank);
    2 * u64::from(model.hidden_size) + latents
}

/// What an MTP module has besides its layer: `eh_proj` and three norms.
fn mtp_own(model: &ModelConfig) -> u64 {
    mtp_projection(model) + 3 * u64::from(model.hidden_size)
}

/// An MTP module's `eh_proj`: from embedding and hidden state, side by side, to one width.
fn mtp_projection(model: &ModelConfig) -> u64 {
    2 * u64::from(model.hidden_size).pow(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::Grid;
    use crate::schedule::Schedule;

    #[test]
    fn tiny_adds_up_tensor_by_tensor() {
        let norms = 256 + 256 + 96 + 64;
        let attention = 96 * 256 + (4 * 48) * 96 + (64 + 16) * 256 + (4 * 64) * 64 + 256 * (4 * 32);
        let dense = 3 * 512 * 256;
        let expert = 3 * 128 * 256;
        let moe = 16 * 256 + 17 * expert;
        let layers = 4 * (norms + attention) + dense + 3 * moe;
        let mtp = 256 + 256 + 512 * 256 + 256 + norms + attention + moe;
        let total = 2 * 256 * 256 + 256 + layers + mtp;
        let got = parameters(&ModelConfig::tiny());
        assert_eq!(got.total, total);
        assert_eq!(got.total - got.active, 4 * 12 * expert);
    }

    #[test]
    fn a_dense_model_is_active_as_a_whole() {
        let norms = 256 + 256 + 96 + 64;
        let attention = 96 * 256 + (4 * 48) * 96 + (64 + 16) * 256 + (4 * 64) * 64 + 256 * (4 * 32);
        let layer = norms + attention + 3 * 512 * 256;
        let mtp = 3 * 256 + 512 * 256;
        for depth in 0..4 {
            let model = ModelConfig {
                n_routed_experts: 0,
                num_nextn_predict_layers: depth,
                ..ModelConfig::tiny()
            };
            let depth = u64::from(depth);
            let total = 2 * 256 * 256 + 256 + 4 * layer + depth * (layer + mtp);
            assert_eq!(parameters(&model), Parameters { total, active: total });
            let mut job = Job { model, ..Job::example() };
            job.grid = Grid { stages: 1, expert_shards: 2, replicas: 1 };
            let bytes = cell_bytes(&job, Cell { stage: 0, replica: 0, expert_shard: 1 }, 0..4);
            assert_eq!(bytes.masters, 4 * total, "every cell holds all of it");
        }
    }

    #[test]
    fn each_token_more_costs_a_layer_a_projection_and_a_pass_through_the_head() {
        let flops = |num_nextn_predict_layers| {
            let model = ModelConfig { num_nextn_predict_layers, ..ModelConfig::tiny() };
            flops_per_token(&model, 256)
        };
        let model = ModelConfig::tiny();
        let projections = 6.0 * (256.0 * 256.0 + 2.0 * 256.0 * 256.0);
        let wanted = layer_flops(&model, 4, 256) + projections;
        for depth in 0..3 {
            let got = flops(depth + 1) - flops(depth);
            assert!((got - wanted).abs() < 1e-9 * wanted, "depth {depth}: {got}, want {wanted}");
        }
    }

    #[test]
    fn flops_are_six_a_weight_plus_attention() {
        let model = ModelConfig { num_nextn_predict_layers: 0, ..ModelConfig::tiny() };
        // The embedding is looked up, and norms are not matrix products.
        let weights = parameters(&model).active - 256 * 256 - 256 - 4 * (256 + 256 + 96 + 64);
        let attention = 4.0 * 6.0 * 4.0 * (48.0 + 32.0) * 128.0;
        let wanted = 6.0 * weights as f64 + attention;
        let got = flops_per_token(&model, 256);
        assert!((got - wanted).abs() <= 1e-12 * wanted, "{got} {wanted}");
    }

    #[test]
    fn a_parameter_takes_thirteen_bytes_in_fp8_fourteen_in_bf16_and_sixteen_in_f32() {
        let mut job = Job::example();
        job.model = ModelConfig::preset("deepseek-v3").unwrap();
        job.grid = Grid::ONE;
        let all = |job: &Job| {
            let bytes = cell_bytes(job, job.grid.cell(crate::grid::CellId(0)), 0..61);
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
        let job = Job::example();
        let plain = cell_bytes(&job, job.grid.cell(crate::grid::CellId(0)), 0..4);
        let n = parameters(&job.model).total;
        assert_eq!((plain.moments, plain.average), (4 * n, 0));
        assert_eq!(plain.with_state(Moments::Bf16, false), plain);
        let more = |moments, averaged| plain.with_state(moments, averaged).total() - plain.total();
        assert_eq!(more(Moments::F32, false), 4 * n);
        assert_eq!(more(Moments::Bf16, true), 4 * n);
        assert_eq!(more(Moments::F32, true), 8 * n);
    }

    #[test]
    fn bf16_leaves_half_the_activations_of_f32_behind_and_fp8_less_still() {
        let mut job = Job::example();
        let mut bytes = |precision, layer| {
            job.training.precision = precision;
            layer_activations(&job, layer)
        };
        for layer in [0, 1] {
            let [fp8, bf16, f32] = Precision::ALL.map(|precision| bytes(precision, layer));
            assert_eq!(2 * bf16, f32, "layer {layer}");
            assert!(fp8 < bf16, "layer {layer}: {fp8} and {bf16}");
        }
    }

    #[test]
    fn zb_h1_keeps_the_operands_of_a_microbatch_more_for_each_stage_before() {
        let mut job = Job::example();
        job.grid = Grid { stages: 4, expert_shards: 1, replicas: 1 };
        let bytes = |job: &Job, stage: u32| {
            cell_bytes(job, Cell { stage, replica: 0, expert_shard: 0 }, stage..stage + 1)
        };
        let plain: Vec<CellBytes> = (0..4).map(|stage| bytes(&job, stage)).collect();
        job.schedule = Schedule::ZbH1;
        for (stage, plain) in (0..3).zip(&plain) {
            let operands = u64::from(job.training.sequence) * layer_operands(&job, stage);
            let wanted = plain.activations + u64::from(stage) * operands;
            assert_eq!(bytes(&job, stage), CellBytes { activations: wanted, ..*plain });
        }
        // One microbatch a step: nothing is left to defer beside it.
        job.training.microbatch = 8;
        let zb = bytes(&job, 3);
        job.schedule = Schedule::OneFOneB;
        assert_eq!(bytes(&job, 3), zb);
    }

    #[test]
    fn cells_together_hold_experts_once_and_the_rest_once_a_shard() {
        let mut job = Job::example();
        job.grid = Grid { stages: 2, expert_shards: 4, replicas: 1 };
        let masters = |stage: u32, layers: Range<u32>| -> u64 {
            let cell = |expert_shard| Cell { stage, replica: 0, expert_shard };
            (0..4).map(|shard| cell_bytes(&job, cell(shard), layers.clone()).masters / 4).sum()
        };
        let both = masters(0, 0..3) + masters(1, 3..4);
        let model = &job.model;
        let routed: u64 =
            (0..5).map(|layer| routed_linears(model, layer, model.n_routed_experts)).sum();
        let embedding = u64::from(model.vocab_size * model.hidden_size);
        let rest = parameters(model).total - routed + embedding;
        assert_eq!(both, routed + 4 * rest);
    }
}
