//! The life of one cell: build or load, be ready, train, evaluate, end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use shoal_model::{BatchTokens, Cut, Stage, StageOptions};
use shoal_plan::grid::CellId;
use shoal_plan::job::Job;
use shoal_plan::plan::Plan;
use shoal_plan::report::Evaluation;
use shoal_plan::samples::SampleOrder;

use super::error::EngineError;
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
    pub heldout: TokenShards,
    order: SampleOrder,
    /// `checkpoints/` of the run directory.
    pub checkpoints: PathBuf,
    /// The step whose checkpoint to start from.
    pub resume_from: Option<u64>,
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
        let windows = train.windows(job.training.sequence);
        Ok(Self {
            job: job.clone(),
            plan: plan.clone(),
            train,
            heldout,
            order: SampleOrder::new(job.training.seed, windows),
            checkpoints: run_dir.join("checkpoints"),
            resume_from,
        })
    }

    /// The tokens of one microbatch of a column, as `shoal_plan::batch` divides the step's batch.
    pub(super) fn microbatch(
        &self,
        column: u32,
        step: u64,
        microbatch: u32,
    ) -> Result<BatchTokens, EngineError> {
        let training = &self.job.training;
        let first = training.sequences_before(step);
        let windows: Vec<Vec<u32>> = (self.job.division_at(step))
            .microbatch(column, microbatch.into())
            .map(|place| self.order.window(first + place))
            .map(|window| self.train.window(window, training.sequence))
            .collect();
        batch_of(&windows)
    }

    /// The parts of the model that a cell owns, one for each chunk.
    pub fn cuts(&self, cell: CellId) -> Vec<Cut> {
        Cut::of(&self.job.model, &self.plan, cell)
    }
}

/// A microbatch from windows of tokens.
pub(super) fn batch_of(windows: &[Vec<u32>]) -> Result<BatchTokens, EngineError> {
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    Ok(BatchTokens::from_windows(&windows)?)
}

/// A cell with the inputs it reads.
pub struct Cell {
    trainer: Trainer,
    /// The last step done.
    step: u64,
}

impl Cell {
    /// Builds the cell's chunks, from the checkpoint to resume from if there is one.
    pub fn new(inputs: Arc<Inputs>, comm: Box<dyn Comm>) -> Result<Self, EngineError> {
        let Job { training, .. } = &inputs.job;
        let options = StageOptions {
            precision: training.precision,
            scales: training.scales,
            moments: training.moments,
            weight_decay_exclude: training.weight_decay_exclude.clone(),
            ema_decay: training.ema,
            seed: training.seed,
        };
        let cuts = inputs.cuts(comm.cell()).into_iter();
        let mut chunks: Vec<Stage> = cuts.map(|cut| Stage::new(cut, &options)).collect();
        let step = inputs.resume_from.unwrap_or(0);
        if inputs.resume_from.is_some() {
            for chunk in &mut chunks {
                snapshot::load(chunk, &directory(&inputs.checkpoints, step))?;
            }
        }
        Ok(Self { trainer: Trainer::new(inputs, chunks, comm), step })
    }

    /// The trainer alone, at the step the cell starts from.
    pub fn into_trainer(self) -> Trainer {
        self.trainer
    }

    /// Trains to the last step or to the step on which all cells agree to stop, writing
    /// checkpoints on the way and one at the end, then evaluates unless stopped early.
    fn train(
        &mut self,
        control: &Control,
        say: &mut dyn FnMut(CellNews),
    ) -> Result<Option<Evaluation>, EngineError> {
        let inputs = Arc::clone(&self.trainer.inputs);
        let (steps, every) = (inputs.job.training.steps, inputs.job.checkpoint.every);
        let mut stopped = false;
        while self.step < steps && !stopped {
            let step = self.step + 1;
            let done = self.trainer.train_step(step, control.stop_wanted())?;
            self.step = step;
            stopped = done.stop;
            say(CellNews::StepDone {
                step,
                row: (self.trainer.id == CellId(0)).then_some(done.row),
            });
            let due = step.is_multiple_of(every) || step == steps || stopped;
            let Trainer { id, chunks, .. } = &self.trainer;
            let chunks: Vec<&Stage> = chunks.iter().collect();
            if due && let Some(files) = snapshot::write(&inputs, *id, &chunks, step)? {
                say(CellNews::Part { step, files });
            }
        }
        if self.step < steps { Ok(None) } else { self.trainer.evaluate().map(Some) }
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
        step = cell.step + 1;
        tell(news, id, CellNews::Ready);
        if !control.wait_for_begin() {
            return Ok(None);
        }
        let evaluation = cell.train(control, &mut |what| {
            if let CellNews::StepDone { step: done, .. } = what {
                step = done + 1;
            }
            tell(news, id, what);
        })?;
        Ok(Some((cell.step, evaluation)))
    });
    let steps = inputs.job.training.steps;
    match ended {
        Ok(Some((step, evaluation))) => {
            tell(news, id, CellNews::Finished { step, evaluation, stopped_early: step < steps });
        }
        Ok(None) => {}
        Err(error) => {
            tracing::error!(cell = %id, step, %error, "the cell ends");
            let (kind, layer) = (error.kind(), error.layer());
            tell(news, id, CellNews::Failed { step, kind, what: error.to_string(), layer });
        }
    }
}
