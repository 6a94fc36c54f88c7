//! A MODEL ON DISK HELD AGAINST TEXT: loss, logits and gradients of the whole network in one process,
//! so that anybody can compare them with another implementation's.
//!
//! Reading order: `examples` (what the model is asked), `ids` (token ids from files), `measure` (what
//! it answers), `output` (answers as safetensors).

mod examples;
mod ids;
mod measure;
mod output;

use std::path::PathBuf;

use shoal_weights::CheckpointError;

pub use examples::Examples;
pub use measure::{Found, Measured, Wanted};
pub use output::{Output, check};

/// The crate's only error type.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// What the model was to be held against is not what it should be. `at` is a place in the file.
    #[error("{}{at}: {what}", path.display())]
    Input { path: PathBuf, at: String, what: String },

    /// Something else that was asked for cannot be.
    #[error("{0}")]
    Wanted(String),

    #[error("the loss of sequence {sequence} is {loss}, which is not finite")]
    NotFinite { sequence: usize, loss: f64 },

    #[error("{0}")]
    Weights(#[from] CheckpointError),

    #[error("{0}")]
    Model(#[from] shoal_model::Error),
}

/// How many threads the arithmetic of this process uses. Once, before anything is computed.
pub fn use_threads(threads: usize) {
    // A second call finds the pool sized, and leaves it.
    drop(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global());
}
