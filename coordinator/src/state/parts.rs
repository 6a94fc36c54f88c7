//! Checkpoints in the making: which cells have written their files, and which step is complete.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_plan::checkpoint::{CheckpointFile, CheckpointManifest, SCHEMA_VERSION};
use shoal_plan::grid::{CellId, Grid};
use shoal_plan::standing::Standing;

/// The parts of checkpoints that are not yet committed, by step and cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Parts {
    grid: Grid,
    steps: BTreeMap<u64, Pending>,
    /// The checkpoint whose manifest is being written.
    writing: Option<CheckpointManifest>,
    /// The newest step that is over, one way or the other: parts up to it come too late.
    closed: u64,
}

/// One checkpoint in the making.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pending {
    standing: Standing,
    files: BTreeMap<CellId, Vec<CheckpointFile>>,
    /// Cells that could not write theirs.
    failed: BTreeSet<CellId>,
    /// `next_failed` has named it.
    discarded: bool,
}

/// Why a part is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PartError {
    /// The checkpoint is already written, or this cell's part is here.
    Late,
    /// The part contradicts the plan or another part.
    Wrong(String),
}

impl Parts {
    /// Nothing written yet; parts up to `resume_from` come too late.
    pub(super) fn new(grid: Grid, resume_from: u64) -> Self {
        Self { grid, steps: BTreeMap::new(), writing: None, closed: resume_from }
    }

    /// The cells that write: every expert and every layer is in the first replica.
    fn writers(&self) -> impl Iterator<Item = CellId> {
        let grid = self.grid;
        grid.cells().filter(move |cell| grid.cell(*cell).replica == 0)
    }

    /// Takes one cell's files.
    pub(super) fn add(
        &mut self,
        standing: Standing,
        cell: CellId,
        files: Vec<CheckpointFile>,
    ) -> Result<(), PartError> {
        let pending = self.awaiting(standing, cell)?;
        let mut names: BTreeSet<_> =
            pending.files.values().flatten().map(|file| &file.name).collect();
        if let Some(twice) = files.iter().find(|file| !names.insert(&file.name)) {
            let name = &twice.name;
            return Err(PartError::Wrong(format!("{cell} wrote {name}, which is written already")));
        }
        pending.files.insert(cell, files);
        Ok(())
    }

    /// Notes that a cell could not write its files. True if it is the first of this step.
    pub(super) fn fail(&mut self, standing: Standing, cell: CellId) -> Result<bool, PartError> {
        let pending = self.awaiting(standing, cell)?;
        pending.failed.insert(cell);
        Ok(pending.failed.len() == 1)
    }

    /// The checkpoint that waits for this cell's word.
    fn awaiting(&mut self, standing: Standing, cell: CellId) -> Result<&mut Pending, PartError> {
        self.fits(standing, cell)?;
        Ok(self.steps.entry(standing.step).or_insert_with(|| Pending::new(standing)))
    }

    /// Whether this cell's word is waited for.
    pub(super) fn fits(&self, standing: Standing, cell: CellId) -> Result<(), PartError> {
        let step = standing.step;
        if !self.writers().any(|writer| writer == cell) {
            return Err(PartError::Wrong(format!("{cell} writes no checkpoints in this plan")));
        }
        if step <= self.closed || self.is_writing(step) {
            return Err(PartError::Late);
        }
        let Some(pending) = self.steps.get(&step) else { return Ok(()) };
        if pending.is_from(cell) {
            return Err(PartError::Late);
        }
        if pending.standing != standing {
            let (got, want) = (standing, pending.standing);
            return Err(PartError::Wrong(format!("{cell} stands at {got:?}, others at {want:?}")));
        }
        Ok(())
    }

    /// A step of which some cell could not write its files, once every cell has said what became
    /// of its own: each step once.
    pub(super) fn next_failed(&mut self) -> Option<u64> {
        let n_writers = self.writers().count();
        let (step, pending) = self.steps.iter_mut().find(|(_, pending)| {
            let heard = pending.files.len() + pending.failed.len();
            !pending.discarded && !pending.failed.is_empty() && heard == n_writers
        })?;
        // Its names stay, so that what is said twice is known to be.
        pending.discarded = true;
        Some(*step)
    }

    /// The next complete checkpoint of a committed step, if none is being written.
    pub(super) fn next_complete(&mut self, committed: u64) -> Option<CheckpointManifest> {
        if self.writing.is_some() {
            return None;
        }
        let n_writers = self.writers().count();
        let complete = |(step, pending): &(&u64, &Pending)| {
            // One that failed anywhere never has all.
            **step <= committed && pending.files.len() == n_writers
        };
        let step = *self.steps.iter().find(complete)?.0;
        let Pending { standing, files, .. } = self.steps.remove(&step)?;
        let mut files: Vec<_> = files.into_values().flatten().collect();
        files.sort();
        let (schema_version, grid) = (SCHEMA_VERSION, self.grid);
        self.writing = Some(CheckpointManifest { schema_version, standing, grid, files });
        self.writing.clone()
    }

    /// The manifest that is being written.
    pub(super) fn writing(&self) -> Option<&CheckpointManifest> {
        self.writing.as_ref()
    }

    /// Whether a manifest is being written.
    pub(super) fn is_busy(&self) -> bool {
        self.writing.is_some()
    }

    fn is_writing(&self, step: u64) -> bool {
        self.writing.as_ref().is_some_and(|manifest| manifest.standing.step == step)
    }

    /// The manifest of this step was written, or could not be. `None` if it was not awaited.
    pub(super) fn written(&mut self, step: u64) -> Option<Standing> {
        let manifest = self.writing.take_if(|manifest| manifest.standing.step == step)?;
        self.closed = step;
        // A checkpoint older than one that is over will never be asked for.
        self.steps.retain(|pending, _| *pending > step);
        Some(manifest.standing)
    }

    /// The cells whose part of this step has not come. None if its manifest is being written.
    pub(super) fn missing(&self, step: u64) -> Vec<CellId> {
        if self.is_writing(step) {
            return Vec::new();
        }
        let pending = self.steps.get(&step);
        self.writers().filter(|cell| !pending.is_some_and(|p| p.is_from(*cell))).collect()
    }
}

impl Pending {
    fn new(standing: Standing) -> Self {
        let (files, failed) = (BTreeMap::new(), BTreeSet::new());
        Self { standing, files, failed, discarded: false }
    }

    /// Whether this cell has said what became of its files.
    fn is_from(&self, cell: CellId) -> bool {
        self.files.contains_key(&cell) || self.failed.contains(&cell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { stages: 2, expert_shards: 1, replicas: 2 };

    fn at(step: u64) -> Standing {
        Standing { step, sequences: 8 * step, ..Standing::default() }
    }

    fn file(name: &str) -> Vec<CheckpointFile> {
        vec![CheckpointFile { name: name.into(), bytes: 1, blake3: "00".repeat(32) }]
    }

    #[test]
    fn a_checkpoint_is_complete_with_the_parts_of_the_first_replica_in_any_order() {
        let mut parts = Parts::new(GRID, 0);
        assert_eq!(parts.missing(5), [CellId(0), CellId(2)]);
        parts.add(at(5), CellId(2), file("b")).unwrap();
        assert_eq!(parts.next_complete(5), None);
        parts.add(at(5), CellId(0), file("a")).unwrap();
        assert_eq!(parts.next_complete(4), None, "step 5 is not committed");
        let manifest = parts.next_complete(5).unwrap();
        assert_eq!((manifest.standing, manifest.grid), (at(5), GRID));
        assert_eq!(manifest.files, [file("a"), file("b")].concat());
        assert_eq!(parts.add(at(5), CellId(0), file("a")), Err(PartError::Late));
        assert_eq!(parts.written(4), None);
        assert_eq!(parts.written(5), Some(at(5)));
        assert_eq!(parts.written(5), None);
        assert_eq!(parts.add(at(5), CellId(0), file("a")), Err(PartError::Late));
    }

    #[test]
    fn one_checkpoint_is_written_at_a_time_and_an_older_one_is_dropped() {
        let mut parts = Parts::new(GRID, 4);
        assert_eq!(parts.add(at(4), CellId(0), file("a")), Err(PartError::Late));
        parts.add(at(5), CellId(0), file("a")).unwrap();
        for step in [6, 7] {
            parts.add(at(step), CellId(0), file("a")).unwrap();
            parts.add(at(step), CellId(2), file("b")).unwrap();
        }
        assert_eq!(parts.next_complete(7).unwrap().standing.step, 6);
        assert_eq!(parts.next_complete(7), None);
        assert!(parts.is_busy());
        assert_eq!(parts.written(6), Some(at(6)));
        assert!(!parts.is_busy());
        assert_eq!(parts.next_complete(7).unwrap().standing.step, 7);
        assert_eq!(parts.add(at(5), CellId(2), file("b")), Err(PartError::Late));
    }

    #[test]
    fn a_checkpoint_with_a_failed_part_is_discarded_once_all_have_spoken() {
        let mut parts = Parts::new(GRID, 0);
        assert_eq!(parts.fail(at(5), CellId(2)), Ok(true));
        assert_eq!(parts.fail(at(5), CellId(2)), Err(PartError::Late));
        assert_eq!(parts.add(at(5), CellId(2), file("b")), Err(PartError::Late));
        assert!(parts.fail(at(5), CellId(1)).is_err(), "a cell that writes nothing");
        assert_eq!((parts.next_failed(), parts.missing(5)), (None, vec![CellId(0)]));
        parts.add(at(5), CellId(0), file("a")).unwrap();
        assert_eq!(parts.next_complete(5), None);
        assert_eq!((parts.next_failed(), parts.next_failed()), (Some(5), None));
        assert_eq!(parts.fail(at(5), CellId(0)), Err(PartError::Late));
        // Both fail the next one, and the third is whole.
        assert_eq!(parts.fail(at(6), CellId(0)), Ok(true));
        assert_eq!(parts.fail(at(6), CellId(2)), Ok(false));
        assert_eq!(parts.next_failed(), Some(6));
        parts.add(at(7), CellId(0), file("a")).unwrap();
        parts.add(at(7), CellId(2), file("b")).unwrap();
        assert_eq!(parts.next_complete(7).unwrap().standing.step, 7);
        assert_eq!(parts.written(7), Some(at(7)));
        assert_eq!((parts.next_failed(), parts.steps.len()), (None, 0));
    }

    #[test]
    fn parts_that_contradict_the_plan_are_named() {
        let mut parts = Parts::new(GRID, 0);
        let wrong = |text: &str| Err(PartError::Wrong(text.into()));
        let want = wrong("cell-1 writes no checkpoints in this plan");
        assert_eq!(parts.add(at(5), CellId(1), file("a")), want);
        assert!(parts.add(at(5), CellId(99), file("a")).is_err());
        parts.add(at(5), CellId(0), file("a")).unwrap();
        let want = wrong("cell-2 wrote a, which is written already");
        assert_eq!(parts.add(at(5), CellId(2), file("a")), want);
        assert_eq!(parts.add(at(5), CellId(0), file("z")), Err(PartError::Late));
        let other = Standing { skips: 1, ..at(5) };
        let error = parts.add(other, CellId(2), file("b")).unwrap_err();
        assert!(format!("{error:?}").contains("cell-2 stands at"), "{error:?}");
    }
}
