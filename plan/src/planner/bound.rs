//! What no placement can beat: all arithmetic at each card's best, nobody ever waiting for anybody or anything.

use super::{Layout, Question};
use crate::cost::compute::{Card, Load};

/// Seconds below which no step of this batch can be on these cards.
///
/// A card's seconds a token fall as it works on more tokens at a time, so the bound takes them at a load far above
/// any microbatch's, in every layer; tokens are then shared by speed. No bubble, message, exchange, sum of gradients,
/// memory limit or whole layer is counted: a plan at the bound may not exist.
pub fn bound_s(question: &Question<'_>) -> f64 {
    let (job, fleet) = (question.job, question.fleet);
    let model = &job.model;
    let layout = Layout::of(fleet);
    let tokens = 1e6;
    let seconds: Vec<f64> = fleet
        .rigs
        .iter()
        .map(|rig| {
            let chosen = f64::from(model.num_experts_per_tok);
            let load = Load { own: tokens, routed: tokens * chosen, experts: 1.0 };
            let times = Card::of(rig, job, question.software).layer_times(job, load);
            let moe =
                (0..model.num_hidden_layers).filter(|layer| model.is_moe(*layer)).count() as f64;
            let dense = f64::from(model.num_hidden_layers) - moe;
            let all = dense * times.dense.total() + moe * times.moe.total() + times.last.total();
            all / tokens
        })
        .collect();
    let rate: f64 = (0..layout.machines.len()).map(|card| 1.0 / seconds[layout.rig(card)]).sum();
    f64::from(job.training.batch) * f64::from(job.training.sequence) / rate
}
