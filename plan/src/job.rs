//! A checked manifest: a `Job` that exists is a job that can run. Parsed by `manifest`.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::device::DeviceChoice;
use crate::grid::Grid;
use crate::learning_rate::LrSchedule;
use crate::model::ModelConfig;
use crate::numerics::{Moments, ParameterGroup, Scales};
use crate::schedule::{Pipeline, Schedule};

mod data;

pub use data::{Data, DataSource, EndToken, TokenizerChoice, is_plain_name};

/// Everything the user decided, defaults filled in, relations checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// `metadata.name`: letters, digits, `-` and `_`; names the run directory.
    pub name: String,
    pub model: ModelConfig,
    pub data: Data,
    pub training: Training,
    pub evaluation: EvaluationPlan,
    pub grid: Grid,
    pub division: Division,
    /// The order in which stages work on microbatches: fixes the speed and never the numbers.
    pub schedule: Schedule,
    pub workers: Workers,
    pub checkpoint: Checkpoint,
    pub metrics: MetricsSettings,
}

/// How it is trained. Sources: DeepSeek-V3 report, section 4.2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Optimizer steps.
    pub steps: u64,
    /// The directory of the weights to start from: of a Hugging Face model, or a run or checkpoint of shoal. null:
    /// random ones. The optimizer starts fresh, and without `spec.model` the model is theirs. Relative
    /// paths start at the manifest.
    #[serde(default)]
    pub init: Option<String>,
    /// Sequences per optimizer step, over all cells. See `batch` for how they are divided.
    pub batch: u32,
    /// Sequences of the first step; the batch grows from there to `batch` along a line. 0: no ramp.
    pub batch_start: u32,
    /// Steps the ramp takes.
    pub batch_ramp_steps: u64,
    /// Tokens per sequence.
    pub sequence: u32,
    /// The most sequences one cell processes at a time.
    pub microbatch: u32,
    /// Of the initial weights and of the order of the text. The same seed gives the same losses.
    pub seed: u64,
    pub precision: Precision,
    /// Of FP8 tensors; read in `fp8` only.
    pub scales: Scales,
    /// What backward computes again, so that forward need not keep it.
    #[serde(default)]
    pub recompute: Recompute,
    /// Peak learning rate.
    pub lr: f32,
    /// What it does after the warm-up.
    pub lr_schedule: LrSchedule,
    /// The learning rate at the last step, as a share of the peak. Of `cosine` and `wsd`.
    pub lr_final_ratio: f32,
    /// The share of the steps in which it falls. Of `wsd`.
    pub lr_decay_fraction: f32,
    /// Steps in which the learning rate rises along a line.
    pub warmup_steps: u64,
    /// Decay of AdamW's first moment.
    pub beta1: f32,
    /// Decay of AdamW's second moment.
    pub beta2: f32,
    /// What AdamW adds to the root of the second moment.
    pub epsilon: f32,
    /// How AdamW's moments are stored.
    pub moments: Moments,
    /// AdamW's weight decay, as a multiple of the learning rate.
    pub weight_decay: f32,
    /// What is not decayed.
    pub weight_decay_exclude: Vec<ParameterGroup>,
    /// Decay of the exponential moving average of the parameters; 0 keeps none.
    pub ema: f32,
    /// Largest global gradient norm.
    pub clip: f32,
    /// Weight of the MTP loss (lambda; V3 report, section 4.2).
    pub mtp_weight: f32,
    /// Weight of the MTP loss after `mtp_weight_until`.
    pub mtp_weight_final: f32,
    /// The share of the steps after which it changes.
    pub mtp_weight_until: f32,
    /// Weight of the sequence-wise balance loss (alpha).
    pub balance_weight: f32,
    /// Router bias update speed (gamma).
    pub bias_speed: f32,
    /// The share of the steps after which router biases stay as they are.
    pub bias_speed_until: f32,
    /// Steps in a row that may be skipped because a value was not finite, before the run goes back
    /// to its last checkpoint. 0: the first such step ends the run.
    pub skips_max: u32,
    /// How often the run may go back before it ends.
    pub rollbacks_max: u32,
}

/// The arithmetic of the Linears. See ARCHITECTURE.md, "What is stored in which dtype".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// What backward computes again in place of what forward kept: less memory, more time, the same numbers to the bit. Norm
/// outputs, queries, keys, values and SwiGLU's output are computed again whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing more.
    #[default]
    None,
    /// The attention block: of it stays what it read.
    Attention,
    /// The feed-forward block: of it stay what it read, the router's decision, and the rows that experts received, so that
    /// nothing is sent twice.
    FeedForward,
    /// Both: whole layers.
    All,
}

impl Recompute {
    pub const ALL: [Self; 4] = [Self::None, Self::Attention, Self::FeedForward, Self::All];

    /// Whether attention blocks keep no more than what they read.
    pub fn attention(self) -> bool {
        matches!(self, Self::Attention | Self::All)
    }

    /// Whether feed-forward blocks keep no more than what they, and their experts, read.
    pub fn feed_forward(self) -> bool {
        matches!(self, Self::FeedForward | Self::All)
    }
}

/// When the model is held against text it does not train on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluationPlan {
    /// Every so many steps; 0: only at the end.
    pub every: u64,
    /// At most this many tokens of each set.
    pub tokens_max: u64,
    /// Files of further sets, by name, beside the set `heldout`.
    pub sets: BTreeMap<String, Vec<String>>,
    /// Evaluations of `heldout` in a row without improvement that end the run; 0: never.
    pub patience: u32,
}

/// How the work is divided where the planner's own choice is not wanted. Empty lists leave the
/// choice to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Division {
    /// Runs of layers per stage, of the schedule `interleaved`; 1 in every other.
    pub chunks: u32,
    /// Layers of each run, in the order of the network: `stages * chunks` numbers.
    pub layers: Vec<u32>,
    /// Routed experts of each shard.
    pub experts: Vec<u32>,
    /// Relative shares of the sequences of each column (a stage's cells, in cell order). A cell
    /// with share 0 only works for the others' tokens.
    pub shares: Vec<u32>,
}

/// Where Prometheus finds the coordinator and the workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsSettings {
    /// The coordinator's port; worker n has the nth after it. 0: any free ones.
    pub port: u16,
}

/// The processes `shoal launch` starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    /// Worker processes on this machine.
    pub local: u32,
    /// Compute threads per worker; 0 means max(1, cores / local).
    pub threads: u32,
    /// Keep each worker's threads to cores of its own, where there are enough. `false` leaves them
    /// to the system: wanted where several launches share a machine.
    pub pin: bool,
    /// With fewer workers than this the run pauses, and goes on by itself when others come.
    pub min: u32,
    /// How often a worker process that died is started anew, each worker for itself, within ten minutes. 0: never, and
    /// the run ends when too few are left.
    pub restarts: u32,
    /// Each local worker gives its cells to others while a program of one of these names runs, or a file is
    /// there (anything with a slash in it); it comes back by itself. With fewer than `min` others the run pauses.
    #[serde(default)]
    pub yield_to: Vec<String>,
    /// `auto`: the machine's GPUs where it has some that can train this job, else the CPU. `cpu`. `cuda`: all GPUs.
    /// `cuda:0,2`: these. They are dealt out to the local workers; several workers may share one, and one worker
    /// may have several. Losses on a GPU and on a CPU agree within rounding. See `docs/cuda.md`.
    #[serde(default)]
    pub device: DeviceChoice,
    /// MB of each GPU that the workers take. 0: 90 % of it, and the rest stays with the desktop.
    #[serde(default)]
    pub device_mb: u64,
}

/// When checkpoints are written and how many stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Every so many steps, and always at the end.
    pub every: u64,
    /// Newest checkpoints kept.
    pub keep: u32,
    /// The checkpoint with the least loss on `heldout` is kept, too. Checkpoints are then also
    /// written where the model was evaluated.
    pub keep_best: bool,
    /// Where each checkpoint is copied to once it is complete: `s3://bucket/prefix`, or a directory
    /// (a relative path starts at the manifest's). A launch whose run directory has none, or an
    /// older one, goes on from there. Keys come from `AWS_*` variables alone. By default checkpoints
    /// stay in the run directory. See `docs/checkpoints.md`.
    pub store: Option<String>,
    /// Who writes them into the run directory. `disk`: each worker its own files, on a disk that all workers and the
    /// coordinator share. `coordinator`: the coordinator, to which the workers stream their files, and from which
    /// they read what a run goes on from. See `docs/checkpoints.md`.
    #[serde(default)]
    pub gather: Gather,
    #[serde(default = "MemorySnapshots::of_earlier_runs")]
    pub memory: MemorySnapshots,
}

/// Who writes checkpoints into the run directory, and reads them there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Gather {
    /// The workers, on a disk that all share.
    #[default]
    Disk,
    /// The coordinator alone: files are streamed to it and from it.
    Coordinator,
}

/// Snapshots in the workers' memory: where a run that has lost a worker goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemorySnapshots {
    /// Every so many steps each cell's state goes into its worker's memory; a lost worker costs at
    /// most so many steps, and a snapshot is passed over while copies of the last are still on their
    /// way. `shoal plan` knows how fast a fleet's links are, and holds it against them. 0: never, and
    /// a lost worker costs the steps since the last checkpoint.
    pub every: u64,
    /// Other workers that hold each snapshot, too. A cell's twin in another replica counts as one,
    /// where another worker hosts it.
    pub copies: u32,
}

impl MemorySnapshots {
    /// Of a job that was written down before there were any.
    fn of_earlier_runs() -> Self {
        Self { every: 0, copies: 0 }
    }
}

impl Job {
    /// The pipeline of one column.
    pub fn pipeline(&self) -> Pipeline {
        let Self { schedule, grid, division, .. } = self;
        Pipeline { schedule: *schedule, stages: grid.stages, chunks: division.chunks }
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

impl Job {
    /// The preset `tiny` with every default, on one cell: where tests start from.
    pub fn example() -> Self {
        let text = "{apiVersion: shoal/v1, kind: Training, metadata: {name: example}, \
                    spec: {data: {files: [x]}}}";
        let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        crate::manifest::parse("example.yaml", text, &[], &no_file).expect("it is valid").job
    }
}
