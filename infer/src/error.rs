//! Why a model cannot write.

use std::path::PathBuf;

use shoal_data::DataError;
use shoal_weights::CheckpointError;

#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The directory is no model, or a damaged one.
    #[error(transparent)]
    Weights(#[from] CheckpointError),

    #[error(transparent)]
    Tokenizer(#[from] DataError),

    #[error(transparent)]
    Model(#[from] shoal_model::Error),

    #[error("the prompt has {got} tokens, and the model takes {want}: shorten it")]
    PromptTooLong { got: usize, want: usize },

    #[error("the prompt has no token, and the tokenizer has none to begin with: write something")]
    EmptyPrompt,

    #[error("{what} is {got}, want {want}")]
    Option { what: &'static str, got: String, want: &'static str },

    #[error(
        "{}: the model has no multi-token-prediction module to draft with; leave --speculate auto",
        path.display()
    )]
    NoModule { path: PathBuf },
}
