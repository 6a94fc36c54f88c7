//! Checkpoints as Prometheus sees them: when, how large, how long the last act took, and why one
//! failed.

use prometheus::{Gauge, HistogramVec, IntCounter, IntCounterVec, IntGauge};

use super::book::Book;
use super::whole;
use crate::error::Error;

/// The last act of one checkpoint, done or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) step: u64,
    /// Of all files.
    pub(crate) bytes: u64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// When it was over, as Unix time.
    pub(crate) unix_seconds: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Checkpoints {
    completed: IntCounter,
    failed: IntCounterVec,
    last_step: IntGauge,
    last_success: Gauge,
    bytes: IntGauge,
    durations: HistogramVec,
}

impl Checkpoints {
    pub(super) fn new(book: &Book) -> prometheus::Result<Self> {
        let checkpoints = Self {
            completed: book.counter("shoal_checkpoints_total", "Checkpoints completed.")?,
            failed: book.counters(
                "shoal_checkpoint_failures_total",
                "Checkpoints that could not be completed.",
                ("reason", &["write", "io", "file_size", "ledger"]),
            )?,
            last_step: book.integer(
                "shoal_checkpoint_last_step",
                "The step of the newest complete checkpoint.",
            )?,
            last_success: book.gauge(
                "shoal_checkpoint_last_success_timestamp_seconds",
                "When the newest complete checkpoint was completed, as Unix time; 0 before the first.",
            )?,
            bytes: book.integer(
                "shoal_checkpoint_size_bytes",
                "Size of the newest complete checkpoint.",
            )?,
            durations: book.seconds_by(
                "shoal_checkpoint_duration_seconds",
                "Time that a phase of writing a checkpoint took.",
                "phase",
            )?,
        };
        // The other phase is the workers'.
        checkpoints.durations.with_label_values(&["commit"]);
        Ok(checkpoints)
    }

    /// Some cell could not write its files.
    pub(super) fn not_written(&self) {
        self.failed.with_label_values(&["write"]).inc();
    }

    pub(super) fn committed(&self, what: &Committed, result: Result<(), &Error>) {
        if let Err(error) = result {
            let reason = match error {
                Error::FileSize { .. } => "file_size",
                Error::Ledger { .. } => "ledger",
                Error::Io { .. }
                | Error::Listen { .. }
                | Error::Metrics { .. }
                | Error::Journal { .. }
                | Error::Record { .. } => "io",
            };
            return self.failed.with_label_values(&[reason]).inc();
        }
        self.completed.inc();
        self.last_step.set(whole(what.step));
        self.last_success.set(what.unix_seconds);
        self.bytes.set(whole(what.bytes));
        self.durations.with_label_values(&["commit"]).observe(what.seconds);
    }
}
