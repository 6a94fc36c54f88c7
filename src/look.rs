//! Looking at a cluster or a run: what one look has found, and nothing of how it is shown. `shoal top` and the page show
//! the same.

mod files;
mod gather;
mod past;
mod step;

use std::collections::BTreeMap;

use shoal_cluster::words::{JobStatus, RigStatus};
use shoal_coordinator::control::Status;
use shoal_plan::plan::WorkerId;

pub(crate) use gather::Source;
pub(crate) use past::Past;
pub(crate) use step::{CellStep, NewestStep};

/// All of it. What came from elsewhere may hold anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Look {
    /// Since the first look.
    pub seconds: f64,
    /// `cluster lab`, or the run's directory.
    pub title: String,
    pub rigs: Vec<RigStatus>,
    pub jobs: Vec<JobStatus>,
    pub run: Option<Run>,
    /// Why what is shown is older than it should be.
    pub trouble: Option<String>,
}

/// The run that is looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Run {
    pub name: String,
    /// While it is under way and answers.
    pub status: Option<Status>,
    /// Why it does not, or how it ended.
    pub why: Option<String>,
    /// The rigs that its workers are.
    pub seats: BTreeMap<WorkerId, String>,
    /// Step and loss of the past, where this machine has the run's files.
    pub losses: Vec<(u64, f64)>,
    /// What happened, the newest last, where this machine has the run's files.
    pub events: Vec<String>,
    /// Losses of the held-out text, as the losses above.
    pub heldout: Vec<(u64, f64)>,
    /// Bytes of the data plane, by worker, since its start.
    pub traffic: BTreeMap<WorkerId, Traffic>,
    /// How the newest step went, of workers on this machine, where it was asked for.
    pub newest: BTreeMap<WorkerId, NewestStep>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Traffic {
    pub sent: f64,
    pub received: f64,
}
