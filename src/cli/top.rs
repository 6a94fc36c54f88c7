//! `shoal top`.

use std::path::PathBuf;

use clap::Args;

use super::Home;

pub(super) const TOP_EXAMPLES: &str = "\
Examples:
  shoal top
  shoal top runs/small
  shoal top first --every 5
  shoal top --once > now.txt

Keys: q ends, tab goes to the next part, arrows and page keys move in it, enter makes it large, left and right choose
another job, ? says so. NO_COLOR turns colours off. Exit codes: 0 ended by q, 2 wrong usage, or no such run or cluster,
3 the coordinator cannot be reached, 130 Ctrl-C, 143 SIGTERM.";

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// A run's directory, or the name of a cluster's job [default: the cluster; without one the newest run in runs/]
    pub what: Option<PathBuf>,
    /// Show one picture on standard output, and end; so it is where that is no terminal
    #[arg(long)]
    pub once: bool,
    /// Look so often, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub every: u64,
    #[command(flatten)]
    pub home: Home,
}
