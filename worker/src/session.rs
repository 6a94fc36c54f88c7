//! The worker's side of the protocol, pure: `apply(now, event) -> effects`. No clock, no socket,
//! no thread; `daemon` is its rim.
//!
//! A worker says hello, gets a plan, builds, says ready, trains when told to, and leaves when told
//! to. It outlives the loss of a peer, waiting for the next plan, and the loss of a connection, which
//! is taken up again while the engine goes on; it does not outlive the launcher.

use std::fmt;

use shoal_plan::plan::Generation;
use shoal_plan::trace::StepTrace;
use shoal_proto::{Assign, FailureKind, FromWorker, Hello, Resuming, ToWorker};

use connection::Connection;
pub use connection::GIVE_UP_MS;
pub use telling::{EngineEvent, Prepared};

mod connection;
mod telling;

/// A heartbeat this often. The coordinator's lease is ten of them.
pub const HEARTBEAT_MS: u64 = 500;

/// After a failure was reported, how long to wait for the coordinator's last word.
pub const LAST_WORD_MS: u64 = 4_000;

/// What can happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The first connection stands, or one that `Effect::Connect` asked for.
    Connected,
    FromCoordinator(ToWorker),
    Engine(EngineEvent),
    /// The engine's threads are gone; none of them said why, unless it did before.
    EngineGone,
    /// `Effect::Prepare` is carried out, as far as that went.
    Prepared(Prepared),
    /// Comes several times per heartbeat.
    Tick,
    /// The connection broke, or could not be made.
    Disconnected {
        why: String,
    },
    /// The coordinator closed the connection and said why: this worker has no part in its plan.
    Closed {
        why: String,
    },
    /// The owner of this machine wants it back: hand over and go.
    LeaveRequested {
        reason: String,
    },
    /// With a reason: somebody else needs this machine for a while. Without: that is over.
    YieldRequested {
        reason: Option<String>,
    },
    /// The process that started this one is gone.
    ParentGone,
}

/// What the rim must do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Send(FromWorker),
    /// Try to connect once; `Event::Connected` or `Event::Disconnected` follows.
    Connect,
    /// Start an engine; one of an older generation is dropped first.
    StartEngine(Box<Assign>),
    /// Get ready for a plan that may come; whatever is under way for another is called off.
    Prepare(Box<Assign>),
    /// Give back the memory of an engine that has ended, and what is kept for the next.
    Release,
    BeginTraining,
    /// Checkpoint at the next step that all workers agree on, and finish.
    StopEngine,
    /// End at the next step that all workers agree on, and keep the state in memory.
    EndAtEdge,
    /// Note what the cells do in these steps.
    Trace {
        first: u64,
        steps: u64,
    },
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
    /// The engine has ended, or lost a peer: waiting for the next plan.
    Waiting,
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
    /// What the engine was asked for: it is asked once.
    asked_to: Vec<Effect>,
    /// The plan for which this worker gets ready.
    preparing: Option<Generation>,
    /// Why this worker gives way to others.
    yielding: Option<String>,
    connection: Connection,
    /// Why it wants to hand over and go.
    leaving: Option<String>,
    sent_ms: u64,
}

impl Session {
    /// Not yet connected. `hello` is what the coordinator will hear first.
    pub fn new(hello: Hello) -> Self {
        let (stage, connection) = (Stage::Unassigned, Connection::new());
        let (generation, asked_to) = (None, Vec::new());
        let (preparing, yielding, leaving) = (None, None, None);
        Self {
            hello,
            generation,
            stage,
            step: 0,
            asked_to,
            preparing,
            yielding,
            connection,
            leaving,
            sent_ms: 0,
        }
    }

    /// Changes state, and waits for nothing.
    pub fn apply(&mut self, now_ms: u64, event: Event) -> Vec<Effect> {
        let effects = match event {
            Event::Connected => self.connected(),
            Event::FromCoordinator(message) => self.message(now_ms, message),
            Event::Engine(event) => self.engine(now_ms, event),
            Event::EngineGone => self.engine_gone(now_ms),
            Event::Prepared(prepared) => self.prepared(prepared),
            Event::Tick => self.tick(now_ms),
            Event::Disconnected { why } => self.disconnected(now_ms, why),
            Event::Closed { why } => self.closed(now_ms, why),
            Event::LeaveRequested { reason } => {
                self.leaving = Some(reason.clone());
                self.say(FromWorker::Leaving { reason })
            }
            Event::YieldRequested { reason } => {
                self.yielding.clone_from(&reason);
                self.say(FromWorker::Yielding { reason })
            }
            Event::ParentGone => vec![Effect::Exit(ExitReason::ParentGone)],
        };
        if effects.iter().any(|effect| matches!(effect, Effect::Send(_))) {
            self.sent_ms = now_ms;
        }
        effects
    }

    fn connected(&mut self) -> Vec<Effect> {
        let step = self.step;
        let resuming = self.generation.map(|generation| Resuming { generation, step });
        self.connection.connected(resuming.is_none());
        if let (None, Some(reason)) = (resuming, self.leaving.clone()) {
            // A coordinator that takes it for new does not know.
            self.connection.say(&FromWorker::Leaving { reason });
        }
        if resuming.is_none() && self.yielding.is_some() {
            // Nor that it gives way.
            self.connection.say(&FromWorker::Yielding { reason: self.yielding.clone() });
        }
        let hello = Hello { resuming, ..self.hello.clone() };
        vec![Effect::Send(FromWorker::Hello(hello))]
    }

    /// The engine goes on: the plan stands, and perhaps only the way to the coordinator does not.
    fn disconnected(&mut self, now_ms: u64, why: String) -> Vec<Effect> {
        self.connection.ended(now_ms, why);
        match &self.stage {
            Stage::Failed { what, .. } => {
                vec![Effect::Exit(ExitReason::Failed { what: what.clone() })]
            }
            Stage::Unassigned
            | Stage::Preparing
            | Stage::Ready
            | Stage::Training
            | Stage::Waiting
            | Stage::Finished => vec![],
        }
    }

    /// The others go on without this worker; it may come back as a new one.
    fn closed(&mut self, now_ms: u64, why: String) -> Vec<Effect> {
        self.connection.ended(now_ms, why);
        self.connection.begin_anew();
        self.stage = Stage::Unassigned;
        self.preparing = None;
        match self.generation.take() {
            Some(_) => vec![Effect::DropEngine],
            None => vec![],
        }
    }

    /// Out now, or as soon as the coordinator takes the session up.
    fn say(&mut self, message: FromWorker) -> Vec<Effect> {
        if self.connection.say(&message) { vec![Effect::Send(message)] } else { vec![] }
    }

    fn message(&mut self, now_ms: u64, message: ToWorker) -> Vec<Effect> {
        match message {
            ToWorker::Assign(assign) => self.assign(assign),
            ToWorker::Prepare(assign) => self.prepare(assign),
            ToWorker::Released { generation } => self.released(generation),
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
            ToWorker::Trace { generation, first, steps } => {
                if let Some(why) = self.stale(generation) {
                    return ignored(why);
                }
                vec![Effect::Trace { first, steps }]
            }
            ToWorker::CheckpointCommitted { generation, step } => {
                self.for_engine(generation, Effect::CheckpointCommitted { step })
            }
            ToWorker::Received { messages } if self.connection.has_forgotten(messages) => {
                let why = "the coordinator has forgotten what it had read".to_owned();
                self.closed(now_ms, why)
            }
            ToWorker::Received { messages } => {
                self.connection.received(messages).into_iter().map(Effect::Send).collect()
            }
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
        self.asked_to.clear();
        self.preparing = None;
        vec![Effect::StartEngine(assign)]
    }

    /// A plan that is not in force yet is nobody's generation: only what it needs is got ready.
    fn prepare(&mut self, assign: Box<Assign>) -> Vec<Effect> {
        if assign.run != self.hello.run {
            return ignored(format!("a plan of run {}, to get ready for", assign.run.0));
        }
        if !matches!(self.stage, Stage::Unassigned | Stage::Waiting) {
            return ignored("told to get ready for a plan while an engine runs".to_owned());
        }
        self.preparing = Some(assign.plan.generation);
        vec![Effect::Prepare(assign)]
    }

    fn prepared(&mut self, prepared: Prepared) -> Vec<Effect> {
        let Prepared { generation, standing, cells } = prepared;
        if self.preparing != Some(generation) {
            return ignored(format!("ready for {generation}, which is not wanted any more"));
        }
        self.say(FromWorker::Prepared { generation, standing, cells })
    }

    /// The plan in force gives this worker no cells.
    fn released(&mut self, generation: Generation) -> Vec<Effect> {
        if self.generation.is_none_or(|own| own >= generation) || self.stage != Stage::Waiting {
            return ignored(format!("{generation} needs nothing of what is here"));
        }
        vec![Effect::Release]
    }

    fn for_engine(&mut self, generation: Generation, effect: Effect) -> Vec<Effect> {
        if let Some(why) = self.stale(generation) {
            return ignored(why);
        }
        match self.stage {
            Stage::Preparing | Stage::Ready | Stage::Training | Stage::Finished => {
                if self.asked_to.contains(&effect) {
                    return ignored("said again".to_owned());
                }
                self.asked_to.push(effect.clone());
                vec![effect]
            }
            Stage::Unassigned | Stage::Waiting | Stage::Failed { .. } => {
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
        if matches!(self.stage, Stage::Failed { .. } | Stage::Unassigned) {
            return ignored("the engine spoke after its end".to_owned());
        }
        let message = match event {
            EngineEvent::Traced(trace) => return self.traced(generation, trace),
            EngineEvent::Ready => {
                self.stage = Stage::Ready;
                FromWorker::Ready { generation }
            }
            EngineEvent::StepDone { step, compute_seconds, report, sums } => {
                self.step = step;
                FromWorker::StepDone { generation, step, compute_seconds, report, sums }
            }
            EngineEvent::Evaluated { step, evaluations } => {
                FromWorker::Evaluated { generation, step, evaluations }
            }
            EngineEvent::CheckpointPart { standing, cell, files } => {
                FromWorker::CheckpointPart { generation, standing, cell, files }
            }
            EngineEvent::CheckpointPartFailed { standing, cell, why } => {
                FromWorker::CheckpointPartFailed { generation, standing, cell, why }
            }
            EngineEvent::Held { standing, cell, blake3 } => {
                FromWorker::Held { generation, standing, cell, blake3 }
            }
            EngineEvent::AtEdge { standing } => {
                self.stage = Stage::Waiting;
                FromWorker::AtEdge { generation, standing }
            }
            EngineEvent::Finished { step, ending } => {
                self.stage = Stage::Finished;
                FromWorker::Finished { generation, step, ending }
            }
            EngineEvent::GoBack { standing } => {
                self.stage = Stage::Waiting;
                FromWorker::GoBack { generation, standing }
            }
            EngineEvent::Failed { step, kind, what, layer, unreachable } => {
                self.stage = match kind {
                    // Not this worker's fault: the next plan will do without whoever is lost.
                    FailureKind::PeerLost => Stage::Waiting,
                    FailureKind::NonFinite
                    | FailureKind::Checkpoint
                    | FailureKind::Data
                    | FailureKind::Internal => {
                        Stage::Failed { since_ms: now_ms, what: what.clone() }
                    }
                };
                let failed =
                    FromWorker::Failed { generation, step, kind, what, layer, unreachable };
                // The peers learn of it by the end of the connections, the sooner the better.
                let mut effects = self.say(failed);
                effects.push(Effect::DropEngine);
                return effects;
            }
        };
        self.say(message)
    }

    /// Out now or never.
    fn traced(&self, generation: Generation, trace: Box<StepTrace>) -> Vec<Effect> {
        if !self.connection.is_up() {
            return ignored(format!("the trace of step {}: there is no connection", trace.step));
        }
        vec![Effect::Send(FromWorker::Traced { generation, trace })]
    }

    fn engine_gone(&mut self, now_ms: u64) -> Vec<Effect> {
        match self.stage {
            Stage::Preparing | Stage::Ready | Stage::Training => {
                let (step, kind) = (self.step + 1, FailureKind::Internal);
                let what = "the engine ended without a word: see the worker's log".to_owned();
                let (layer, unreachable) = (None, Vec::new());
                self.engine(now_ms, EngineEvent::Failed { step, kind, what, layer, unreachable })
            }
            Stage::Unassigned | Stage::Waiting | Stage::Finished | Stage::Failed { .. } => vec![],
        }
    }

    fn tick(&mut self, now_ms: u64) -> Vec<Effect> {
        if let Stage::Failed { since_ms, what } = &self.stage
            && now_ms.saturating_sub(*since_ms) >= LAST_WORD_MS
        {
            return vec![Effect::Exit(ExitReason::Failed { what: what.clone() })];
        }
        if let Some(why) = self.connection.given_up(now_ms) {
            return vec![Effect::Exit(ExitReason::CoordinatorLost { why })];
        }
        if self.connection.try_again(now_ms) {
            return vec![Effect::Connect];
        }
        if !self.connection.stands() || now_ms.saturating_sub(self.sent_ms) < HEARTBEAT_MS {
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
