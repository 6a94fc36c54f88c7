//! THE TEXT: from files, here or at a distance, to token shards that every step reads the same.
//!
//! Reading order: `settings` (what the caller decides), `prepare` (from files to shards), `read`
//! (one module per format), `tokenizer`, `shards` (the files of tokens), `record` and `dataset`
//! (what the shards were made of), `download` (files at a distance).

pub mod download;
pub mod inspect;
pub mod map;
pub mod tokenizer;

mod dataset;
mod error;
mod files;
mod prepare;
mod read;
mod record;
mod settings;
mod shards;

pub use dataset::{Dataset, SetFacts, SourceFacts};
pub use error::DataError;
pub use prepare::{EVAL_FIELD, Phase, Progress, prepare, sample_text, tokenizer_for};
pub use record::FILE_NAME;
pub use settings::{EndToken, Settings, Source, TokenizerChoice};
pub use shards::{Part, TokenShards, Vocabulary};
pub use tokenizer::Tokenizer;

#[cfg(test)]
mod proof;
