//! What is known of each worker: how far it is, when it was heard, how fast it computes. And of
//! those who are none: whom the door refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{Gauge, GaugeVec, IntCounterVec, IntGaugeVec, Result};
use shoal_plan::job::Job;
use shoal_plan::plan::{Plan, WorkerId};
use shoal_plan::work;

use super::book::Book;

/// The newest step's weight in a worker's speed: one step alone is noisy.
const SMOOTHING: f64 = 0.1;

/// How far a worker is. Every worker is in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WorkerState {
    /// Has said hello, and waits for a plan or builds its cells.
    Joining,
    /// Waits for the others to be ready.
    Ready,
    Training,
    /// Has no cells: there are as many workers as cells, or it was lost too often.
    Spare,
    Finished,
    /// Its connection ended, or its lease; or it was evicted, and has not come back.
    Lost,
}

impl WorkerState {
    const ALL: [Self; 6] =
        [Self::Joining, Self::Ready, Self::Training, Self::Spare, Self::Finished, Self::Lost];

    fn label(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Training => "training",
            Self::Spare => "spare",
            Self::Finished => "finished",
            Self::Lost => "lost",
        }
    }
}

/// Why a call without the run's secret was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthFailure {
    Missing,
    /// Not 64 hexadecimal digits.
    Malformed,
    Wrong,
}

/// Why a connection or a call was turned away, beside a wrong secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// There are as many connections as there may be.
    Connections,
    /// No hello in time.
    NoHello,
    /// A message that does not pass the door.
    BadMessage,
    /// Not a worker of this run, or not now.
    Refused,
}

/// The figures of workers and strangers.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    states: IntGaugeVec,
    heard: GaugeVec,
    speeds: GaugeVec,
    predicted: Gauge,
    auth: IntCounterVec,
    rejected: IntCounterVec,
    pace: Arc<Mutex<Pace>>,
}

/// What speed is computed from.
#[derive(Debug, Default)]
struct Pace {
    /// Of a step's FLOPs, by the plan in force.
    shares: BTreeMap<WorkerId, f64>,
    /// Share per second of computing, smoothed.
    speeds: BTreeMap<WorkerId, f64>,
    /// Of a step in which a stage waits by the schedule alone.
    bubble: f64,
}

impl Pace {
    /// The slowest worker's computing paces all stages, and the schedule makes them wait beside it.
    /// `None` before every worker of the plan was heard.
    fn step_seconds(&self) -> Option<f64> {
        let seconds = |(worker, share): (&WorkerId, &f64)| Some(share / self.speeds.get(worker)?);
        let all: Option<Vec<f64>> = self.shares.iter().map(seconds).collect();
        Some(all?.into_iter().fold(0.0, f64::max) / (1.0 - self.bubble))
    }
}

impl Workers {
    pub(super) fn new(book: &Book) -> Result<Self> {
        let workers = Self {
            states: book.integers(
                "shoal_workers",
                "Workers that have joined, by state.",
                "state",
            )?,
            heard: book.gauges(
                "shoal_worker_last_heartbeat_timestamp_seconds",
                "When a worker was last heard, as Unix time.",
                &["worker"],
            )?,
            speeds: book.gauges(
                "shoal_worker_speed_ratio",
                "FLOPs per second of computing, relative to the fastest worker's.",
                &["worker"],
            )?,
            predicted: book.gauge(
                "shoal_step_predicted_seconds",
                "What a step takes at the workers' measured speed if sending costs nothing.",
            )?,
            auth: book.counters(
                "shoal_auth_failures_total",
                "Calls without the run's secret.",
                ("reason", &["missing", "malformed", "wrong"]),
            )?,
            rejected: book.counters(
                "shoal_rpc_rejected_total",
                "Connections and calls that were turned away.",
                ("reason", &["connections", "no_hello", "bad_message", "refused"]),
            )?,
            pace: Arc::default(),
        };
        workers.states(&BTreeMap::new());
        Ok(workers)
    }

    pub(super) fn states(&self, count: &BTreeMap<WorkerState, u32>) {
        for state in WorkerState::ALL {
            let n = count.get(&state).copied().unwrap_or(0);
            self.states.with_label_values(&[state.label()]).set(n.into());
        }
    }

    pub(super) fn heard(&self, worker: WorkerId, unix_seconds: f64) {
        self.heard.with_label_values(&[&worker.0.to_string()]).set(unix_seconds);
    }

    /// Speeds start anew: the work is divided otherwise.
    pub(super) fn planned(&self, job: &Job, plan: &Plan) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        *pace = Pace::default();
        for (cell, share) in plan.grid.cells().zip(work::shares(job, plan)) {
            *pace.shares.entry(plan.host(cell)).or_default() += share;
        }
        pace.bubble = job.pipeline().bubble_share(job.largest_division().n_microbatches());
        self.speeds.reset();
        self.predicted.set(0.0);
    }

    /// A worker computed for so long in one step.
    pub(super) fn computed(&self, worker: WorkerId, seconds: f64) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        // A step that was refused at once, or a clock that did not move, says nothing of speed.
        let Some(share) = pace.shares.get(&worker).filter(|_| seconds > 0.0) else { return };
        let now = share / seconds;
        let speed = pace.speeds.entry(worker).or_insert(now);
        *speed += SMOOTHING * (now - *speed);
        let fastest = pace.speeds.values().copied().fold(0.0, f64::max);
        for (worker, speed) in &pace.speeds {
            self.speeds.with_label_values(&[&worker.0.to_string()]).set(speed / fastest);
        }
        if let Some(seconds) = pace.step_seconds() {
            self.predicted.set(seconds);
        }
    }

    pub(super) fn auth_failed(&self, why: AuthFailure) {
        let reason = match why {
            AuthFailure::Missing => "missing",
            AuthFailure::Malformed => "malformed",
            AuthFailure::Wrong => "wrong",
        };
        self.auth.with_label_values(&[reason]).inc();
    }

    pub(super) fn rejected(&self, why: Rejected) {
        let reason = match why {
            Rejected::Connections => "connections",
            Rejected::NoHello => "no_hello",
            Rejected::BadMessage => "bad_message",
            Rejected::Refused => "refused",
        };
        self.rejected.with_label_values(&[reason]).inc();
    }
}
