//! Everything that can end a cell's training.

use shoal_data::DataError;
use shoal_model::NonFinite;
use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;
use shoal_proto::FailureKind;

use crate::checkpoint::CheckpointError;
use crate::comm::CommError;

/// A cell's only error type. A message says what, where and how much.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// All cells agree on whose value it was; the worker that hosts it speaks for all.
    #[error(
        "a value was not finite, so the step was refused on all cells before the update; lower \
         training.lr or training.clip, or raise training.warmup_steps"
    )]
    Refused { worker: WorkerId, here: bool, nonfinite: NonFinite },

    #[error("{0}")]
    Comm(#[from] CommError),

    #[error("{0}")]
    Data(#[from] DataError),

    #[error("{0}")]
    Checkpoint(#[from] CheckpointError),

    #[error("{0}")]
    Model(#[from] shoal_model::Error),

    #[error("{what} from {from} has {got} bytes, want {want}")]
    Message { what: &'static str, from: CellId, got: usize, want: usize },
}

impl EngineError {
    /// Sorts every error for the coordinator, which looks for the root cause among many reports.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Refused { here: true, .. } => FailureKind::NonFinite,
            Self::Refused { here: false, .. } => FailureKind::PeerLost,
            // An exchange inside a layer fails as the communicator does.
            Self::Comm(_) | Self::Model(shoal_model::Error::Exchange { .. }) => {
                FailureKind::PeerLost
            }
            Self::Data(_) => FailureKind::Data,
            Self::Checkpoint(_) => FailureKind::Checkpoint,
            Self::Model(_) | Self::Message { .. } => FailureKind::Internal,
        }
    }

    /// The layer at fault, where one is known.
    pub fn layer(&self) -> Option<String> {
        match self {
            Self::Refused { nonfinite, .. } => Some(nonfinite.to_string()),
            Self::Comm(_)
            | Self::Data(_)
            | Self::Checkpoint(_)
            | Self::Model(_)
            | Self::Message { .. } => None,
        }
    }
}
