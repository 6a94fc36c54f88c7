//! `rope_scaling`: how positions beyond those of pre-training are rotated.
//!
//! YaRN, arXiv:2309.00071, with the two magnitudes of DeepSeek's configurations. Meaning and defaults are
//! those of `transformers` (`_compute_yarn_parameters` and `yarn_apply_mscale`); the frequencies
//! themselves are in `kernels/src/mla/yarn.rs`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `rope_scaling` of a configuration. `rules` checks every relation between the fields.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// The one kind of scaling there is.
    #[serde(rename = "type", default)]
    pub kind: RopeScalingType,
    /// How many times longer texts may be than those of pre-training.
    pub factor: f32,
    /// The longest sequence of pre-training.
    pub original_max_position_embeddings: u32,
    /// Pairs that turn more often than this over the original length keep their frequency.
    #[serde(default = "RopeScaling::beta_fast")]
    pub beta_fast: f32,
    /// Pairs that turn less often than this are slowed down by the whole factor; between the two it
    /// is blended.
    #[serde(default = "RopeScaling::beta_slow")]
    pub beta_slow: f32,
    /// Weight of the factor's logarithm in what sines and cosines are multiplied by; read only beside
    /// `mscale_all_dim`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale: Option<f32>,
    /// The same of what they are divided by, and the softmax is sharpened with. Null or 0: neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale_all_dim: Option<f32>,
}

/// The kinds of `rope_scaling`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RopeScalingType {
    #[default]
    Yarn,
}

impl RopeScaling {
    /// `YaRN` with the defaults of `transformers`.
    pub fn yarn(factor: f32, original_max_position_embeddings: u32) -> Self {
        Self {
            kind: RopeScalingType::Yarn,
            factor,
            original_max_position_embeddings,
            beta_fast: Self::beta_fast(),
            beta_slow: Self::beta_slow(),
            mscale: None,
            mscale_all_dim: None,
        }
    }

    fn beta_fast() -> f32 {
        32.0
    }

    fn beta_slow() -> f32 {
        1.0
    }

    /// What sines and cosines are multiplied by. Without both weights: the magnitude of `YaRN`'s paper,
    /// 0.1 ln(factor) + 1.
    pub fn rotation_factor(&self) -> f64 {
        match (given(self.mscale), given(self.mscale_all_dim)) {
            (Some(mscale), Some(all)) => self.magnitude(mscale) / self.magnitude(all),
            (Some(_) | None, _) => self.magnitude(1.0),
        }
    }

    /// What the softmax scale is multiplied by.
    pub fn softmax_factor(&self) -> f64 {
        given(self.mscale_all_dim).map_or(1.0, |all| self.magnitude(all).powi(2))
    }

    fn magnitude(&self, weight: f64) -> f64 {
        0.1 * weight * f64::from(self.factor).max(1.0).ln() + 1.0
    }
}

/// 0 is, for `transformers`, as if nothing were written.
fn given(weight: Option<f32>) -> Option<f64> {
    weight.filter(|weight| *weight != 0.0).map(f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaling(mscale: Option<f32>, mscale_all_dim: Option<f32>) -> RopeScaling {
        RopeScaling { mscale, mscale_all_dim, ..RopeScaling::yarn(40.0, 4096) }
    }

    #[track_caller]
    fn check(scaling: RopeScaling, rotation: f64, softmax: f64) {
        let got = (scaling.rotation_factor(), scaling.softmax_factor());
        let close = |got: f64, want: f64| (got - want).abs() < 1e-6;
        assert!(close(got.0, rotation) && close(got.1, softmax), "{scaling:?}: {got:?}");
    }

    /// V3's released configuration, V2-Lite's, and what is left out.
    #[test]
    fn the_magnitudes_are_those_of_the_released_models() {
        check(scaling(Some(1.0), Some(1.0)), 1.0, 1.873_854);
        check(scaling(Some(0.707), Some(0.707)), 1.0, 1.589_626);
        check(scaling(None, None), 1.368_888, 1.0);
        check(scaling(Some(0.707), None), 1.368_888, 1.0);
        check(scaling(None, Some(1.0)), 1.368_888, 1.873_854);
        check(scaling(Some(0.5), Some(0.0)), 1.368_888, 1.0);
        check(scaling(Some(0.5), Some(1.0)), 1.184_444 / 1.368_888, 1.873_854);
        check(RopeScaling::yarn(1.0, 64), 1.0, 1.0);
    }
}
