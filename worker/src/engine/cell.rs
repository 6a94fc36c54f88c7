//! The life of one cell: build or load, be ready, train, end. How it trains from step to step is in
//! `engine/policy.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use shoal_data::{Dataset, Part, TokenShards, Tokenizer};
use shoal_model::{BatchTokens, Cut, Stage, StageOptions};
use shoal_plan::grid::CellId;
use shoal_plan::job::{Gather, Job};
use shoal_plan::plan::Plan;
use shoal_plan::report::HELDOUT;
use shoal_plan::samples::{Mixture, Place};
use shoal_plan::standing::Standing;

use super::depositing::Depositor;
use super::error::EngineError;
use super::memory::{Memory, Recall};
use super::policy::Ended;
use super::step::Trainer;
use super::{CellNews, Control, snapshot, tell};
use crate::comm::Comm;
use crate::devices::Devices;
use crate::metrics::StepWatch;
use crate::vault::Snapshot;
use shoal_weights::{CheckpointReader, Weights, directory};

/// A run's text, open. Clones are the same text.
#[derive(Clone, Debug)]
pub struct Text {
    /// One stream per source.
    pub train: Arc<Vec<TokenShards>>,
    /// What the model is held against, by name. The text kept back from training is always there.
    pub sets: BTreeMap<String, Arc<TokenShards>>,
    /// What made the tokens.
    pub tokenizer: Arc<Tokenizer>,
    order: Arc<Mixture>,
}

impl Text {
    /// Opens the token shards of a run directory.
    pub fn open(job: &Job, run_dir: &Path) -> Result<Self, EngineError> {
        let data = run_dir.join("data");
        let dataset = Dataset::open(&data)?;
        let weights = dataset.weights();
        let train = (0..weights.len()).map(|source| TokenShards::open(&data, Part::Train(source)));
        let train = train.collect::<Result<Vec<_>, _>>()?;
        let windows = train.iter().map(|source| source.windows(job.training.sequence));
        let sources: Vec<(f32, u64)> = weights.into_iter().zip(windows).collect();
        let heldout = TokenShards::open(&data, Part::Heldout)?;
        let mut sets = BTreeMap::from([(HELDOUT.to_owned(), Arc::new(heldout))]);
        for name in dataset.eval_sets.keys() {
            sets.insert(name.clone(), Arc::new(TokenShards::open(&data, Part::Eval(name))?));
        }
        Ok(Self {
            train: Arc::new(train),
            sets,
            tokenizer: Arc::new(Tokenizer::open(&data)?),
            order: Arc::new(Mixture::new(job.training.seed, &sources)),
        })
    }
}

/// Where a run's checkpoints are written to and read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkpoints {
    /// In `checkpoints/` of the run directory, which all workers and the coordinator share.
    InDirectory(PathBuf),
    /// Nowhere here: they are streamed to the coordinator, and from it.
    AtCoordinator,
}

/// What all cells of a worker read and none changes.
pub struct Inputs {
    pub job: Job,
    pub plan: Plan,
    pub text: Text,
    /// Where the run's text is.
    pub run_dir: PathBuf,
    pub checkpoints: Checkpoints,
    /// The step whose checkpoint to start from.
    pub resume_from: Option<u64>,
    /// From where to go on.
    pub standing: Standing,
    /// The worker's memory of states, in a run that can go on without a worker.
    pub(super) memory: Option<Memory>,
}

impl Inputs {
    /// Opens the token shards of a run directory.
    pub fn open(
        job: &Job,
        plan: &Plan,
        run_dir: &Path,
        resume_from: Option<u64>,
    ) -> Result<Self, EngineError> {
        Ok(Self::over(Text::open(job, run_dir)?, job, plan, (run_dir, resume_from)))
    }

    /// The same over text that is open.
    pub(super) fn over(
        text: Text,
        job: &Job,
        plan: &Plan,
        (run_dir, resume_from): (&Path, Option<u64>),
    ) -> Self {
        let step = resume_from.unwrap_or(0);
        let sequences = job.training.sequences_before(step + 1);
        Self {
            job: job.clone(),
            plan: plan.clone(),
            text,
            run_dir: run_dir.to_path_buf(),
            checkpoints: match job.checkpoint.gather {
                Gather::Disk => Checkpoints::InDirectory(run_dir.join("checkpoints")),
                Gather::Coordinator => Checkpoints::AtCoordinator,
            },
            resume_from,
            standing: Standing { step, sequences, ..Standing::default() },
            memory: None,
        }
    }

    /// The same inputs for a run that stands elsewhere than right after its checkpoint's step.
    #[must_use]
    pub fn going_on_from(self, standing: Standing) -> Self {
        Self { standing, ..self }
    }

    /// The same inputs for a run whose cells leave snapshots in memory, and may start from them.
    #[must_use]
    pub(super) fn with_memory(self, memory: Memory) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// The step of the checkpoint that cells are filled from, if they are.
    pub(super) fn checkpoint_to_read(&self) -> Option<u64> {
        let in_memory = self.memory.as_ref().is_some_and(Memory::has_sources);
        self.resume_from.filter(|_| !in_memory)
    }

    /// Sequences of a step's batch.
    pub(super) fn sequences(&self, step: u64) -> u64 {
        self.job.training.batch_at(step).into()
    }

    /// The first sequence of a step after `standing`: rollbacks have moved the data on, and only a
    /// new standing moves them again.
    pub(super) fn first_sequence(&self, step: u64) -> u64 {
        let training = &self.job.training;
        let before = training.sequences_before(self.standing.step + 1);
        self.standing.sequences + training.sequences_before(step) - before
    }

    /// The tokens of one microbatch of a column, as `shoal_plan::batch` divides the step's batch.
    pub(super) fn microbatch(
        &self,
        column: u32,
        step: u64,
        microbatch: u32,
    ) -> Result<BatchTokens, EngineError> {
        let training = &self.job.training;
        let first = self.first_sequence(step);
        let mine = self.job.division_at(step).microbatch(column, microbatch.into());
        let places = self.text.order.places(first + mine.start..first + mine.end);
        let window =
            |place: &Place| self.text.train[place.source].window(place.window, training.sequence);
        let windows: Vec<Vec<u32>> = places.iter().map(window).collect();
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
    pub(super) trainer: Trainer,
    /// The same on all cells.
    pub(super) standing: Standing,
    /// Of a worker's cells.
    pub(super) watch: Option<StepWatch>,
    /// Its part of the worker's memory, if there is one.
    pub(super) recall: Option<Recall>,
    /// The snapshot it has started from, until it is copied to those that are to hold it, too.
    started_from: Option<Arc<Snapshot>>,
    /// Where the coordinator gathers checkpoints.
    pub(super) depositor: Option<Depositor>,
}

/// What the engine has for one cell beside the inputs.
#[derive(Default)]
pub(super) struct Ways {
    /// To a coordinator that gathers files.
    pub(super) depositor: Option<Depositor>,
    /// The checkpoint that came from there.
    pub(super) withdrawn: Option<Arc<CheckpointReader>>,
}

impl Cell {
    /// Builds the cell's chunks, from the memory or the checkpoint to go on from if there is one, or
    /// from the weights that the job starts from. Only the chunks' own tensors are read.
    pub fn new(inputs: Arc<Inputs>, comm: Box<dyn Comm>) -> Result<Self, EngineError> {
        Self::with(inputs, comm, Ways::default())
    }

    fn with(
        inputs: Arc<Inputs>,
        comm: Box<dyn Comm>,
        Ways { depositor, withdrawn }: Ways,
    ) -> Result<Self, EngineError> {
        let Job { training, .. } = &inputs.job;
        let options = StageOptions::from(training);
        let cuts = inputs.cuts(comm.cell());
        let memory = inputs.memory.as_ref();
        let recall = memory.map(|memory| Recall::of(&inputs, memory, comm.cell(), &cuts));
        let is_loaded = inputs.resume_from.is_some();
        let (chunks, started_from) = match memory.zip(recall.as_ref()) {
            Some((memory, recall)) if memory.has_sources() => {
                let (chunks, snapshot) = recall.load(&inputs, memory, cuts)?;
                // The state is that of the run itself.
                (chunks, Some(snapshot))
            }
            _ => {
                let build = if is_loaded { Stage::blank } else { Stage::new };
                let mut chunks: Vec<Stage> =
                    cuts.into_iter().map(|cut| build(cut, &options)).collect();
                fill(&inputs, withdrawn.as_deref(), &mut chunks)?;
                (chunks, None)
            }
        };
        let standing = inputs.standing;
        let trainer = Trainer::new(inputs, chunks, comm);
        Ok(Self { trainer, standing, watch: None, recall, started_from, depositor })
    }

    /// Sends the snapshot from which the cell has started to those that are to hold it, too. Said once
    /// training goes on: nobody waits for that.
    fn copy_start(&mut self) {
        let Self { trainer, recall, started_from, .. } = self;
        let memory = trainer.inputs.memory.as_ref().zip(recall.as_ref());
        if let Some(((memory, recall), snapshot)) = memory.zip(started_from.take()) {
            recall.copy(&trainer.inputs, memory, snapshot);
        }
    }

    /// Leaves the stages to the next engine, with the state that is in memory as `blake3`.
    fn leave(self, blake3: Option<String>) {
        let Self { trainer, recall, .. } = self;
        let Trainer { inputs, chunks, .. } = trainer;
        if let Some((memory, recall)) = inputs.memory.as_ref().zip(recall) {
            recall.leave(memory, chunks, blake3);
        }
    }

    /// The trainer alone, at the step the cell starts from.
    pub fn into_trainer(self) -> Trainer {
        self.trainer
    }
}

/// From the checkpoint to go on from, or the weights that the job starts from, if there are any.
fn fill(
    inputs: &Inputs,
    withdrawn: Option<&CheckpointReader>,
    chunks: &mut [Stage],
) -> Result<(), EngineError> {
    if let Some(step) = inputs.resume_from {
        let opened;
        let checkpoint = match (&inputs.checkpoints, withdrawn) {
            (Checkpoints::InDirectory(checkpoints), _) => {
                opened = CheckpointReader::open(&directory(checkpoints, step))?;
                &opened
            }
            (Checkpoints::AtCoordinator, Some(withdrawn)) => withdrawn,
            (Checkpoints::AtCoordinator, None) => {
                unreachable!("an engine reads the checkpoint from the coordinator before its cells")
            }
        };
        for chunk in chunks {
            snapshot::load_from(chunk, checkpoint)?;
        }
    } else if let Some(directory) = &inputs.job.training.init {
        let weights = Weights::open(Path::new(directory))?;
        for chunk in chunks {
            weights.fill(chunk)?;
        }
    }
    Ok(())
}

/// Runs a cell, the worker's `nth`, on its own thread until it has trained, was told to end, or failed.
pub(super) fn run(
    (id, watch): (CellId, StepWatch),
    (inputs, ways): (&Arc<Inputs>, Ways),
    (comm, devices, nth): (impl Comm + 'static, &Devices, usize),
    control: &Control,
    news: &Sender<(CellId, CellNews)>,
) {
    // The step that is being computed, for the report of a failure.
    let mut step = 0;
    let ended = Cell::with(Arc::clone(inputs), Box::new(comm), ways).and_then(|mut cell| {
        step = cell.standing.step + 1;
        devices.place((nth, id), &mut cell.trainer.chunks, (&inputs.job, &inputs.plan))?;
        cell.trainer.watch = Some(watch.clone());
        cell.watch = Some(watch);
        if let Some(snapshot) = &cell.started_from {
            let blake3 = snapshot.blake3.to_hex().to_string();
            tell(news, id, CellNews::Held { standing: cell.standing, blake3 });
        }
        tell(news, id, CellNews::Ready);
        if !control.wait_for_begin() {
            return Ok(None);
        }
        cell.copy_start();
        let mut at_edge = None;
        let ended = cell.train(control, &mut |what| {
            if let CellNews::StepDone { step: done, .. } = &what {
                step = done + 1;
            } else if let CellNews::Held { blake3, .. } = &what {
                at_edge = Some(blake3.clone());
            }
            tell(news, id, what);
        })?;
        let standing = cell.standing;
        if ended == Ended::AtEdge {
            cell.leave(at_edge);
        }
        Ok(Some((standing, ended)))
    });
    match ended {
        Ok(Some((standing, Ended::Finished(ending)))) => {
            tell(news, id, CellNews::Finished { step: standing.step, ending });
        }
        Ok(Some((standing, Ended::GoBack))) => tell(news, id, CellNews::GoBack { standing }),
        Ok(Some((standing, Ended::AtEdge))) => tell(news, id, CellNews::AtEdge { standing }),
        Ok(None) => {}
        Err(error) => {
            tracing::error!(cell = %id, step, %error, "the cell ends");
            let (kind, layer, unreachable) = (error.kind(), error.layer(), error.unreachable());
            let what = error.to_string();
            tell(news, id, CellNews::Failed { step, kind, what, layer, unreachable });
        }
    }
}
