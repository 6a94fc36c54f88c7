//! Everything that can end a cell's training.

use shoal_data::DataError;
use shoal_model::NonFinite;
use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;
use shoal_proto::FailureKind;

use super::vote::Wishes;
use crate::comm::CommError;
use crate::daemon::CourierError;
use crate::vault::VaultError;
use shoal_weights::CheckpointError;

/// What the vote found. All cells agree on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The host of the cell whose value it was: it speaks for all.
    pub worker: WorkerId,
    /// It is this worker.
    pub here: bool,
    pub nonfinite: NonFinite,
    /// What the workers' cells wish.
    pub(super) wishes: Wishes,
}

/// A cell's only error type. A message says what, where and how much.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No cell has updated anything. What follows is decided in `engine/policy.rs`.
    #[error("a value was not finite, so the step was refused on all cells before the update")]
    Refused(Refusal),

    /// The last of the refusals that the job allows.
    #[error(
        "a value was not finite, so the step was refused on all cells before the update{}; lower \
         training.lr or training.clip, or raise training.warmup_steps",
        allowed(*.skips, *.rollbacks)
    )]
    GaveUp { refusal: Refusal, skips: u32, rollbacks: u32 },

    #[error("{0}")]
    Comm(#[from] CommError),

    #[error("{0}")]
    Data(#[from] DataError),

    #[error(
        "the evaluation set {set} has {tokens} tokens, want more than {sequence}: add files, or \
         lower training.sequence"
    )]
    EmptySet { set: String, tokens: u64, sequence: u32 },

    #[error("{0}")]
    Checkpoint(#[from] CheckpointError),

    #[error("{}", with_cause(.0))]
    Model(#[from] shoal_model::Error),

    #[error("{0}")]
    Vault(#[from] VaultError),

    #[error("{0}")]
    Courier(#[from] CourierError),

    /// A snapshot of another model, or of another part of it.
    #[error("a snapshot of {got} bytes is of another cell's layout, want {want} bytes")]
    OtherState { got: u64, want: u64 },

    #[error("{what} from {from} has {got} bytes, want {want}")]
    Message { what: &'static str, from: CellId, got: usize, want: usize },
}

impl EngineError {
    /// Sorts every error for the coordinator, which looks for the root cause among many reports.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Refused(refusal) | Self::GaveUp { refusal, .. } => {
                if refusal.here {
                    FailureKind::NonFinite
                } else {
                    FailureKind::PeerLost
                }
            }
            // An exchange inside a layer fails as the communicator does; and who asks another worker's
            // memory, or the coordinator, in vain is not at fault.
            Self::Comm(_)
            | Self::Courier(CourierError::Unreachable { .. } | CourierError::Stopped { .. })
            | Self::Model(shoal_model::Error::Exchange { .. })
            | Self::Vault(
                VaultError::Lost { .. }
                | VaultError::Stopped { .. }
                | VaultError::NoAddress { .. }
                | VaultError::Refused { .. }
                | VaultError::Damaged { .. },
            ) => FailureKind::PeerLost,
            Self::Data(_) | Self::EmptySet { .. } => FailureKind::Data,
            Self::Checkpoint(_)
            | Self::Courier(CourierError::Refused { .. } | CourierError::Scratch { .. }) => {
                FailureKind::Checkpoint
            }
            Self::Model(_)
            | Self::Message { .. }
            | Self::Vault(VaultError::NotTaken { .. })
            | Self::OtherState { .. } => FailureKind::Internal,
        }
    }

    /// The workers with which no byte could be exchanged any more.
    pub fn unreachable(&self) -> Vec<WorkerId> {
        match self {
            Self::Comm(error) => error.unreachable(),
            Self::Model(shoal_model::Error::Exchange { source, .. }) => {
                let comm = source.0.downcast_ref::<CommError>();
                comm.map(CommError::unreachable).unwrap_or_default()
            }
            Self::Model(_)
            | Self::Vault(_)
            | Self::Courier(_)
            | Self::Refused(_)
            | Self::GaveUp { .. }
            | Self::Data(_)
            | Self::EmptySet { .. }
            | Self::Checkpoint(_)
            | Self::OtherState { .. }
            | Self::Message { .. } => Vec::new(),
        }
    }

    /// The layer at fault, where one is known.
    pub fn layer(&self) -> Option<String> {
        match self {
            Self::Refused(refusal) | Self::GaveUp { refusal, .. } => {
                Some(refusal.nonfinite.to_string())
            }
            Self::Comm(_)
            | Self::Data(_)
            | Self::EmptySet { .. }
            | Self::Checkpoint(_)
            | Self::Model(_)
            | Self::Vault(_)
            | Self::Courier(_)
            | Self::OtherState { .. }
            | Self::Message { .. } => None,
        }
    }
}

/// An exchange inside a layer fails as the communicator does: its words name the worker at fault.
fn with_cause(error: &shoal_model::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What the run did before it gave up: `, after 2 skipped steps in a row and 1 rollback`.
fn allowed(skips: u32, rollbacks: u32) -> String {
    let times = |n: u32, what: &str| match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    };
    match (skips, rollbacks) {
        (0, 0) => String::new(),
        (skips, 0) => format!(", after {} in a row", times(skips, "skipped step")),
        (0, rollbacks) => format!(", after {}", times(rollbacks, "rollback")),
        (skips, rollbacks) => format!(
            ", after {} in a row and {}",
            times(skips, "skipped step"),
            times(rollbacks, "rollback")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_is_told() {
        let cases = [
            (0, 0, ""),
            (1, 0, ", after 1 skipped step in a row"),
            (0, 2, ", after 2 rollbacks"),
            (2, 1, ", after 2 skipped steps in a row and 1 rollback"),
        ];
        for (skips, rollbacks, want) in cases {
            assert_eq!(allowed(skips, rollbacks), want);
        }
    }
}
