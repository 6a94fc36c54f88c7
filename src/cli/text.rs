//! `shoal data`: verbs about text.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

const TOKENIZER_EXAMPLES: &str = "\
Examples:
  shoal data tokenizer ~/notes --vocab 8192 -o notes.json
  shoal data tokenizer 'books/**/*.jsonl.gz' --field content --vocab 16384 -o books.json

Then, in a manifest: data.tokenizer: notes.json, and model.vocab_size of 8192 or more.
Standard output has one line about the result; exit codes: 0 done, 1 failed, 2 wrong usage or text.";

const INSPECT_EXAMPLES: &str = "\
Examples:
  shoal data inspect corpus/*.parquet --documents 2
  shoal data inspect corpus/a.jsonl --tokenizer notes.json -o json
  shoal data inspect --run runs/quickstart

Exit codes: 0 done, 1 failed, 2 wrong usage or text.";

const STATS_EXAMPLES: &str = "\
Examples:
  shoal data stats job.yaml
  shoal data stats ~/notes hf://datasets/ORG/NAME/train.parquet --tokenizer notes.json
  shoal data stats job.yaml -o json | jq '.sources[].bytes_per_token'

Exit codes: 0 done, 1 failed, 2 wrong usage, manifest or text.";

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Train a byte-level BPE on files and write a Hugging Face tokenizer.json
    #[command(after_help = TOKENIZER_EXAMPLES)]
    Tokenizer(TrainTokenizer),
    /// Show documents, or windows of a run, token by token
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(Inspect),
    /// Count documents, bytes, tokens, copies and windows
    ///
    /// Of the sources and evaluation sets of a manifest, or of files. A tokenizer that a manifest
    /// wants trained is trained for this, and not kept.
    #[command(after_help = STATS_EXAMPLES)]
    Stats(Stats),
}

#[derive(Debug, Args)]
pub(crate) struct TrainTokenizer {
    /// Files, directories, globs, https:// and hf:// addresses
    #[arg(required = true)]
    pub files: Vec<String>,
    /// Tokens it may have, the 256 bytes and the end token included
    #[arg(long, value_name = "N")]
    pub vocab: u32,
    /// Where to write it; a file that is there stays
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Where the text is in JSON Lines and Parquet; dots go inwards
    #[arg(long, default_value = "text")]
    pub field: String,
    /// Train on at most so many millions of bytes, the same share of every file
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub max_mb: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Files, directories, globs, https:// and hf:// addresses
    #[arg(required_unless_present = "run")]
    pub files: Vec<String>,
    /// Windows of a run's training, held-out and evaluation text instead
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["files", "tokenizer", "field"])]
    pub run: Option<PathBuf>,
    /// `bytes`, or the path of a tokenizer.json
    #[arg(long, default_value = "bytes")]
    pub tokenizer: String,
    /// Where the text is in JSON Lines and Parquet; dots go inwards
    #[arg(long, default_value = "text")]
    pub field: String,
    /// Documents of the files together, or windows of each part of a run
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub documents: usize,
    /// First tokens of each that are shown
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub tokens: usize,
    /// How to show it
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// One manifest (.yaml, .yml), or files, directories, globs and addresses
    #[arg(required = true, value_name = "MANIFEST|FILES")]
    pub files: Vec<String>,
    /// `bytes`, or the path of a tokenizer.json; a manifest has its own
    #[arg(long)]
    pub tokenizer: Option<String>,
    /// Where the text is in JSON Lines and Parquet; a manifest has its own [default: text]
    #[arg(long)]
    pub field: Option<String>,
    /// Change one value of the manifest below `spec`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// How to show it
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

/// For whom results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[value(alias = "text")]
    Table,
    /// For programs
    Json,
}
