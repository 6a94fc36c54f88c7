//! What no plan can beat: relaxations of the step's length, grid by grid.
//!
//! `bound_s` is the least over all grids of what a grid cannot avoid. Two relaxations give it. `free` counts arithmetic
//! and what a machine's network can feed, and holds for every plan. `grids` counts more (whole layers, memory of each
//! card, the exchanges of an expert group, messages, sums of gradients), for plans whose expert groups stay inside
//! machines; it is used where networks are so slow that no other plan is worth a thought (`NEVER_APART`).

mod grids;
mod unit;

use super::predict::capacity;
use super::{Layout, Question};
use crate::arithmetic;
use crate::cost::compute::{Card, Load};
use crate::job::{Job, Precision};

/// A network slower than this, in bytes a second of one machine: an expert's row takes 20 times as long on its way as in the
/// arithmetic of the fastest card.
const NEVER_APART: f64 = 4e9;

/// Seconds below which no step of this batch can be on this fleet.
///
/// Where networks are slow, of plans whose expert groups stay inside machines. No bubble but the first
/// microbatch's way, no activation but the least, no overlap of one machine's messages and no streaming of small
/// microbatches is counted: a plan at the bound may not exist.
pub fn bound_s(question: &Question<'_>) -> f64 {
    let layout = Layout::of(question.fleet);
    let machines = 0..layout.network.machines();
    let free = free(question, &layout);
    let slow = question.fleet.rigs.iter().all(|rig| !rig.rdma)
        && machines.map(|machine| layout.network.nic(machine)).all(|rate| rate < NEVER_APART);
    // The closer look costs seconds on thousands of cards, where whole layers hardly matter.
    let small = layout.machines.len() <= 128;
    if slow && small { free.max(grids::bound(question, &layout)) } else { free }
}

/// Every card at its best, nobody waiting. A machine that has no room for the whole model trains some layers of a token, and at
/// least one hidden state of that token, or its gradient, leaves it: so it trains no more than its share of the layers
/// for each row its network carries.
fn free(question: &Question<'_>, layout: &Layout<'_>) -> f64 {
    let (job, fleet) = (question.job, question.fleet);
    let row = row_bytes(job);
    let layer_bytes = state_bytes(job) / f64::from(job.model.num_hidden_layers);
    let best: Vec<f64> =
        (0..fleet.rigs.len()).map(|rig| seconds_per_token(question, rig)).collect();
    let rates = (0..layout.network.machines()).map(|machine| {
        let rig = layout.network.rig(machine);
        let count = f64::from(fleet.rigs[rig].count);
        let arithmetic = count / best[rig];
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

/// Bytes of a token's hidden state between stages.
fn row_bytes(job: &Job) -> f64 {
    let wide = if job.training.precision == Precision::F32 { 4.0 } else { 2.0 };
    wide * f64::from(job.model.hidden_size)
}

/// Of one parameter of a Linear: master, gradient, moments, and the weight that the arithmetic reads.
fn parameter_bytes(job: &Job) -> f64 {
    let own = match job.training.precision {
        Precision::Fp8 => 1,
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    };
    (8 + own + job.training.moments.bytes()) as f64
}

/// Of the layers alone.
fn state_bytes(job: &Job) -> f64 {
    let model = &job.model;
    let layers = 0..model.num_hidden_layers;
    let weights = layers.map(|layer| {
        arithmetic::dense_linears(model, layer)
            + arithmetic::routed_linears(model, layer, model.n_routed_experts)
    });
    weights.sum::<u64>() as f64 * parameter_bytes(job)
}

/// One token through the whole model on one card, at its best: a card's seconds a token fall as it works on more
/// tokens at a time, so it has far more than any microbatch.
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
