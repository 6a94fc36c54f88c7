//! What a stage is built with beside its part of the model. Equal on all cells of a run.

use shoal_plan::job::{Precision, Recompute, Training};
use shoal_plan::numerics::{Moments, ParameterGroup, Scales};

use crate::error::Error;

/// How a stage computes and what its optimizer keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct StageOptions {
    pub precision: Precision,
    /// Of FP8 tiles; read in precision fp8 only.
    pub scales: Scales,
    /// What backward computes again. Changes memory and time, and no number.
    pub recompute: Recompute,
    /// How `AdamW` keeps its moments. A checkpoint of the other kind is converted.
    pub moments: Moments,
    /// Parameters that weight decay leaves alone.
    pub weight_decay_exclude: Vec<ParameterGroup>,
    /// Decay of the average of the parameters, 0 <= x < 1; 0: none is kept.
    pub ema_decay: f32,
    /// Of the initial values.
    pub seed: u64,
}

impl From<&Training> for StageOptions {
    fn from(training: &Training) -> Self {
        Self {
            precision: training.precision,
            scales: training.scales,
            recompute: training.recompute,
            moments: training.moments,
            weight_decay_exclude: training.weight_decay_exclude.clone(),
            ema_decay: training.ema,
            seed: training.seed,
        }
    }
}

impl StageOptions {
    /// Whether a GPU can compute so.
    pub(crate) fn check_gpu(&self) -> Result<(), Error> {
        match self.precision {
            Precision::F32 => Err(Error::Precision),
            Precision::Fp8 if !self.scales.are_alike() => Err(Error::Scales),
            Precision::Fp8 | Precision::Bf16 => Ok(()),
        }
    }

    /// The defaults: power-of-two scales, BF16 moments, norms not decayed, no average.
    pub fn new(precision: Precision, seed: u64) -> Self {
        Self {
            precision,
            scales: Scales::default(),
            recompute: Recompute::default(),
            moments: Moments::default(),
            weight_decay_exclude: ParameterGroup::NOT_DECAYED.to_vec(),
            ema_decay: 0.0,
            seed,
        }
    }
}
