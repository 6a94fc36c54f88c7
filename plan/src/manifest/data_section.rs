//! `spec.data`: either `files`, one source, or `sources`, a weighted mixture of them.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use super::complaint::Complaint;
use super::tree::{Node, Value};
use super::{defaults, init, reader, section};
use crate::job::{Data, DataSource, EndToken, TokenizerChoice};
use crate::model::ModelConfig;

/// Bytes of a megabyte, as in `spec.data.max_mb`.
const MEGABYTE: f64 = 1e6;

/// The name of the only source.
const ONLY: &str = "text";

/// Larger vocabularies are no bytes, unless the manifest says so: a byte, and an end token.
const BYTES_AND_END: u32 = 257;

/// `spec.data` as written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DataSection {
    /// What to learn from: files, directories, globs, `https://` and `hf://` addresses. `~`,
    /// `${VAR}`, `${VAR:-default}` and `**` are expanded, and files read in sorted order.
    files: Files,
    /// A weighted mixture, instead of `files`.
    sources: Vec<SourceSection>,
    /// The key or column that holds the text in JSON Lines and Parquet files; dots go inwards.
    field: String,
    /// `bytes`; `bpe`, a byte-level BPE of `vocab_size` tokens, trained on this text at the first
    /// launch; or the path of a Hugging Face `tokenizer.json`. `auto`: the one
    /// beside the weights of `training.init`; else bytes for a vocabulary of up to 257, else `bpe`.
    tokenizer: String,
    /// What stands after every document: `none`, or a token of the tokenizer as text. `auto`: what
    /// the tokenizer has for it; bytes have one if the vocabulary has room for a 257th token.
    end_token: String,
    /// Read at most so many millions of bytes of text.
    max_mb: f64,
    /// The share of the documents kept for the evaluation.
    heldout: f32,
}

/// One of `spec.data.sources` as written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SourceSection {
    /// Letters, digits, `-` and `_`.
    name: String,
    /// As `files` above.
    files: Files,
    /// Its share of the sequences is its weight over the sum of all weights.
    weight: f32,
    /// The section's own, if it has none.
    #[serde(default)]
    field: Option<String>,
}

/// One pattern or a list of them.
#[derive(Deserialize)]
#[serde(transparent)]
struct Files(#[serde(deserialize_with = "reader::one_or_many")] Vec<String>);

impl JsonSchema for Files {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Files".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "array"], "items": { "type": "string" } })
    }
}

/// Reads the section, and leaves it with its defaults in the tree.
pub(super) fn read(root: &mut Node, model: &ModelConfig) -> Result<Data, Complaint> {
    let given = |root: &Node, key: &str| {
        root.at_path(&format!("spec.data.{key}")).is_some_and(|node| node.value != Value::Null)
    };
    let (files_given, sources_given) = (given(root, "files"), given(root, "sources"));
    let is_section = root.at_path("spec.data").is_none_or(Node::is_section);
    if !files_given && !sources_given && is_section {
        let (at, _) = root.locate("spec.data");
        let what = "missing: which text to train on".to_owned();
        let help = "write files: [\"~/books/**/*.txt\"] below spec.data";
        return Err(Complaint::new(at, "spec.data.files", what).help(help));
    }
    if files_given && sources_given {
        let at = root.locate("spec.data.sources").0;
        let what = "wanted either `files` or `sources`, got both";
        let help = "put the files into a source of their own, with a weight";
        return Err(Complaint::new(at, "spec.data.sources", what).help(help));
    }
    let written: DataSection = section(root, "data", &defaults::data())?;
    let sources =
        if sources_given { mixture(root, &written)? } else { vec![only(root, &written)?] };
    let tokenizer = match written.tokenizer.as_str() {
        "auto" if init::is_given(root) => TokenizerChoice::Weights,
        "auto" if model.vocab_size <= BYTES_AND_END => TokenizerChoice::Bytes,
        "auto" | "bpe" => TokenizerChoice::Bpe,
        "bytes" => TokenizerChoice::Bytes,
        path => TokenizerChoice::File(path.to_owned()),
    };
    let end_token = match written.end_token.as_str() {
        "auto" => EndToken::Auto,
        "none" => EndToken::None,
        token => EndToken::Token(token.to_owned()),
    };
    // `as` saturates, and NaN becomes 0: both are outside the rule's bounds.
    let bytes_max = (written.max_mb * MEGABYTE) as u64;
    Ok(Data { sources, tokenizer, end_token, bytes_max, heldout_fraction: written.heldout })
}

fn only(root: &Node, written: &DataSection) -> Result<DataSource, Complaint> {
    let files = some(root, "spec.data.files", &written.files)?;
    Ok(DataSource { name: ONLY.to_owned(), files, weight: 1.0, field: written.field.clone() })
}

fn mixture(root: &Node, written: &DataSection) -> Result<Vec<DataSource>, Complaint> {
    if written.sources.is_empty() {
        let at = root.locate("spec.data.sources").0;
        return Err(Complaint::new(at, "spec.data.sources", "wanted at least one source"));
    }
    let source = |(at, source): (usize, &SourceSection)| {
        let files = some(root, &format!("spec.data.sources[{at}].files"), &source.files)?;
        let field = source.field.as_ref().unwrap_or(&written.field).clone();
        Ok(DataSource { name: source.name.clone(), files, weight: source.weight, field })
    };
    written.sources.iter().enumerate().map(source).collect()
}

fn some(root: &Node, path: &str, files: &Files) -> Result<Vec<String>, Complaint> {
    if files.0.is_empty() {
        let what = "wanted at least one file or pattern, got an empty list".to_owned();
        return Err(Complaint::new(root.locate(path).0, path, what));
    }
    Ok(files.0.clone())
}
