//! What a network costs: parameters and arithmetic, from its sizes alone. Memory is in `memory`.
//!
//! Counts follow DeepSeek-V3's released tensors; FLOPs are 2 for each multiply-add, forward and
//! backward together. Sizes are bounded by the manifest's rules, so that no count overflows.

use crate::job::Recompute;
use crate::model::ModelConfig;

/// Forward once, backward twice (gradients of inputs and of weights), 2 FLOPs a multiply-add.
const FLOPS_PER_WEIGHT: f64 = 6.0;

/// Parameters of a network. Router biases are not parameters: no gradient moves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// All of them, each once (the MTP modules share embedding and head).
    pub total: u64,
    /// Those that one token meets: its chosen experts instead of all.
    pub active: u64,
}

/// The parameters of the whole network, MTP modules included.
pub fn parameters(model: &ModelConfig) -> Parameters {
    let d = u64::from(model.hidden_size);
    let tables = if model.tie_word_embeddings { 1 } else { 2 };
    let outside = tables * u64::from(model.vocab_size) * d + d;
    let mut sum = Parameters { total: outside, active: outside };
    for layer in 0..model.num_hidden_layers + model.num_nextn_predict_layers {
        let shared = dense_linears(model, layer) + layer_norms(model);
        sum.total += shared + routed_linears(model, layer, model.n_routed_experts);
        sum.active += shared + routed_linears(model, layer, model.num_experts_per_tok);
    }
    let own = u64::from(model.num_nextn_predict_layers) * mtp_own(model);
    Parameters { total: sum.total + own, active: sum.active + own }
}

/// FLOPs of one token through layer `layer`, forward and backward. The MTP modules' layers are
/// `ModelConfig::mtp_layers`. `sequence` is in tokens: a token attends to half of it on average.
pub fn layer_flops(model: &ModelConfig, layer: u32, sequence: u32) -> f64 {
    let weights =
        dense_linears(model, layer) + routed_linears(model, layer, model.num_experts_per_tok);
    FLOPS_PER_WEIGHT * weights as f64 + attention_flops(model, sequence)
}

/// The part of `layer_flops` that is products of queries, keys and values, a third of it forward.
pub(crate) fn attention_flops(model: &ModelConfig, sequence: u32) -> f64 {
    let head = f64::from(model.qk_head_dim()) + f64::from(model.v_head_dim);
    let attended = f64::from(sequence) / 2.0;
    FLOPS_PER_WEIGHT * f64::from(model.num_attention_heads) * head * attended
}

/// The part of `layer_flops` that the cells of an expert group share: the chosen routed experts.
pub(crate) fn routed_flops(model: &ModelConfig, layer: u32) -> f64 {
    FLOPS_PER_WEIGHT * routed_linears(model, layer, model.num_experts_per_tok) as f64
}

/// FLOPs of one token through what the last stage has besides its layers: the head, and the MTP
/// modules, each with its own pass through the head.
pub fn last_stage_flops(model: &ModelConfig, sequence: u32) -> f64 {
    let head = FLOPS_PER_WEIGHT * f64::from(model.vocab_size) * f64::from(model.hidden_size);
    let projection = FLOPS_PER_WEIGHT * mtp_projection(model) as f64;
    let module = |layer| head + projection + layer_flops(model, layer, sequence);
    head + model.mtp_layers().map(module).sum::<f64>()
}

/// FLOPs of one token through the whole network.
pub fn flops_per_token(model: &ModelConfig, sequence: u32) -> f64 {
    let layers: f64 =
        (0..model.num_hidden_layers).map(|layer| layer_flops(model, layer, sequence)).sum();
    layers + last_stage_flops(model, sequence)
}

/// A matrix that rows of values are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    pub inputs: u64,
    pub outputs: u64,
    /// Multiplied once more in the backward pass, so that its output need not be kept.
    pub again: bool,
}

impl Linear {
    fn new(inputs: u64, outputs: u64) -> Self {
        Self { inputs, outputs, again: false }
    }

    pub fn weights(self) -> u64 {
        self.inputs * self.outputs
    }
}

/// The Linears of a layer that every cell of its stage holds and every token meets: attention, the
/// dense feed-forward or the shared experts and the router. Queries, keys and values are computed
/// again in the backward pass, and what `recompute` says.
pub(crate) fn linears(model: &ModelConfig, layer: u32, recompute: Recompute) -> Vec<Linear> {
    let (d, heads) = (u64::from(model.hidden_size), u64::from(model.num_attention_heads));
    let (qk, v) = (u64::from(model.qk_head_dim()), u64::from(model.v_head_dim));
    let (nope, rope) = (u64::from(model.qk_nope_head_dim), u64::from(model.qk_rope_head_dim));
    let kv = u64::from(model.kv_lora_rank);
    let again = |inputs, outputs| Linear { again: true, ..Linear::new(inputs, outputs) };
    let latent =
        |inputs, outputs| Linear { again: recompute.attention(), ..Linear::new(inputs, outputs) };
    let mut all = match model.q_lora_rank.map(u64::from) {
        Some(rank) => vec![latent(d, rank), again(rank, heads * qk)],
        None => vec![again(d, heads * qk)],
    };
    all.extend([latent(d, kv + rope), again(kv, heads * (nope + v)), Linear::new(heads * v, d)]);
    let hidden = if model.is_moe(layer) {
        all.push(Linear::new(d, u64::from(model.n_routed_experts)));
        u64::from(model.moe_intermediate_size) * u64::from(model.n_shared_experts)
    } else {
        u64::from(model.intermediate_size)
    };
    all.extend(feed_forward(d, hidden, recompute));
    all
}

/// The Linears of one routed expert.
pub(crate) fn expert_linears(model: &ModelConfig, recompute: Recompute) -> [Linear; 2] {
    feed_forward(model.hidden_size.into(), model.moe_intermediate_size.into(), recompute)
}

/// Gate and up side by side, and down.
fn feed_forward(d: u64, hidden: u64, recompute: Recompute) -> [Linear; 2] {
    let first = Linear { again: recompute.feed_forward(), ..Linear::new(d, 2 * hidden) };
    [first, Linear::new(hidden, d)]
}

/// Weights of `linears`.
pub(crate) fn dense_linears(model: &ModelConfig, layer: u32) -> u64 {
    linears(model, layer, Recompute::None).into_iter().map(Linear::weights).sum()
}

/// Weights of `n_experts` routed experts; none in a dense layer.
pub(crate) fn routed_linears(model: &ModelConfig, layer: u32, n_experts: u32) -> u64 {
    let one = 3 * u64::from(model.hidden_size) * u64::from(model.moe_intermediate_size);
    if model.is_moe(layer) { one * u64::from(n_experts) } else { 0 }
}

pub(crate) fn router(model: &ModelConfig, layer: u32) -> u64 {
    let size = u64::from(model.n_routed_experts) * u64::from(model.hidden_size);
    if model.is_moe(layer) { size } else { 0 }
}

/// Gains of a layer: before attention and feed-forward, and of the two latents.
pub(crate) fn layer_norms(model: &ModelConfig) -> u64 {
    let latents = u64::from(model.q_lora_rank.unwrap_or(0)) + u64::from(model.kv_lora_rank);
    2 * u64::from(model.hidden_size) + latents
}

/// What an MTP module has besides its layer: `eh_proj` and three norms.
pub(crate) fn mtp_own(model: &ModelConfig) -> u64 {
    mtp_projection(model) + 3 * u64::from(model.hidden_size)
}

/// An MTP module's `eh_proj`: from embedding and hidden state, side by side, to one width.
fn mtp_projection(model: &ModelConfig) -> u64 {
    2 * u64::from(model.hidden_size).pow(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_adds_up_tensor_by_tensor() {
        let norms = 256 + 256 + 96 + 64;
        let attention = 96 * 256 + (4 * 48) * 96 + (64 + 16) * 256 + (4 * 64) * 64 + 256 * (4 * 32);
        let dense = 3 * 512 * 256;
        let expert = 3 * 128 * 256;
        let moe = 16 * 256 + 17 * expert;
        let layers = 4 * (norms + attention) + dense + 3 * moe;
        let mtp = 256 + 256 + 512 * 256 + 256 + norms + attention + moe;
        let total = 2 * 256 * 256 + 256 + layers + mtp;
        let got = parameters(&ModelConfig::tiny());
        assert_eq!(got.total, total);
        assert_eq!(got.total - got.active, 4 * 12 * expert);
    }

    #[test]
    fn a_tied_head_is_no_parameter_and_costs_as_much_time() {
        let tied = ModelConfig { tie_word_embeddings: true, ..ModelConfig::tiny() };
        let (got, plain) = (parameters(&tied), parameters(&ModelConfig::tiny()));
        assert_eq!((got.total + 256 * 256, got.active + 256 * 256), (plain.total, plain.active));
        let flops = |model| flops_per_token(model, 256).to_bits();
        assert_eq!(flops(&tied), flops(&ModelConfig::tiny()));
    }

    #[test]
    fn a_dense_model_is_active_as_a_whole() {
        let norms = 256 + 256 + 96 + 64;
        let attention = 96 * 256 + (4 * 48) * 96 + (64 + 16) * 256 + (4 * 64) * 64 + 256 * (4 * 32);
        let layer = norms + attention + 3 * 512 * 256;
        let mtp = 3 * 256 + 512 * 256;
        for depth in 0..4 {
            let model = ModelConfig {
                n_routed_experts: 0,
                num_nextn_predict_layers: depth,
                ..ModelConfig::tiny()
            };
            let depth = u64::from(depth);
            let total = 2 * 256 * 256 + 256 + 4 * layer + depth * (layer + mtp);
            assert_eq!(parameters(&model), Parameters { total, active: total });
        }
    }

    #[test]
    fn each_token_more_costs_a_layer_a_projection_and_a_pass_through_the_head() {
        let flops = |num_nextn_predict_layers| {
            let model = ModelConfig { num_nextn_predict_layers, ..ModelConfig::tiny() };
            flops_per_token(&model, 256)
        };
        let model = ModelConfig::tiny();
        let projections = 6.0 * (256.0 * 256.0 + 2.0 * 256.0 * 256.0);
        let wanted = layer_flops(&model, 4, 256) + projections;
        for depth in 0..3 {
            let got = flops(depth + 1) - flops(depth);
            assert!((got - wanted).abs() < 1e-9 * wanted, "depth {depth}: {got}, want {wanted}");
        }
    }

    #[test]
    fn flops_are_six_a_weight_plus_attention() {
        let model = ModelConfig { num_nextn_predict_layers: 0, ..ModelConfig::tiny() };
        // The embedding is looked up, and norms are not matrix products.
        let weights = parameters(&model).active - 256 * 256 - 256 - 4 * (256 + 256 + 96 + 64);
        let attention = 4.0 * 6.0 * 4.0 * (48.0 + 32.0) * 128.0;
        let wanted = 6.0 * weights as f64 + attention;
        let got = flops_per_token(&model, 256);
        assert!((got - wanted).abs() <= 1e-12 * wanted, "{got} {wanted}");
    }
}
