//! Networks by name: sizes for a laptop, for a few gaming GPUs, and of published models.
//!
//! Sources: the released configs of DeepSeek-V3, DeepSeek-V2-Lite and Moonlight-16B-A3B. Position
//! scaling (`YaRN`) belongs to the extension of the context after pre-training and is left out:
//! `max_position_embeddings` is the length of pre-training.

use super::ModelConfig;

impl ModelConfig {
    /// Names of the presets, from the smallest network to the largest (without MTP modules).
    pub const PRESETS: [&str; 5] = ["tiny", "small", "v2-lite-like", "moonlight", "deepseek-v3"];

    /// The preset of that name.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "tiny" => Some(Self::tiny()),
            "small" => Some(Self::small()),
            "v2-lite-like" => Some(Self::v2_lite_like()),
            "moonlight" => Some(Self::moonlight()),
            "deepseek-v3" => Some(Self::deepseek_v3()),
            _ => None,
        }
    }

    /// The preset `tiny`: about 8 M parameters over bytes, for a laptop and for tests.
    pub fn tiny() -> Self {
        Self {
            vocab_size: 256,
            hidden_size: 256,
            intermediate_size: 512,
            moe_intermediate_size: 128,
            num_hidden_layers: 4,
            num_nextn_predict_layers: 1,
            num_attention_heads: 4,
            n_shared_experts: 1,
            n_routed_experts: 16,
            num_experts_per_tok: 4,
            n_group: 4,
            topk_group: 2,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
            first_k_dense_replace: 1,
            q_lora_rank: Some(96),
            kv_lora_rank: 64,
            qk_nope_head_dim: 32,
            qk_rope_head_dim: 16,
            v_head_dim: 32,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: None,
            max_position_embeddings: 1024,
            initializer_range: 0.02,
            tie_word_embeddings: false,
        }
    }

    /// The preset `small`: 118 M parameters, of which a token meets 30 M, with a vocabulary of 8192.
    fn small() -> Self {
        Self {
            vocab_size: 8192,
            hidden_size: 512,
            intermediate_size: 1024,
            moe_intermediate_size: 256,
            num_hidden_layers: 8,
            num_attention_heads: 8,
            n_routed_experts: 32,
            q_lora_rank: Some(192),
            kv_lora_rank: 128,
            max_position_embeddings: 2048,
            ..Self::tiny()
        }
    }

    /// The preset `v2-lite-like`: the sizes of DeepSeek-V2-Lite (15.7 B parameters) with V3's router
    /// and one MTP module. The report's ablation of MTP has these sizes (table 4).
    fn v2_lite_like() -> Self {
        Self {
            vocab_size: 102_400,
            intermediate_size: 10_944,
            num_nextn_predict_layers: 1,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            max_position_embeddings: 4096,
            initializer_range: 0.006,
            ..Self::moonlight()
        }
    }

    /// The preset `moonlight`: Moonlight-16B-A3B.
    fn moonlight() -> Self {
        Self {
            vocab_size: 163_840,
            hidden_size: 2048,
            intermediate_size: 11_264,
            moe_intermediate_size: 1408,
            num_hidden_layers: 27,
            num_nextn_predict_layers: 0,
            num_attention_heads: 16,
            n_shared_experts: 2,
            n_routed_experts: 64,
            num_experts_per_tok: 6,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 2.446,
            first_k_dense_replace: 1,
            q_lora_rank: None,
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            rms_norm_eps: 1e-5,
            rope_theta: 50_000.0,
            rope_scaling: None,
            max_position_embeddings: 8192,
            initializer_range: 0.02,
            tie_word_embeddings: false,
        }
    }

    /// The preset `deepseek-v3`: 671 B parameters and one MTP module. Weights start with the
    /// deviation of the report (section 4.2), which the released config does not repeat.
    fn deepseek_v3() -> Self {
        Self {
            vocab_size: 129_280,
            hidden_size: 7168,
            intermediate_size: 18_432,
            moe_intermediate_size: 2048,
            num_hidden_layers: 61,
            num_nextn_predict_layers: 1,
            num_attention_heads: 128,
            n_shared_experts: 1,
            n_routed_experts: 256,
            num_experts_per_tok: 8,
            n_group: 8,
            topk_group: 4,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
            first_k_dense_replace: 3,
            q_lora_rank: Some(1536),
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: None,
            max_position_embeddings: 4096,
            initializer_range: 0.006,
            tie_word_embeddings: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arithmetic::{Parameters, parameters};

    fn preset(name: &str) -> ModelConfig {
        ModelConfig::preset(name).unwrap()
    }

    /// Without the MTP modules, which published totals leave out.
    fn main(name: &str) -> Parameters {
        parameters(&ModelConfig { num_nextn_predict_layers: 0, ..preset(name) })
    }

    #[test]
    fn every_name_is_a_preset_and_the_names_ascend_with_the_size() {
        let sizes = ModelConfig::PRESETS.map(|name| main(name).total);
        assert!(sizes.is_sorted(), "{sizes:?}");
        assert_eq!(ModelConfig::preset("Tiny"), None);
        assert_eq!(ModelConfig::preset(""), None);
    }

    #[test]
    fn deepseek_v3_has_the_published_number_of_parameters() {
        // Sums over the released tensor listing. Router biases are in it, and are no parameters.
        let biases = 58 * 256;
        assert_eq!(main("deepseek-v3").total + biases, 671_026_419_200);
        let mtp = parameters(&preset("deepseek-v3")).total - main("deepseek-v3").total;
        assert_eq!(mtp, 11_610_067_968);
        // "671B total parameters with 37B activated": report, abstract.
        let active = main("deepseek-v3").active as f64 / 1e9;
        assert!((36.5..38.0).contains(&active), "{active}");
    }

    #[test]
    fn v2_lite_like_has_the_published_number_of_parameters_of_v2_lite() {
        // The sum over the released tensor listing: its routers have no biases.
        assert_eq!(main("v2-lite-like").total, 15_706_484_224);
        // "15.7B total parameters with 2.4B activated": model card; without the embedding.
        let active = (main("v2-lite-like").active - 102_400 * 2048) as f64 / 1e9;
        assert!((2.35..2.50).contains(&active), "{active}");
    }

    #[test]
    fn moonlight_has_the_published_number_of_parameters() {
        // "2.24B activated, 15.29B total", both without embedding and head: arXiv:2502.16982.
        let outside = 2 * 163_840 * 2048;
        let of = |count: u64| (count - outside) as f64 / 1e9;
        let Parameters { total, active } = main("moonlight");
        assert!((of(total) - 15.29).abs() < 0.005, "{}", of(total));
        assert!((of(active) - 2.24).abs() < 0.005, "{}", of(active));
    }

    #[test]
    fn small_is_of_the_size_it_says() {
        let Parameters { total, active } = parameters(&preset("small"));
        assert_eq!((total, active), (118_421_312, 30_340_928));
    }
}
