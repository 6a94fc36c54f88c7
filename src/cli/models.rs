//! `shoal import` and `shoal export`: models as directories.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Output;

pub(super) const IMPORT_EXAMPLES: &str = "\
Examples:
  shoal import ~/models/Moonlight-16B-A3B -o moonlight
  shoal import ~/models/DeepSeek-V3 -o v3 --dtype bf16 --show json

Then, in a manifest: training.init: moonlight
Exit codes: 0 done, 1 the disk failed, 2 wrong usage, 5 the model is missing, damaged or another.";

pub(super) const EXPORT_EXAMPLES: &str = "\
Examples:
  shoal export runs/quickstart -o quickstart-hf
  shoal export runs/quickstart/checkpoints/step-300 -o fp8 --dtype fp8
  python -c 'from transformers import AutoModelForCausalLM as M; M.from_pretrained(\"quickstart-hf\")'

Exit codes: 0 done, 1 the disk failed, 2 wrong usage, 5 the model is missing, damaged or another.";

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The directory of a Hugging Face model (config.json and safetensors), or of a run
    pub model: PathBuf,
    /// Where to write it
    #[arg(short, long, value_name = "DIRECTORY")]
    pub output: PathBuf,
    /// Of the weights [default: as they are; F16 becomes F32, FP8 becomes BF16]
    #[arg(long)]
    pub dtype: Option<ImportDtype>,
    #[command(flatten)]
    pub writing: Writing,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A run (its newest checkpoint), a checkpoint, or any model's directory
    pub model: PathBuf,
    #[command(flatten)]
    pub exporting: Exporting,
}

/// Where to export to, and in which form.
#[derive(Debug, Args)]
pub(crate) struct Exporting {
    /// Where to write it
    #[arg(short, long, value_name = "DIRECTORY")]
    pub output: PathBuf,
    /// Of the weights; fp8 is DeepSeek's form: blocks of 128 x 128 of the Linears
    #[arg(long, default_value = "bf16")]
    pub dtype: ExportDtype,
    /// The average of the parameters that training.ema keeps, in their place
    #[arg(long)]
    pub average: bool,
    #[command(flatten)]
    pub writing: Writing,
}

/// What both have in common.
#[derive(Debug, Args)]
pub(crate) struct Writing {
    /// The most bytes of one file, in millions
    #[arg(long, value_name = "MB", default_value_t = 4000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub shard_size: u64,
    /// Replace a model's directory that is there
    #[arg(long)]
    pub force: bool,
    /// How to show what was written
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub show: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportDtype {
    Bf16,
    F32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportDtype {
    Bf16,
    F32,
    Fp8,
}
