//! How the arithmetic of a step falls on the cells, when every expert is chosen equally often.
//!
//! A cell computes everything but the routed experts for its own sequences, and its routed experts
//! for the sequences of its whole expert group.

use std::ops::Range;

use crate::arithmetic::routed_flops;
use crate::grid::{Cell, CellId};
use crate::job::Job;
use crate::plan::{Plan, StagePlan};

/// FLOPs of a step on each cell, in cell order.
pub(crate) fn of_cells(job: &Job, stages: &[StagePlan], experts: &[Range<u32>]) -> Vec<f64> {
    let sequences: Vec<f64> = {
        let division = job.largest_division();
        let columns = (0..job.grid.columns()).map(|column| division.column(column));
        columns.map(|part| (part.end - part.start) as f64).collect()
    };
    let cell = |id: CellId| {
        let at = job.grid.cell(id);
        let own = sequences[job.grid.column(id) as usize];
        let first = (at.replica * job.grid.expert_shards) as usize;
        let group: f64 = sequences[first..first + experts.len()].iter().sum();
        let (all, routed) = of_stage(job, stages, at);
        (all - routed) * own + routed * group * share(job, experts, at.expert_shard)
    };
    let tokens = f64::from(job.training.sequence);
    job.grid.cells().map(|id| tokens * cell(id)).collect()
}

/// Each cell's share of a step's FLOPs, in cell order: what the plan's table shows.
pub fn shares(job: &Job, plan: &Plan) -> Vec<f64> {
    let flops = of_cells(job, &plan.stages, &plan.experts);
    let total: f64 = flops.iter().sum();
    flops.into_iter().map(|flops| flops / total).collect()
}

/// FLOPs of one token through a stage: all, and those of routed experts.
fn of_stage(job: &Job, stages: &[StagePlan], at: Cell) -> (f64, f64) {
    let (mut all, mut routed) = (0.0, 0.0);
    for index in (at.stage as usize..stages.len()).step_by(job.grid.stages as usize) {
        all += stages[index].flops_per_token;
        let last = index + 1 == stages.len();
        let mtp = job.model.mtp_layers().filter(|_| last);
        routed += (stages[index].layers.clone().chain(mtp))
            .map(|layer| routed_flops(&job.model, layer))
            .sum::<f64>();
    }
    (all, routed)
}

/// The share of the routed experts that a shard owns. A dense model has none to share.
fn share(job: &Job, experts: &[Range<u32>], shard: u32) -> f64 {
    let Range { start, end } = experts[shard as usize];
    f64::from(end - start) / f64::from(job.model.n_routed_experts.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arithmetic::flops_per_token;
    use crate::grid::Grid;
    use crate::placement::make_plan;
    use crate::plan::{Generation, WorkerId};

    fn shares_of(job: &Job) -> Vec<f64> {
        shares(job, &make_plan(job, &[WorkerId(0)], Generation(1)).unwrap())
    }

    #[test]
    fn cells_together_do_every_sequence_once() {
        let mut job = Job::example();
        job.training.batch = 7;
        job.grid = Grid { stages: 2, expert_shards: 3, replicas: 2 };
        job.division.shares = vec![0, 2, 1, 1, 1, 1];
        let plan = make_plan(&job, &[WorkerId(0)], Generation(1)).unwrap();
        let total: f64 = of_cells(&job, &plan.stages, &plan.experts).iter().sum();
        let sequence = job.training.sequence;
        let wanted = 7.0 * f64::from(sequence) * flops_per_token(&job.model, sequence);
        assert!((total - wanted).abs() < 1e-9 * wanted, "{total}, want {wanted}");
    }

    #[test]
    fn a_cell_without_sequences_still_computes_its_experts() {
        let mut job = Job::example();
        job.grid = Grid { stages: 1, expert_shards: 2, replicas: 1 };
        job.division.shares = vec![0, 1];
        let [idle, busy] = shares_of(&job)[..] else { panic!("two cells") };
        assert!(0.0 < idle && idle < busy && (idle + busy - 1.0).abs() < 1e-12, "{idle} {busy}");
        // All experts on the other cell: nothing is left to do but to listen.
        job.grid = Grid { stages: 1, expert_shards: 1, replicas: 2 };
        assert_eq!(shares_of(&job)[0].to_bits(), 0.0_f64.to_bits());
    }
}
