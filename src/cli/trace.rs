//! `shoal trace`.

use std::path::PathBuf;

use clap::Args;
use shoal_coordinator::control::TRACED_STEPS_MAX;

use super::Home;

pub(super) const TRACE_EXAMPLES: &str = "\
Examples:
  shoal trace runs/small
  shoal trace runs/small --steps 10 -o slow.json
  shoal trace first

Steps that begin half a second later are noted on all workers alike, and training does not wait. Exit codes: 0 done,
1 no cell has answered, 2 wrong usage, 3 no run is under way or it cannot be reached, 4 refused.";

#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// The run's directory, or the name of a cluster's job
    pub run: PathBuf,
    /// How many steps
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=TRACED_STEPS_MAX))]
    pub steps: u64,
    /// Where to write the trace, as JSON for ui.perfetto.dev [default: trace.json]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub home: Home,
}
