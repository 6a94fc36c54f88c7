//! Options of `shoal plan`.

use std::path::PathBuf;

use clap::Args;

use super::{Manifest, Output};

pub(crate) const PLAN_EXAMPLES: &str = "\
Examples:
  shoal plan job.yaml --fleet fleet.yaml
  shoal plan job.yaml --fleet fleet.yaml --tokens 300B --svg step.svg
  shoal plan job.yaml --fleet fleet.yaml --what-if rig+=4xRTX4090 --what-if link.home=10Gbit/s
  shoal plan job.yaml --fleet fleet.yaml --set training.precision=bf16 -o json

A fleet's file is described in docs/fleet.md, the figures behind a plan in docs/planner.md.
Exit codes: 0 there is a plan, 1 nothing fits, 2 wrong usage, manifest or fleet, or snapshots in memory that do not fit
as the manifest sets them.";

#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub manifest: Manifest,
    /// The rigs, sites, links and prices (YAML, kind Fleet)
    #[arg(long, value_name = "FILE")]
    pub fleet: PathBuf,
    /// Train so many tokens, e.g. 20B or 1.5T [default: the manifest's steps]
    #[arg(long, value_name = "N", value_parser = tokens)]
    pub tokens: Option<f64>,
    /// Plan a changed fleet beside it: rig+=NxGPU or rig+=NxGPU@SITE, rig-=NAME, link.SITE=RATE; may be repeated
    #[arg(long, value_name = "CHANGE")]
    pub what_if: Vec<String>,
    /// Plan without each rig in turn, and say what it would cost to lose it
    #[arg(long)]
    pub losses: bool,
    /// How to print the plan
    #[arg(short, long, default_value = "table")]
    pub output: Output,
    /// Draw one step of the slowest pipeline
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `20B`: a number with a letter for thousands.
fn tokens(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'M')) => (&text[..at], 1e6),
        Some((at, 'B' | 'G')) => (&text[..at], 1e9),
        Some((at, 'T')) => (&text[..at], 1e12),
        _ => (text, 1.0),
    };
    let tokens = number.parse::<f64>().ok().map(|number| number * scale);
    tokens
        .filter(|tokens| (1.0..1e18).contains(tokens))
        .ok_or_else(|| "wanted a number such as 20B or 1.5T".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_as_people_write_them() {
        for (text, wanted) in
            [("300B", 3e11), ("1.5T", 1.5e12), ("5000", 5000.0), ("2M", 2e6), ("8k", 8e3)]
        {
            assert!((tokens(text).unwrap() - wanted).abs() < 1e-3, "{text}");
        }
        for text in ["", "B", "-1", "many", "0"] {
            assert!(tokens(text).is_err(), "{text}");
        }
    }
}
