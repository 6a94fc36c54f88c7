//! Choices of number format that a job makes: scales of FP8 tensors, moments of the optimizer, and
//! which parameters are not decayed.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the scale of a block of E4M3 codes is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScaleFormat {
    /// A power of two in one byte (UE8M0): scaling never rounds. DeepSeek-V3 report, section 3.5.2.
    #[default]
    Pow2,
    /// `amax / 448` in FP32: four bytes, and the largest value of a block is met exactly.
    Fp32,
}

/// The scale format of each class of FP8 tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scales {
    /// Of weights: one scale for a block of 128 x 128.
    pub weights: ScaleFormat,
    /// Of what a Linear reads: one scale for 128 values of a token.
    pub activations: ScaleFormat,
    /// Of gradients of what a Linear writes: one scale for 128 values of a token.
    pub gradients: ScaleFormat,
}

/// How AdamW's two moments are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// As DeepSeek-V3 does. Report, section 3.3.3.
    #[default]
    Bf16,
    F32,
}

/// Parameters that weight decay may leave alone.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ParameterGroup {
    /// Gains of every norm.
    Norms,
    Embedding,
    Head,
    /// Router weights. Router biases are not parameters and never decay.
    Router,
}

impl fmt::Display for ScaleFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pow2 => "pow2",
            Self::Fp32 => "fp32",
        })
    }
}
