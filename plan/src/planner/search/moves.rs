//! Candidates one step away from another, for the last improvements, which are simulated.

use crate::planner::{Candidate, Prediction, Question};
use crate::schedule::Schedule;

/// Candidates one step away.
pub(super) fn moves(
    candidate: &Candidate,
    prediction: &Prediction,
    question: &Question<'_>,
) -> Vec<Candidate> {
    let grid = candidate.grid;
    let mut all = Vec::new();
    let mut push = |change: &dyn Fn(&mut Candidate)| {
        let mut other = candidate.clone();
        change(&mut other);
        all.push(other);
    };
    let busy = &prediction.busy;
    let stages = grid.stages as usize;
    let fullest = (0..stages).max_by(|a, b| busy[*a].total_cmp(&busy[*b])).unwrap_or(0);
    if candidate.chunks == 1 && candidate.layers[fullest] > 1 {
        for to in (0..stages).filter(|to| *to != fullest) {
            push(&|other| {
                (other.layers[fullest], other.layers[to]) =
                    (candidate.layers[fullest] - 1, candidate.layers[to] + 1);
            });
        }
    }
    let columns = grid.columns() as usize;
    if stages <= 32 {
        for (a, b) in (0..stages).filter(|to| *to != fullest).map(|to| (fullest, to)) {
            push(&|other| {
                for column in 0..columns {
                    other.cards.swap(a * columns + column, b * columns + column);
                }
                if candidate.chunks == 1 {
                    other.layers.swap(a, b);
                }
            });
        }
    }
    if columns > 1 && columns <= 16 {
        let from = (prediction.slowest * grid.expert_shards) as usize;
        for to in (0..columns).filter(|to| *to != from && candidate.shares[from] > 1) {
            push(&|other| {
                (other.shares[from], other.shares[to]) =
                    (candidate.shares[from] - 1, candidate.shares[to] + 1);
            });
        }
    }
    for microbatch in [candidate.microbatch * 2, candidate.microbatch / 2] {
        if microbatch > 0 && microbatch <= question.job.training.batch {
            push(&|other| other.microbatch = microbatch);
        }
    }
    let can_interleave = stages > 1 && candidate.layers.iter().all(|layers| *layers > 1);
    if candidate.chunks == 1 && can_interleave {
        push(&|other| {
            (other.schedule, other.chunks) = (Schedule::Interleaved, 2);
            let first = candidate.layers.iter().map(|layers| layers.div_ceil(2));
            other.layers = first.chain(candidate.layers.iter().map(|layers| layers / 2)).collect();
        });
    }
    for schedule in [Schedule::OneFOneB, Schedule::ZbH1] {
        if candidate.chunks == 1 && schedule != candidate.schedule && stages > 1 {
            push(&|other| other.schedule = schedule);
        }
    }
    all
}
