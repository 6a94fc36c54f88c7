//! Verbs about runs that were made.

use std::path::PathBuf;

use clap::Args;

use super::Output;

pub(super) const COMPARE_EXAMPLES: &str = "\
Examples:
  shoal compare runs/precision-bf16 runs/precision-fp8 runs/precision-f32 --svg precision.svg
  shoal compare runs/moe runs/dense -o json

The first run is what the others are held against. Exit codes: 0 done, 1 failed, 2 wrong usage, or
runs that have no step in common.";

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// Run directories; the first is the baseline
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Weight of the past in the smoothed loss; the report's curves have 0.9
    #[arg(long, value_name = "0..1", default_value_t = 0.9, value_parser = share)]
    pub smoothing: f64,
    /// Draw the smoothed losses and their differences into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// How to show the table
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

pub(super) const EVENTS_EXAMPLES: &str = "\
Examples:
  shoal events
  shoal events runs/quickstart --since 100
  shoal events runs/quickstart -o json | jq '.[] | select(.kind == \"evicted\")'

Exit codes: 0 done, 2 wrong usage, or no such run.";

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// The run's directory [default: the newest in runs/]
    pub run: Option<PathBuf>,
    /// How to show them
    #[arg(short, long, default_value = "table")]
    pub output: Output,
    /// Only what happened when this step, or a later one, was the last committed
    #[arg(long, value_name = "STEP")]
    pub since: Option<u64>,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        Ok(_) | Err(_) => Err("wanted a number from 0 to below 1".to_owned()),
    }
}
