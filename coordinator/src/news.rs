//! What the coordinator tells whoever started it, and what it can be told.

use std::fmt;

use serde::{Deserialize, Serialize};
use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, Plan, WorkerId};
use shoal_plan::report::{Ending, Evaluation, StepReport};
use shoal_plan::standing::Best;
use shoal_proto::FailureKind;

/// What happened, in order. `Finished` or `Failed` comes once, and last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// A worker was accepted.
    Joined {
        worker: WorkerId,
        pid: u32,
        joined: u32,
        wanted: u32,
    },
    /// All workers are here: this is who does what.
    Planned(Plan),
    /// All workers are ready and train.
    Started,
    /// A step is committed. Steps come in order, each once, but for what a rollback takes back.
    Step(StepReport),
    /// The model of a committed step was held against other text.
    Evaluated {
        step: u64,
        evaluations: Vec<Evaluation>,
    },
    /// Too many steps in a row were skipped. What was said of the steps after `to` is superseded.
    RolledBack {
        from: u64,
        to: u64,
        /// Sequences since `to` that no step will draw again.
        passed_over: u64,
        /// How often it happened, this time included.
        rollbacks: u32,
    },
    /// A checkpoint is complete and durable.
    CheckpointCommitted {
        step: u64,
    },
    /// A checkpoint could not be completed; training goes on, and the one before it stays.
    CheckpointFailed {
        step: u64,
        /// The first cell whose files could not be written; `None` where the last act failed.
        cell: Option<CellId>,
        why: String,
    },
    /// A worker is no longer part of the run; the others go on without it.
    Evicted {
        worker: WorkerId,
        cause: Cause,
        /// The fact that decided it, as a sentence.
        what: String,
    },
    /// A new plan is made for those that are left. What was said of the steps after `to_step` is
    /// superseded.
    Recovering {
        /// Of the new plan.
        generation: Generation,
        /// The last step that was committed.
        from_step: u64,
        to_step: u64,
        /// So many host cells from now on.
        workers: u32,
        source: Restored,
    },
    /// All train again.
    Recovered {
        generation: Generation,
        /// Since the first sign of the loss.
        seconds: f64,
    },
    /// A worker that was part of the run before is back.
    Rejoined {
        worker: WorkerId,
    },
    /// A worker came while the run was under way.
    JoinedLate {
        worker: WorkerId,
    },
    /// A worker handed over what it had and went, as it wished.
    Left {
        worker: WorkerId,
    },
    /// Somebody wants a worker to hand over and go.
    Draining {
        worker: WorkerId,
    },
    /// Somebody wants the run to end: with a checkpoint, or now.
    StopAsked {
        now: bool,
    },
    /// Too few workers are left, and the run waits for others; or it was asked to wait.
    Paused {
        have: u32,
        want: u32,
        asked: bool,
    },
    /// There are enough again, and nobody wants it to wait.
    Resumed,
    /// A worker was lost too often: it hosts nothing for a while, so that the others keep their plan.
    Quarantined {
        worker: WorkerId,
        seconds: u64,
        /// How often it was lost in the last two minutes.
        times: u32,
    },
    /// No packet comes through between two workers, though both live: one of them hosts nothing for a
    /// while.
    Parted {
        worker: WorkerId,
        /// The one that it cannot reach, and that keeps its cells.
        from: WorkerId,
        seconds: u64,
    },
    /// A worker takes much longer for its work than the others for theirs.
    Straggler {
        worker: WorkerId,
        /// Its time for a unit of work, as a multiple of the others' median.
        ratio: f64,
    },
    /// The coordinator was started anew and goes on where it was: whoever came back within the lease
    /// has caught up, and the others are lost.
    CaughtUp {
        /// How often it was started anew in this launch.
        restarts: u64,
        /// Workers that are here.
        workers: u32,
        /// Since it was started.
        seconds: f64,
    },
    /// The cells moved to other hosts between two steps, and nothing was taken back.
    MovedAtEdge {
        /// Of the new plan.
        generation: Generation,
        step: u64,
        /// From the first worker at the edge until all train again.
        stall_seconds: f64,
    },
    /// Cells are to move between workers because the steps become shorter by more than that costs.
    SharesMove {
        /// Who gives what to whom, and the figures that decided it.
        what: String,
    },
    /// A worker that is to come in has caught up as far as it can while the others train.
    Prepared {
        worker: WorkerId,
        /// So many of its cells hold the state after `step`, by their hashes.
        cells: u32,
        step: u64,
        seconds: f64,
    },
    /// With a reason: somebody else needs a worker's machine, and it hosts nothing until that is over.
    Yielding {
        worker: WorkerId,
        reason: Option<String>,
    },
    /// Cells that should have the same parameters after a step have not: it is done again.
    Diverged {
        step: u64,
        what: String,
    },
    Finished {
        /// The last committed step, and the step of the newest checkpoint.
        last_step: u64,
        ending: Ending,
        /// The best evaluation of the held-out text.
        best: Option<Best>,
    },
    Failed(Failure),
}

/// Where the state comes from with which a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restored {
    /// Snapshots in the memory of workers.
    Memory,
    Checkpoint,
    /// The initial parameters.
    Seed,
}

/// How the run failed: the root cause, where several workers reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The worker at fault, if it is one worker's.
    pub worker: Option<WorkerId>,
    /// The last committed step; 0 before the first.
    pub step_committed: u64,
    /// The step that was being computed, if the worker could say.
    pub step: Option<u64>,
    pub kind: Cause,
    /// A sentence, without the worker's name.
    pub what: String,
    /// Where in the network, if it is known.
    pub layer: Option<String>,
}

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The worker said so itself.
    Reported(FailureKind),
    /// The worker's process ended.
    Exited,
    /// The worker's connection ended.
    HungUp,
    /// The worker was silent for longer than its lease.
    LeaseEnded,
    /// Workers did not join in time.
    NotJoined,
    /// No plan fits the job and the workers.
    Plan,
    /// The last checkpoint could not be completed.
    Checkpoint,
    /// The ledger could not be written.
    Ledger,
    /// A worker broke the protocol: a bug, or a worker of another version.
    Protocol,
    /// Its cell's parameters are not its twins'.
    Diverged,
    /// Too few workers are left, and none will come.
    TooFew,
    /// `Command::Abort`.
    Aborted,
}

/// What the launcher can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Checkpoint at the next step all workers agree on, and end.
    Stop,
    /// End now; the workers are told why.
    Abort(String),
    /// A worker's process ended: "killed by signal 9". Said again when the coordinator was away: the
    /// process that took its place is not meant.
    WorkerExited { worker: WorkerId, pid: u32, what: String },
    /// All checkpoints up to `step` are in the store: so many were sent, with so many bytes.
    Stored { step: u64, checkpoints: u64, bytes: u64 },
    /// An attempt to bring checkpoints into the store failed.
    NotStored,
}

impl Cause {
    /// For a label: one word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Reported(FailureKind::NonFinite) => "nonfinite",
            Self::Reported(FailureKind::PeerLost) => "peer_lost",
            Self::Reported(FailureKind::Checkpoint) | Self::Checkpoint => "checkpoint",
            Self::Reported(FailureKind::Data) => "data",
            Self::Reported(FailureKind::Internal) => "internal",
            Self::Exited => "exited",
            Self::HungUp => "hung_up",
            Self::LeaseEnded => "lease_ended",
            Self::NotJoined => "not_joined",
            Self::Plan => "plan",
            Self::Ledger => "ledger",
            Self::Protocol => "protocol",
            Self::Diverged => "diverged",
            Self::TooFew => "too_few",
            Self::Aborted => "aborted",
        }
    }
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Checkpoint => "checkpoint",
            Self::Seed => "seed",
        })
    }
}

/// One line for the log and the timeline: what happened, to whom, and the fact that decided it.
impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joined { worker, pid, joined, wanted } => {
                write!(f, "{worker} has joined (process {pid}), {joined} of {wanted}")
            }
            Self::Planned(plan) => write!(f, "{}: the plan stands", plan.generation),
            Self::Started => f.write_str("all workers train"),
            Self::Step(report) => write!(f, "step {} is committed", report.step()),
            Self::Evaluated { step, evaluations } => {
                write!(f, "step {step} was held against {} sets", evaluations.len())
            }
            Self::RolledBack { from, to, passed_over, rollbacks } => write!(
                f,
                "too many steps in a row were skipped: back from step {from} to step {to}, past \
                 {passed_over} sequences, rollback {rollbacks}"
            ),
            Self::CheckpointCommitted { step } => {
                write!(f, "the checkpoint of step {step} is complete")
            }
            Self::CheckpointFailed { step, why, .. } => {
                write!(f, "no checkpoint of step {step}: {why}")
            }
            Self::Evicted { worker, what, .. } => write!(f, "{worker} is lost: {what}"),
            Self::Recovering { generation, from_step, to_step, workers, source } => write!(
                f,
                "{generation}: {workers} workers go on from step {to_step} ({source}), {} committed \
                 steps are done again",
                from_step - to_step
            ),
            Self::Recovered { generation, seconds } => {
                write!(f, "{generation}: all train again, {seconds:.1} s after the loss")
            }
            Self::Rejoined { worker } => write!(f, "{worker} is back"),
            Self::JoinedLate { worker } => write!(f, "{worker} has joined the run under way"),
            Self::Left { worker } => write!(f, "{worker} has handed over and left"),
            Self::Draining { worker } => write!(f, "{worker} is to hand over and leave"),
            Self::StopAsked { now } => write!(f, "to stop, as ordered; at once: {now}"),
            Self::Paused { have, want, asked } => waits(f, (*have, *want), *asked),
            Self::Resumed => f.write_str("nothing is waited for any more"),
            Self::Quarantined { worker, seconds, times } => write!(
                f,
                "{worker} was lost {times} times in two minutes: it gets no work for {seconds} s"
            ),
            Self::Parted { worker, from, seconds } => write!(
                f,
                "no packet comes through between {worker} and {from}: {worker} gets no work for \
                 {seconds} s"
            ),
            Self::Straggler { worker, ratio } => {
                write!(f, "{worker} takes {ratio:.1} times as long as the others for its work")
            }
            Self::CaughtUp { restarts, workers, seconds } => write!(
                f,
                "the coordinator goes on (restart {restarts}): {workers} workers are back after \
                 {seconds:.1} s"
            ),
            Self::MovedAtEdge { generation, step, stall_seconds } => write!(
                f,
                "{generation}: cells moved after step {step}, the others waited {stall_seconds:.3} s"
            ),
            Self::SharesMove { what } | Self::Diverged { what, .. } => f.write_str(what),
            Self::Prepared { worker, cells, step, seconds } => write!(
                f,
                "{worker} is ready to come in after {seconds:.1} s: {cells} cells with the state after \
                 step {step}"
            ),
            Self::Yielding { worker, reason } => gives_way(f, *worker, reason.as_deref()),
            Self::Finished { last_step, .. } => write!(f, "finished after step {last_step}"),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

fn waits(f: &mut fmt::Formatter<'_>, (have, want): (u32, u32), asked: bool) -> fmt::Result {
    if asked {
        return f.write_str("paused, as it was asked to");
    }
    write!(f, "paused: {have} of at least {want} workers are here")
}

fn gives_way(f: &mut fmt::Formatter<'_>, worker: WorkerId, reason: Option<&str>) -> fmt::Result {
    match reason {
        Some(reason) => write!(f, "{worker} gives way: {reason}"),
        None => write!(f, "{worker} may work again: nobody else needs its machine"),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(worker) = self.worker {
            write!(f, "{worker}: ")?;
        }
        f.write_str(&self.what)?;
        if let Some(step) = self.step {
            write!(f, ", at step {step}")?;
        }
        if let Some(layer) = &self.layer {
            write!(f, ", in {layer}")?;
        }
        write!(f, " (last committed step: {})", self.step_committed)
    }
}
