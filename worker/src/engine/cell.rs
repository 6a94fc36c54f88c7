//! The life of one cell: build or load, be ready, train, end. How it trains from step to step is in
//! `engine/policy.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use shoal_model::{BatchTokens, Cut, Stage};
use shoal_plan::grid::CellId;
use shoal_plan::job::Job;
use shoal_plan::plan::Plan;
use shoal_plan::report::HELDOUT;
use shoal_plan::samples::SampleOrder;
use shoal_plan::standing::Standing;

use super::error::EngineError;
use super::policy::Ended;
use super::step::Trainer;
use super::{CellNews, Control, snapshot, tell};
use crate::checkpoint::directory;
use crate::comm::Comm;
use crate::data::{Split, TokenShards};

/// What all cells of a worker read and none changes.
pub struct Inputs {
    pub job: Job,
    pub plan: Plan,
    pub train: TokenShards,
    /// What the model is held against, by name. The text kept back from training is always there.
    pub sets: BTreeMap<String, TokenShards>,
    order: SampleOrder,
    /// `checkpoints/` of the run directory.
    pub checkpoints: PathBuf,
    /// The step whose checkpoint to start from.
    pub resume_from: Option<u64>,
    /// From where to go on.
    pub standing: Standing,
}

impl Inputs {
    /// Opens the token shards of a run directory.
    pub fn open(
        job: &Job,
        plan: &Plan,
        run_dir: &Path,
        resume_from: Option<u64>,
    ) -> Result<Self, EngineError> {
        let data = run_dir.join("data");
        let train = TokenShards::open(&data, Split::Train)?;
        let heldout = TokenShards::open(&data, Split::Heldout)?;
        let step = resume_from.unwrap_or(0);
        let sequences = step * u64::from(job.training.batch);
        let windows = train.windows(job.training.sequence);
        Ok(Self {
            job: job.clone(),
            plan: plan.clone(),
            train,
            sets: BTreeMap::from([(HELDOUT.to_owned(), heldout)]),
            order: SampleOrder::new(job.training.seed, windows),
            checkpoints: run_dir.join("checkpoints"),
            resume_from,
            standing: Standing { step, sequences, ..Standing::default() },
        })
    }

    /// The same inputs for a run that stands elsewhere than right after its checkpoint's step.
    #[must_use]
    pub fn going_on_from(self, standing: Standing) -> Self {
        Self { standing, ..self }
    }

    /// Sequences of a step's batch.
    pub(super) fn sequences(&self, _step: u64) -> u64 {
        u64::from(self.job.training.batch)
    }

    /// The first sequence of a step after `standing`: rollbacks have moved the data on, and only a
    /// new standing moves them again.
    pub(super) fn first_sequence(&self, step: u64) -> u64 {
        let steps = step - 1 - self.standing.step;
        self.standing.sequences + steps * u64::from(self.job.training.batch)
    }

    /// The tokens of one microbatch: column `column` trains sequences
    /// `[column * share, (column + 1) * share)` of the step's batch, `microbatch` at a time.
    pub(super) fn microbatch(
        &self,
        column: u32,
        step: u64,
        microbatch: u32,
    ) -> Result<BatchTokens, EngineError> {
        let training = &self.job.training;
        let first = column * self.job.sequences_per_cell() + microbatch * training.microbatch;
        let first = self.first_sequence(step) + u64::from(first);
        let windows: Vec<Vec<u32>> = (first..first + u64::from(training.microbatch))
            .map(|index| self.train.window(self.order.window(index), training.sequence))
            .collect();
        batch_of(&windows)
    }

    /// The part of the model that a cell owns.
    pub fn cut(&self, cell: CellId) -> Cut {
        Cut::of(self.job.model.clone(), &self.plan, cell)
    }
}

/// A microbatch from windows of tokens.
pub(super) fn batch_of(windows: &[Vec<u32>]) -> Result<BatchTokens, EngineError> {
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    Ok(BatchTokens::from_windows(&windows)?)
}

/// A cell with the inputs it reads.
pub struct Cell {
    pub(super) trainer: Trainer,
    /// The same on all cells.
    pub(super) standing: Standing,
}

impl Cell {
    /// Builds the cell's stage, from the checkpoint to resume from if there is one.
    pub fn new(inputs: Arc<Inputs>, comm: Box<dyn Comm>) -> Result<Self, EngineError> {
        let Job { training, .. } = &inputs.job;
        let mut stage = Stage::new(inputs.cut(comm.cell()), training.precision, training.seed);
        if let Some(step) = inputs.resume_from {
            snapshot::load(&mut stage, &directory(&inputs.checkpoints, step))?;
        }
        let standing = inputs.standing;
        Ok(Self { trainer: Trainer::new(inputs, stage, comm), standing })
    }

    /// The trainer alone, at the step the cell starts from.
    pub fn into_trainer(self) -> Trainer {
        self.trainer
    }
}

/// Runs a cell on its own thread until it has trained, was told to end, or failed.
pub(super) fn run(
    id: CellId,
    inputs: &Arc<Inputs>,
    comm: impl Comm + 'static,
    control: &Control,
    news: &Sender<(CellId, CellNews)>,
) {
    // The step that is being computed, for the report of a failure.
    let mut step = 0;
    let ended = Cell::new(Arc::clone(inputs), Box::new(comm)).and_then(|mut cell| {
        step = cell.standing.step + 1;
        tell(news, id, CellNews::Ready);
        if !control.wait_for_begin() {
            return Ok(None);
        }
        let ended = cell.train(control, &mut |what| {
            if let CellNews::StepDone { step: done, .. } = what {
                step = done + 1;
            }
            tell(news, id, what);
        })?;
        Ok(Some((cell.standing, ended)))
    });
    match ended {
        Ok(Some((standing, Ended::Finished(ending)))) => {
            tell(news, id, CellNews::Finished { step: standing.step, ending });
        }
        Ok(Some((standing, Ended::GoBack))) => tell(news, id, CellNews::GoBack { standing }),
        Ok(None) => {}
        Err(error) => {
            tracing::error!(cell = %id, step, %error, "the cell ends");
            let (kind, layer) = (error.kind(), error.layer());
            tell(news, id, CellNews::Failed { step, kind, what: error.to_string(), layer });
        }
    }
}
