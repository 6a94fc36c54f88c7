//! A checked manifest: a `Job` that exists is a job that can run. Parsed by `manifest`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::grid::Grid;
use crate::learning_rate::LrSchedule;
use crate::model::ModelConfig;
use crate::schedule::Schedule;

/// Everything the user decided, defaults filled in, relations checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// `metadata.name`: letters, digits, `-` and `_`; names the run directory.
    pub name: String,
    pub model: ModelConfig,
    pub data: Data,
    pub training: Training,
    pub grid: Grid,
    /// The order in which stages work on microbatches: fixes the speed and never the numbers.
    pub schedule: Schedule,
    pub workers: Workers,
    pub checkpoint: Checkpoint,
}

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Files and globs, with `~` and `${VAR:-default}` still unexpanded.
    pub files: Vec<String>,
    /// Read at most this many bytes of text, in sorted file order.
    pub bytes_max: u64,
    /// Share of the documents kept for evaluation, 0 < x < 1.
    pub heldout_fraction: f32,
}

/// How it is trained. Sources: DeepSeek-V3 report, section 4.2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    pub steps: u64,
    /// Sequences per optimizer step, over all cells.
    pub batch: u32,
    /// Tokens per sequence.
    pub sequence: u32,
    /// Sequences one cell processes at a time.
    pub microbatch: u32,
    pub seed: u64,
    pub precision: Precision,
    /// Peak learning rate.
    pub lr: f32,
    /// What it does after the warm-up.
    pub lr_schedule: LrSchedule,
    /// The learning rate at the last step, as a share of the peak. Of `cosine` and `wsd`.
    pub lr_final_ratio: f32,
    /// The share of the steps in which it falls, 0 < x <= 1. Of `wsd`.
    pub lr_decay_fraction: f32,
    pub warmup_steps: u64,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub weight_decay: f32,
    /// Largest global gradient norm.
    pub clip: f32,
    /// Weight of the MTP loss (lambda, section 4.2).
    pub mtp_weight: f32,
    /// Weight of the sequence-wise balance loss (alpha, section 4.2).
    pub balance_weight: f32,
    /// Router bias update speed (gamma, section 4.2).
    pub bias_speed: f32,
}

/// The arithmetic of the Linears. See ARCHITECTURE.md, "What is stored in which dtype".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// E4M3 with power-of-two scales in every Linear; BF16 between operations.
    Fp8,
    /// Operands of every Linear in BF16, sums in FP32; BF16 between operations.
    Bf16,
    /// FP32 everywhere: the reference mode.
    F32,
}

impl Precision {
    /// From the narrowest to the widest.
    pub const ALL: [Self; 3] = [Self::Fp8, Self::Bf16, Self::F32];
}

/// The processes `shoal launch` starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    pub local: u32,
    /// Compute threads per worker; 0 means max(1, cores / local).
    pub threads: u32,
}

/// When checkpoints are written and how many stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Every so many steps, and always at the end.
    pub every: u64,
    /// Newest checkpoints kept.
    pub keep: u32,
}

impl Job {
    /// Microbatches each cell processes per optimizer step.
    pub fn n_microbatches(&self) -> u32 {
        self.training.batch / self.sequences_per_round()
    }

    /// Sequences that all cells of a stage work on at a time. The evaluation goes by such rounds.
    pub fn sequences_per_round(&self) -> u32 {
        self.grid.columns() * self.training.microbatch
    }

    /// Sequences each cell trains per optimizer step.
    pub fn sequences_per_cell(&self) -> u32 {
        self.training.batch / self.grid.columns()
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp8 => "fp8",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

#[cfg(test)]
impl Job {
    /// The preset `tiny` with every default, on one cell: where tests start from.
    pub(crate) fn example() -> Self {
        let text = "{apiVersion: shoal/v1, kind: Training, metadata: {name: example}, \
                    spec: {data: {files: [x]}}}";
        let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        crate::manifest::parse("example.yaml", text, &[], &no_file).expect("it is valid").job
    }
}
