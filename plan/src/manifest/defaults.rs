//! What is assumed where the manifest is silent: everything but the text to train on.

use serde::Serialize;

use super::Parallelism;
use crate::grid::Grid;
use crate::job::{Checkpoint, Precision, Training, Workers};
use crate::learning_rate::LrSchedule;
use crate::schedule::Schedule;

/// The defaults of `spec.data`; `files` has none.
#[derive(Serialize)]
pub(super) struct DataDefaults {
    max_mb: u64,
    heldout: f32,
}

pub(super) fn data() -> DataDefaults {
    DataDefaults { max_mb: 64, heldout: 0.05 }
}

/// For the preset `tiny`. Betas, decay, clip and the three weights: DeepSeek-V3 report, section
/// 4.2. The report
/// states no epsilon, and its peak rate is for a far larger model.
pub(super) fn training() -> Training {
    Training {
        steps: 300,
        batch: 8,
        sequence: 256,
        microbatch: 1,
        seed: 1,
        precision: Precision::Fp8,
        lr: 2e-3,
        lr_schedule: LrSchedule::Cosine,
        lr_final_ratio: 0.1,
        lr_decay_fraction: 0.2,
        warmup_steps: 20,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        clip: 1.0,
        mtp_weight: 0.3,
        balance_weight: 1e-4,
        bias_speed: 1e-3,
    }
}

pub(super) fn parallelism() -> Parallelism {
    let Grid { stages, expert_shards, replicas } = Grid::ONE;
    Parallelism { stages, expert_shards, replicas, schedule: Schedule::OneFOneB }
}

pub(super) fn workers() -> Workers {
    Workers { local: 1, threads: 0 }
}

pub(super) fn checkpoint() -> Checkpoint {
    Checkpoint { every: 100, keep: 3 }
}
