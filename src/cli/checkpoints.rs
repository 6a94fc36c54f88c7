//! `shoal checkpoints`: what a run has saved.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::models::Exporting;
use super::{Export, Output};

const LS_EXAMPLES: &str = "\
Examples:
  shoal checkpoints ls runs/quickstart
  shoal checkpoints ls -o json | jq '.[] | select(.best)'

Sizes are looked at, hashes are not: that is `verify`. Exit codes: 0 done, 1 the disk failed, 2 no
such run.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  shoal checkpoints verify runs/quickstart
  shoal checkpoints verify runs/quickstart --step 300 -o json

Every byte is read. Exit codes: 0 all are good, 1 the disk failed, 2 no such run, 5 a checkpoint is
damaged, or there is none.";

const GC_EXAMPLES: &str = "\
Examples:
  shoal checkpoints gc runs/quickstart --dry-run
  shoal checkpoints gc runs/quickstart --keep 1

Checkpoints are verified until enough good ones are found to keep; the newest good one and the best
never go. A run that is under way is refused. Exit codes: 0 done, 1 the disk failed, 2 wrong usage.";

const EXPORT_EXAMPLES: &str = "\
Examples:
  shoal checkpoints export runs/quickstart -o quickstart-hf
  shoal checkpoints export runs/quickstart --step 300 -o step-300-fp8 --dtype fp8

The same as `shoal export`, by step. Exit codes: 0 done, 1 the disk failed, 2 wrong usage, 5 the
checkpoint is missing or damaged.";

#[derive(Debug, Subcommand)]
pub(crate) enum Checkpoints {
    /// What there is: step, loss, size, age, and whether it is complete
    #[command(after_help = LS_EXAMPLES)]
    Ls(Ls),
    /// Read every byte and hold it against the hashes in the manifest
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Verify),
    /// Delete old checkpoints, and what crashes left behind
    #[command(after_help = GC_EXAMPLES)]
    Gc(Gc),
    /// Write one as a Hugging Face model
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportStep),
}

/// Whose checkpoints.
#[derive(Debug, Args)]
pub(crate) struct OfRun {
    /// A run directory [default: this directory if it is one, else the newest in runs/]
    pub run: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    pub of: OfRun,
    /// How to show them
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    pub of: OfRun,
    /// Only the checkpoint of this step
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    /// How to show what was found
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    #[command(flatten)]
    pub of: OfRun,
    /// Good checkpoints to keep, the newest first [default: the run's checkpoint.keep]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
    /// Delete damaged ones, too, however new
    #[arg(long)]
    pub damaged: bool,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
    /// How to show what went
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ExportStep {
    #[command(flatten)]
    pub of: OfRun,
    /// The checkpoint of this step [default: the newest good one]
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    #[command(flatten)]
    pub exporting: Exporting,
}

impl ExportStep {
    /// The same as a command of the verb `export`.
    pub(crate) fn of_model(self, model: PathBuf) -> Export {
        Export { model, exporting: self.exporting }
    }
}
