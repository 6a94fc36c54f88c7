//! Verbs that let a model write: `generate` and `serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Output, Precision};

const GENERATE_EXAMPLES: &str = "\
Examples:
  shoal generate runs/quickstart 'pub fn ' --temperature 0
  shoal generate runs/quickstart --file start.txt --tokens 500 --stop '\n\n'
  echo 'Once upon' | shoal generate models/tiny --file - -o json

Exit codes: 0 done, 1 failed, 2 wrong usage, 5 no model there or a damaged one, 130 Ctrl-C.";

const SERVE_EXAMPLES: &str = "\
Examples:
  shoal serve runs/quickstart
  curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{\"prompt\": \"pub fn \", \"max_tokens\": 50}'
  shoal serve models/tiny --listen 0.0.0.0:8000 --token-file token.txt

Exit codes: 0 stopped by a signal after the last answer, 1 failed, 2 wrong usage, 5 no model there.";

/// The model, and how it is computed.
#[derive(Debug, Args)]
pub(crate) struct Model {
    /// A checkpoint, a run directory (its newest checkpoint), or a Hugging Face directory
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Form of weights and activations
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    pub precision: Precision,
    /// Compute threads; 0: one for each core
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// A tokenizer.json in place of the model's own
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
}

/// Who drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Speculate {
    /// The model's multi-token-prediction modules, if it has any
    Auto,
    /// The model's multi-token-prediction modules
    Mtp,
    /// Nobody: one token a step
    Off,
}

/// `shoal generate`.
#[derive(Debug, Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub(crate) struct Generate {
    #[command(flatten)]
    pub model: Model,
    /// What to continue; nothing: begin a text
    #[arg(conflicts_with = "file")]
    pub prompt: Option<String>,
    /// Continue what is in this file; -: standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Tokens to write, at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub tokens: usize,
    /// Divides the logits; 0: always the likeliest token
    #[arg(long, value_name = "X", default_value_t = 0.7)]
    pub temperature: f32,
    /// Only the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Only so many of the likeliest tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// The same seed writes the same text
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Who drafts tokens for the model to verify
    #[arg(long, value_enum, default_value_t = Speculate::Auto)]
    pub speculate: Speculate,
    /// Continue the prompt so many times at once, with seeds from --seed on; the first is shown
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch: u16,
    /// Text as it comes, or one JSON object at the end
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `shoal serve`.
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub model: Model,
    /// Where to listen; anything but loopback needs --token-file
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// A file with the token that requests must bring (Authorization: Bearer TOKEN)
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Who drafts tokens for the model to verify
    #[arg(long, value_enum, default_value_t = Speculate::Auto)]
    pub speculate: Speculate,
    /// Texts that may be under way or wait; further requests are answered 429
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub queue: usize,
    /// Seconds that an answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub time_limit: u64,
}
