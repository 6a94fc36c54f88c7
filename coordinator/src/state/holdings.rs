//! Which snapshots lie in whose memory. A snapshot of a step is complete when every cell's state is
//! with somebody who lives, be it under the cell's own name or its twin's in another replica, which
//! is equal.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_plan::grid::{CellId, Grid};
use shoal_plan::plan::WorkerId;
use shoal_plan::standing::Standing;
use shoal_proto::Source;

/// Steps of which a worker keeps snapshots.
const KEPT: usize = 2;

/// By step, ascending.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Holdings {
    grid: Grid,
    snapshots: BTreeMap<u64, Snapshot>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Snapshot {
    standing: Standing,
    cells: BTreeMap<CellId, Copies>,
}

/// Equal copies of one cell's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Copies {
    blake3: String,
    holders: BTreeSet<WorkerId>,
}

impl Snapshot {
    fn forget(&mut self, worker: WorkerId) {
        for copies in self.cells.values_mut() {
            copies.holders.remove(&worker);
        }
    }
}

impl Holdings {
    pub(super) fn new(grid: Grid) -> Self {
        Self { grid, snapshots: BTreeMap::new() }
    }

    /// A worker says what it holds. An error if that contradicts what others hold.
    pub(super) fn add(
        &mut self,
        worker: WorkerId,
        standing: Standing,
        cell: CellId,
        blake3: String,
    ) -> Result<(), String> {
        let step = standing.step;
        if cell.0 >= self.grid.n_cells() {
            return Err(format!("{cell} is not in the grid"));
        }
        let snapshot = self
            .snapshots
            .entry(step)
            .or_insert_with(|| Snapshot { standing, cells: BTreeMap::new() });
        if snapshot.standing != standing {
            return Err(format!("step {step} stands otherwise with others"));
        }
        let mut twins = self.grid.replica_group(cell).into_iter();
        let known = twins.find_map(|twin| snapshot.cells.get(&twin));
        if known.is_some_and(|known| known.blake3 != blake3) {
            return Err(format!("{cell} after step {step} is not what others hold of it"));
        }
        let fresh = || Copies { blake3, holders: BTreeSet::new() };
        snapshot.cells.entry(cell).or_insert_with(fresh).holders.insert(worker);
        self.forget_older(worker);
        Ok(())
    }

    /// Its memory keeps the newest steps; copies for others may be gone even earlier than its own.
    fn forget_older(&mut self, worker: WorkerId) {
        let holds = |snapshot: &Snapshot| {
            snapshot.cells.values().any(|copies| copies.holders.contains(&worker))
        };
        let held = self.snapshots.values_mut().rev().filter(|snapshot| holds(snapshot));
        held.skip(KEPT).for_each(|snapshot| snapshot.forget(worker));
        self.tidy();
    }

    /// A plan goes on from this step of what is in memory, or from none: its hosts drop the rest.
    pub(super) fn begin(&mut self, start: Option<u64>, hosts: &[WorkerId]) {
        for (step, snapshot) in &mut self.snapshots {
            if Some(*step) != start {
                for host in hosts {
                    snapshot.forget(*host);
                }
            }
        }
        self.tidy();
    }

    /// A worker is gone, and its memory with it.
    pub(super) fn evict(&mut self, worker: WorkerId) {
        self.snapshots.values_mut().for_each(|snapshot| snapshot.forget(worker));
        self.tidy();
    }

    /// The run goes on from `step`: what came after it is taken back.
    pub(super) fn forget_after(&mut self, step: u64) {
        self.snapshots.retain(|held, _| *held <= step);
    }

    /// Nothing of what was held is of use.
    pub(super) fn clear(&mut self) {
        self.snapshots.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.snapshots.is_empty()
    }

    fn tidy(&mut self) {
        for snapshot in self.snapshots.values_mut() {
            snapshot.cells.retain(|_, copies| !copies.holders.is_empty());
        }
        self.snapshots.retain(|_, snapshot| !snapshot.cells.is_empty());
    }

    /// The newest complete snapshot that `fits`.
    pub(super) fn newest_complete(&self, fits: impl Fn(&Standing) -> bool) -> Option<Standing> {
        let complete = self.snapshots.values().rev().filter(|held| self.holders_min(held) > 0);
        complete.map(|held| held.standing).find(fits)
    }

    /// The newest step whose every cell is held by two workers or more: the loss of any one leaves
    /// it complete.
    pub(super) fn durable(&self) -> Option<u64> {
        let mut snapshots = self.snapshots.iter().rev();
        snapshots.find(|(_, held)| self.holders_min(held) > 1).map(|(step, _)| *step)
    }

    /// Holders of the cell that the fewest hold, twins counted.
    fn holders_min(&self, snapshot: &Snapshot) -> usize {
        self.holders_min_without(snapshot, None)
    }

    fn holders_min_without(&self, snapshot: &Snapshot, without: Option<WorkerId>) -> usize {
        let holders = |cell| {
            let twins = self.grid.replica_group(cell).into_iter();
            let holders = twins.filter_map(|twin| snapshot.cells.get(&twin));
            let holders = holders.flat_map(|copies| &copies.holders);
            holders.filter(|holder| Some(**holder) != without).collect::<BTreeSet<_>>().len()
        };
        self.grid.cells().map(holders).min().unwrap_or(0)
    }

    /// Whether others hold all of some step from `step` on, and as well as with this worker.
    pub(super) fn does_without(&self, worker: WorkerId, step: u64) -> bool {
        self.snapshots.range(step..).any(|(_, held)| {
            let without = self.holders_min_without(held, Some(worker));
            without > 0 && without >= self.holders_min(held)
        })
    }

    /// The hash of a cell's state after a step, if it is held.
    pub(super) fn blake3(&self, cell: CellId, step: u64) -> Option<&String> {
        let snapshot = self.snapshots.get(&step)?;
        let mut twins = self.grid.replica_group(cell).into_iter();
        twins.find_map(|twin| snapshot.cells.get(&twin)).map(|copies| &copies.blake3)
    }

    /// Where each cell's state after `step` is found, in cell order: with its new host, if that has
    /// it already, and with one that it cannot reach (`apart`) only if nobody else has it. `None` if the
    /// snapshot is not complete.
    pub(super) fn sources(
        &self,
        step: u64,
        hosts: &[WorkerId],
        apart: impl Fn(WorkerId, WorkerId) -> bool,
    ) -> Option<Vec<Source>> {
        let snapshot = self.snapshots.get(&step)?;
        let source = |cell: CellId| {
            let host = hosts.get(cell.0 as usize);
            let mut names = self.grid.replica_group(cell);
            names.sort_by_key(|twin| *twin != cell);
            let held = names.iter().filter_map(|name| Some((*name, snapshot.cells.get(name)?)));
            let copies = held.flat_map(|(name, copies)| {
                let source = move |worker: &WorkerId| (name, *worker, copies.blake3.clone());
                copies.holders.iter().map(source)
            });
            // `min_by_key` returns the first of equals: the cell's own name before its twins'.
            let (cell, worker, blake3) = copies.min_by_key(|(_, worker, _)| {
                let unreachable = host.is_some_and(|host| apart(*host, *worker));
                (unreachable, Some(worker) != host)
            })?;
            Some(Source { worker, cell, blake3 })
        };
        self.grid.cells().map(source).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { stages: 2, expert_shards: 1, replicas: 1 };
    const TWINS: Grid = Grid { stages: 1, expert_shards: 1, replicas: 2 };

    fn at(step: u64) -> Standing {
        Standing { step, sequences: 8 * step, ..Standing::default() }
    }

    fn add(holdings: &mut Holdings, worker: u32, step: u64, cell: u32) {
        let blake3 = format!("state {step}");
        holdings.add(WorkerId(worker), at(step), CellId(cell), blake3).unwrap();
    }

    fn newest(holdings: &Holdings) -> Option<u64> {
        holdings.newest_complete(|_| true).map(|standing| standing.step)
    }

    #[test]
    fn a_snapshot_is_complete_with_every_cell_and_durable_with_two_holders_of_each() {
        let mut held = Holdings::new(GRID);
        add(&mut held, 0, 10, 0);
        assert_eq!(newest(&held), None);
        add(&mut held, 1, 10, 1);
        assert_eq!((newest(&held), held.durable()), (Some(10), None));
        add(&mut held, 1, 10, 0);
        add(&mut held, 0, 10, 1);
        assert_eq!(held.durable(), Some(10));
        add(&mut held, 0, 20, 0);
        assert_eq!(newest(&held), Some(10));
        held.evict(WorkerId(0));
        assert_eq!((newest(&held), held.durable()), (Some(10), None));
        held.evict(WorkerId(1));
        assert_eq!(newest(&held), None);
    }

    #[test]
    fn a_worker_keeps_two_steps_and_of_those_before_a_plan_only_its_start() {
        let mut held = Holdings::new(GRID);
        for step in [10, 20, 30] {
            add(&mut held, 0, step, 0);
        }
        add(&mut held, 1, 10, 1);
        assert_eq!(newest(&held), None, "step 10 of cell-0 is dropped");
        add(&mut held, 1, 20, 1);
        assert_eq!(newest(&held), Some(20));
        held.forget_after(15);
        assert_eq!(newest(&held), None);
        for step in [40, 50] {
            add(&mut held, 0, step, 0);
            add(&mut held, 1, step, 1);
        }
        held.begin(Some(40), &[WorkerId(0)]);
        assert_eq!(newest(&held), Some(40));
        held.begin(None, &[WorkerId(1)]);
        assert_eq!(newest(&held), None);
    }

    #[test]
    fn a_twin_s_state_serves_and_the_new_host_s_own_copy_comes_first() {
        let mut held = Holdings::new(TWINS);
        add(&mut held, 0, 10, 0);
        assert_eq!((newest(&held), held.durable()), (Some(10), None));
        let of = |held: &Holdings, hosts: [u32; 2]| {
            let sources = held.sources(10, &hosts.map(WorkerId), |_, _| false).unwrap();
            sources.iter().map(|s| (s.worker.0, s.cell.0)).collect::<Vec<_>>()
        };
        assert_eq!(of(&held, [0, 1]), [(0, 0), (0, 0)]);
        add(&mut held, 1, 10, 1);
        assert_eq!(held.durable(), Some(10));
        assert_eq!(of(&held, [0, 1]), [(0, 0), (1, 1)]);
        assert_eq!(of(&held, [1, 1]), [(1, 1), (1, 1)]);
        // Worker 2 cannot reach worker 0, which is asked only if nobody else has it.
        let apart = |a: WorkerId, b: WorkerId| a.0 + b.0 == 2;
        let from = |hosts: [u32; 2], held: &Holdings| {
            let sources = held.sources(10, &hosts.map(WorkerId), apart).unwrap();
            sources.iter().map(|source| source.worker.0).collect::<Vec<_>>()
        };
        assert_eq!(from([3, 2], &held), [0, 1]);
        held.evict(WorkerId(0));
        assert_eq!(of(&held, [2, 1]), [(1, 1), (1, 1)]);
        assert_eq!(held.sources(20, &[], |_, _| false), None);
    }

    #[test]
    fn what_contradicts_others_is_not_taken() {
        let mut held = Holdings::new(TWINS);
        add(&mut held, 0, 10, 0);
        let add = |held: &mut Holdings, standing, cell| {
            held.add(WorkerId(1), standing, CellId(cell), "else".into()).unwrap_err()
        };
        let want = "cell-1 after step 10 is not what others hold of it";
        assert_eq!(add(&mut held, at(10), 1), want);
        let skips = Standing { skips: 1, ..at(10) };
        assert_eq!(add(&mut held, skips, 0), "step 10 stands otherwise with others");
        assert_eq!(add(&mut held, at(10), 2), "cell-2 is not in the grid");
        assert_eq!(held.durable(), None);
    }
}
