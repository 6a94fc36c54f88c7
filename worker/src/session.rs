//! The worker's side of the protocol, pure: `apply(now, event) -> effects`. No clock, no socket,
//! no thread; `daemon` is its rim.
//!
//! A worker says hello, gets a plan, builds, says ready, trains when told to, and leaves when told
//! to. It outlives neither its coordinator nor the launcher.

use std::fmt;

use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::CellId;
use shoal_plan::plan::Generation;
use shoal_plan::report::{Ending, Evaluation, StepReport};
use shoal_plan::standing::Standing;
use shoal_proto::{Assign, FailureKind, FromWorker, Hello, ToWorker};

/// A heartbeat this often. The coordinator's lease is ten of them.
pub const HEARTBEAT_MS: u64 = 500;

/// After a failure was reported, how long to wait for the coordinator's last word.
pub const LAST_WORD_MS: u64 = 4_000;

/// What the engine, which computes, has to tell.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent {
    /// The cells are built, the checkpoint loaded, the connections to all peers stand.
    Ready,
    /// All cells of this worker have applied the update of this step, or skipped it.
    StepDone {
        step: u64,
        /// What its slowest cell computed, without waiting and without collectives.
        compute_seconds: f64,
        /// Only from the host of cell 0.
        report: Option<StepReport>,
    },
    /// Only from the host of cell 0.
    Evaluated { step: u64, evaluations: Vec<Evaluation> },
    /// The cell's files of a checkpoint are written and fsynced.
    CheckpointPart { standing: Standing, cell: CellId, files: Vec<CheckpointFile> },
    /// The state of a cell after a step is in this worker's memory: its own, or a copy of a peer's.
    Held { standing: Standing, cell: CellId, blake3: String },
    /// The cells have ended after the step on which all agreed, as they were asked to, and their
    /// snapshots are in this worker's memory.
    AtEdge { standing: Standing },
    /// Nothing is left to do; the last step's checkpoint parts are out.
    Finished { step: u64, ending: Ending },
    /// Too many steps were skipped: the cells have ended, and want to start from a checkpoint.
    GoBack { standing: Standing },
    /// The engine cannot go on, and says nothing more.
    Failed { step: u64, kind: FailureKind, what: String, layer: Option<String> },
}

/// What can happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Connected,
    FromCoordinator(ToWorker),
    Engine(EngineEvent),
    /// The engine's threads are gone; none of them said why, unless it did before.
    EngineGone,
    /// Comes several times per heartbeat.
    Tick,
    Disconnected {
        why: String,
    },
    /// The process that started this one is gone.
    ParentGone,
    /// Somebody wants the machine back: hand over the cells, then go.
    AskedToLeave {
        reason: String,
    },
}

/// What the rim must do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Send(FromWorker),
    /// Start an engine; one of an older generation is dropped first.
    StartEngine(Box<Assign>),
    BeginTraining,
    /// Checkpoint at the next step that all workers agree on, and finish.
    StopEngine,
    /// End at the next step that all workers agree on, and keep the state in memory.
    EndAtEdge,
    CheckpointCommitted {
        step: u64,
    },
    DropEngine,
    /// A message was ignored; the reason is for the log.
    Ignored {
        why: String,
    },
    Exit(ExitReason),
}

/// Why a worker's process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The coordinator has no more work.
    Left {
        reason: String,
    },
    /// The run has failed, here or elsewhere.
    Aborted {
        reason: String,
    },
    /// This worker has failed, and the coordinator has not answered.
    Failed {
        what: String,
    },
    CoordinatorLost {
        why: String,
    },
    ParentGone,
}

/// How far this worker is with its plan.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Unassigned,
    Preparing,
    /// Ready, and waiting for the others.
    Ready,
    Training,
    /// Waiting for the next plan.
    GoingBack,
    Finished,
    Failed {
        since_ms: u64,
        what: String,
    },
}

/// One worker's session with the coordinator.
#[derive(Debug)]
pub struct Session {
    hello: Hello,
    generation: Option<Generation>,
    stage: Stage,
    /// The last step done.
    step: u64,
    connected: bool,
    sent_ms: u64,
}

impl Session {
    /// Not yet connected. `hello` is what the coordinator will hear first.
    pub fn new(hello: Hello) -> Self {
        let stage = Stage::Unassigned;
        Self { hello, generation: None, stage, step: 0, connected: false, sent_ms: 0 }
    }

    /// Changes state, and waits for nothing.
    pub fn apply(&mut self, now_ms: u64, event: Event) -> Vec<Effect> {
        let effects = match event {
            Event::Connected => {
                self.connected = true;
                vec![Effect::Send(FromWorker::Hello(self.hello.clone()))]
            }
            Event::FromCoordinator(message) => self.message(message),
            Event::Engine(event) => self.engine(now_ms, event),
            Event::EngineGone => self.engine_gone(now_ms),
            Event::Tick => self.tick(now_ms),
            Event::Disconnected { why } => {
                self.connected = false;
                vec![Effect::Exit(match &self.stage {
                    Stage::Failed { what, .. } => ExitReason::Failed { what: what.clone() },
                    Stage::Unassigned
                    | Stage::Preparing
                    | Stage::Ready
                    | Stage::Training
                    | Stage::GoingBack
                    | Stage::Finished => ExitReason::CoordinatorLost { why },
                })]
            }
            Event::ParentGone => vec![Effect::Exit(ExitReason::ParentGone)],
            Event::AskedToLeave { reason } => vec![Effect::Send(FromWorker::Leaving { reason })],
        };
        if effects.iter().any(|effect| matches!(effect, Effect::Send(_))) {
            self.sent_ms = now_ms;
        }
        effects
    }

    fn message(&mut self, message: ToWorker) -> Vec<Effect> {
        match message {
            ToWorker::Assign(assign) => self.assign(assign),
            ToWorker::Start { generation } => {
                if let Some(why) = self.stale(generation) {
                    return ignored(why);
                }
                if self.stage != Stage::Ready {
                    return ignored("told to start before it was ready, or twice".to_owned());
                }
                self.stage = Stage::Training;
                vec![Effect::BeginTraining]
            }
            ToWorker::Stop { generation } => self.for_engine(generation, Effect::StopEngine),
            ToWorker::Edge { generation } => self.for_engine(generation, Effect::EndAtEdge),
            ToWorker::CheckpointCommitted { generation, step } => {
                self.for_engine(generation, Effect::CheckpointCommitted { step })
            }
            ToWorker::Received { .. } => vec![],
            ToWorker::Leave { reason } => vec![Effect::Exit(ExitReason::Left { reason })],
            ToWorker::Abort { reason } => vec![Effect::Exit(ExitReason::Aborted { reason })],
        }
    }

    fn assign(&mut self, assign: Box<Assign>) -> Vec<Effect> {
        if assign.run != self.hello.run {
            let (got, want) = (&assign.run.0, &self.hello.run.0);
            return ignored(format!("a plan of run {got}, this is run {want}"));
        }
        let generation = assign.plan.generation;
        if self.generation.is_some_and(|current| generation <= current) {
            return ignored(format!("a plan of {generation}, which is not newer"));
        }
        self.generation = Some(generation);
        self.stage = Stage::Preparing;
        self.step = assign.standing.step;
        vec![Effect::StartEngine(assign)]
    }

    fn for_engine(&self, generation: Generation, effect: Effect) -> Vec<Effect> {
        if let Some(why) = self.stale(generation) {
            return ignored(why);
        }
        match self.stage {
            Stage::Preparing | Stage::Ready | Stage::Training | Stage::Finished => vec![effect],
            Stage::Unassigned | Stage::GoingBack | Stage::Failed { .. } => {
                ignored("no engine runs".to_owned())
            }
        }
    }

    fn stale(&self, generation: Generation) -> Option<String> {
        let current = self.generation.filter(|current| *current != generation);
        match (self.generation, current) {
            (None, _) => Some(format!("a message of {generation}, before any plan")),
            (_, Some(current)) => Some(format!("a message of {generation}, now is {current}")),
            (Some(_), None) => None,
        }
    }

    fn engine(&mut self, now_ms: u64, event: EngineEvent) -> Vec<Effect> {
        let Some(generation) = self.generation else {
            return ignored("an engine spoke before any plan".to_owned());
        };
        if let Stage::Failed { .. } = self.stage {
            return ignored("the engine spoke after its failure".to_owned());
        }
        let message = match event {
            EngineEvent::Ready => {
                self.stage = Stage::Ready;
                FromWorker::Ready { generation }
            }
            EngineEvent::StepDone { step, compute_seconds, report } => {
                self.step = step;
                FromWorker::StepDone { generation, step, compute_seconds, report }
            }
            EngineEvent::Evaluated { step, evaluations } => {
                FromWorker::Evaluated { generation, step, evaluations }
            }
            EngineEvent::CheckpointPart { standing, cell, files } => {
                FromWorker::CheckpointPart { generation, standing, cell, files }
            }
            EngineEvent::Held { standing, cell, blake3 } => {
                FromWorker::Held { generation, standing, cell, blake3 }
            }
            EngineEvent::AtEdge { standing } => {
                self.stage = Stage::GoingBack;
                FromWorker::AtEdge { generation, standing }
            }
            EngineEvent::Finished { step, ending } => {
                self.stage = Stage::Finished;
                FromWorker::Finished { generation, step, ending }
            }
            EngineEvent::GoBack { standing } => {
                self.stage = Stage::GoingBack;
                FromWorker::GoBack { generation, standing }
            }
            EngineEvent::Failed { step, kind, what, layer } => {
                self.stage = Stage::Failed { since_ms: now_ms, what: what.clone() };
                let failed = FromWorker::Failed { generation, step, kind, what, layer };
                // The peers learn of it by the end of the connections, the sooner the better.
                return vec![Effect::Send(failed), Effect::DropEngine];
            }
        };
        vec![Effect::Send(message)]
    }

    fn engine_gone(&mut self, now_ms: u64) -> Vec<Effect> {
        match self.stage {
            Stage::Preparing | Stage::Ready | Stage::Training => {
                let (step, kind) = (self.step + 1, FailureKind::Internal);
                let what = "the engine ended without a word: see the worker's log".to_owned();
                self.engine(now_ms, EngineEvent::Failed { step, kind, what, layer: None })
            }
            Stage::Unassigned | Stage::GoingBack | Stage::Finished | Stage::Failed { .. } => vec![],
        }
    }

    fn tick(&mut self, now_ms: u64) -> Vec<Effect> {
        if let Stage::Failed { since_ms, what } = &self.stage
            && now_ms.saturating_sub(*since_ms) >= LAST_WORD_MS
        {
            return vec![Effect::Exit(ExitReason::Failed { what: what.clone() })];
        }
        if !self.connected || now_ms.saturating_sub(self.sent_ms) < HEARTBEAT_MS {
            return vec![];
        }
        let (generation, step) = (self.generation, self.step);
        vec![Effect::Send(FromWorker::Heartbeat { generation, step })]
    }
}

fn ignored(why: String) -> Vec<Effect> {
    vec![Effect::Ignored { why }]
}

impl ExitReason {
    /// The process's exit code: 0 only if the coordinator let it go.
    pub fn code(&self) -> u8 {
        match self {
            Self::Left { .. } => 0,
            Self::Aborted { .. }
            | Self::Failed { .. }
            | Self::CoordinatorLost { .. }
            | Self::ParentGone => 1,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left { reason } => write!(f, "left: {reason}"),
            Self::Aborted { reason } => write!(f, "aborted by the coordinator: {reason}"),
            Self::Failed { what } => write!(f, "failed: {what}"),
            Self::CoordinatorLost { why } => write!(f, "the coordinator is lost: {why}"),
            Self::ParentGone => f.write_str("the process that started this worker is gone"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
