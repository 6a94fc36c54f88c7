//! The network's sizes, named as in Hugging Face's `config.json` for `model_type: deepseek_v3`.
//!
//! Source: DeepSeek-V3 report, arXiv:2412.19437, sections 2.1 and 4.2, and the released config.

mod presets;

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// One DeepSeek-V3-style network. `job` checks every relation between the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of a dense layer's feed-forward.
    pub intermediate_size: u32,
    /// Width of one expert.
    pub moe_intermediate_size: u32,
    pub num_hidden_layers: u32,
    /// Multi-token-prediction modules, 0 to 3: module k predicts the token k + 1 places ahead.
    pub num_nextn_predict_layers: u32,
    pub num_attention_heads: u32,
    pub n_shared_experts: u32,
    /// 0: a dense model. Every layer then has a feed-forward of `intermediate_size`.
    pub n_routed_experts: u32,
    pub num_experts_per_tok: u32,
    pub n_group: u32,
    pub topk_group: u32,
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: f32,
    /// Layers before the first mixture-of-experts layer.
    pub first_k_dense_replace: u32,
    /// Rank of the query's low-rank path; `None` projects directly.
    pub q_lora_rank: Option<u32>,
    pub kv_lora_rank: u32,
    pub qk_nope_head_dim: u32,
    pub qk_rope_head_dim: u32,
    pub v_head_dim: u32,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    pub max_position_embeddings: u32,
    /// Standard deviation of the initial weights.
    pub initializer_range: f32,
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

    /// The layers of the MTP modules, numbered on from the main model's.
    pub fn mtp_layers(&self) -> Range<u32> {
        self.num_hidden_layers..self.num_hidden_layers + self.num_nextn_predict_layers
    }
}
