//! A worker's memory of snapshots, as the real one behaves: two steps of each cell, and at a new plan
//! only the step it starts from.

use std::collections::BTreeMap;

use shoal_plan::grid::CellId;

#[derive(Debug, Default)]
pub(crate) struct Vault {
    held: BTreeMap<CellId, BTreeMap<u64, u64>>,
    /// Everything that ever was here, for the defect that hands it out.
    attic: BTreeMap<CellId, BTreeMap<u64, u64>>,
}

impl Vault {
    pub(crate) fn begin(&mut self, start: Option<u64>) {
        for steps in self.held.values_mut() {
            steps.retain(|step, _| Some(*step) == start);
        }
    }

    pub(crate) fn put(&mut self, cell: CellId, step: u64, state: u64) {
        let steps = self.held.entry(cell).or_default();
        steps.insert(step, state);
        while steps.len() > 2 {
            steps.pop_first();
        }
        self.attic.entry(cell).or_default().insert(step, state);
    }

    pub(crate) fn get(&self, cell: CellId, step: u64) -> Option<u64> {
        self.held.get(&cell)?.get(&step).copied()
    }

    /// An older state than was asked for.
    pub(crate) fn stale(&self, cell: CellId, step: u64) -> Option<u64> {
        self.attic.get(&cell)?.range(..step).next_back().map(|(_, state)| *state)
    }
}
