//! What engines have to tell the session.

use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::report::{Ending, Evaluation, StepReport};
use shoal_plan::standing::Standing;
use shoal_plan::trace::StepTrace;
use shoal_proto::FailureKind;

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
        /// Of its cells' parameters after the step; none if it was skipped.
        sums: Vec<(CellId, u64)>,
    },
    /// What a cell did in a step, or a piece of it.
    Traced(Box<StepTrace>),
    /// Only from the host of cell 0.
    Evaluated { step: u64, evaluations: Vec<Evaluation> },
    /// The cell's files of a checkpoint are written and fsynced.
    CheckpointPart { standing: Standing, cell: CellId, files: Vec<CheckpointFile> },
    /// The cell could not write its files of a checkpoint, and trains on.
    CheckpointPartFailed { standing: Standing, cell: CellId, why: String },
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
    Failed {
        step: u64,
        kind: FailureKind,
        what: String,
        layer: Option<String>,
        /// Workers with which no byte could be exchanged any more.
        unreachable: Vec<WorkerId>,
    },
}

/// What a worker has got ready for a plan that is not in force yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Of that plan.
    pub generation: Generation,
    /// Of the snapshots that its cells hold.
    pub standing: Standing,
    /// The cells that hold one, and its blake3.
    pub cells: Vec<(CellId, String)>,
}
