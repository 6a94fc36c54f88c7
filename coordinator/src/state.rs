//! Every decision of the coordinator: `apply(now, event) -> effects`. No clock, no socket, no disk.
//!
//! Gathering -> Preparing -> Training (-> Stopping) -> Ended. A step is committed when all that host
//! cells have done it; a checkpoint when all its parts are written and the manifest is; the run ends
//! when all have finished and the last checkpoint is committed, or with a failure that another plan
//! would not mend. Three ways lead back to Preparing, with the next generation of the plan:
//! - a worker is lost: Recovering (or Paused, with too few), then from the newest whole state;
//! - workers come or go: Edging, then from where all ended between two steps;
//! - too many steps were skipped: from the newest checkpoint.
//!
//! To add an event: a variant of `Event`, an arm in `apply`, a line in each test table.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use shoal_plan::checkpoint::CheckpointManifest;
use shoal_plan::plan::{Generation, Plan, WorkerId};
use shoal_plan::report::{Ending, Evaluation, StepReport};
use shoal_plan::standing::Standing;
use shoal_proto::{Assign, FromWorker, ToWorker};

use crate::control::{Meeting, Order};
use crate::ledger::LedgerRow;
use crate::news::{Cause, News};
use crate::settings::Settings;
use apart::Apart;
use awaiting::Awaiting;
use cause::Signs;
use ending::LastWord;
use history::History;
use holdings::Holdings;
use in_a_row::InARow;
use member::Member;
use parts::{PartError, Parts};
use recovering::Loss;
use stragglers::Stragglers;
use sums::Sums;
use tempo::Tempo;

mod apart;
mod asked;
mod awaiting;
mod cause;
mod edging;
mod ending;
mod gathering;
mod going_back;
mod history;
mod holdings;
mod ignored;
mod in_a_row;
mod joining;
mod losing;
mod meeting;
mod member;
mod ordered;
mod parts;
mod preparing;
mod progress;
mod recovering;
mod saving;
mod sending;
mod stragglers;
mod sums;
mod telling;
mod tempo;
mod tracing;
mod yielding;

pub use gathering::Denied;
pub use ignored::Ignored;
pub use ordered::Reply;
pub use saving::Saved;

/// A gap between two events longer than this is the coordinator's own sleep (a suspended laptop, a
/// stopped process), and no worker's silence. Ticks come every 250 ms.
const OWN_SLEEP_MS: u64 = 2_000;

/// A worker is told so often how many of its messages were read, so that it need not keep them.
const RECEIVED_EVERY: u64 = 32;

/// One stream from a worker, numbered by the rim. A worker is known by its connection, whatever
/// its messages say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConnectionId(pub u64);

/// What can happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Message {
        connection: ConnectionId,
        message: FromWorker,
    },
    /// What comes over this connection is this worker's, on this rig: a cluster's door has seen its certificate.
    Proven {
        connection: ConnectionId,
        worker: WorkerId,
        rig: String,
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
        pid: u32,
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
    /// Somebody at another terminal wants something, and waits for an answer.
    Ordered {
        asked: u64,
        order: Order,
    },
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
    /// Workers were told to trace so many steps from the first on. The host of each cell, in cell order.
    Trace {
        first: u64,
        steps: u64,
        hosts: Vec<WorkerId>,
    },
    /// To an order.
    Answer {
        asked: u64,
        reply: Reply,
    },
}

/// How far the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Workers are joining.
    Gathering,
    /// The plan is out; workers build their cells.
    Preparing,
    Training,
    /// Training, until the step at which all stop.
    Stopping,
    /// Training, until all have ended between the same two steps, for another plan.
    Edging,
    /// A host is lost; a new plan is made once no manifest is being written.
    Recovering,
    /// Too few workers are here.
    Paused,
    Ended,
}

impl Phase {
    /// Steps are done and reported.
    fn trains(self) -> bool {
        matches!(self, Self::Training | Self::Stopping | Self::Edging)
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
    /// By worker, also of those that are gone.
    histories: BTreeMap<WorkerId, History>,
    plan: Option<Plan>,
    /// What its hosts were told.
    assignment: Option<Box<Assign>>,
    /// The last step that all hosts have done.
    committed: u64,
    /// Where this generation started.
    start: Standing,
    /// Of steps that are not yet committed.
    reports: BTreeMap<u64, StepReport>,
    evaluations: BTreeMap<u64, Vec<Evaluation>>,
    parts: Parts,
    /// The newest checkpoint on disk, as far as this run knows; of step 0 there is none.
    checkpointed: Standing,
    /// How the run goes on from there: with later data, after a rollback.
    from_checkpoint: Standing,
    /// Snapshots in the workers' memory.
    holdings: Holdings,
    /// The last checkpoint that failed, and why.
    checkpoint_failed: Option<(u64, String)>,
    /// When the last host finished, and how all did.
    finished: Option<(u64, Ending)>,
    stop_wanted: bool,
    pause_wanted: bool,
    signs: Signs,
    /// Why there is to be a new plan.
    loss: Option<Loss>,
    /// What was committed when hosts last lost each other though all lived, and how often so.
    link_broke: InARow,
    /// Workers that cannot reach each other.
    apart: Apart,
    /// Of pairs of rigs of which not both can dial the other.
    meetings: Vec<Meeting>,
    /// When the first host was at the edge.
    edge_ms: Option<u64>,
    stragglers: Stragglers,
    tempo: Tempo,
    /// Steps that are traced, and under which plan.
    traced: Option<(Generation, Range<u64>)>,
    /// How often all trained again after somebody was lost.
    recoveries: u64,
    /// How often the coordinator was started anew, and whom it waits for since.
    restarts: u64,
    awaiting: Option<Awaiting>,
    /// What every worker is told since the run has ended.
    last_word: Option<LastWord>,
    sums: Sums,
    /// Who is at connections that have not said hello yet, where a cluster's door knows it.
    proven: BTreeMap<ConnectionId, (WorkerId, String)>,
    effects: Vec<Effect>,
}

impl State {
    /// Nobody has joined. `now_ms` is any clock that does not go back.
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        let start = settings.resume_from.unwrap_or_default();
        Self {
            parts: Parts::new(settings.job.grid, start.step),
            holdings: Holdings::new(settings.job.grid),
            settings,
            phase: Phase::Gathering,
            started_ms: now_ms,
            now_ms,
            members: BTreeMap::new(),
            histories: BTreeMap::new(),
            plan: None,
            assignment: None,
            committed: start.step,
            start,
            reports: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            checkpointed: start,
            from_checkpoint: start,
            checkpoint_failed: None,
            finished: None,
            stop_wanted: false,
            pause_wanted: false,
            signs: Signs::default(),
            loss: None,
            link_broke: InARow::default(),
            apart: Apart::default(),
            meetings: Vec::new(),
            edge_ms: None,
            stragglers: Stragglers::default(),
            tempo: Tempo::default(),
            traced: None,
            recoveries: 0,
            restarts: 0,
            awaiting: None,
            last_word: None,
            sums: Sums::default(),
            proven: BTreeMap::new(),
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
        self.forget_what_was_proven(&event);
        if self.is_over() {
            self.after_the_end(event);
            return std::mem::take(&mut self.effects);
        }
        match event {
            Event::Message { connection, message } => self.message(connection, message),
            Event::Proven { connection, worker, rig } => {
                self.proven.insert(connection, (worker, rig));
            }
            Event::BadMessage { connection, why } => self.bad_message(connection, &why),
            Event::HungUp { connection, why } => self.hung_up(connection, why),
            Event::WorkerExited { worker, pid, what } => self.exited(worker, pid, &what),
            Event::CheckpointWritten { step, result } => self.checkpoint_written(step, result),
            Event::LedgerFailed { why } => self.fail(Cause::Ledger, None, why),
            Event::StopRequested => self.stop(),
            Event::Ordered { asked, order } => self.ordered(asked, order),
            Event::AbortRequested { reason } => self.fail(Cause::Aborted, None, reason),
            Event::Tick => self.end_leases(),
        }
        self.settle();
        std::mem::take(&mut self.effects)
    }

    /// Draws the conclusions that no single event carries.
    fn settle(&mut self) {
        let committed = self.committed;
        match self.phase {
            Phase::Gathering => self.plan_when_all_are_here(),
            Phase::Preparing => self.start_when_all_are_ready(),
            Phase::Training | Phase::Stopping | Phase::Edging => {
                self.commit_steps();
                // Where twins differ there is nothing to end with.
                if self.phase.trains() {
                    self.settle_ends();
                }
            }
            Phase::Paused => self.resume_when_enough_are_here(),
            Phase::Recovering | Phase::Ended => {}
        }
        self.judge();
        self.change_hosts(self.committed != committed);
        self.tell_when_all_have_caught_up();
        if self.phase == Phase::Training {
            self.release_idle_workers();
        }
        self.recover_when_the_disk_is_quiet();
    }

    /// Of checkpoints, of the run, and of the plan.
    fn settle_ends(&mut self) {
        if let Some(manifest) = self.parts.next_complete(self.committed) {
            self.effects.push(Effect::CommitCheckpoint(manifest));
        }
        if let Some(step) = self.parts.next_failed() {
            self.effects.push(Effect::DiscardCheckpoint { step });
        }
        self.finish_when_all_have();
        self.go_back_when_all_wait();
        self.move_when_all_are_at_the_edge();
    }

    fn message(&mut self, connection: ConnectionId, mut message: FromWorker) {
        if let FromWorker::Hello(hello) = message {
            return self.join(connection, hello);
        }
        let Some(worker) = self.worker_of(connection) else {
            let reason = "a session begins with a hello".to_owned();
            return self.effects.push(Effect::Close { connection, reason });
        };
        self.count(connection, worker, &message);
        let current = self.plan.as_ref().map(|plan| plan.generation);
        let want = current;
        if let Some(got) = message.fence().copied().filter(|got| Some(*got) != current) {
            return self.ignore(connection, Ignored::OtherGeneration { got, want });
        }
        match message {
            // Its whole meaning is that it came; a hello was handled above, and what was traced is not the state's
            // affair.
            FromWorker::Heartbeat { .. } | FromWorker::Hello(_) | FromWorker::Traced { .. } => {}
            FromWorker::Ready { .. } => self.ready(worker),
            FromWorker::StepDone { step, report, compute_seconds, sums, .. } => {
                self.step_done(worker, step, report, sums);
                if let Some(ratio) = self.stragglers.computed(worker, compute_seconds) {
                    self.news(News::Straggler { worker, ratio });
                }
            }
            FromWorker::Evaluated { step, evaluations, .. } => {
                self.evaluated(worker, step, evaluations);
            }
            FromWorker::GoBack { standing, .. } => self.wants_to_go_back(worker, standing),
            FromWorker::CheckpointPart { standing, cell, files, .. } => {
                self.part(worker, standing, cell, files);
            }
            FromWorker::Held { standing, cell, blake3, .. } => {
                if let Err(why) = self.holdings.add(worker, standing, cell, blake3) {
                    self.ignore(connection, Ignored::Contradiction(why));
                }
            }
            FromWorker::CheckpointPartFailed { standing, cell, why, .. } => {
                self.part_failed((worker, connection), standing, cell, why);
            }
            FromWorker::AtEdge { standing, .. } => self.at_edge(worker, standing),
            FromWorker::Prepared { generation, standing, cells } => {
                self.prepared(worker, (generation, standing), &cells);
            }
            FromWorker::Yielding { reason } => self.yields(worker, reason),
            FromWorker::Leaving { reason } => self.wants_to_leave(worker, &reason),
            FromWorker::Finished { step, ending, .. } => self.finished(worker, step, ending),
            FromWorker::Failed { step, kind, what, layer, unreachable, .. } => {
                self.failed(worker, step, kind, (what, layer, unreachable));
            }
        }
    }

    /// A worker lives; and so many of its messages need not be said again.
    fn count(&mut self, connection: ConnectionId, worker: WorkerId, message: &FromWorker) {
        let now_ms = self.now_ms;
        let member = self.member(worker);
        member.heard_ms = now_ms;
        if message.is_kept() {
            member.received += 1;
            let messages = member.received;
            if messages.is_multiple_of(RECEIVED_EVERY) {
                self.effects.push(joining::received(connection, messages));
            }
        }
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

    /// Of the plan in force; 0 before the first.
    pub(crate) fn generation_in_force(&self) -> Generation {
        self.plan.as_ref().map_or(Generation(0), |plan| plan.generation)
    }

    fn generation(&self) -> Generation {
        self.plan().generation
    }

    /// The members that have cells in the plan in force.
    fn hosts(&self) -> impl Iterator<Item = (WorkerId, &Member)> {
        let hosts = self.members.iter().filter(|(_, member)| member.hosts);
        hosts.map(|(worker, member)| (*worker, member))
    }

    fn ignore(&mut self, connection: ConnectionId, why: Ignored) {
        self.effects.push(Effect::Ignored { connection, why });
    }

    fn news(&mut self, news: News) {
        self.effects.push(Effect::News(news));
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod membership_tests;
#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod random;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod rollback_tests;
#[cfg(test)]
mod tests;
