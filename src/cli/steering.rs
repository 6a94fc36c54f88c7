//! Verbs for a run under way, from another terminal.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use shoal_plan::plan::WorkerId;

use super::Home;

pub(super) const STATUS_EXAMPLES: &str = "\
Examples:
  shoal status runs/small
  shoal status runs/small -o json | jq '.workers[] | select(.straggler)'
  watch shoal status runs/small

Of a run that is not under way the table says what its files say: the last step, the newest checkpoint,
how it ended. Exit codes: 0 done, 2 no such run, 4 the run refused to answer.";

pub(super) const DRAIN_EXAMPLES: &str = "\
Examples:
  shoal drain runs/small worker-2
  shoal drain runs/small 2 --no-wait
  shoal drain attic

Exit codes: 0 the worker has left, 1 it was lost before, 2 wrong usage, 3 no run is under way or it cannot be
reached, 4 refused: there is no such worker, it has left, or the others need it.";

pub(super) const STOP_EXAMPLES: &str = "\
Examples:
  shoal stop runs/small
  shoal stop runs/small --now

The launcher ends as after Ctrl-C, with exit code 130; the same `shoal launch` goes on. Exit codes: 0 the run
has ended, 1 it failed instead, 2 wrong usage, 3 no run is under way or it cannot be reached, 4 refused.";

pub(super) const PAUSE_EXAMPLES: &str = "\
Examples:
  shoal pause runs/small
  shoal resume runs/small

Exit codes: 0 done, 2 wrong usage, 3 no run is under way or it cannot be reached, 4 refused.";

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The run's directory, or the name of a cluster's job
    pub run: PathBuf,
    /// How to show it
    #[arg(short, long, default_value = "table")]
    pub output: Form,
    #[command(flatten)]
    pub home: Home,
}

/// For whom a status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people
    Table,
    /// For programs
    Json,
    Yaml,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// The run's directory, or the name of a cluster's job
    pub run: PathBuf,
    /// Its name or number: worker-2, or 2. Without it the first argument is a rig of a cluster, which is also
    /// given no more work
    #[arg(value_parser = worker)]
    pub worker: Option<WorkerId>,
    /// Return when the order is taken, and do not wait until the worker has left
    #[arg(long)]
    pub no_wait: bool,
    /// Even if fewer than `workers.min` are left: the run pauses, and ends if nobody can come
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub home: Home,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// The run's directory, or the name of a cluster's job
    pub run: PathBuf,
    /// Return when the order is taken, and do not wait for the end
    #[arg(long)]
    pub no_wait: bool,
    /// At once and without a checkpoint, as a second Ctrl-C
    #[arg(long)]
    pub now: bool,
    #[command(flatten)]
    pub home: Home,
}

#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// The run's directory, or the name of a cluster's job
    pub run: PathBuf,
    /// Return when the order is taken, and do not wait for the end of the step
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub home: Home,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The run's directory, or the name of a cluster's job
    pub run: PathBuf,
    #[command(flatten)]
    pub home: Home,
}

fn worker(text: &str) -> Result<WorkerId, String> {
    let number = text.strip_prefix("worker-").unwrap_or(text);
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.parse().ok().filter(|_| is_number);
    number.map(WorkerId).ok_or_else(|| "wanted a worker, such as worker-2 or 2".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_named_or_numbered() {
        for text in ["worker-2", "2", "02"] {
            assert_eq!(worker(text), Ok(WorkerId(2)), "{text}");
        }
        for text in ["", "worker-", "worker", "-2", "+2", "two", "worker-2 ", "99999999999"] {
            assert!(worker(text).is_err(), "{text}");
        }
    }
}
