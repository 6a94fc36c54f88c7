//! Where the time of a cell's step goes, and which experts its tokens chose.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shoal_plan::grid::CellId;
use shoal_plan::trace::{Doing, Span, StepTrace};

use super::Metrics;
use super::recorder::Recorder;

/// Where the time of one cell's step under way went, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct CellClock {
    pub(super) bubble: AtomicU64,
    pub(super) communication: AtomicU64,
    optimizer: AtomicU64,
    pub(super) recorder: Recorder,
    /// The step under way is to be traced.
    is_traced: AtomicBool,
    sent: Mutex<BTreeMap<CellId, u64>>,
}

/// What a clock has counted.
pub(super) struct Spent {
    pub(super) bubble: Duration,
    pub(super) communication: Duration,
    pub(super) optimizer: Duration,
}

impl CellClock {
    /// Payload for one other cell, while a step is noted.
    pub(super) fn sent(&self, to: CellId, bytes: usize) {
        if self.recorder.is_on() {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            *sent.entry(to).or_default() += bytes as u64;
        }
    }

    fn take_sent(&self) -> BTreeMap<CellId, u64> {
        std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything since the last call.
    pub(super) fn take(&self) -> Spent {
        let take = |ns: &AtomicU64| Duration::from_nanos(ns.swap(0, Ordering::Relaxed));
        Spent {
            bubble: take(&self.bubble),
            communication: take(&self.communication),
            optimizer: take(&self.optimizer),
        }
    }
}

/// Measures the steps of one cell. Clones measure the same cell.
#[derive(Clone, Debug)]
pub(crate) struct StepWatch {
    metrics: Metrics,
    clock: Arc<CellClock>,
}

impl StepWatch {
    pub(crate) fn new(metrics: Metrics, clock: Arc<CellClock>) -> Self {
        Self { metrics, clock }
    }

    /// Runs a step, notes how long it took, and says for how many seconds it computed.
    pub(crate) fn step<T>(&self, run: impl FnOnce() -> T) -> (T, f64) {
        // What came before the step, such as an evaluation, is not its own.
        self.clock.take();
        let started = now();
        let result = run();
        let compute = self.metrics.cell_step(&self.clock, started.elapsed());
        (result, compute.as_secs_f64())
    }

    /// A step begins. Each stretch is noted until `traced`, if it is to be traced or somebody looks at the run.
    pub(crate) fn begins(&self, is_traced: bool) {
        self.clock.is_traced.store(is_traced, Ordering::Relaxed);
        if is_traced || self.metrics.latest.is_wanted(now()) {
            self.clock.take_sent();
            self.clock.recorder.begin();
        }
    }

    /// What was noted of the step that has ended; nothing if nobody asked for a trace.
    pub(crate) fn traced(&self, step: u64, cell: CellId) -> Vec<StepTrace> {
        let pieces = self.clock.recorder.end(step, cell);
        if !pieces.is_empty() {
            self.metrics.latest.did(&pieces, self.clock.take_sent());
        }
        if self.clock.is_traced.load(Ordering::Relaxed) { pieces } else { Vec::new() }
    }

    /// A stretch begins, if somebody wants to know.
    pub(crate) fn began(&self) -> Option<Instant> {
        self.clock.recorder.is_on().then(now)
    }

    /// It has ended.
    pub(crate) fn ended(&self, what: Span, began: Instant) {
        self.clock.recorder.note(what, began, began.elapsed());
    }

    /// Runs the update at the end of a step.
    pub(crate) fn optimizer<T>(&self, run: impl FnOnce() -> T) -> T {
        let started = now();
        let result = run();
        let took = started.elapsed();
        self.clock.recorder.note(Span::new(Doing::Update), started, took);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.clock.optimizer.fetch_add(ns, Ordering::Relaxed);
        result
    }

    /// What the experts of these layers took in a step over the whole batch, layer after layer.
    pub(crate) fn routed(&self, layers: &[u32], counts: &[u64]) {
        if layers.is_empty() {
            return;
        }
        for (layer, counts) in layers.iter().zip(counts.chunks(counts.len() / layers.len())) {
            self.metrics.routed(*layer, counts);
        }
    }

    /// Runs one cell's part of a checkpoint, on disk or in memory, and notes how long it took.
    pub(crate) fn checkpoint<T>(&self, phase: &str, run: impl FnOnce() -> T) -> T {
        let started = now();
        let result = run();
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.checkpoints.with_label_values(&[phase]).observe(seconds);
        result
    }
}

/// The clock of everything here: a measurement is of no use to a test with a clock of its own.
#[expect(clippy::disallowed_methods, reason = "time is what these metrics measure")]
pub(super) fn now() -> Instant {
    Instant::now()
}
