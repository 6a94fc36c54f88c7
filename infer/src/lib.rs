//! The voice: a model on disk that continues texts. One `Voice` writes any number of texts at a time,
//! a round for all of them together; with multi-token-prediction modules they draft and the main
//! model verifies.
//!
//! No clock, no socket, no signal: whoever calls `Voice::round` decides when to stop.
//!
//! Reading order: `sampling` (one token from logits), `drafts` (what the modules know of a text),
//! `text` (one text under way), `voice` (a round), `stops` and `stream` (from tokens to text).

mod drafts;
mod error;
#[cfg(test)]
mod proof;
mod sampling;
mod stops;
mod stream;
mod text;
mod voice;

pub use error::InferError;
pub use sampling::Sampling;
pub use text::{Reason, Request, Tally, Text};
pub use voice::{Options, Voice};

/// What measures a pass by hand needs, beside `Voice::decoder`.
pub use shoal_model::{Cache, Error as ModelError, Step};
