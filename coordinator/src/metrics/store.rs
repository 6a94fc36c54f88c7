//! The copy of the checkpoints as Prometheus sees it: how far it is, and how often it failed.

use prometheus::{Gauge, IntCounter, IntGauge};

use super::book::Book;
use super::whole;

/// All at 0 where no store is set.
#[derive(Clone, Debug)]
pub(super) struct Store {
    checkpoints: IntCounter,
    bytes: IntCounter,
    failures: IntCounter,
    last_step: IntGauge,
    last_success: Gauge,
}

impl Store {
    pub(super) fn new(book: &Book) -> prometheus::Result<Self> {
        Ok(Self {
            checkpoints: book.counter(
                "shoal_checkpoint_store_uploads_total",
                "Checkpoints that were sent to the store.",
            )?,
            bytes: book.counter(
                "shoal_checkpoint_store_upload_bytes_total",
                "Bytes of checkpoints that were sent to the store.",
            )?,
            failures: book.counter(
                "shoal_checkpoint_store_failures_total",
                "Attempts to bring the store up to date that failed; they are tried again.",
            )?,
            last_step: book.integer(
                "shoal_checkpoint_store_last_step",
                "The step of the newest checkpoint in the store; 0 before the first.",
            )?,
            last_success: book.gauge(
                "shoal_checkpoint_store_last_success_timestamp_seconds",
                "When the store was last up to date, as Unix time; 0 before the first.",
            )?,
        })
    }

    pub(super) fn stored(&self, step: u64, (checkpoints, bytes): (u64, u64), unix_seconds: f64) {
        self.checkpoints.inc_by(checkpoints);
        self.bytes.inc_by(bytes);
        self.last_step.set(whole(step));
        self.last_success.set(unix_seconds);
    }

    pub(super) fn failed(&self) {
        self.failures.inc();
    }
}
