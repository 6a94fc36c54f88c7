//! A checked manifest: a `Job` that exists is a job that can run. Parsed by `manifest`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::grid::Grid;
use crate::model::ModelConfig;

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
    /// The learning rate at the last step, as a share of the peak.
    pub lr_final_ratio: f32,
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
    /// FP32 everywhere: the reference mode.
    F32,
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

impl Training {
    /// The learning rate of a step (1-based): linear warm-up, then a cosine down to
    /// `lr * lr_final_ratio` at the last step.
    pub fn lr_at(&self, step: u64) -> f32 {
        let (lr, last) = (f64::from(self.lr), f64::from(self.lr) * f64::from(self.lr_final_ratio));
        if step <= self.warmup_steps {
            return (lr * step as f64 / self.warmup_steps as f64) as f32;
        }
        let span = (self.steps - self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps) as f64 / span).min(1.0);
        (last + (lr - last) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())) as f32
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp8 => "fp8",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_warms_up_linearly_and_ends_at_its_final_ratio() {
        let mut training = Job::example().training;
        (training.steps, training.warmup_steps, training.lr) = (100, 10, 2e-3);
        training.lr_final_ratio = 0.1;
        // f32 results of f64 arithmetic: one rounding, 2^-24 relative.
        let check = |step: u64, wanted: f64| {
            let got = f64::from(training.lr_at(step));
            assert!((got - wanted).abs() <= wanted * 1e-6, "step {step}: {got}, want {wanted}");
        };
        check(1, 2e-4);
        check(5, 1e-3);
        check(10, 2e-3);
        check(55, 1.1e-3);
        check(100, 2e-4);
        // Nobody trains past the end, but the rate stays where it is.
        check(150, 2e-4);
        let falls = |step: u64| training.lr_at(step + 1) < training.lr_at(step);
        assert!((10..100).all(falls));
    }

    #[test]
    fn without_warm_up_the_first_step_is_nearly_at_the_peak() {
        let mut training = Job::example().training;
        (training.steps, training.warmup_steps) = (1000, 0);
        assert!((training.lr_at(1) / training.lr - 1.0).abs() < 1e-4);
        training.warmup_steps = 2000;
        assert!(training.lr_at(1000) < training.lr);
    }
}
