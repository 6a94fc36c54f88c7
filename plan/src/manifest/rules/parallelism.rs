//! Rules of the grid and of how the work is divided over it.

use super::{Broken, Facts, broken};
use crate::job::Job;
use crate::schedule::Schedule;

/// Cells of the largest grid. Keeps placement's exact search short.
const CELLS_MAX: u32 = 1024;

/// The largest relative share.
const SHARE_MAX: u32 = 1_000_000;

/// Shards need not be equal, but none may be empty.
pub(super) fn experts_fill_shards(facts: &Facts<'_>) -> Option<Broken> {
    const PATH: &str = "spec.parallelism.expert_shards";
    let (experts, shards) = (facts.job.model.n_routed_experts, facts.job.grid.expert_shards);
    if shards <= experts.max(1) {
        return None;
    }
    if experts == 0 {
        let what = format!("{shards} expert shards, but the model is dense: it has no experts");
        return broken(PATH, what, "wanted 1; `replicas` divides the batch of a dense model");
    }
    let what = format!("{experts} routed experts for {shards} shards: every shard needs one");
    broken(PATH, what, format!("wanted at most {experts}"))
}

pub(super) fn listed_experts_add_up(facts: &Facts<'_>) -> Option<Broken> {
    let listed = &facts.job.division.experts;
    let (shards, experts) = (facts.job.grid.expert_shards, facts.job.model.n_routed_experts);
    adds_up("spec.parallelism.experts", listed, shards, experts, ("expert_shards", "experts"))
}

pub(super) fn listed_layers_add_up(facts: &Facts<'_>) -> Option<Broken> {
    let listed = &facts.job.division.layers;
    let runs = facts.job.grid.stages.saturating_mul(facts.job.division.chunks);
    let layers = facts.job.model.num_hidden_layers;
    adds_up("spec.parallelism.layers", listed, runs, layers, ("stages x chunks", "layers"))
}

/// An empty list leaves the choice to the planner.
fn adds_up(
    path: &'static str,
    listed: &[u32],
    parts: u32,
    total: u32,
    (of, things): (&str, &str),
) -> Option<Broken> {
    if listed.is_empty() {
        return None;
    }
    let sum: u64 = listed.iter().copied().map(u64::from).sum();
    let what = if listed.len() != parts as usize {
        format!("{} numbers for {parts} parts ({of})", listed.len())
    } else if listed.contains(&0) {
        format!("every part has at least one of the {things}, got a 0")
    } else if sum != u64::from(total) {
        format!("{sum} {things} in all, but the model has {total}")
    } else {
        return None;
    };
    broken(path, what, format!("wanted {parts} numbers that add up to {total}, or none"))
}

pub(super) fn stages_have_layers(facts: &Facts<'_>) -> Option<Broken> {
    let (stages, layers) = (facts.job.grid.stages, facts.job.model.num_hidden_layers);
    let chunks = facts.job.division.chunks;
    if stages.saturating_mul(chunks) <= layers {
        return None;
    }
    if chunks > 1 {
        let what = format!("{stages} stages x {chunks} chunks for {layers} layers");
        return broken("spec.parallelism.chunks", what, "every chunk of every stage needs a layer");
    }
    let what = format!("{stages} stages for {layers} layers: every stage needs one");
    broken("spec.parallelism.stages", what, format!("wanted at most {layers}"))
}

pub(super) fn chunks_are_interleaved(facts: &Facts<'_>) -> Option<Broken> {
    const PATH: &str = "spec.parallelism.chunks";
    let (schedule, chunks) = (facts.job.schedule, facts.job.division.chunks);
    match schedule {
        Schedule::OneFOneB | Schedule::ZbH1 if chunks > 1 => {
            let what = format!("only the schedule interleaved reads it, and it is {schedule}");
            broken(PATH, what, "remove it, or set schedule: interleaved")
        }
        Schedule::Interleaved if chunks < 2 => {
            let what = format!("the schedule interleaved lets chunks take turns, and has {chunks}");
            broken(PATH, what, "set chunks: 2 or more, or schedule: 1f1b")
        }
        Schedule::Interleaved if facts.job.grid.stages < 2 => {
            let what = "the schedule interleaved needs more stages than one".to_owned();
            broken("spec.parallelism.stages", what, "set stages: 2 or more, or schedule: 1f1b")
        }
        Schedule::OneFOneB | Schedule::ZbH1 | Schedule::Interleaved => None,
    }
}

pub(super) fn shares_fit_the_grid(facts: &Facts<'_>) -> Option<Broken> {
    const PATH: &str = "spec.parallelism.shares";
    let (grid, shares) = (facts.job.grid, &facts.job.division.shares);
    let columns = u64::from(grid.expert_shards) * u64::from(grid.replicas);
    if shares.is_empty() {
        return None;
    }
    let help = "wanted one number for each cell of a stage: expert_shards x replicas";
    if shares.len() as u64 != columns {
        let what = format!("{} numbers for {columns} cells of a stage", shares.len());
        return broken(PATH, what, help);
    }
    if shares.iter().all(|share| *share == 0) {
        return broken(PATH, "no cell would train any sequence".to_owned(), help);
    }
    let high = shares.iter().find(|share| **share > SHARE_MAX)?;
    broken(PATH, format!("wanted numbers from 0 to {SHARE_MAX}, got {high}"), "they are relative")
}

fn cells(job: &Job) -> u64 {
    let grid = job.grid;
    let columns = u64::from(grid.expert_shards) * u64::from(grid.replicas);
    u64::from(grid.stages).saturating_mul(columns)
}

pub(super) fn grid_is_not_huge(facts: &Facts<'_>) -> Option<Broken> {
    let cells = cells(facts.job);
    if cells <= u64::from(CELLS_MAX) {
        return None;
    }
    let what = format!("stages x expert_shards x replicas is {cells} cells");
    broken("spec.parallelism", what, format!("wanted at most {CELLS_MAX}"))
}

pub(super) fn workers_have_cells(facts: &Facts<'_>) -> Option<Broken> {
    let (workers, cells) = (facts.job.workers.local, cells(facts.job));
    if u64::from(workers) <= cells {
        return None;
    }
    let grid = facts.job.grid;
    let what = format!("{workers} workers for {cells} cells (grid {grid}): every worker needs one");
    broken("spec.workers.local", what, format!("wanted at most {cells}, or more spec.parallelism"))
}

pub(super) fn enough_workers_start(facts: &Facts<'_>) -> Option<Broken> {
    let (local, min) = (facts.job.workers.local, facts.job.workers.min);
    if min <= local {
        return None;
    }
    let what = format!("the run pauses below {min} workers and {local} are started");
    broken("spec.workers.min", what, format!("wanted at most {local}, as spec.workers.local"))
}
