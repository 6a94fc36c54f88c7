//! The messages as our own types: one that exists has passed the door in `wire`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::CellId;
use shoal_plan::job::Job;
use shoal_plan::plan::{Generation, Plan, RunId, WorkerId};
use shoal_plan::report::{Ending, Evaluation, StepReport};
use shoal_plan::standing::Standing;
use shoal_plan::trace::StepTrace;
use shoal_trust::Name;

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
        /// Of each of its cells after the step; none for a step that was skipped.
        sums: Vec<(CellId, u64)>,
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
    /// This worker's memory holds the state of a cell after this standing's step: its own, or a
    /// copy of a peer's.
    Held {
        generation: Generation,
        standing: Standing,
        cell: CellId,
        /// Of the snapshot, in lower-case hexadecimal.
        blake3: String,
    },
    /// All its cells have ended after the step on which all workers agreed, as `ToWorker::Edge`
    /// asked, and their snapshots are in its memory: it waits for a new plan.
    AtEdge {
        generation: Generation,
        /// The same from all workers.
        standing: Standing,
    },
    /// The answer to `ToWorker::Prepare`: the text is open, the cells are built, and those that are listed
    /// hold the snapshot of this standing with that blake3.
    Prepared {
        /// Of the plan that may come.
        generation: Generation,
        standing: Standing,
        cells: Vec<(CellId, String)>,
    },
    /// With a reason: somebody else needs its machine. It hands over at the next edge and stays, without
    /// cells. Without one: it may have cells again.
    Yielding {
        reason: Option<String>,
    },
    /// What a cell did in a step, or a piece of it. It is not kept: what is lost is missing.
    Traced {
        generation: Generation,
        trace: Box<StepTrace>,
    },
    /// It wants to hand over its cells and go. Said at any time after the hello.
    Leaving {
        reason: String,
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
        /// Workers with which no byte could be exchanged any more, at first hand: what peers said of
        /// others is not in it, nor a connection that was closed.
        unreachable: Vec<WorkerId>,
    },
}

impl FromWorker {
    /// Whether it is said again after a connection that broke, and counted. Of the others a newer one serves as well,
    /// or none.
    pub fn is_kept(&self) -> bool {
        !matches!(self, Self::Hello(_) | Self::Heartbeat { .. } | Self::Traced { .. })
    }

    /// The generation that fences a message: said under another plan it means nothing. `None` where
    /// it does not matter when it was said: of a hello, a wish to leave, and a heartbeat, which
    /// only says "alive".
    pub fn fence(&mut self) -> Option<&mut Generation> {
        match self {
            // Of what is got ready the coordinator looks itself for what plan that was.
            Self::Hello(_)
            | Self::Heartbeat { .. }
            | Self::Leaving { .. }
            | Self::Prepared { .. }
            | Self::Yielding { .. } => None,
            Self::Ready { generation }
            | Self::StepDone { generation, .. }
            | Self::Evaluated { generation, .. }
            | Self::GoBack { generation, .. }
            | Self::CheckpointPart { generation, .. }
            | Self::CheckpointPartFailed { generation, .. }
            | Self::Held { generation, .. }
            | Self::AtEdge { generation, .. }
            | Self::Traced { generation, .. }
            | Self::Finished { generation, .. }
            | Self::Failed { generation, .. } => Some(generation),
        }
    }
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
    /// Over which its cells are dealt out, in the order of cells: its GPUs, or one, the CPU. Never zero.
    pub devices: u32,
    /// Where the other workers reach the snapshots in its memory.
    pub vault_address: SocketAddr,
    /// In a session that was cut off and is taken up again by the same process: what it does.
    pub resuming: Option<Resuming>,
}

/// What a worker is at that has lost its coordinator for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resuming {
    pub generation: Generation,
    /// Optimizer steps done.
    pub step: u64,
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
    /// End after the next step on which all workers agree, keep the state in memory, and wait for a
    /// new plan.
    Edge {
        generation: Generation,
    },
    /// A plan that may come: a worker that hosts nothing now opens the text, builds its cells and fills
    /// them with the snapshots that are named, and answers with `FromWorker::Prepared`.
    Prepare(Box<Assign>),
    /// The plan in force gives this worker no cells, and others hold what it held.
    Released {
        generation: Generation,
    },
    /// Note what the cells do in so many steps from this one on, and say so in `FromWorker::Traced`.
    Trace {
        generation: Generation,
        first: u64,
        steps: u64,
    },
    /// The checkpoint of this step is complete and durable.
    CheckpointCommitted {
        generation: Generation,
        step: u64,
    },
    /// So many of this worker's messages have been read, hellos and heartbeats not counted, since
    /// it joined. Said now and then, and first of all in a session that takes up an earlier one:
    /// the worker sends again what came after.
    Received {
        messages: u64,
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
    /// Vaults of all workers in `peers`.
    pub vaults: BTreeMap<WorkerId, SocketAddr>,
    /// Where the state of each cell after `standing` is found, in cell order: one for each, or none
    /// at all, and then it comes from the checkpoint or from the seed.
    pub sources: Vec<Source>,
    /// The name in the certificate of every worker in `vaults`; none where nobody has a certificate.
    pub names: BTreeMap<WorkerId, Name>,
    /// Of the pairs of workers of which not both can dial the other; each pair once. Of any other pair whoever has
    /// the higher id dials.
    pub meetings: Vec<Meeting>,
}

/// How two workers come together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meeting {
    /// The lower id first.
    pub ends: (WorkerId, WorkerId),
    pub way: Way,
}

/// The way of a pair of which not both can dial the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Only this one of the two can dial the other.
    From(WorkerId),
    /// Neither can: both dial this relay.
    Through { rig: String, at: SocketAddr },
    /// Neither can: both dial the cluster's door.
    ThroughDoor,
}

/// A snapshot in some worker's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub worker: WorkerId,
    /// Whose snapshot it is: the cell's own, or that of its twin in another replica, which is equal.
    pub cell: CellId,
    /// Of the snapshot, in lower-case hexadecimal.
    pub blake3: String,
}

/// Why a worker gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
