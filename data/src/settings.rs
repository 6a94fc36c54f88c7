//! What the caller decides about the text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
pub use shoal_plan::job::EndToken;
use shoal_plan::job::is_plain_name;

use crate::error::DataError;

/// How text becomes token shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The parts of the mixture, in the order of their streams.
    pub sources: Vec<Source>,
    pub tokenizer: TokenizerChoice,
    /// The model's. A tokenizer with more ids is refused.
    pub vocab_size: u32,
    pub end_token: EndToken,
    /// Read at most this many bytes of text in all. Each source may read its share by weight
    /// (rounded down) and no more: what a short source leaves is not given to the others, so that
    /// one source's growth never changes another's text.
    pub bytes_max: u64,
    /// Share of the documents kept for evaluation, 0 < x < 1.
    pub heldout_fraction: f32,
    /// Tokens per training sequence.
    pub sequence: u32,
    /// Training needs at least so many windows: one batch.
    pub windows_min_train: u64,
    /// Evaluation needs at least so many.
    pub windows_min_heldout: u64,
    /// Further evaluation sets by name, read in full; documents in the field `text`.
    pub eval_sets: BTreeMap<String, Vec<PathBuf>>,
}

/// One part of the mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Letters, digits, `-` and `_`; names the shards.
    pub name: String,
    /// Read in this order; the extension says how.
    pub files: Vec<PathBuf>,
    /// Its share of the training sequences is weight / sum of weights. Above 0.
    pub weight: f32,
    /// Where a document's text is in JSON Lines and Parquet: a key, or keys joined by dots.
    pub field: String,
}

/// What cuts text into tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum TokenizerChoice {
    /// Every byte is a token.
    Bytes,
    /// A byte-level BPE trained on a sample of the training documents.
    Bpe { vocab_size: u32 },
    /// A Hugging Face `tokenizer.json`.
    File(PathBuf),
}

impl Settings {
    /// Refuses what no text could satisfy.
    pub(crate) fn check(&self) -> Result<(), DataError> {
        let wrong = |what: String| Err(DataError::Settings { what });
        if self.sources.is_empty() || self.sources.iter().any(|source| source.files.is_empty()) {
            return Err(DataError::NoFiles);
        }
        if !(self.heldout_fraction > 0.0 && self.heldout_fraction < 1.0) {
            return wrong(format!("heldout_fraction is {}, want 0 < x < 1", self.heldout_fraction));
        }
        let mut names = BTreeSet::new();
        for Source { name, weight, field, .. } in &self.sources {
            if !is_plain_name(name) {
                return wrong(format!("source {name:?}: want a name of letters, digits, - and _"));
            }
            if !names.insert(name) {
                return wrong(format!("two sources are named {name:?}"));
            }
            if !(*weight > 0.0 && weight.is_finite()) {
                return wrong(format!("source {name:?} has weight {weight}, want more than 0"));
            }
            if field.split('.').any(str::is_empty) {
                return wrong(format!("source {name:?} has field {field:?}, want a key"));
            }
        }
        for (name, files) in &self.eval_sets {
            if !is_plain_name(name) {
                return wrong(format!("evaluation set {name:?}: want letters, digits, - and _"));
            }
            if files.is_empty() {
                return wrong(format!("evaluation set {name:?} has no files"));
            }
        }
        Ok(())
    }

    /// Bytes of text that source `index` may read.
    pub fn bytes_max_of(&self, index: usize) -> u64 {
        if self.sources.len() == 1 {
            return self.bytes_max;
        }
        let sum: f64 = self.sources.iter().map(|source| f64::from(source.weight)).sum();
        (self.bytes_max as f64 * f64::from(self.sources[index].weight) / sum) as u64
    }
}
