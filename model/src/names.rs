//! Every parameter's Hugging Face name and shape, [out, in].
//!
//! Source: the released DeepSeek-V3 checkpoint's index. The multi-token-prediction module stands
//! under `model.layers.{num_hidden_layers}`, further modules under the numbers that follow; their
//! copies of embedding and head are not stored twice.

use shoal_plan::model::ModelConfig;
use shoal_plan::numerics::ParameterGroup;

use crate::cut::Cut;
use crate::parameters::Class;

/// The embedding: on the first stage, and a copy on the last under the same name, for
/// multi-token-prediction modules and a tied head.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The norm before the head.
pub const FINAL_NORM: &str = "model.norm.weight";
/// The head, shared with the multi-token-prediction modules. With tied embeddings there is none: the
/// head is `EMBEDDING`, see `head`.
pub const HEAD: &str = "lm_head.weight";

/// What a parameter is used for, which decides the form it has in compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A Linear of attention or feed-forward: FP8 in precision fp8, BF16 in bf16.
    Linear,
    /// Head and `eh_proj`: BF16 in precisions fp8 (report 3.3.2 keeps them out of FP8) and bf16.
    Wide,
    /// The embedding: BF16 in precisions fp8 and bf16.
    Table,
    /// The embedding where the head multiplies by it as well: the same.
    Tied,
    /// A norm's gain: always FP32, starts at 1.
    Gain,
    /// The router's weight: always FP32.
    Router,
}

/// One parameter, before it has values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specification {
    pub name: String,
    pub shape: Vec<usize>,
    pub class: Class,
    pub role: Role,
}

impl Specification {
    /// The group that weight decay may leave alone, if the parameter is of one.
    pub(crate) fn group(&self) -> Option<ParameterGroup> {
        match self.role {
            Role::Gain => Some(ParameterGroup::Norms),
            Role::Table | Role::Tied => Some(ParameterGroup::Embedding),
            Role::Router => Some(ParameterGroup::Router),
            Role::Wide => (self.name == HEAD).then_some(ParameterGroup::Head),
            Role::Linear => None,
        }
    }
}

/// Name of the matrix that the head multiplies by.
pub fn head(config: &ModelConfig) -> &'static str {
    if config.tie_word_embeddings { EMBEDDING } else { HEAD }
}

/// Name of a layer's tensor.
pub fn of_layer(layer: u32, rest: &str) -> String {
    format!("model.layers.{layer}.{rest}")
}

/// Name of one routed expert's Linear, `gate_proj`, `up_proj` or `down_proj`.
pub fn of_expert(layer: u32, expert: u32, linear: &str) -> String {
    of_layer(layer, &format!("mlp.experts.{expert}.{linear}.weight"))
}

/// Name of a layer's router bias. Not a parameter: FP32, no gradient, not in the optimizer.
pub fn of_bias(layer: u32) -> String {
    of_layer(layer, "mlp.gate.e_score_correction_bias")
}

/// The parameters of one cell, in arena order: the same on all cells that sum their gradients.
pub fn specifications(cut: &Cut) -> Vec<Specification> {
    let config = &cut.config;
    let (d, v) = (config.hidden_size as usize, config.vocab_size as usize);
    let mut list = List { cut, all: Vec::new() };
    if cut.first || (cut.last && config.embedding_is_at_both_ends()) {
        let role = if config.tie_word_embeddings { Role::Tied } else { Role::Table };
        list.push(EMBEDDING.into(), &[v, d], Class::Embedding, role);
    }
    for layer in cut.layers.clone() {
        list.decoder_layer(layer);
    }
    if cut.last {
        list.gain(FINAL_NORM.into(), d);
        if !config.tie_word_embeddings {
            list.push(HEAD.into(), &[v, d], Class::Dense, Role::Wide);
        }
    }
    for layer in cut.mtp_layers() {
        list.gain(of_layer(layer, "enorm.weight"), d);
        list.gain(of_layer(layer, "hnorm.weight"), d);
        list.push(of_layer(layer, "eh_proj.weight"), &[d, 2 * d], Class::Dense, Role::Wide);
        list.gain(of_layer(layer, "shared_head.norm.weight"), d);
        list.decoder_layer(layer);
    }
    list.all
}

/// A list under construction.
struct List<'a> {
    cut: &'a Cut,
    all: Vec<Specification>,
}

impl List<'_> {
    fn push(&mut self, name: String, shape: &[usize], class: Class, role: Role) {
        self.all.push(Specification { name, shape: shape.to_vec(), class, role });
    }

    fn gain(&mut self, name: String, width: usize) {
        self.push(name, &[width], Class::Dense, Role::Gain);
    }

    fn linear(&mut self, name: String, shape: [usize; 2], class: Class) {
        self.push(name, &shape, class, Role::Linear);
    }

    fn decoder_layer(&mut self, layer: u32) {
        let config = &self.cut.config;
        let d = config.hidden_size as usize;
        self.gain(of_layer(layer, "input_layernorm.weight"), d);
        self.attention(layer);
        self.gain(of_layer(layer, "post_attention_layernorm.weight"), d);
        if !config.is_moe(layer) {
            self.feed_forward(layer, "mlp", config.intermediate_size);
            return;
        }
        let experts = config.n_routed_experts as usize;
        self.push(of_layer(layer, "mlp.gate.weight"), &[experts, d], Class::Dense, Role::Router);
        if 0 < config.n_shared_experts {
            let width = config.n_shared_experts * config.moe_intermediate_size;
            self.feed_forward(layer, "mlp.shared_experts", width);
        }
        let f = config.moe_intermediate_size as usize;
        // The same matrix of all experts in one piece: a grouped product on a GPU wants its gradients so.
        for (linear, shape) in [("gate_proj", [f, d]), ("up_proj", [f, d]), ("down_proj", [d, f])] {
            for expert in self.cut.local_experts() {
                self.linear(of_expert(layer, expert, linear), shape, Class::Expert);
            }
        }
    }

    fn attention(&mut self, layer: u32) {
        let config = &self.cut.config;
        let (d, heads) = (config.hidden_size as usize, config.num_attention_heads as usize);
        let (latent, rope) = (config.kv_lora_rank as usize, config.qk_rope_head_dim as usize);
        let (nope, value) = (config.qk_nope_head_dim as usize, config.v_head_dim as usize);
        let queries = heads * (nope + rope);
        let name = |rest: &str| of_layer(layer, &format!("self_attn.{rest}.weight"));
        if let Some(rank) = config.q_lora_rank.map(|rank| rank as usize) {
            self.linear(name("q_a_proj"), [rank, d], Class::Dense);
            self.gain(name("q_a_layernorm"), rank);
            self.linear(name("q_b_proj"), [queries, rank], Class::Dense);
        } else {
            self.linear(name("q_proj"), [queries, d], Class::Dense);
        }
        self.linear(name("kv_a_proj_with_mqa"), [latent + rope, d], Class::Dense);
        self.gain(name("kv_a_layernorm"), latent);
        self.linear(name("kv_b_proj"), [heads * (nope + value), latent], Class::Dense);
        self.linear(name("o_proj"), [d, heads * value], Class::Dense);
    }

    fn feed_forward(&mut self, layer: u32, prefix: &str, width: u32) {
        let (d, f) = (self.cut.config.hidden_size as usize, width as usize);
        for (linear, shape) in [("gate_proj", [f, d]), ("up_proj", [f, d]), ("down_proj", [d, f])] {
            let name = of_layer(layer, &format!("{prefix}.{linear}.weight"));
            self.linear(name, shape, Class::Dense);
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::arithmetic::parameters;

    use super::*;

    fn elements(list: &[Specification]) -> u64 {
        list.iter().map(|s| s.shape.iter().product::<usize>() as u64).sum()
    }

    /// 91,991 tensors with 684,531,386,000 elements: the released listing.
    #[test]
    fn the_released_model_has_its_published_tensors() {
        let cut = Cut::whole(ModelConfig::preset("deepseek-v3").unwrap());
        let list = specifications(&cut);
        // What else is stored: router biases, an FP32 scale for each 128 x 128 block of a Linear,
        // and the MTP module's copies of embedding and head.
        let n_biases = cut.moe_layers().len();
        let blocks = |s: &Specification| s.shape.iter().map(|n| n.div_ceil(128) as u64).product();
        let scales: Vec<u64> = list.iter().filter(|s| s.role == Role::Linear).map(blocks).collect();
        assert_eq!(scales.iter().sum::<u64>(), 41_540_496);
        assert_eq!(list.len() + n_biases + scales.len() + 2, 91_991);
        let copies = 2 * 129_280 * 7168;
        let all = elements(&list) + n_biases as u64 * 256 + 41_540_496 + copies;
        assert_eq!(all, 684_531_386_000);
    }

    #[test]
    fn the_tensors_of_a_model_add_up_to_its_number_of_parameters() {
        let mut configs: Vec<_> = ModelConfig::PRESETS.map(ModelConfig::preset).into();
        for depth in 0..4 {
            for n_routed_experts in [0, 16] {
                let tiny = ModelConfig { n_routed_experts, ..ModelConfig::tiny() };
                configs.push(Some(ModelConfig { num_nextn_predict_layers: depth, ..tiny.clone() }));
                configs.push(Some(ModelConfig { tie_word_embeddings: true, ..tiny.clone() }));
                configs.push(Some(ModelConfig { first_k_dense_replace: 9, ..tiny }));
            }
        }
        for config in configs.into_iter().flatten() {
            let want = parameters(&config).total;
            assert_eq!(elements(&specifications(&Cut::whole(config.clone()))), want, "{config:?}");
        }
    }

    #[test]
    fn stages_and_shards_together_hold_every_parameter_of_the_whole() {
        let whole = Cut::whole(ModelConfig::tiny());
        let mut want: Vec<_> = specifications(&whole).into_iter().map(|s| s.name).collect();
        let mut got = Vec::new();
        for (layers, first, last) in [(0..2, true, false), (2..4, false, true)] {
            for shard in 0..2 {
                let experts = vec![0..10, 10..16];
                let cut =
                    Cut { layers: layers.clone(), first, last, experts, shard, ..whole.clone() };
                got.extend(specifications(&cut).into_iter().map(|s| s.name));
            }
        }
        want.sort();
        got.sort();
        got.dedup();
        assert_eq!(got, want);
    }
}
