//! Checksums of the cells' parameters after each step. The twins of a cell in other replicas have the
//! same parameters: if their sums differ, one of them computes or remembers wrongly, and no row of the
//! ledger says that the step was done.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_plan::grid::{CellId, Grid};
use shoal_plan::plan::WorkerId;

use super::State;
use super::in_a_row::InARow;
use crate::news::{Cause, News};

/// So many times without a committed step in between end the run.
const TIMES_MAX: u32 = 3;

/// Of steps that are not committed yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Sums {
    steps: BTreeMap<u64, BTreeMap<CellId, u64>>,
    /// How often twins disagreed.
    disagreed: InARow,
}

/// Cells that should be equal and are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disagreement {
    /// Each with its sum.
    pub(super) cells: Vec<(CellId, u64)>,
    /// Those against whom most others stand.
    pub(super) odd: Vec<CellId>,
}

impl Sums {
    pub(super) fn add(&mut self, step: u64, sums: Vec<(CellId, u64)>) {
        if !sums.is_empty() {
            self.steps.entry(step).or_default().extend(sums);
        }
    }

    pub(super) fn forget(&mut self) {
        self.steps.clear();
    }

    /// The first twins whose sums of a step differ.
    pub(super) fn disagreement(&self, grid: Grid, step: u64) -> Option<Disagreement> {
        let sums = self.steps.get(&step)?;
        let twins = |cell: CellId| {
            let twins = grid.replica_group(cell).into_iter();
            twins.filter_map(|twin| Some((twin, *sums.get(&twin)?))).collect::<Vec<_>>()
        };
        let groups = grid.cells().filter(|cell| grid.cell(*cell).replica == 0).map(twins);
        let cells = groups.into_iter().find(|cells| cells.iter().any(|(_, s)| *s != cells[0].1))?;
        let votes = |sum: u64| cells.iter().filter(|(_, other)| *other == sum).count();
        let odd = cells.iter().filter(|(_, sum)| 2 * votes(*sum) < cells.len());
        let odd: Vec<CellId> = odd.map(|(cell, _)| *cell).collect();
        // Without a majority nobody is the odd one.
        let odd = if odd.len() == cells.len() { Vec::new() } else { odd };
        Some(Disagreement { cells, odd })
    }

    /// The whole model's after a committed step, twins counted once, for the ledger.
    pub(super) fn take(&mut self, grid: Grid, step: u64) -> Option<u64> {
        let sums = self.steps.remove(&step)?;
        let mut firsts = grid.cells().filter(|cell| grid.cell(*cell).replica == 0);
        // `None` if one is missing.
        firsts.try_fold(0_u64, |sum, cell| Some(sum.wrapping_add(*sums.get(&cell)?)))
    }
}

impl State {
    /// Nothing after the last committed step counts: from the newest snapshot, which is of a step on which
    /// all twins agreed, that part is done again. Whoever stands alone against the others goes.
    pub(super) fn twins_disagree(&mut self, step: u64, found: &Disagreement) {
        let host = |cell: &CellId| self.plan().host(*cell);
        let told: Vec<String> = (found.cells.iter())
            .map(|(cell, sum)| format!("{cell} on {} has {sum:016x}", host(cell)))
            .collect();
        let what = format!("after step {step} twins differ: {}", told.join(", "));
        let odd: Vec<WorkerId> = found.odd.iter().map(host).collect();
        self.news(News::Diverged { step, what: what.clone() });
        let times = self.sums.disagreed.again(self.committed);
        if times >= TIMES_MAX {
            let what = format!("{what}; {times} times in a row");
            return self.fail(Cause::Diverged, odd.first().copied(), what);
        }
        self.sums.forget();
        let survivors = self.hosts().filter(|(worker, _)| !odd.contains(worker)).count();
        if survivors as u32 >= self.settings.job.workers.min {
            for worker in odd {
                self.evict(self.sign_of(worker, Cause::Diverged, what.clone()));
            }
        }
        if !self.is_over() {
            self.lose(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICAS: Grid = Grid { stages: 1, expert_shards: 2, replicas: 3 };

    fn of(sums: [u64; 6]) -> Sums {
        let mut all = Sums::default();
        for (cell, sum) in (0..).map(CellId).zip(sums) {
            all.add(7, vec![(cell, sum)]);
        }
        all
    }

    #[test]
    fn twins_that_differ_are_found_with_the_one_against_whom_the_others_stand() {
        let shard = |cell: u32| REPLICAS.cell(CellId(cell)).expert_shard;
        let sums = |wrong: &[(u32, u64)]| {
            let mut sums = [0; 6];
            for cell in 0..6 {
                sums[cell as usize] = 10 + u64::from(shard(cell));
            }
            for (cell, sum) in wrong {
                sums[*cell as usize] = *sum;
            }
            of(sums)
        };
        assert_eq!(sums(&[]).disagreement(REPLICAS, 7), None);
        assert_eq!(sums(&[]).take(REPLICAS, 7), Some(21));
        assert_eq!(sums(&[]).take(REPLICAS, 8), None);
        let twins = REPLICAS.replica_group(CellId(1));
        let found = sums(&[(twins[1].0, 99)]).disagreement(REPLICAS, 7).unwrap();
        assert_eq!((found.cells.len(), found.odd), (3, vec![twins[1]]));
        // Three opinions: nobody is the odd one.
        let found = sums(&[(twins[1].0, 99), (twins[2].0, 98)]).disagreement(REPLICAS, 7).unwrap();
        assert!(found.odd.is_empty(), "{found:?}");
    }

    #[test]
    fn a_cell_that_says_nothing_leaves_the_row_without_a_sum() {
        let mut sums = Sums::default();
        sums.add(1, vec![(CellId(0), 1)]);
        sums.add(2, vec![]);
        assert_eq!(sums.take(Grid { stages: 2, expert_shards: 1, replicas: 1 }, 1), None);
        assert_eq!(sums.take(Grid::ONE, 2), None);
    }
}
