//! Why a message was ignored, for the log.

use std::fmt;

use shoal_plan::plan::Generation;

use super::Phase;

/// Why a message was ignored. None of these harms the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignored {
    OtherGeneration {
        got: Generation,
        want: Option<Generation>,
    },
    Repeated,
    OutOfPhase(Phase),
    /// What a worker says it holds is not what others hold.
    Contradiction(String),
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherGeneration { got, want: Some(want) } => write!(f, "of {got}, now is {want}"),
            Self::OtherGeneration { got, want: None } => write!(f, "of {got}, before any plan"),
            Self::Repeated => f.write_str("known already"),
            Self::OutOfPhase(phase) => write!(f, "not expected while {phase:?}"),
            Self::Contradiction(why) => f.write_str(why),
        }
    }
}
