//! What a coordinator must know before it starts.

use std::path::PathBuf;

use shoal_plan::job::Job;
use shoal_plan::plan::{Generation, Plan, RunId, WorkerId};
use shoal_plan::standing::Standing;
use shoal_proto::Secret;

/// Decides who hosts what; an error is a sentence for the person.
pub type MakePlan = fn(&Job, &[WorkerId], Generation) -> Result<Plan, String>;

/// One coordinator of one run.
#[derive(Clone, Debug)]
pub struct Settings {
    pub run: RunId,
    pub secret: Secret,
    pub job: Job,
    /// Workers without which the run does not start: those numbered from 0 to one less.
    pub workers_wanted: u32,
    /// So many of them suffice to begin; the others may come later. Not zero.
    pub workers_first: u32,
    /// Of the checkpoint the run goes on from.
    pub resume_from: Option<Standing>,
    /// Holds `checkpoints/` and `ledger.jsonl`. Must exist.
    pub run_dir: PathBuf,
    /// A worker silent for longer is dead. Workers send a heartbeat every 500 ms.
    pub lease_ms: u64,
    /// All workers must have joined by then.
    pub join_deadline_ms: u64,
    pub make_plan: MakePlan,
}

impl Settings {
    /// Ten heartbeats: a busy machine delays some, and a dead worker must be named within 10 s.
    pub const LEASE_MS: u64 = 5_000;

    /// Starting a process and connecting takes well under a second on an idle machine.
    pub const JOIN_DEADLINE_MS: u64 = 30_000;
}
