//! `shoal page`.

use std::path::PathBuf;

use clap::Args;

use super::Home;

pub(super) const PAGE_EXAMPLES: &str = "\
Examples:
  shoal page
  shoal page runs/small
  shoal page first --port 8080
  ssh -L 8080:127.0.0.1:8080 trainer shoal page runs/small --port 8080

Prints a link, which is good once, and serves until Ctrl-C, on this machine alone. `shoal launch` serves such a page of its
own run. Exit codes: 1 the port is taken, 2 wrong usage, or no such run or cluster, 3 the coordinator cannot be reached,
130 Ctrl-C, 143 SIGTERM.";

#[derive(Debug, Args)]
pub(crate) struct Page {
    /// A run's directory, or the name of a cluster's job [default: the cluster; without one the newest run in runs/]
    pub what: Option<PathBuf>,
    /// Serve it at this port; 0 takes any free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub port: u16,
    #[command(flatten)]
    pub home: Home,
}
