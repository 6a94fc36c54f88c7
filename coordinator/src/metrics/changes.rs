//! Workers lost, recoveries, moves: what a run went through and how long it took.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Result};

use super::book::Book;
use crate::news::News;

/// Why a worker is evicted, and so why a run recovers.
const LOSSES: [&str; 6] = ["exited", "hung_up", "lease_ended", "internal", "peer_lost", "diverged"];

#[derive(Clone, Debug)]
pub(super) struct Changes {
    recoveries: IntCounterVec,
    recovery_seconds: Histogram,
    evictions: IntCounterVec,
    quarantines: IntCounter,
    stragglers: IntCounter,
    stall_seconds: Histogram,
    paused: IntGauge,
    restarts: IntCounter,
    not_journalled: IntCounter,
    in_memory: IntGauge,
    durable: IntGauge,
}

impl Changes {
    pub(super) fn new(book: &Book) -> Result<Self> {
        Ok(Self {
            recoveries: book.counters(
                "shoal_recoveries_total",
                "How often the run went on from an earlier state.",
                ("cause", &["nonfinite", "lost"]),
            )?,
            recovery_seconds: book.seconds(
                "shoal_recovery_duration_seconds",
                "Time from the first sign of a loss, or from going back, until all train again.",
            )?,
            evictions: book.counters(
                "shoal_evictions_total",
                "Workers that were lost.",
                ("cause", &LOSSES),
            )?,
            quarantines: book.counter(
                "shoal_quarantines_total",
                "How often a worker got no cells for a while because it was lost too often.",
            )?,
            stragglers: book.counter(
                "shoal_stragglers_total",
                "How often a worker was found to take much longer than the others.",
            )?,
            stall_seconds: book.seconds(
                "shoal_edge_stall_seconds",
                "Time the others waited between two steps while cells moved.",
            )?,
            paused: book.integer("shoal_paused", "1 while too few workers are here.")?,
            restarts: book.counter(
                "shoal_coordinator_restarts_total",
                "How often the coordinator was started anew since the launch.",
            )?,
            not_journalled: book.counter(
                "shoal_coordinator_journal_failures_total",
                "How often the coordinator could not write down what it knows.",
            )?,
            in_memory: book.integer(
                "shoal_memory_snapshot_step",
                "The newest committed step whose state is whole in the workers' memory.",
            )?,
            durable: book.integer(
                "shoal_durable_step",
                "The newest step whose state outlives the loss of any one worker.",
            )?,
        })
    }

    pub(super) fn observe(&self, news: &News) {
        match news {
            News::RolledBack { .. } => self.recoveries.with_label_values(&["nonfinite"]).inc(),
            News::Recovering { .. } => self.recoveries.with_label_values(&["lost"]).inc(),
            News::Recovered { seconds, .. } => self.recovered(*seconds),
            News::Evicted { cause, .. } => {
                self.evictions.with_label_values(&[cause.label()]).inc();
            }
            News::Quarantined { .. } | News::Parted { .. } => self.quarantines.inc(),
            News::Straggler { .. } => self.stragglers.inc(),
            News::MovedAtEdge { stall_seconds, .. } => self.stall_seconds.observe(*stall_seconds),
            // Counted by the restart itself.
            News::CaughtUp { .. }
            | News::Joined { .. }
            | News::Planned(_)
            | News::Started
            | News::Step(_)
            | News::Evaluated { .. }
            | News::CheckpointCommitted { .. }
            | News::CheckpointFailed { .. }
            | News::Rejoined { .. }
            | News::JoinedLate { .. }
            | News::Left { .. }
            | News::Draining { .. }
            | News::StopAsked { .. }
            | News::Paused { .. }
            | News::Resumed
            | News::SharesMove { .. }
            | News::Prepared { .. }
            | News::Yielding { .. }
            | News::Diverged { .. }
            | News::Finished { .. }
            | News::Failed(_) => {}
        }
    }

    /// This often, all told: a process that was started anew begins at 0.
    pub(super) fn restarted(&self, restarts: u64) {
        self.restarts.inc_by(restarts.saturating_sub(self.restarts.get()));
    }

    pub(super) fn not_journalled(&self) {
        self.not_journalled.inc();
    }

    /// All train again.
    pub(super) fn recovered(&self, seconds: f64) {
        self.recovery_seconds.observe(seconds);
    }

    pub(super) fn kept(&self, in_memory: i64, durable: i64, paused: bool) {
        self.in_memory.set(in_memory);
        self.durable.set(durable);
        self.paused.set(paused.into());
    }
}
