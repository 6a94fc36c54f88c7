//! How numbers are kept beside `precision`: the optimizer's moments, the scales of FP8 tiles, and
//! what is not decayed. The words of the manifest for them.
//!
//! Source: DeepSeek-V3 report, arXiv:2412.19437, sections 3.3 and 4.2.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How `AdamW` keeps its two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// As the report does (section 3.3.3): 4 bytes a parameter.
    #[default]
    Bf16,
    /// 8 bytes a parameter.
    F32,
}

impl Moments {
    /// Bytes of both moments of one parameter.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 4,
            Self::F32 => 8,
        }
    }
}

/// How the scale of an FP8 tile is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScaleFormat {
    /// One byte, UE8M0: the smallest power of two that brings the tile within 448.
    #[default]
    Pow2,
    /// Four bytes: the tile's largest magnitude / 448.
    Fp32,
}

impl ScaleFormat {
    /// Of one scale.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Pow2 => 1,
            Self::Fp32 => 4,
        }
    }
}

/// The scales of each class of tensors. Read in precision `fp8` only.
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

impl Scales {
    /// Whether all classes have one format, as products on a GPU want it.
    pub fn are_alike(&self) -> bool {
        self.weights == self.activations && self.activations == self.gradients
    }
}

/// Parameters that weight decay may leave alone. Biases of routers are no parameters: they never
/// decay.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ParameterGroup {
    /// The gains of all norms.
    Norms,
    /// The embedding's table.
    Embedding,
    /// The output head.
    Head,
    /// The routers' weights.
    Router,
}

impl ParameterGroup {
    /// What is not decayed unless the manifest says otherwise: a gain has no reason to shrink to
    /// zero. The report does not say.
    pub const NOT_DECAYED: [Self; 1] = [Self::Norms];
}

/// As in the manifest.
impl fmt::Display for ScaleFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pow2 => "pow2",
            Self::Fp32 => "fp32",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_manifest_are_lower_case() {
        let check = |value: serde_json::Value, want: &str| assert_eq!(value, want);
        check(serde_json::to_value(Moments::Bf16).unwrap(), "bf16");
        check(serde_json::to_value(Moments::F32).unwrap(), "f32");
        check(serde_json::to_value(ScaleFormat::Pow2).unwrap(), "pow2");
        check(serde_json::to_value(ScaleFormat::Fp32).unwrap(), "fp32");
        let groups = [
            (ParameterGroup::Norms, "norms"),
            (ParameterGroup::Embedding, "embedding"),
            (ParameterGroup::Head, "head"),
            (ParameterGroup::Router, "router"),
        ];
        for (group, want) in groups {
            check(serde_json::to_value(group).unwrap(), want);
        }
        let unknown = r#"{"weights": "pow2", "activations": "pow2", "gradient": "pow2"}"#;
        assert!(serde_json::from_str::<Scales>(unknown).is_err());
    }
}
