//! Where the text comes from, and how it becomes tokens.

use serde::{Deserialize, Serialize};

/// The text of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Never empty. With several, each step's sequences are drawn from them by weight.
    pub sources: Vec<DataSource>,
    pub tokenizer: TokenizerChoice,
    pub end_token: EndToken,
    /// Read at most this many bytes of text, shared between the sources by weight.
    pub bytes_max: u64,
    /// Share of the documents kept for evaluation, 0 < x < 1.
    pub heldout_fraction: f32,
}

/// One part of the mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSource {
    /// Names it in messages and in the dataset's description.
    pub name: String,
    /// Files, directories, globs and addresses, with `~` and `${VAR:-default}` still unexpanded.
    pub files: Vec<String>,
    /// Its share of the sequences is its weight over the sum of all weights. Above 0.
    pub weight: f32,
    /// The key or column that holds the text, in JSON Lines and Parquet files. Dots go inwards.
    pub field: String,
}

/// What turns text into tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerChoice {
    /// A token is a byte.
    Bytes,
    /// A byte-level BPE of the model's vocabulary size, trained on the text at the first launch.
    Bpe,
    /// A Hugging Face `tokenizer.json`.
    File(String),
    /// The one beside the weights that training starts from.
    Weights,
}

/// The token that stands after every document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndToken {
    /// Bytes: id 256 where the model's vocabulary is larger than 256, else none. A trained BPE:
    /// `<|endoftext|>`. A `tokenizer.json`: the special token with one of the usual names.
    Auto,
    /// None: documents follow each other without a mark.
    None,
    /// A token of the tokenizer, as text.
    Token(String),
}

/// Whether a source or an evaluation set may be named so: it also names files.
pub fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !name.is_empty() && name.len() <= 64 && name.chars().all(plain)
}

impl Data {
    /// Every pattern of every source, with its path in the manifest.
    pub fn patterns(&self) -> impl Iterator<Item = &String> {
        self.sources.iter().flat_map(|source| &source.files)
    }
}
