//! What somebody does without a planner: every card gets the same. Only for comparison.

use std::collections::BTreeSet;

use super::build::{Pattern, apportion, cells};
use super::predict::capacity;
use super::{Candidate, Layout, Prediction, Question, predict};
use crate::grid::Grid;
use crate::schedule::Schedule;

/// The best grid in which every card has the same number of layers, experts and sequences, as near as whole numbers
/// allow, in the order of the file, under 1F1B. Cards may be left out, the smallest first, as somebody does for whom
/// they are too small. `None`: none of these fits.
pub fn equal_split(question: &Question<'_>) -> Option<(Candidate, Prediction)> {
    let layout = Layout::of(question.fleet);
    let memory = |card: &usize| capacity(question, layout.rig(*card));
    let all: Vec<usize> = (0..layout.machines.len()).collect();
    let sizes: BTreeSet<u64> = all.iter().map(memory).collect();
    let of = |least: u64| {
        let cards: Vec<usize> = all.iter().copied().filter(|card| memory(card) >= least).collect();
        equal(question, &layout, &cards)
    };
    let found = sizes.into_iter().filter_map(of);
    found.min_by(|a, b| a.1.step_s.total_cmp(&b.1.step_s))
}

fn equal(
    question: &Question<'_>,
    layout: &Layout<'_>,
    cards: &[usize],
) -> Option<(Candidate, Prediction)> {
    let (model, batch) = (&question.job.model, question.job.training.batch);
    let mut best: Option<(Candidate, Prediction)> = None;
    for shards in (1..=cards.len()).filter(|n| cards.len().is_multiple_of(*n)) {
        if shards > 1 && shards > model.n_routed_experts as usize {
            continue;
        }
        let units: Vec<Vec<usize>> = cards.chunks(shards).map(<[usize]>::to_vec).collect();
        for stages in (1..=units.len()).filter(|n| units.len().is_multiple_of(*n)) {
            let (columns, n) = (cards.len() / stages, stages as u32);
            if n > model.num_hidden_layers || columns > batch as usize {
                continue;
            }
            let pattern =
                Pattern { units: units.chunks(stages).map(<[Vec<usize>]>::to_vec).collect() };
            let grid = Grid {
                stages: n,
                expert_shards: shards as u32,
                replicas: pattern.units.len() as u32,
            };
            for microbatch in [1, 2, 4, 8] {
                let even = |n: u32, parts: usize| apportion(n, &vec![1.0; parts], 1);
                let candidate = Candidate {
                    grid,
                    schedule: Schedule::OneFOneB,
                    chunks: 1,
                    microbatch,
                    layers: even(model.num_hidden_layers, stages),
                    experts: even(model.n_routed_experts, shards),
                    shares: even(batch, columns),
                    cards: cells(&pattern, grid),
                };
                let prediction = predict(question, layout, &candidate);
                let is_better = best.as_ref().is_none_or(|(_, old)| prediction.step_s < old.step_s);
                if is_better && prediction.short().is_none() {
                    best = Some((candidate, prediction));
                }
            }
        }
    }
    best
}
