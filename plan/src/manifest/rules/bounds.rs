//! The values each number of a manifest may have.

use super::super::tree::Node;
use super::Broken;
use crate::job::Job;
use crate::model::{ModelConfig, RopeScaling};

/// The values a number may have.
pub(in super::super) struct Bound {
    pub(in super::super) path: &'static str,
    value: f64,
    low: f64,
    high: f64,
    /// `low` itself is too low.
    above: bool,
    /// `high` itself is too high.
    below: bool,
}

/// From `low` to `high`, both allowed.
fn within(path: &'static str, value: impl Into<f64>, low: f64, high: f64) -> Bound {
    Bound { path, value: value.into(), low, high, above: false, below: false }
}

impl Bound {
    fn above(self) -> Self {
        Self { above: true, ..self }
    }

    fn below(self) -> Self {
        Self { below: true, ..self }
    }

    /// The keywords of JSON Schema, and their values.
    pub(in super::super) fn keywords(&self) -> [(&'static str, f64); 2] {
        let low = if self.above { "exclusiveMinimum" } else { "minimum" };
        let high = if self.below { "exclusiveMaximum" } else { "maximum" };
        [(low, self.low), (high, self.high)]
    }

    pub(super) fn broken(&self, root: &Node) -> Option<Broken> {
        let Self { path, value, low, high, above, below } = *self;
        let low_met = if above { value > low } else { value >= low };
        let high_met = if below { value < high } else { value <= high };
        // NaN meets neither.
        if low_met && high_met {
            return None;
        }
        let start = if above { "above" } else { "from" };
        let end = if below { "and below" } else { "to" };
        let got = root.at_path(path).map_or_else(|| value.to_string(), |it| it.value.to_string());
        let what = format!("wanted a number {start} {low} {end} {high}, got {got}");
        Some(Broken { path, what, help: String::new() })
    }
}

/// Bounds of every number. Upper bounds keep counts of parameters and bytes within 64 bits.
pub(in super::super) fn all(job: &Job) -> Vec<Bound> {
    let (training, data, grid, evaluation) = (&job.training, &job.data, job.grid, &job.evaluation);
    let whole = |path: &'static str, value: u32, low: f64| within(path, value, low, 131_072.0);
    let mut bounds = vec![
        within("spec.data.max_mb", data.bytes_max as f64 / 1e6, 0.0, 1e9).above(),
        within("spec.data.heldout", data.heldout_fraction, 0.0, 1.0).above().below(),
        within("spec.training.steps", training.steps as f64, 1.0, 1e9),
        whole("spec.training.batch", training.batch, 1.0),
        whole("spec.training.batch_start", training.batch_start, 0.0),
        within("spec.training.batch_ramp_steps", training.batch_ramp_steps as f64, 0.0, 1e9),
        whole("spec.training.sequence", training.sequence, 2.0),
        whole("spec.training.microbatch", training.microbatch, 1.0),
        within("spec.training.lr", training.lr, 0.0, 1.0).above(),
        within("spec.training.lr_final_ratio", training.lr_final_ratio, 0.0, 1.0),
        within("spec.training.lr_decay_fraction", training.lr_decay_fraction, 0.0, 1.0).above(),
        within("spec.training.beta1", training.beta1, 0.0, 1.0).below(),
        within("spec.training.beta2", training.beta2, 0.0, 1.0).below(),
        within("spec.training.epsilon", training.epsilon, 0.0, 1.0).above(),
        within("spec.training.weight_decay", training.weight_decay, 0.0, 10.0),
        within("spec.training.ema", training.ema, 0.0, 1.0).below(),
        within("spec.training.clip", training.clip, 0.0, 1e6).above(),
        within("spec.training.mtp_weight", training.mtp_weight, 0.0, 10.0),
        within("spec.training.mtp_weight_final", training.mtp_weight_final, 0.0, 10.0),
        within("spec.training.mtp_weight_until", training.mtp_weight_until, 0.0, 1.0),
        within("spec.training.balance_weight", training.balance_weight, 0.0, 10.0),
        within("spec.training.bias_speed", training.bias_speed, 0.0, 1.0),
        within("spec.training.bias_speed_until", training.bias_speed_until, 0.0, 1.0),
        within("spec.training.skips_max", training.skips_max, 0.0, 1000.0),
        within("spec.training.rollbacks_max", training.rollbacks_max, 0.0, 1000.0),
        within("spec.evaluation.every", evaluation.every as f64, 0.0, 1e9),
        within("spec.evaluation.tokens_max", evaluation.tokens_max as f64, 1.0, 1e12),
        within("spec.evaluation.patience", evaluation.patience, 0.0, 1e6),
        whole("spec.parallelism.stages", grid.stages, 1.0),
        whole("spec.parallelism.expert_shards", grid.expert_shards, 1.0),
        whole("spec.parallelism.replicas", grid.replicas, 1.0),
        whole("spec.parallelism.chunks", job.division.chunks, 1.0),
        whole("spec.workers.local", job.workers.local, 1.0),
        within("spec.workers.threads", job.workers.threads, 0.0, 1024.0),
        whole("spec.workers.min", job.workers.min, 1.0),
        within("spec.workers.device_mb", job.workers.device_mb as f64, 0.0, 1e9),
        within("spec.workers.restarts", job.workers.restarts, 0.0, 1e6),
        within("spec.checkpoint.every", job.checkpoint.every as f64, 1.0, 1e9),
        whole("spec.checkpoint.keep", job.checkpoint.keep, 1.0),
        within("spec.checkpoint.memory.every", job.checkpoint.memory.every as f64, 0.0, 1e9),
        within("spec.checkpoint.memory.copies", job.checkpoint.memory.copies, 0.0, 16.0),
    ];
    bounds.extend(of_model(&job.model));
    bounds
}

/// Bounds of a model's numbers.
pub(super) fn of_model(model: &ModelConfig) -> Vec<Bound> {
    let width = |path: &'static str, value: u32| within(path, value, 1.0, 131_072.0);
    let count = |path: &'static str, value: u32| within(path, value, 1.0, 4096.0);
    let mut bounds = vec![
        within("spec.model.vocab_size", model.vocab_size, 1.0, 4e6),
        width("spec.model.hidden_size", model.hidden_size),
        width("spec.model.intermediate_size", model.intermediate_size),
        width("spec.model.moe_intermediate_size", model.moe_intermediate_size),
        count("spec.model.num_hidden_layers", model.num_hidden_layers),
        within("spec.model.num_nextn_predict_layers", model.num_nextn_predict_layers, 0.0, 3.0),
        count("spec.model.num_attention_heads", model.num_attention_heads),
        within("spec.model.n_shared_experts", model.n_shared_experts, 0.0, 64.0),
        within("spec.model.n_routed_experts", model.n_routed_experts, 0.0, 4096.0),
        count("spec.model.num_experts_per_tok", model.num_experts_per_tok),
        count("spec.model.n_group", model.n_group),
        count("spec.model.topk_group", model.topk_group),
        within("spec.model.routed_scaling_factor", model.routed_scaling_factor, 0.0, 1e3).above(),
        width("spec.model.kv_lora_rank", model.kv_lora_rank),
        count("spec.model.qk_nope_head_dim", model.qk_nope_head_dim),
        count("spec.model.qk_rope_head_dim", model.qk_rope_head_dim),
        count("spec.model.v_head_dim", model.v_head_dim),
        within("spec.model.rms_norm_eps", model.rms_norm_eps, 0.0, 1.0).above(),
        within("spec.model.rope_theta", model.rope_theta, 1.0, 1e12).above(),
        within("spec.model.max_position_embeddings", model.max_position_embeddings, 1.0, 1e9),
        within("spec.model.initializer_range", model.initializer_range, 0.0, 10.0).above(),
    ];
    bounds.extend(model.q_lora_rank.map(|rank| width("spec.model.q_lora_rank", rank)));
    bounds.extend(of_scaling(model.rope_scaling));
    bounds
}

/// Bounds of `rope_scaling`; also of a model without it, for the schema.
fn of_scaling(scaling: Option<RopeScaling>) -> [Bound; 6] {
    let scaling = scaling.unwrap_or(RopeScaling::yarn(1.0, 1));
    let original = scaling.original_max_position_embeddings;
    let (mscale, all_dim) = (scaling.mscale, scaling.mscale_all_dim);
    [
        within("spec.model.rope_scaling.factor", scaling.factor, 1.0, 65_536.0),
        within("spec.model.rope_scaling.original_max_position_embeddings", original, 1.0, 1e9),
        within("spec.model.rope_scaling.beta_fast", scaling.beta_fast, 0.0, 1e6).above(),
        within("spec.model.rope_scaling.beta_slow", scaling.beta_slow, 0.0, 1e6).above(),
        within("spec.model.rope_scaling.mscale", mscale.unwrap_or(0.0), 0.0, 100.0),
        within("spec.model.rope_scaling.mscale_all_dim", all_dim.unwrap_or(0.0), 0.0, 100.0),
    ]
}
