//! What `prepare` made or found, for people and for placing sequences.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::error::DataError;
use crate::record::Record;

/// The token shards of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dataset {
    /// Of all sources, end tokens included.
    pub tokens: u64,
    pub train_tokens: u64,
    pub heldout_tokens: u64,
    /// Windows of the settings' sequence length, over all sources.
    pub train_windows: u64,
    pub heldout_windows: u64,
    /// Documents with any text.
    pub documents: u64,
    /// Of text.
    pub bytes: u64,
    /// Files read.
    pub files: usize,
    /// Tokens per window, less one.
    pub sequence: u32,
    /// Ids are below this.
    pub n_tokens: u32,
    /// The token after every document.
    pub end_token: Option<u32>,
    /// blake3 of the `tokenizer.json`, in hexadecimal; of nothing for bytes.
    pub tokenizer_blake3: String,
    /// Each with training shards of its own.
    pub sources: Vec<SourceFacts>,
    pub eval_sets: BTreeMap<String, SetFacts>,
    /// Whether an earlier call had made it.
    pub reused: bool,
}

/// What came out of one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceFacts {
    pub name: String,
    pub weight: f32,
    pub set: SetFacts,
    pub train_tokens: u64,
    pub heldout_tokens: u64,
    pub train_windows: u64,
    /// Whether its documents were too few or too uneven, so that its end is held out instead.
    pub heldout_is_tail: bool,
    /// Whether `bytes_max` ended it.
    pub cut: bool,
}

/// A stream of documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetFacts {
    pub files: usize,
    pub documents: u64,
    /// Of text.
    pub bytes: u64,
    pub tokens: u64,
    pub windows: u64,
    /// Documents with bytes that were not UTF-8 and had to be replaced.
    pub replaced_documents: u64,
}

impl Dataset {
    /// Reads what `prepare` wrote into `dir`. Does not look at the shards.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        Ok(Record::read_there(dir)?.dataset(true))
    }

    /// The weights of the sources, in their order.
    pub fn weights(&self) -> Vec<f32> {
        self.sources.iter().map(|source| source.weight).collect()
    }
}
