//! Who holds copies of whose state: for each cell, the workers that keep its snapshots in their
//! memory beside its host. Pure, and the same on every worker that has the plan.

use std::collections::{BTreeMap, BTreeSet};

use crate::grid::CellId;
use crate::job::Job;
use crate::memory::cell_bytes;
use crate::plan::{Plan, WorkerId};

mod near;

pub use near::{Places, buddies_near};

/// Snapshots of one cell that a worker keeps at a time: the newest that is complete everywhere, and
/// the one that is under way.
pub const STEPS_KEPT: u64 = 2;

/// The workers that hold copies of each cell's snapshots, in cell order. Never the host.
///
/// A cell's twins in other replicas have the same state, so that workers that host them are holders
/// already; what is still missing of `checkpoint.memory.copies` is copied by the first twin alone.
/// The largest cells choose first, the worker with the fewest bytes of copies so far, and among
/// equals the next one after the host. With too few workers there are fewer copies.
///
/// Knows no links: whoever knows the fleet asks `buddies_near`.
pub fn buddies(job: &Job, plan: &Plan) -> Vec<Vec<WorkerId>> {
    let mut holders = vec![Vec::new(); plan.hosts.len()];
    let memory = job.checkpoint.memory;
    if memory.every == 0 {
        return holders;
    }
    let workers: BTreeSet<WorkerId> = plan.hosts.iter().copied().collect();
    let mut load: BTreeMap<WorkerId, u64> = workers.iter().map(|worker| (*worker, 0)).collect();
    for (cell, bytes) in by_size(plan, |cell| cell_bytes(job, plan, cell).snapshot()) {
        let host = plan.host(cell);
        let twins = plan.grid.replica_group(cell).into_iter();
        let mut taken: BTreeSet<WorkerId> = twins.map(|twin| plan.host(twin)).collect();
        while taken.len() <= memory.copies as usize {
            // The workers after the host come before those up to it.
            let free = load.iter().filter(|(worker, _)| !taken.contains(worker));
            let Some(next) =
                free.min_by_key(|(worker, bytes)| (**bytes, **worker <= host, **worker))
            else {
                break;
            };
            let next = *next.0;
            *load.entry(next).or_default() += bytes;
            taken.insert(next);
            holders[cell.0 as usize].push(next);
        }
    }
    holders
}

/// The cells of the first replica with the bytes of a snapshot, the largest first.
fn by_size(plan: &Plan, bytes: impl Fn(CellId) -> u64) -> Vec<(CellId, u64)> {
    let firsts = plan.grid.cells().filter(|cell| plan.grid.cell(*cell).replica == 0);
    let mut cells: Vec<(CellId, u64)> = firsts.map(|cell| (cell, bytes(cell))).collect();
    cells.sort_by_key(|(cell, bytes)| (u64::MAX - bytes, *cell));
    cells
}

/// Bytes of one snapshot of every cell, as a worker has to do with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Of its own cells.
    pub own: u64,
    /// Of cells it holds copies of.
    pub others: u64,
}

impl Holding {
    /// What its memory holds of them at a time, at most.
    pub fn kept(self) -> u64 {
        self.own.saturating_add(self.others).saturating_mul(STEPS_KEPT)
    }
}

/// What each worker of the plan holds. Nobody anything where there are no snapshots.
pub fn holdings(job: &Job, plan: &Plan) -> BTreeMap<WorkerId, Holding> {
    let mut all: BTreeMap<WorkerId, Holding> = BTreeMap::new();
    if job.checkpoint.memory.every == 0 {
        return all;
    }
    for (cell, copies) in plan.grid.cells().zip(buddies(job, plan)) {
        let bytes = cell_bytes(job, plan, cell).snapshot();
        let own = &mut all.entry(plan.host(cell)).or_default().own;
        *own = own.saturating_add(bytes);
        for holder in copies {
            let others = &mut all.entry(holder).or_default().others;
            *others = others.saturating_add(bytes);
        }
    }
    all
}

/// The most bytes of snapshots that each worker of the plan holds at a time, own and others'.
pub fn vault_bytes(job: &Job, plan: &Plan) -> BTreeMap<WorkerId, u64> {
    holdings(job, plan).into_iter().map(|(worker, held)| (worker, held.kept())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::Grid;
    use crate::placement::make_plan;
    use crate::plan::Generation;

    fn planned(grid: (u32, u32, u32), n_workers: u32, copies: u32) -> (Job, Plan) {
        let (stages, expert_shards, replicas) = grid;
        let mut job = Job { grid: Grid { stages, expert_shards, replicas }, ..Job::example() };
        job.checkpoint.memory.copies = copies;
        let workers: Vec<WorkerId> = (0..n_workers).map(WorkerId).collect();
        let plan = make_plan(&job, &workers, Generation(1)).unwrap();
        (job, plan)
    }

    fn copies(grid: (u32, u32, u32), n_workers: u32, copies: u32) -> Vec<Vec<u32>> {
        let (job, plan) = planned(grid, n_workers, copies);
        let ids = |holders: Vec<WorkerId>| holders.into_iter().map(|worker| worker.0).collect();
        buddies(&job, &plan).into_iter().map(ids).collect()
    }

    #[test]
    fn every_cell_has_its_copies_elsewhere_and_they_are_spread() {
        // Four equal hosts: each holds one other's.
        let four = copies((2, 2, 1), 4, 1);
        assert_eq!(four, [[1], [2], [3], [0]]);
        for n_workers in 1..=4 {
            for wanted in 0..=3 {
                let (job, plan) = planned((2, 2, 1), n_workers, wanted);
                let all = buddies(&job, &plan);
                for (cell, holders) in plan.grid.cells().zip(&all) {
                    assert_eq!(holders.len() as u32, wanted.min(n_workers - 1));
                    assert!(!holders.contains(&plan.host(cell)), "{cell} on its host");
                    let distinct: BTreeSet<_> = holders.iter().collect();
                    assert_eq!(distinct.len(), holders.len(), "{cell} twice on one worker");
                }
                let held: Vec<usize> = (0..n_workers)
                    .map(|worker| all.iter().filter(|who| who.contains(&WorkerId(worker))).count())
                    .collect();
                let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
                assert!(most - least <= 1 || n_workers == 3, "{n_workers} workers hold {held:?}");
            }
        }
    }

    #[test]
    fn a_twin_elsewhere_is_a_copy_and_one_on_the_same_worker_is_none() {
        assert_eq!(copies((1, 2, 2), 4, 1), vec![Vec::<u32>::new(); 4]);
        // Cells 0, 2 and 1, 3 are twins: on two workers the first hosts 0 and 1, the other theirs.
        assert_eq!(copies((1, 2, 2), 2, 1), vec![Vec::<u32>::new(); 4]);
        // Of a second copy the twins need only one between them, on neither's host.
        let more = copies((1, 2, 2), 4, 2);
        assert_eq!(more, [vec![1], vec![2], vec![], vec![]], "{more:?}");
        let (job, plan) = planned((1, 1, 4), 2, 1);
        assert_eq!(plan.hosts, [0, 0, 1, 1].map(WorkerId));
        assert!(buddies(&job, &plan).iter().all(Vec::is_empty));
    }

    #[test]
    fn a_worker_s_share_of_memory_is_two_steps_of_all_it_holds() {
        let (mut job, plan) = planned((2, 2, 1), 4, 1);
        let snapshot = |cell| cell_bytes(&job, &plan, CellId(cell)).snapshot();
        let want = 2 * (snapshot(0) + snapshot(3));
        assert_eq!(vault_bytes(&job, &plan)[&WorkerId(0)], want);
        let all: u64 = vault_bytes(&job, &plan).values().sum();
        assert_eq!(all, 4 * (0..4).map(snapshot).sum::<u64>());
        job.checkpoint.memory.copies = 0;
        assert_eq!(vault_bytes(&job, &plan).values().sum::<u64>(), all / 2);
        job.checkpoint.memory.every = 0;
        assert!(vault_bytes(&job, &plan).is_empty() && buddies(&job, &plan).concat().is_empty());
    }
}
