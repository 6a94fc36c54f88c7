//! Every decision of the coordinator: `apply(now, event) -> effects`. No clock, no socket, no disk.
//!
//! Gathering -> Preparing -> Training (-> Stopping) -> Ended. A step is committed when all workers
//! have done it; a checkpoint when all its parts are written and the manifest is; the run ends
//! when all workers have finished and the last checkpoint is committed, or with the first failure.
//! A run that skipped too many steps goes from Training to Preparing, with the next generation of
//! the plan, from its newest checkpoint.
//!
//! To add an event: a variant of `Event`, an arm in `apply`, a line in each test table.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use shoal_plan::checkpoint::CheckpointManifest;
use shoal_plan::plan::{Generation, Plan, WorkerId};
use shoal_plan::report::{Ending, Evaluation, StepReport};
use shoal_plan::standing::Standing;
use shoal_proto::{FromWorker, ToWorker};

use crate::ledger::LedgerRow;
use crate::metrics::WorkerState;
use crate::news::{Cause, News};
use crate::settings::Settings;
use cause::{Sign, Signs};
use parts::{PartError, Parts};

mod cause;
mod ending;
mod going_back;
mod joining;
mod parts;
mod progress;

/// A gap between two events longer than this is the coordinator's own sleep (a suspended laptop, a
/// stopped process), and no worker's silence. Ticks come every 250 ms.
const OWN_SLEEP_MS: u64 = 2_000;

/// One stream from a worker, numbered by the rim. A worker is known by its connection, whatever
/// its messages say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What can happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Message {
        connection: ConnectionId,
        message: FromWorker,
    },
    /// A message that did not pass the door.
    BadMessage {
        connection: ConnectionId,
        why: String,
    },
    HungUp {
        connection: ConnectionId,
        why: String,
    },
    /// The launcher saw a worker's process end.
    WorkerExited {
        worker: WorkerId,
        what: String,
    },
    /// `Effect::CommitCheckpoint` was carried out.
    CheckpointWritten {
        step: u64,
        result: Result<(), String>,
    },
    /// `Effect::Record` could not be carried out.
    LedgerFailed {
        why: String,
    },
    StopRequested,
    AbortRequested {
        reason: String,
    },
    Tick,
}

/// What the rim must do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Send {
        connection: ConnectionId,
        message: ToWorker,
    },
    /// Close the connection; the reason is for the other end.
    Close {
        connection: ConnectionId,
        reason: String,
    },
    /// A message was ignored; the reason is for the log.
    Ignored {
        connection: ConnectionId,
        why: Ignored,
    },
    Record(LedgerRow),
    CommitCheckpoint(CheckpointManifest),
    /// Some cell could not write its files of this step, and no cell writes any more.
    DiscardCheckpoint {
        step: u64,
    },
    News(News),
}

/// Why a message was ignored. None of these harms the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignored {
    OtherGeneration { got: Generation, want: Option<Generation> },
    Repeated,
    OutOfPhase(Phase),
}

/// How far the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Workers are joining.
    Gathering,
    /// The plan is out; workers build their cells.
    Preparing,
    Training,
    /// Training, until the step at which all stop.
    Stopping,
    Ended,
}

/// One worker that has joined.
#[derive(Debug)]
struct Member {
    connection: ConnectionId,
    /// False after a hang-up or the end of the lease.
    connected: bool,
    address: SocketAddr,
    /// Where the snapshots in its memory are reached.
    vault: SocketAddr,
    heard_ms: u64,
    ready: bool,
    /// The last step it has done.
    done: u64,
    finished: Option<Ending>,
    /// It waits to be told from where to go on.
    going_back: Option<Standing>,
}

impl Member {
    fn state(&self, phase: Phase) -> WorkerState {
        match phase {
            _ if !self.connected => WorkerState::Lost,
            _ if self.finished.is_some() => WorkerState::Finished,
            Phase::Training | Phase::Stopping => WorkerState::Training,
            Phase::Gathering | Phase::Preparing if self.ready => WorkerState::Ready,
            Phase::Gathering | Phase::Preparing => WorkerState::Joining,
            Phase::Ended => WorkerState::Finished,
        }
    }
}

/// The coordinator of one run.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    phase: Phase,
    started_ms: u64,
    now_ms: u64,
    members: BTreeMap<WorkerId, Member>,
    plan: Option<Plan>,
    /// The last step that all workers have done.
    committed: u64,
    /// Where this generation started.
    start: Standing,
    /// Of steps that are not yet committed.
    reports: BTreeMap<u64, StepReport>,
    evaluations: BTreeMap<u64, Vec<Evaluation>>,
    parts: Parts,
    /// The newest checkpoint on disk, as far as this run knows; of step 0 there is none.
    checkpointed: Standing,
    /// The last checkpoint that failed, and why.
    checkpoint_failed: Option<(u64, String)>,
    /// When the last worker finished.
    finished_ms: Option<u64>,
    signs: Signs,
    effects: Vec<Effect>,
}

impl State {
    /// Nobody has joined. `now_ms` is any clock that does not go back.
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        let start = settings.resume_from.unwrap_or_default();
        Self {
            parts: Parts::new(settings.job.grid, start.step),
            settings,
            phase: Phase::Gathering,
            started_ms: now_ms,
            now_ms,
            members: BTreeMap::new(),
            plan: None,
            committed: start.step,
            start,
            reports: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            checkpointed: start,
            checkpoint_failed: None,
            finished_ms: None,
            signs: Signs::default(),
            effects: Vec::new(),
        }
    }

    /// Whether `News::Finished` or `News::Failed` is out.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Changes state, and waits for nothing. The whole protocol is tested through this door.
    pub fn apply(&mut self, now_ms: u64, event: Event) -> Vec<Effect> {
        self.forgive_own_sleep(now_ms);
        if self.is_over() {
            self.after_the_end(event);
            return std::mem::take(&mut self.effects);
        }
        match event {
            Event::Message { connection, message } => self.message(connection, message),
            Event::BadMessage { connection, why } => self.bad_message(connection, &why),
            Event::HungUp { connection, why } => self.hung_up(connection, why),
            Event::WorkerExited { worker, what } => {
                let what = format!("the process ended: {what}");
                self.sign(worker, Cause::Exited, what);
            }
            Event::CheckpointWritten { step, result } => self.checkpoint_written(step, result),
            Event::LedgerFailed { why } => self.fail(Cause::Ledger, None, why),
            Event::StopRequested => self.stop(),
            Event::AbortRequested { reason } => self.fail(Cause::Aborted, None, reason),
            Event::Tick => self.end_leases(),
        }
        self.settle();
        std::mem::take(&mut self.effects)
    }

    /// Draws the conclusions that no single event carries.
    fn settle(&mut self) {
        match self.phase {
            Phase::Gathering => self.plan_when_all_are_here(),
            Phase::Preparing => self.start_when_all_are_ready(),
            Phase::Training | Phase::Stopping => {
                self.commit_steps();
                if let Some(manifest) = self.parts.next_complete(self.committed) {
                    self.effects.push(Effect::CommitCheckpoint(manifest));
                }
                if let Some(step) = self.parts.next_failed() {
                    self.effects.push(Effect::DiscardCheckpoint { step });
                }
                self.finish_when_all_have();
                self.go_back_when_all_wait();
            }
            Phase::Ended => {}
        }
        self.fail_for_the_root_cause();
    }

    fn message(&mut self, connection: ConnectionId, message: FromWorker) {
        if let FromWorker::Hello(hello) = message {
            return self.join(connection, hello);
        }
        let Some(worker) = self.worker_of(connection) else {
            let reason = "a session begins with a hello".to_owned();
            return self.effects.push(Effect::Close { connection, reason });
        };
        self.member(worker).heard_ms = self.now_ms;
        let current = self.plan.as_ref().map(|plan| plan.generation);
        let want = current;
        if let Some(got) = generation(&message).filter(|got| Some(*got) != current) {
            return self.ignore(connection, Ignored::OtherGeneration { got, want });
        }
        match message {
            // Its whole meaning is that it came; a hello was handled above.
            FromWorker::Heartbeat { .. } | FromWorker::Hello(_) => {}
            FromWorker::Ready { .. } => self.ready(worker),
            FromWorker::StepDone { step, report, .. } => self.step_done(worker, step, report),
            FromWorker::Evaluated { step, evaluations, .. } => {
                self.evaluated(worker, step, evaluations);
            }
            FromWorker::GoBack { standing, .. } => self.wants_to_go_back(worker, standing),
            FromWorker::CheckpointPart { standing, cell, files, .. } => {
                if let Err(why) = self.part_fits(worker, standing, cell) {
                    return self.fail(Cause::Protocol, Some(worker), why);
                }
                match self.parts.add(standing, cell, files) {
                    Ok(()) => {}
                    Err(PartError::Late) => self.ignore(connection, Ignored::Repeated),
                    Err(PartError::Wrong(why)) => self.fail(Cause::Protocol, Some(worker), why),
                }
            }
            FromWorker::CheckpointPartFailed { standing, cell, why, .. } => {
                self.part_failed((worker, connection), standing, cell, why);
            }
            FromWorker::Held { .. } | FromWorker::AtEdge { .. } | FromWorker::Leaving { .. } => {
                self.ignore(connection, Ignored::OutOfPhase(self.phase));
            }
            FromWorker::Finished { step, ending, .. } => self.finished(worker, step, ending),
            FromWorker::Failed { step, kind, what, layer, .. } => {
                let (cause, step) = (Cause::Reported(kind), Some(step));
                self.signs.add(self.now_ms, Sign { worker, cause, step, what, layer });
            }
        }
    }

    /// How many workers are how far.
    pub(crate) fn workers(&self) -> BTreeMap<WorkerState, u32> {
        let mut count = BTreeMap::new();
        for member in self.members.values() {
            *count.entry(member.state(self.phase)).or_default() += 1;
        }
        count
    }

    pub(crate) fn worker_of(&self, connection: ConnectionId) -> Option<WorkerId> {
        let mut members = self.members.iter();
        members.find(|(_, member)| member.connection == connection).map(|(worker, _)| *worker)
    }

    fn member(&mut self, worker: WorkerId) -> &mut Member {
        self.members.get_mut(&worker).expect("a worker of a connection is a member")
    }

    fn plan(&self) -> &Plan {
        self.plan.as_ref().expect("messages of a generation come after its plan")
    }

    fn generation(&self) -> Generation {
        self.plan().generation
    }

    fn send_to_all(&mut self, message: &ToWorker) {
        let connected = self.members.values().filter(|member| member.connected);
        self.effects.extend(connected.map(|member| {
            let connection = member.connection;
            Effect::Send { connection, message: message.clone() }
        }));
    }

    fn ignore(&mut self, connection: ConnectionId, why: Ignored) {
        self.effects.push(Effect::Ignored { connection, why });
    }

    fn news(&mut self, news: News) {
        self.effects.push(Effect::News(news));
    }
}

/// The generation a message claims. A heartbeat's does not matter: it only says "alive".
fn generation(message: &FromWorker) -> Option<Generation> {
    match message {
        FromWorker::Hello(_) | FromWorker::Heartbeat { .. } | FromWorker::Leaving { .. } => None,
        FromWorker::Ready { generation }
        | FromWorker::StepDone { generation, .. }
        | FromWorker::Evaluated { generation, .. }
        | FromWorker::GoBack { generation, .. }
        | FromWorker::CheckpointPart { generation, .. }
        | FromWorker::CheckpointPartFailed { generation, .. }
        | FromWorker::Held { generation, .. }
        | FromWorker::AtEdge { generation, .. }
        | FromWorker::Finished { generation, .. }
        | FromWorker::Failed { generation, .. } => Some(*generation),
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherGeneration { got, want: Some(want) } => write!(f, "of {got}, now is {want}"),
            Self::OtherGeneration { got, want: None } => write!(f, "of {got}, before any plan"),
            Self::Repeated => f.write_str("known already"),
            Self::OutOfPhase(phase) => write!(f, "not expected while {phase:?}"),
        }
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod random;
#[cfg(test)]
mod rollback_tests;
#[cfg(test)]
mod tests;
