//! A network that trains a step in a moment: fields below `spec.model`.

pub(crate) const SMALL_NETWORK: &str = "    preset: tiny
    hidden_size: 32
    intermediate_size: 48
    moe_intermediate_size: 16
    num_hidden_layers: 2
    num_attention_heads: 2
    n_routed_experts: 4
    num_experts_per_tok: 2
    n_group: 2
    topk_group: 1
    q_lora_rank: 16
    kv_lora_rank: 16
    qk_nope_head_dim: 8
    qk_rope_head_dim: 8
    v_head_dim: 8
    max_position_embeddings: 64
";
