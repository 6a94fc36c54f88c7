//! The messages as our own types: one that exists has passed the door in `wire`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::CellId;
use shoal_plan::job::Job;
use shoal_plan::plan::{Generation, Plan, RunId, WorkerId};
use shoal_plan::report::{Ending, Evaluation, StepReport};
use shoal_plan::standing::Standing;

/// What a worker says. A session begins with `Hello`, and says it once.
#[derive(Clone, Debug, PartialEq)]
pub enum FromWorker {
    Hello(Hello),
    /// Sent whether or not anything happened; any message renews the lease.
    Heartbeat {
        /// `None` before the first plan.
        generation: Option<Generation>,
        /// Optimizer steps done.
        step: u64,
    },
    /// The model is built, the checkpoint loaded, the connections to all peers stand.
    Ready {
        generation: Generation,
    },
    /// All cells of the worker have applied the update of this step, or skipped it.
    StepDone {
        generation: Generation,
        step: u64,
        /// What its slowest cell computed, without waiting and without collectives.
        compute_seconds: f64,
        /// Only from the host of cell 0.
        report: Option<StepReport>,
    },
    /// The model was held against other text. Only from the host of cell 0.
    Evaluated {
        generation: Generation,
        step: u64,
        evaluations: Vec<Evaluation>,
    },
    /// Too many steps in a row were skipped: the cells wait for a plan that starts from a checkpoint.
    GoBack {
        generation: Generation,
        /// After the last skipped step, the same from all workers.
        standing: Standing,
    },
    /// The cell's files of the checkpoint of this step are written and fsynced.
    CheckpointPart {
        generation: Generation,
        /// The same from all cells.
        standing: Standing,
        cell: CellId,
        files: Vec<CheckpointFile>,
    },
    /// The cell could not write its files of the checkpoint of this step, and has removed what there
    /// was of them. It trains on.
    CheckpointPartFailed {
        generation: Generation,
        /// The same from all cells.
        standing: Standing,
        cell: CellId,
        /// The file, and what the system said.
        why: String,
    },
    /// Nothing is left to do.
    Finished {
        generation: Generation,
        /// The last step done.
        step: u64,
        ending: Ending,
    },
    Failed {
        generation: Generation,
        /// The step that was being computed.
        step: u64,
        kind: FailureKind,
        what: String,
        /// Where in the network, if it is known.
        layer: Option<String>,
    },
}

/// A worker asks to take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub run: RunId,
    pub worker: WorkerId,
    /// Where the other workers reach it.
    pub data_address: SocketAddr,
    pub pid: u32,
    /// Compute threads. Never zero.
    pub threads: u32,
}

/// What the coordinator says.
#[derive(Clone, Debug, PartialEq)]
pub enum ToWorker {
    Assign(Box<Assign>),
    /// All workers are ready: train.
    Start {
        generation: Generation,
    },
    /// Checkpoint at the next step all workers agree on, then report `Finished`.
    Stop {
        generation: Generation,
    },
    /// The checkpoint of this step is complete and durable.
    CheckpointCommitted {
        generation: Generation,
        step: u64,
    },
    /// The work is done: exit with code 0.
    Leave {
        reason: String,
    },
    /// The run has failed: exit now.
    Abort {
        reason: String,
    },
}

/// One generation's work. The plan's hosts all have an address in `peers`.
#[derive(Clone, Debug, PartialEq)]
pub struct Assign {
    pub run: RunId,
    pub plan: Plan,
    pub job: Job,
    /// Data addresses of all workers of the plan, the receiver's own included.
    pub peers: BTreeMap<WorkerId, SocketAddr>,
    /// The step of the checkpoint to load.
    pub resume_from: Option<u64>,
    /// From where to go on. After a rollback its data are further than the checkpoint's.
    pub standing: Standing,
}

/// Why a worker gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The step's vote found a NaN or an infinity: the update was refused on all cells.
    NonFinite,
    /// Another worker is gone or silent. Seldom the root cause.
    PeerLost,
    /// A checkpoint could not be read or written.
    Checkpoint,
    /// The training data could not be read, or are not those the run began with.
    Data,
    /// Anything else: most likely a bug.
    Internal,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NonFinite => "a number that is not finite",
            Self::PeerLost => "a lost peer",
            Self::Checkpoint => "a checkpoint that could not be read or written",
            Self::Data => "training data that could not be read",
            Self::Internal => "an internal error",
        })
    }
}
