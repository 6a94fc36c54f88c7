//! The network's sizes, named as in Hugging Face's `config.json` for `model_type: deepseek_v3`.
//!
//! Source: DeepSeek-V3 report, arXiv:2412.19437, sections 2.1 and 4.2, and the released config.

mod presets;
mod rope;

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use rope::{RopeScaling, RopeScalingType};

/// One DeepSeek-V3-style network. `job` checks every relation between the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelConfig {
    /// Tokens of the vocabulary.
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of a dense layer's feed-forward.
    pub intermediate_size: u32,
    /// Width of one expert.
    pub moe_intermediate_size: u32,
    /// Layers of the main model.
    pub num_hidden_layers: u32,
    /// Multi-token-prediction modules, 0 to 3: module k predicts the token k + 1 places ahead.
    pub num_nextn_predict_layers: u32,
    /// Heads of every attention.
    pub num_attention_heads: u32,
    /// Experts that every token meets.
    pub n_shared_experts: u32,
    /// 0: a dense model. Every layer then has a feed-forward of `intermediate_size`.
    pub n_routed_experts: u32,
    /// Routed experts that a token chooses.
    pub num_experts_per_tok: u32,
    /// Groups the routed experts are divided into.
    pub n_group: u32,
    /// Groups that a token chooses its experts from.
    pub topk_group: u32,
    /// Whether the chosen gates are divided by their sum.
    pub norm_topk_prob: bool,
    /// What the gates are multiplied by.
    pub routed_scaling_factor: f32,
    /// Layers before the first mixture-of-experts layer.
    pub first_k_dense_replace: u32,
    /// Rank of the query's low-rank path; null projects directly.
    pub q_lora_rank: Option<u32>,
    /// Rank of the latent that keys and values are made of: all that decoding has to keep, with the rotated key.
    pub kv_lora_rank: u32,
    /// Width of the part of a query or key head that carries no position.
    pub qk_nope_head_dim: u32,
    /// Width of the part that is rotated by position. Even.
    pub qk_rope_head_dim: u32,
    /// Width of a value head.
    pub v_head_dim: u32,
    /// What every norm adds to the mean square.
    pub rms_norm_eps: f32,
    /// The base of the rotation frequencies.
    pub rope_theta: f32,
    /// Slows the rotation down, for texts longer than those of pre-training; null does not.
    #[serde(default)]
    pub rope_scaling: Option<RopeScaling>,
    /// The longest sequence.
    pub max_position_embeddings: u32,
    /// Standard deviation of the initial weights.
    pub initializer_range: f32,
    /// Whether the head multiplies by the embedding table instead of a matrix of its own.
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

impl ModelConfig {
    /// Width of one query or key head: the part without position and the rotated part.
    pub fn qk_head_dim(&self) -> u32 {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Whether layer `layer` (0-based) is a mixture of experts. The layers of the MTP modules,
    /// from `num_hidden_layers` on, are wherever there are experts at all.
    pub fn is_moe(&self, layer: u32) -> bool {
        let first = self.first_k_dense_replace.min(self.num_hidden_layers);
        0 < self.n_routed_experts && first <= layer
    }

    /// Whether the last stage of a pipeline holds a copy of the embedding: MTP modules look tokens up
    /// in it, and a tied head multiplies by it.
    pub fn embedding_is_at_both_ends(&self) -> bool {
        self.tie_word_embeddings || 0 < self.num_nextn_predict_layers
    }

    /// What attention multiplies the products of queries and keys by.
    pub fn softmax_scale(&self) -> f32 {
        let plain = f64::from(self.qk_head_dim()).powf(-0.5);
        (plain * self.rope_scaling.map_or(1.0, |scaling| scaling.softmax_factor())) as f32
    }

    /// The layers of the MTP modules, numbered on from the main model's.
    pub fn mtp_layers(&self) -> Range<u32> {
        self.num_hidden_layers..self.num_hidden_layers + self.num_nextn_predict_layers
    }
}
