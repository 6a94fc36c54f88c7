//! What an undisturbed run has after each step: the measure of every other.

use std::collections::BTreeMap;
use std::ops::Range;

use shoal_plan::grid::{Cell, CellId, Grid};

use crate::engines::{BATCH, LAST_STEP};
use crate::random::mix;

/// Every state of an undisturbed run, with the steps that are skipped because their text is bad.
#[derive(Debug)]
pub(crate) struct Reference {
    grid: Grid,
    steps: Vec<BTreeMap<CellId, u64>>,
    /// The first sequence of each step after the one with its index.
    positions: Vec<u64>,
    /// Sequences whose steps are not finite.
    bad: Range<u64>,
}

impl Reference {
    pub(crate) fn new(grid: Grid, bad: Range<u64>) -> Self {
        let seed = grid.cells().map(|cell| (cell, seed(grid, cell))).collect();
        let (steps, positions) = (vec![seed], Vec::new());
        let mut reference = Self { grid, steps, positions, bad };
        reference.go_on_from(0, 0);
        reference
    }

    /// After `step` the run draws from `position` on.
    pub(crate) fn go_on_from(&mut self, step: u64, position: u64) {
        self.steps.truncate(step as usize + 1);
        self.positions.truncate(step as usize);
        for (step, at) in (step..LAST_STEP).zip((position..).step_by(BATCH as usize)) {
            self.positions.push(at);
            let before = &self.steps[step as usize];
            let all = fold(before.values().copied());
            let skipped = self.bad.contains(&at);
            let next = before.iter().map(|(cell, state)| {
                (*cell, if skipped { *state } else { update(*state, all, at) })
            });
            let next = next.collect();
            self.steps.push(next);
        }
    }

    pub(crate) fn state(&self, cell: CellId, step: u64) -> u64 {
        assert!(cell.0 < self.grid.n_cells());
        self.steps[step as usize][&cell]
    }

    /// The first sequence of a step, and whether it is skipped.
    pub(crate) fn position(&self, step: u64) -> (u64, bool) {
        let at = self.positions[step as usize - 1];
        (at, self.is_bad(at))
    }

    /// Whether the step that begins with this sequence is skipped.
    pub(crate) fn is_bad(&self, sequence: u64) -> bool {
        self.bad.contains(&sequence)
    }
}

/// Twins begin alike, and stay so.
pub(crate) fn seed(grid: Grid, cell: CellId) -> u64 {
    let Cell { stage, expert_shard, .. } = grid.cell(cell);
    mix(u64::from(stage * 100 + expert_shard + 1))
}

pub(crate) fn fold(states: impl Iterator<Item = u64>) -> u64 {
    states.fold(1, |sum, state| mix(sum ^ state))
}

pub(crate) fn update(state: u64, all: u64, first_sequence: u64) -> u64 {
    mix(state ^ mix(all ^ mix(first_sequence + 1)))
}

/// Some number made of a state, so that the ledger's losses prove it.
pub(crate) fn loss(state: u64) -> f64 {
    (state >> 12) as f64
}
