//! What no placement can beat: every card at its best, nobody waiting for anybody, and no more work on a machine than
//! its network can feed.

use super::predict::capacity;
use super::{Layout, Question};
use crate::arithmetic;
use crate::cost::compute::{Card, Load};
use crate::job::{Job, Precision};

/// Seconds below which no step of this batch can be on this fleet, if expert groups stay inside machines.
///
/// A card's seconds a token fall as it works on more tokens at a time, so the bound takes them at a load far above
/// any microbatch's. A machine that has no room for the whole model trains some layers of a token, and at least one
/// hidden state of that token, or its gradient, leaves it: so it trains no more than its share of the layers for each
/// row its network carries. Tokens are then shared by these rates. No bubble, exchange, sum of gradients, activation or
/// link between sites is counted: a plan at the bound may not exist.
pub fn bound_s(question: &Question<'_>) -> f64 {
    let (job, fleet) = (question.job, question.fleet);
    let layout = Layout::of(fleet);
    let row = if job.training.precision == Precision::F32 { 4.0 } else { 2.0 };
    let row = row * f64::from(job.model.hidden_size);
    let layer_bytes = state_bytes(job) / f64::from(job.model.num_hidden_layers);
    let rates = (0..layout.network.machines()).map(|machine| {
        let rig = layout.network.rig(machine);
        let count = f64::from(fleet.rigs[rig].count);
        let arithmetic = count / seconds_per_token(question, rig);
        let layers = (count * capacity(question, rig) as f64 / layer_bytes).floor();
        let share = layers / f64::from(job.model.num_hidden_layers);
        if share >= 1.0 {
            arithmetic
        } else {
            arithmetic.min(share * layout.network.nic(machine) / row)
        }
    });
    let tokens = f64::from(job.training.batch) * f64::from(job.training.sequence);
    tokens / rates.sum::<f64>()
}

/// Of the layers alone: masters, gradients, moments and the weights of one copy.
fn state_bytes(job: &Job) -> f64 {
    let model = &job.model;
    let layers = 0..model.num_hidden_layers;
    let weights = layers.map(|layer| {
        arithmetic::dense_linears(model, layer)
            + arithmetic::routed_linears(model, layer, model.n_routed_experts)
    });
    let own = match job.training.precision {
        Precision::Fp8 => 1,
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    };
    weights.sum::<u64>() as f64 * (8 + own + job.training.moments.bytes()) as f64
}

/// One token through the whole model on one card, at its best.
fn seconds_per_token(question: &Question<'_>, rig: usize) -> f64 {
    let (job, model) = (question.job, &question.job.model);
    let tokens = 1e6;
    let routed = tokens * f64::from(model.num_experts_per_tok);
    let load = Load { own: tokens, routed, experts: 1.0 };
    let card = Card::of(&question.fleet.rigs[rig], job, question.software);
    let times = card.layer_times(job, load);
    let moe = (0..model.num_hidden_layers).filter(|layer| model.is_moe(*layer)).count() as f64;
    let dense = f64::from(model.num_hidden_layers) - moe;
    (dense * times.dense.total() + moe * times.moe.total() + times.last.total()) / tokens
}
