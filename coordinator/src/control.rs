//! What a run under way can be asked and told from another terminal, and what it answers. Words only: orders
//! are decided in `state/ordered.rs`, and what a run says of itself is in `state/telling.rs`.
//!
//! On the wire they are JSON. An order that is given twice changes nothing the second time: whoever got no
//! answer asks again.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use shoal_plan::grid::Grid;
use shoal_plan::plan::WorkerId;
use shoal_plan::routing::Routing;
use shoal_plan::trace::StepTrace;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    Status,
    Order(Order),
    /// What has come of the last trace from this piece on.
    Traced {
        after: u64,
    },
}

/// What changes the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// A worker is to hand over its cells at the end of a step and go for good.
    Drain {
        worker: WorkerId,
        /// Even if fewer than `workers.min` are left.
        force: bool,
    },
    /// Write a checkpoint and end.
    Stop {
        /// End without one.
        now: bool,
    },
    /// Wait between two steps, with everything in memory.
    Pause,
    /// Go on.
    Resume,
    /// Note what each cell does in so many steps: they are told a moment from now, and `Ask::Traced` gathers it.
    Trace { steps: u64 },
    /// Of a cluster's coordinator: how the run's rigs come together, in the place of what was said before. Counts from
    /// the next plan on.
    Meet(Vec<Meeting>),
}

/// How two rigs come together of which not both can dial the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meeting {
    /// By name, in order.
    pub rigs: (String, String),
    pub way: Way,
}

/// The way between two rigs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Way {
    /// Only this one of the two can dial the other.
    From(String),
    /// Neither can: both dial this rig, which passes bytes on.
    Through { rig: String, at: SocketAddr },
    /// Neither can: both dial the cluster's door, which passes bytes on.
    ThroughCoordinator,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(rig) => write!(f, "from {rig}"),
            Self::Through { rig, .. } => write!(f, "through {rig}"),
            Self::ThroughCoordinator => f.write_str("through the coordinator"),
        }
    }
}

/// The most that are said of one run: what is not listed is taken for a pair of which both can dial.
pub const MEETINGS_MAX: usize = 500;

/// To one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Status(Box<Status>),
    Traced(Box<Traced>),
    /// The order is written down, and will be carried out: what happens now, as a sentence.
    Accepted(String),
    /// Nothing has changed: why, and what would help, as a sentence.
    Refused(String),
}

/// What was asked for, and some of what has come of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traced {
    /// The first step of so many.
    pub first: u64,
    pub steps: u64,
    /// The worker of each cell, in cell order.
    pub hosts: Vec<WorkerId>,
    /// As they came. More may follow, in the same answer to a later question.
    pub pieces: Vec<StepTrace>,
}

/// The most steps that are traced at once.
pub const TRACED_STEPS_MAX: u64 = 100;

/// What a run under way says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub phase: RunPhase,
    /// Why it is paused, or what it waits for.
    pub why: Option<String>,
    /// The last committed step.
    pub step: u64,
    pub steps: u64,
    /// Of the newest trained step, nats per token.
    pub loss: Option<f64>,
    /// Smoothed; unknown before the second step of this launch, and after a coordinator's restart.
    pub seconds_per_step: Option<f64>,
    pub tokens_per_second: Option<f64>,
    /// For the steps that are left, at this rate.
    pub seconds_left: Option<f64>,
    /// Of the plan in force; 0 before the first.
    pub generation: u64,
    /// The newest step that is whole on disk; 0: none.
    pub checkpoint_step: u64,
    /// The newest step that is whole in the workers' memory; 0: none.
    pub snapshot_step: u64,
    /// How often this launch went on after somebody was lost.
    pub recoveries: u64,
    pub coordinator_restarts: u64,
    /// With fewer the run pauses.
    pub workers_min: u32,
    /// All that the launch wants, here or not.
    pub workers: Vec<WorkerStatus>,
    /// What cells there are.
    #[serde(default)]
    pub grid: Option<Grid>,
    /// How even the experts' load was in the newest trained step, by layer.
    #[serde(default)]
    pub routers: Vec<Routing>,
    /// How each two of the rigs that are here come together; none where workers are on one machine.
    pub ways: Vec<WayStatus>,
}

/// The way between workers of which both can dial the other.
pub const DIRECT: &str = "direct";

/// How two workers exchange data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayStatus {
    pub workers: (WorkerId, WorkerId),
    /// `DIRECT`, or as `Way` is said.
    pub way: String,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// Workers are joining.
    Connecting,
    /// A plan is out, and workers build their cells.
    Preparing,
    Training,
    /// The next step that all agree on is the last.
    Stopping,
    /// All end between the same two steps, for another plan.
    Edging,
    /// Somebody is lost, and a new plan is made.
    Recovering,
    Paused,
    Ended,
}

/// One worker, as the coordinator knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub worker: WorkerId,
    pub state: WorkerIs,
    /// Of the plan in force.
    pub cells: Vec<u32>,
    pub heard_seconds_ago: Option<f64>,
    /// Its time for a unit of work, as a multiple of the others' median.
    pub pace: Option<f64>,
    /// It is called slow.
    pub straggler: bool,
    /// Why it gives way to somebody else.
    pub yields_to: Option<String>,
    /// For so long it gets no cells.
    pub quarantine_seconds: Option<u64>,
    /// How often this launch has lost it.
    pub losses: u32,
}

/// What a worker is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerIs {
    /// It has not said hello.
    Connecting,
    /// It waits for a plan.
    Waiting,
    /// It builds its cells.
    Preparing,
    /// Its cells are built, and it waits for the others.
    Ready,
    Training,
    /// It has no cells.
    Spare,
    /// It has no cells, because somebody else needs its machine.
    Yielding,
    /// It was asked to go, and has yet to hand over.
    Draining,
    Finished,
    /// Its connection has ended, and it may come back at any moment.
    CutOff,
    /// It is out, and has not come back.
    Lost,
    /// It was asked to go, and has gone.
    Left,
}

impl fmt::Display for RunPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connecting => "connecting",
            Self::Preparing => "preparing",
            Self::Training => "training",
            Self::Stopping => "stopping",
            Self::Edging => "edging",
            Self::Recovering => "recovering",
            Self::Paused => "paused",
            Self::Ended => "ended",
        })
    }
}

impl fmt::Display for WorkerIs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connecting => "connecting",
            Self::Waiting => "waiting",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Training => "training",
            Self::Spare => "spare",
            Self::Yielding => "yielding",
            Self::Draining => "draining",
            Self::Finished => "finished",
            Self::CutOff => "cut off",
            Self::Lost => "lost",
            Self::Left => "left",
        })
    }
}
