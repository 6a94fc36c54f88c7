//! Files of checkpoints on their way between a worker and a coordinator that gathers them, as our own types.

use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, RunId, WorkerId};
use shoal_plan::standing::Standing;

/// A worker wants to leave a file of a checkpoint with the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub struct Deposit {
    pub run: RunId,
    pub worker: WorkerId,
    pub generation: Generation,
    /// As that of the part which follows when all its files are there.
    pub standing: Standing,
    /// Whose file it is.
    pub cell: CellId,
    /// Its bytes follow.
    pub file: CheckpointFile,
}

/// What a deposit consists of.
#[derive(Clone, Debug, PartialEq)]
pub enum DepositPiece {
    /// Said first, and once.
    Head(Deposit),
    /// The next bytes of the file: at least one, at most `wire::CHUNK_BYTES_MAX`.
    Chunk(Vec<u8>),
}

/// A worker wants to read a file of the checkpoint from which its plan starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    pub run: RunId,
    pub worker: WorkerId,
    pub generation: Generation,
    /// Of the checkpoint.
    pub step: u64,
    /// A plain file name.
    pub name: String,
}
