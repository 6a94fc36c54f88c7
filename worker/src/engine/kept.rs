//! What an engine leaves to the next one of its worker, and what a worker gets ready before it has a
//! part in a plan: the opened text, and cells that are built. A new plan then waits for neither.
//!
//! Cells are left at an edge alone, where nothing of a step is under way in them. One is taken again
//! for the same part of the model; with the state that the next plan starts from it is used as it lies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shoal_model::{Cut, Stage, StageOptions};
use shoal_plan::grid::CellId;
use shoal_plan::job::Job;

use super::cell::Text;
use super::error::EngineError;
use super::state::Layout;

/// One worker's.
#[derive(Debug, Default)]
pub(super) struct Kept {
    text: Mutex<Option<Opened>>,
    cells: Mutex<BTreeMap<CellId, Built>>,
}

/// Text, and what it was opened for.
#[derive(Debug)]
struct Opened {
    run_dir: PathBuf,
    seed: u64,
    sequence: u32,
    text: Text,
}

/// A cell's part of the model.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) layout: Layout,
    pub(super) options: StageOptions,
    pub(super) stages: Vec<Stage>,
    /// The blake3 of the state in it; `None` if nothing is loaded.
    pub(super) state: Option<String>,
}

impl Kept {
    /// The run's text, opened once for all engines of a worker.
    pub(super) fn text(&self, job: &Job, run_dir: &Path) -> Result<Text, EngineError> {
        let mut kept = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let (seed, sequence) = (job.training.seed, job.training.sequence);
        let same = |opened: &&Opened| {
            (opened.run_dir.as_path(), opened.seed, opened.sequence) == (run_dir, seed, sequence)
        };
        if let Some(opened) = kept.as_ref().filter(same) {
            return Ok(opened.text.clone());
        }
        let text = Text::open(job, run_dir)?;
        let run_dir = run_dir.to_path_buf();
        *kept = Some(Opened { run_dir, seed, sequence, text: text.clone() });
        Ok(text)
    }

    /// A plan that gives this worker these cells alone begins: the memory of others is wanted.
    pub(super) fn retain(&self, cells: &[CellId]) {
        self.cells().retain(|cell, _| cells.contains(cell));
    }

    pub(super) fn put(&self, cell: CellId, built: Built) {
        self.cells().insert(cell, built);
    }

    /// The cell as it was left, if it is the same part of the model.
    pub(super) fn take(
        &self,
        cell: CellId,
        layout: &Layout,
        options: &StageOptions,
    ) -> Option<Built> {
        let built = self.cells().remove(&cell)?;
        (built.layout == *layout && built.options == *options).then_some(built)
    }

    /// The same, else the cell's part of the model with nothing loaded; and the blake3 of the state in it.
    pub(super) fn take_or_blank(
        &self,
        cell: CellId,
        (layout, options): (&Layout, &StageOptions),
        cuts: Vec<Cut>,
    ) -> (Vec<Stage>, Option<String>) {
        let blank = || cuts.into_iter().map(|cut| Stage::blank(cut, options)).collect();
        let left = self.take(cell, layout, options);
        left.map_or_else(|| (blank(), None), |left| (left.stages, left.state))
    }

    fn cells(&self) -> MutexGuard<'_, BTreeMap<CellId, Built>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
