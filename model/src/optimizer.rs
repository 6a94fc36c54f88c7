//! The update at the end of a step: AdamW on the masters, their average, router biases from the
//! counts.
//!
//! Source: DeepSeek-V3 report, sections 2.1.2 (bias), 3.2 (average) and 4.2 (AdamW).

use shoal_kernels::adamw::AdamStep;

/// What one optimizer step needs to know. Equal on all cells.
#[derive(Clone, Debug)]
pub struct Update {
    pub adam: AdamStep,
    /// Router bias update speed (gamma).
    pub bias_speed: f32,
}
