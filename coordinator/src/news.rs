//! What the coordinator tells whoever started it, and what it can be told.

use std::fmt;

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Plan, WorkerId};
use shoal_plan::report::{Ending, Evaluation, StepReport};
use shoal_plan::standing::Best;
use shoal_proto::FailureKind;

/// What happened, in order. `Finished` or `Failed` comes once, and last.
#[derive(Clone, Debug, PartialEq)]
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
    Finished {
        /// The last committed step, and the step of the newest checkpoint.
        last_step: u64,
        ending: Ending,
        /// The best evaluation of the held-out text.
        best: Option<Best>,
    },
    Failed(Failure),
}

/// How the run failed: the root cause, where several workers reported.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// `Command::Abort`.
    Aborted,
}

/// What the launcher can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Checkpoint at the next step all workers agree on, and end.
    Stop,
    /// End now; the workers are told why.
    Abort(String),
    /// A worker's process ended: "killed by signal 9".
    WorkerExited { worker: WorkerId, what: String },
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
