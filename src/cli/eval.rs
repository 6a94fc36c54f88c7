//! `shoal eval`.

use std::path::PathBuf;

use clap::Args;

use super::{Output, Precision};

const EXAMPLES: &str = "\
Examples:
  shoal eval runs/quickstart ~/notes/*.txt
  shoal eval runs/quickstart/checkpoints/step-240 runs/quickstart/data/heldout-text-00000.tokens --sequence 128
  shoal eval DeepSeek-tiny --tokens ids.safetensors --logits logits.safetensors -o json
  shoal eval DeepSeek-tiny --tokens ids.json --gradients gradients.safetensors

Exit codes: 0 done, 1 failed, 2 wrong usage, text or ids, 5 the model is missing, damaged or unfit.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Eval {
    /// A checkpoint, a run (its newest checkpoint), or a Hugging Face directory
    #[arg(value_name = "DIR")]
    pub model: PathBuf,
    /// Text: files, directories, globs, https:// and hf:// addresses
    #[arg(required_unless_present = "tokens")]
    pub files: Vec<String>,
    /// Token ids instead of text: safetensors (I64, I32) or JSON with `input_ids` and `labels` [B, T]
    ///
    /// Labels are Hugging Face's: at their own positions, shifted inside, -100 does not count.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["files", "sequence", "tokens_max"])]
    pub tokens: Option<PathBuf>,
    /// Tokens of a window of text [default: the model's positions, 1024 at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub sequence: Option<u32>,
    /// Use no more of the text than so many tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    pub tokens_max: Option<u64>,
    /// `bytes`, or the path of a tokenizer.json [default: the model's own]
    #[arg(long)]
    pub tokenizer: Option<String>,
    /// Where the text is in JSON Lines and Parquet; dots go inwards
    #[arg(long, default_value = "text")]
    pub field: String,
    /// How the network computes
    #[arg(long, default_value = "f32")]
    pub precision: Precision,
    /// The loss of the multi-token-prediction modules, too
    #[arg(long)]
    pub mtp: bool,
    /// Write the main head's `logits` [B, T, V], F32
    #[arg(long, value_name = "OUT.safetensors")]
    pub logits: Option<PathBuf>,
    /// Write the gradient of the mean loss of the main head by every parameter, F32
    #[arg(long, value_name = "OUT.safetensors")]
    pub gradients: Option<PathBuf>,
    /// Replace output files that are there
    #[arg(long)]
    pub force: bool,
    /// Compute threads [default: as many as there are cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// How to show the result
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}
