//! Who does what: layers to stages, experts to shards, cells to workers. Pure, and every choice
//! comes with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::arithmetic::{last_stage_flops, layer_flops};
use crate::balance;
use crate::grid::CellId;
use crate::job::Job;
use crate::plan::{Generation, Plan, StagePlan, WorkerId};
use crate::work;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("there is no worker to host {cells} cells: start at least one")]
    NoWorkers { cells: u32 },

    #[error(
        "{workers} workers for {cells} cells (grid {grid}): a worker hosts at least one cell, so \
         start at most {cells}, or raise spec.parallelism"
    )]
    TooManyWorkers { workers: usize, cells: u32, grid: String },

    #[error("{0} is named twice")]
    Twice(WorkerId),

    #[error(
        "{stages} stages of {chunks} chunks for {layers} layers: every chunk has at least one, so \
         lower spec.parallelism.stages or chunks"
    )]
    TooManyStages { stages: u32, chunks: u32, layers: u32 },

    #[error("{shards} expert shards for {experts} experts: every shard has at least one")]
    TooManyShards { shards: u32, experts: u32 },

    #[error("{key} lists {got:?}, but wanted are {parts} numbers that add up to {total}")]
    Listed { key: &'static str, got: Vec<u32>, parts: u32, total: u32 },
}

/// Plans a job for these workers. Stages and shards follow from the job alone, so that they are
/// the same for any number of workers.
pub fn make_plan(
    job: &Job,
    workers: &[WorkerId],
    generation: Generation,
) -> Result<Plan, PlanError> {
    let grid = job.grid;
    let stages = cut_layers(job)?;
    let experts = cut_experts(job)?;
    let costs = work::of_cells(job, &stages, &experts);
    let (hosts, reasons) = place_cells(job, &costs, workers)?;
    Ok(Plan { generation, grid, stages, experts, hosts, reasons })
}

/// Layers to virtual stages: as the manifest lists them, or so that the slowest is as fast as it
/// can be.
fn cut_layers(job: &Job) -> Result<Vec<StagePlan>, PlanError> {
    let (grid, chunks, layers) = (job.grid, job.division.chunks, job.model.num_hidden_layers);
    let virtual_stages = grid.stages.saturating_mul(chunks);
    if virtual_stages > layers {
        return Err(PlanError::TooManyStages { stages: grid.stages, chunks, layers });
    }
    let flops: Vec<f64> =
        (0..layers).map(|layer| layer_flops(&job.model, layer, job.training.sequence)).collect();
    let extra = last_stage_flops(&job.model, job.training.sequence);
    let total = flops.iter().sum::<f64>() + extra;
    let by_hand = !job.division.layers.is_empty();
    let parts = if by_hand {
        listed("spec.parallelism.layers", &job.division.layers, virtual_stages, layers)?
    } else {
        let cut = balance::cut(&flops, virtual_stages as usize, extra).into_iter();
        cut.map(|part| part.start as u32..part.end as u32).collect()
    };
    let cost = |(at, part): (usize, &Range<u32>)| {
        let own: f64 = flops[part.start as usize..part.end as usize].iter().sum();
        if at + 1 == parts.len() { own + extra } else { own }
    };
    let costs: Vec<f64> = parts.iter().enumerate().map(cost).collect();
    let largest = costs.iter().copied().fold(0.0, f64::max);
    let plans = parts.iter().zip(&costs).enumerate().map(|(at, (layers, cost))| {
        let mut reason = format!("{:.0} % of the FLOPs", 100.0 * cost / total);
        if at + 1 == parts.len() {
            let with = if job.model.num_nextn_predict_layers > 0 { "head and MTP" } else { "head" };
            let share = 100.0 * extra / cost;
            reason = format!("{reason}, {share:.0} % of them {with}");
        }
        if parts.len() == 1 {
            reason += "; one stage has all layers";
        } else if by_hand {
            reason += "; as the manifest lists";
        } else if *cost >= largest {
            let what = if chunks > 1 { "chunk" } else { "stage" };
            reason =
                format!("{reason}; the largest {what}, and no other cut makes the largest smaller");
        }
        StagePlan { layers: layers.clone(), flops_per_token: *cost, reason }
    });
    Ok(plans.collect())
}

/// Experts to shards: consecutive ranges, as the manifest lists them or as even as they can be,
/// larger ones first. The shards of a dense model have none.
fn cut_experts(job: &Job) -> Result<Vec<Range<u32>>, PlanError> {
    let (experts, shards) = (job.model.n_routed_experts, job.grid.expert_shards);
    if experts > 0 && shards > experts {
        return Err(PlanError::TooManyShards { shards, experts });
    }
    if !job.division.experts.is_empty() {
        return listed("spec.parallelism.experts", &job.division.experts, shards, experts);
    }
    let (each, larger) = (experts / shards, experts % shards);
    let start = |shard: u32| shard * each + shard.min(larger);
    Ok((0..shards).map(|shard| start(shard)..start(shard + 1)).collect())
}

/// Consecutive ranges of the listed lengths.
fn listed(
    key: &'static str,
    lengths: &[u32],
    parts: u32,
    total: u32,
) -> Result<Vec<Range<u32>>, PlanError> {
    let sum: u64 = lengths.iter().copied().map(u64::from).sum();
    if lengths.len() != parts as usize || lengths.contains(&0) || sum != u64::from(total) {
        return Err(PlanError::Listed { key, got: lengths.to_vec(), parts, total });
    }
    let mut end = 0;
    let range = |length: &u32| {
        let start = end;
        end += length;
        start..end
    };
    Ok(lengths.iter().map(range).collect())
}

/// Cells to workers: consecutive cells, in the workers' order, balanced by `costs`, their FLOPs.
fn place_cells(
    job: &Job,
    costs: &[f64],
    workers: &[WorkerId],
) -> Result<(Vec<WorkerId>, BTreeMap<WorkerId, String>), PlanError> {
    let cells = job.grid.n_cells();
    if workers.is_empty() {
        return Err(PlanError::NoWorkers { cells });
    }
    let mut named = BTreeSet::new();
    if let Some(twice) = workers.iter().find(|worker| !named.insert(**worker)) {
        return Err(PlanError::Twice(*twice));
    }
    if workers.len() > cells as usize {
        let grid = job.grid.to_string();
        return Err(PlanError::TooManyWorkers { workers: workers.len(), cells, grid });
    }
    let stage_of = |cell: usize| job.grid.cell(CellId(cell as u32)).stage;
    let total: f64 = costs.iter().sum();
    let mut hosts = Vec::with_capacity(cells as usize);
    let mut reasons = BTreeMap::new();
    for (worker, part) in workers.iter().zip(balance::cut(costs, workers.len(), 0.0)) {
        let share = 100.0 * costs[part.clone()].iter().sum::<f64>() / total;
        let what = if part.len() as u32 == cells {
            "the only worker hosts every cell".to_owned()
        } else if part.len() == 1 {
            format!("one cell of stage {}", stage_of(part.start))
        } else {
            let (first, last) = (stage_of(part.start), stage_of(part.end - 1));
            let of = if first == last {
                format!("stage {first}")
            } else {
                format!("stages {first} to {last}")
            };
            format!("{} neighbouring cells of {of}", part.len())
        };
        let even = 100.0 / workers.len() as f64;
        reasons.insert(*worker, format!("{what}: {share:.0} % of the FLOPs (even: {even:.0} %)"));
        hosts.extend(part.map(|_| *worker));
    }
    Ok((hosts, reasons))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::Grid;

    fn job(stages: u32, expert_shards: u32, replicas: u32) -> Job {
        Job { grid: Grid { stages, expert_shards, replicas }, ..Job::example() }
    }

    fn workers(n: u32) -> Vec<WorkerId> {
        (0..n).map(WorkerId).collect()
    }

    fn plan(job: &Job, n_workers: u32) -> Plan {
        make_plan(job, &workers(n_workers), Generation(1)).unwrap()
    }

    #[test]
    fn every_layer_expert_and_cell_has_exactly_one_owner() {
        for stages in 1..=4 {
            for expert_shards in [1, 2, 3, 5, 16] {
                for replicas in 1..=3 {
                    let job = job(stages, expert_shards, replicas);
                    let cells = job.grid.n_cells();
                    for n_workers in [1, 2, 3, cells / 2, cells] {
                        if n_workers == 0 || n_workers > cells {
                            continue;
                        }
                        let plan = plan(&job, n_workers);
                        let layers: Vec<u32> =
                            plan.stages.iter().flat_map(|stage| stage.layers.clone()).collect();
                        assert_eq!(layers, (0..4).collect::<Vec<_>>());
                        assert!(plan.stages.iter().all(|stage| !stage.layers.is_empty()));
                        let experts: Vec<u32> = plan.experts.iter().cloned().flatten().collect();
                        assert_eq!(experts, (0..16).collect::<Vec<_>>());
                        assert_eq!(plan.hosts.len(), cells as usize);
                        assert!(plan.hosts.is_sorted(), "cells of a worker are neighbours");
                        for worker in workers(n_workers) {
                            assert!(!plan.cells_of(worker).is_empty(), "{worker} has no cell");
                            assert!(plan.reasons.contains_key(&worker));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn stages_do_not_depend_on_the_workers() {
        let job = job(2, 2, 1);
        assert_eq!(plan(&job, 1).stages, plan(&job, 4).stages);
        assert_eq!(plan(&job, 1).experts, plan(&job, 4).experts);
    }

    #[test]
    fn head_and_mtp_count_on_the_last_stage() {
        // Tiny's MTP module costs more than a layer, so the last stage gets fewer layers.
        let plan = plan(&job(2, 1, 1), 2);
        assert_eq!(plan.stages[0].layers, 0..3);
        assert_eq!(plan.stages[1].layers, 3..4);
        let total: f64 = plan.stages.iter().map(|stage| stage.flops_per_token).sum();
        let wanted = crate::arithmetic::flops_per_token(&Job::example().model, 256);
        assert!((total - wanted).abs() <= 1e-9 * wanted);
    }

    #[test]
    fn reasons_read_well() {
        let quickstart = plan(&job(2, 2, 1), 4);
        assert_eq!(
            quickstart.stages[0].reason,
            "54 % of the FLOPs; the largest stage, and no other cut makes the largest smaller"
        );
        assert_eq!(quickstart.stages[1].reason, "46 % of the FLOPs, 58 % of them head and MTP");
        let check = |n_workers: u32, worker: u32, wanted: &str| {
            assert_eq!(plan(&job(2, 2, 1), n_workers).reasons[&WorkerId(worker)], wanted);
        };
        check(4, 3, "one cell of stage 1: 23 % of the FLOPs (even: 25 %)");
        check(2, 0, "2 neighbouring cells of stage 0: 54 % of the FLOPs (even: 50 %)");
        check(1, 0, "the only worker hosts every cell: 100 % of the FLOPs (even: 100 %)");
    }

    #[test]
    fn shards_are_as_even_as_they_can_be_unless_the_manifest_lists_them() {
        assert_eq!(plan(&job(1, 3, 1), 1).experts, [0..6, 6..11, 11..16]);
        let mut listed = job(2, 2, 1);
        (listed.division.layers, listed.division.experts) = (vec![1, 3], vec![11, 5]);
        let plan = plan(&listed, 1);
        assert_eq!(plan.experts, [0..11, 11..16]);
        assert_eq!(plan.stages[0].layers, 0..1);
        assert_eq!(plan.stages[1].layers, 1..4);
        assert!(plan.stages[0].reason.ends_with("; as the manifest lists"));
    }

    #[test]
    fn chunks_take_turns_over_the_stages() {
        let mut job = job(2, 1, 1);
        job.division.chunks = 2;
        let plan = plan(&job, 1);
        let layers: Vec<_> = plan.stages.iter().map(|stage| stage.layers.clone()).collect();
        assert_eq!(layers, [0..1, 1..2, 2..3, 3..4]);
        assert_eq!(plan.chunks(), 2);
        let of = |stage| plan.chunks_of(stage).map(|chunk| chunk.layers.start).collect::<Vec<_>>();
        assert_eq!((of(0), of(1)), (vec![0, 2], vec![1, 3]));
    }

    #[test]
    fn workers_are_balanced_by_what_their_cells_train() {
        // The first column trains three of four sequences, so its cell counts for more.
        let mut job = job(1, 1, 4);
        job.division.shares = vec![3, 1, 1, 1];
        assert_eq!(plan(&job, 2).hosts, [0, 1, 1, 1].map(WorkerId));
        let reasons = plan(&job, 2).reasons;
        let wanted = "one cell of stage 0: 50 % of the FLOPs (even: 50 %)";
        assert_eq!(reasons[&WorkerId(0)], wanted);
        // Nothing to do is a part as well.
        job.division.shares = vec![1, 0, 0, 0];
        assert_eq!(plan(&job, 4).hosts, [0, 1, 2, 3].map(WorkerId));
    }

    #[test]
    fn impossible_plans_say_why() {
        let check = |job: &Job, workers: &[WorkerId], wanted: &str| {
            let error = make_plan(job, workers, Generation(1)).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        };
        check(&job(2, 2, 1), &workers(5), "5 workers for 4 cells (grid 2x2x1)");
        check(&job(2, 2, 1), &[], "no worker to host 4 cells");
        check(&job(1, 2, 1), &[WorkerId(3), WorkerId(3)], "worker-3 is named twice");
        check(&job(5, 1, 1), &workers(1), "5 stages of 1 chunks for 4 layers");
        check(&job(1, 17, 1), &workers(1), "17 expert shards for 16 experts");
        let listed = |layers: &[u32], experts: &[u32]| {
            let mut job = job(2, 2, 1);
            (job.division.layers, job.division.experts) = (layers.to_vec(), experts.to_vec());
            job
        };
        let wanted =
            "spec.parallelism.layers lists [1, 2], but wanted are 2 numbers that add up to 4";
        check(&listed(&[1, 2], &[]), &workers(1), wanted);
        check(&listed(&[], &[16, 0]), &workers(1), "spec.parallelism.experts lists [16, 0]");
    }
}
