//! How a verb ends, and the exit code that says so.

use shoal_data::DataError;
use shoal_weights::CheckpointError;

use crate::signals::Signal;

/// Every way a verb can end without having done what was asked.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// Wrong usage or an invalid manifest. Nothing was started.
    Input(String),
    /// No run is under way, or it cannot be reached.
    Unreachable(String),
    /// The run did not want what it was told.
    Refused(String),
    /// Something would change, and was only to be looked at.
    Differs,
    /// A checkpoint or a model's directory is missing, damaged or unfit.
    Checkpoint(String),
    /// The run failed, or could not begin.
    Failed(anyhow::Error),
    /// Somebody asked for it.
    Signal(Signal),
}

/// Of what another try would not mend: what is on disk is damaged or unfit.
pub(crate) const CHECKPOINT: u8 = 5;

impl Stopped {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Refused(_) => 4,
            Self::Checkpoint(_) => CHECKPOINT,
            Self::Differs => 6,
            Self::Failed(_) => 1,
            Self::Signal(signal) => signal.exit_code(),
        }
    }

    /// What standard error is told. Nothing after a signal: its story was told as it happened.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Input(text)
            | Self::Unreachable(text)
            | Self::Refused(text)
            | Self::Checkpoint(text) => Some(text.clone()),
            Self::Failed(error) => Some(format!("{error:#}")),
            Self::Differs | Self::Signal(_) => None,
        }
    }
}

impl From<DataError> for Stopped {
    fn from(error: DataError) -> Self {
        if error.is_about_input() {
            Self::Input(error.to_string())
        } else {
            // Its words hold those of its cause already.
            Self::Failed(anyhow::anyhow!(error.to_string()))
        }
    }
}

impl From<CheckpointError> for Stopped {
    fn from(error: CheckpointError) -> Self {
        if matches!(error, CheckpointError::Exists { .. }) {
            Self::Input(error.to_string())
        } else if error.is_about_writing() {
            Self::Failed(error.into())
        } else {
            Self::Checkpoint(error.to_string())
        }
    }
}

impl From<shoal_store::Error> for Stopped {
    fn from(error: shoal_store::Error) -> Self {
        if error.is_about_input() {
            Self::Input(error.to_string())
        } else {
            // Its words hold those of its cause already.
            Self::Failed(anyhow::anyhow!(error.to_string()))
        }
    }
}

impl From<anyhow::Error> for Stopped {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}
