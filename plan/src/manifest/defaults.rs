//! What is assumed where the manifest is silent: everything but the text to train on.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Parallelism;
use crate::device::DeviceChoice;
use crate::grid::Grid;
use crate::job::{
    Checkpoint, EvaluationPlan, Gather, MemorySnapshots, MetricsSettings, Precision, Recompute,
    Training, Workers,
};
use crate::learning_rate::LrSchedule;
use crate::numerics::{Moments, ParameterGroup, Scales};
use crate::schedule::Schedule;

/// The defaults of `spec.data`. One of `files` and `sources` must be given.
#[derive(Serialize)]
pub(super) struct DataDefaults {
    files: Vec<String>,
    sources: Vec<String>,
    field: &'static str,
    tokenizer: &'static str,
    end_token: &'static str,
    max_mb: u64,
    heldout: f32,
}

pub(super) fn data() -> DataDefaults {
    let (files, sources) = (Vec::new(), Vec::new());
    let (field, tokenizer, end_token) = ("text", "auto", "auto");
    DataDefaults { files, sources, field, tokenizer, end_token, max_mb: 64, heldout: 0.05 }
}

/// For the preset `tiny`. Betas, decay, clip, the three weights and when two of them change:
/// DeepSeek-V3 report, section 4.2 (10T and 14.3T of 14.8T tokens). The report states no epsilon,
/// and its peak rate is for a far larger model.
pub(super) fn training() -> Training {
    Training {
        steps: 300,
        init: None,
        batch: 8,
        batch_start: 0,
        batch_ramp_steps: 0,
        sequence: 256,
        microbatch: 1,
        seed: 1,
        precision: Precision::Fp8,
        scales: Scales::default(),
        recompute: Recompute::default(),
        lr: 2e-3,
        lr_schedule: LrSchedule::Cosine,
        lr_final_ratio: 0.1,
        lr_decay_fraction: 0.2,
        warmup_steps: 20,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        moments: Moments::Bf16,
        weight_decay: 0.1,
        weight_decay_exclude: vec![ParameterGroup::Norms],
        ema: 0.0,
        clip: 1.0,
        mtp_weight: 0.3,
        mtp_weight_final: 0.1,
        mtp_weight_until: 0.676,
        balance_weight: 1e-4,
        bias_speed: 1e-3,
        bias_speed_until: 0.966,
        skips_max: 3,
        rollbacks_max: 2,
    }
}

pub(super) fn evaluation() -> EvaluationPlan {
    EvaluationPlan { every: 0, tokens_max: 32_768, sets: BTreeMap::new(), patience: 0 }
}

pub(super) fn parallelism() -> Parallelism {
    let Grid { stages, expert_shards, replicas } = Grid::ONE;
    let (layers, experts, shares) = (Vec::new(), Vec::new(), Vec::new());
    let (schedule, chunks) = (Schedule::OneFOneB, 1);
    Parallelism { stages, expert_shards, replicas, schedule, chunks, layers, experts, shares }
}

pub(super) fn workers() -> Workers {
    Workers {
        local: 1,
        threads: 0,
        pin: true,
        min: 1,
        restarts: 5,
        yield_to: Vec::new(),
        device: DeviceChoice::Auto,
        device_mb: 0,
    }
}

pub(super) fn checkpoint() -> Checkpoint {
    // Where all cores train, a snapshot costs a third of a step of a tenth of a second (docs/benchmarks.md): this is
    // about 1 %. Whoever loses a worker once an hour would lose least time with five times as many steps.
    let memory = MemorySnapshots { every: 30, copies: 1 };
    let gather = Gather::Disk;
    Checkpoint { every: 100, keep: 3, keep_best: true, store: None, gather, memory }
}

pub(super) fn metrics() -> MetricsSettings {
    MetricsSettings { port: 0 }
}
