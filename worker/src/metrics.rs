//! What a worker tells Prometheus: its steps by phase, and what its cells' collectives moved.
//!
//! Names and units: `docs/metrics.md`. Phases of a step on one cell: `bubble` (waiting for the
//! neighbouring stage), `communication` (inside collectives, waiting for peers included), `compute`
//! (all the rest).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};
use shoal_plan::grid::CellId;

use crate::comm::{Comm, CommError, Sum};

/// A millisecond to a minute and a half: a tiny step on a laptop, a large one on slow links.
const BUCKETS_S: (f64, f64, usize) = (1e-3, 2.0, 17);

/// The figures of one worker process. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    steps: IntCounter,
    step: IntGauge,
    phases: HistogramVec,
    checkpoints: HistogramVec,
    durations: HistogramVec,
    bytes: IntCounterVec,
}

/// Where the time of one cell's step under way went.
#[derive(Debug, Default)]
pub struct CellClock {
    bubble_ns: AtomicU64,
    communication_ns: AtomicU64,
}

impl Metrics {
    /// Nothing has happened yet. `worker` becomes a constant label of `shoal_worker_info`.
    pub fn new(worker: u32, run: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let (start, factor, count) = BUCKETS_S;
        let buckets = || prometheus::exponential_buckets(start, factor, count);
        let phases = HistogramVec::new(
            HistogramOpts::new(
                "shoal_step_duration_seconds",
                "Time a cell spent in each phase of a training step.",
            )
            .buckets(buckets()?),
            &["phase"],
        )?;
        let checkpoints = HistogramVec::new(
            HistogramOpts::new(
                "shoal_checkpoint_duration_seconds",
                "Time that a phase of writing a checkpoint took.",
            )
            .buckets(buckets()?),
            &["phase"],
        )?;
        // The other phase is the coordinator's.
        checkpoints.with_label_values(&["write"]);
        checkpoints.with_label_values(&["memory"]);
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "shoal_collective_duration_seconds",
                "Time a cell spent inside an operation of the data plane.",
            )
            .buckets(buckets()?),
            &["op"],
        )?;
        let bytes = IntCounterVec::new(
            Opts::new(
                "shoal_collective_bytes_total",
                "Payload that cells handed to the data plane or took from it.",
            ),
            &["op", "direction"],
        )?;
        let steps = IntCounter::new("shoal_worker_steps_total", "Steps done since the start.")?;
        let step = IntGauge::new("shoal_worker_step", "The last step done.")?;
        let info = Opts::new("shoal_worker_info", "Which worker this is.")
            .const_label("worker", worker.to_string())
            .const_label("run_id", run);
        let info = IntGauge::with_opts(info)?;
        info.set(1);
        let build = Opts::new("shoal_build_info", "The program's version.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        let build = IntGauge::with_opts(build)?;
        build.set(1);
        registry.register(Box::new(info))?;
        registry.register(Box::new(build))?;
        registry.register(Box::new(phases.clone()))?;
        registry.register(Box::new(checkpoints.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(steps.clone()))?;
        registry.register(Box::new(step.clone()))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self { registry, steps, step, phases, checkpoints, durations, bytes })
    }

    /// Everything, in the text format 0.0.4.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.expect("the registry holds no two metrics of one name");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// All cells of this worker have done a step.
    pub(crate) fn step_done(&self, step: u64) {
        self.steps.inc();
        self.step.set(i64::try_from(step).unwrap_or(i64::MAX));
    }

    /// One cell has done a step that took `total`. Returns how long it computed.
    fn cell_step(&self, clock: &CellClock, total: Duration) -> Duration {
        let (bubble, communication) = clock.take();
        let compute = total.saturating_sub(bubble + communication);
        for (phase, time) in
            [("bubble", bubble), ("communication", communication), ("compute", compute)]
        {
            self.phases.with_label_values(&[phase]).observe(time.as_secs_f64());
        }
        compute
    }
}

/// Measures the steps of one cell.
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

    /// Runs one cell's part of a checkpoint, on disk or in memory, and notes how long it took.
    pub(crate) fn checkpoint<T>(&self, phase: &str, run: impl FnOnce() -> T) -> T {
        let started = now();
        let result = run();
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.checkpoints.with_label_values(&[phase]).observe(seconds);
        result
    }
}

impl CellClock {
    /// Bubble and communication since the last call.
    fn take(&self) -> (Duration, Duration) {
        let take = |ns: &AtomicU64| Duration::from_nanos(ns.swap(0, Ordering::Relaxed));
        (take(&self.bubble_ns), take(&self.communication_ns))
    }
}

/// A communicator that is watched.
pub(crate) struct Metered<C> {
    inner: C,
    metrics: Metrics,
    clock: Arc<CellClock>,
}

impl<C: Comm> Metered<C> {
    pub(crate) fn new(inner: C, metrics: Metrics, clock: Arc<CellClock>) -> Self {
        Self { inner, metrics, clock }
    }

    /// Runs one operation that sends `sent` bytes; `received` reads off what came.
    fn watch<T>(
        &mut self,
        op: &str,
        sent: usize,
        run: impl FnOnce(&mut C) -> Result<T, CommError>,
        received: impl FnOnce(&T) -> usize,
    ) -> Result<T, CommError> {
        let started = now();
        let result = run(&mut self.inner);
        let time = started.elapsed();
        let ns = if op == "recv" { &self.clock.bubble_ns } else { &self.clock.communication_ns };
        ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.metrics.durations.with_label_values(&[op]).observe(time.as_secs_f64());
        let count = |direction: &str, n: usize| {
            self.metrics.bytes.with_label_values(&[op, direction]).inc_by(n as u64);
        };
        count("sent", sent);
        if let Ok(value) = &result {
            count("received", received(value));
        }
        result
    }
}

impl<C: Comm> Comm for Metered<C> {
    fn cell(&self) -> CellId {
        self.inner.cell()
    }

    fn send(&mut self, to: CellId, bytes: Vec<u8>) -> Result<(), CommError> {
        self.watch("send", bytes.len(), |comm| comm.send(to, bytes), |()| 0)
    }

    fn recv(&mut self, from: CellId) -> Result<Vec<u8>, CommError> {
        self.watch("recv", 0, |comm| comm.recv(from), Vec::len)
    }

    fn all_to_all(
        &mut self,
        group: &[CellId],
        outgoing: Vec<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, CommError> {
        let sent = outgoing.iter().map(Vec::len).sum();
        self.watch(
            "all_to_all",
            sent,
            |comm| comm.all_to_all(group, outgoing),
            |parts| total(parts),
        )
    }

    fn all_reduce(&mut self, group: &[CellId], data: Sum<'_>) -> Result<(), CommError> {
        let bytes = if group.len() > 1 { data.bytes() } else { 0 };
        self.watch("all_reduce", bytes, |comm| comm.all_reduce(group, data), |()| bytes)
    }

    fn reduce_scatter(
        &mut self,
        group: &[CellId],
        data: Sum<'_>,
    ) -> Result<Range<usize>, CommError> {
        let bytes = if group.len() > 1 { data.bytes() } else { 0 };
        let run = |comm: &mut C| comm.reduce_scatter(group, data);
        self.watch("reduce_scatter", bytes, run, |_| bytes / group.len())
    }

    fn all_gather(&mut self, group: &[CellId], mine: Vec<u8>) -> Result<Vec<Vec<u8>>, CommError> {
        let sent = mine.len();
        self.watch("all_gather", sent, |comm| comm.all_gather(group, mine), |parts| total(parts))
    }

    fn broadcast(
        &mut self,
        group: &[CellId],
        root: CellId,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, CommError> {
        let sent = if root == self.inner.cell() { bytes.len() } else { 0 };
        self.watch("broadcast", sent, |comm| comm.broadcast(group, root, bytes), Vec::len)
    }
}

/// The clock of everything here: a measurement is of no use to a test with a clock of its own.
#[expect(clippy::disallowed_methods, reason = "time is what these metrics measure")]
fn now() -> Instant {
    Instant::now()
}

fn total(parts: &[Vec<u8>]) -> usize {
    parts.iter().map(Vec::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group of one that answers with what it was given.
    struct Echo;

    impl Comm for Echo {
        fn cell(&self) -> CellId {
            CellId(0)
        }

        fn send(&mut self, _: CellId, _: Vec<u8>) -> Result<(), CommError> {
            Ok(())
        }

        fn recv(&mut self, _: CellId) -> Result<Vec<u8>, CommError> {
            Ok(vec![0; 7])
        }

        fn all_to_all(
            &mut self,
            _: &[CellId],
            outgoing: Vec<Vec<u8>>,
        ) -> Result<Vec<Vec<u8>>, CommError> {
            Ok(outgoing)
        }

        fn all_reduce(&mut self, _: &[CellId], _: Sum<'_>) -> Result<(), CommError> {
            Ok(())
        }

        fn reduce_scatter(&mut self, _: &[CellId], _: Sum<'_>) -> Result<Range<usize>, CommError> {
            Ok(0..1)
        }

        fn all_gather(&mut self, _: &[CellId], mine: Vec<u8>) -> Result<Vec<Vec<u8>>, CommError> {
            Ok(vec![mine])
        }

        fn broadcast(
            &mut self,
            _: &[CellId],
            _: CellId,
            bytes: Vec<u8>,
        ) -> Result<Vec<u8>, CommError> {
            Ok(bytes)
        }
    }

    #[test]
    fn every_operation_is_counted_by_name_and_direction() {
        let metrics = Metrics::new(3, "run").unwrap();
        let clock = Arc::new(CellClock::default());
        let mut comm = Metered::new(Echo, metrics.clone(), Arc::clone(&clock));
        let group = [CellId(0), CellId(1)];
        comm.send(CellId(1), vec![0; 5]).unwrap();
        comm.recv(CellId(1)).unwrap();
        comm.all_to_all(&group, vec![vec![0; 2], vec![0; 3]]).unwrap();
        comm.all_reduce(&group, Sum::F32(&mut [0.0; 4])).unwrap();
        comm.all_reduce(&group[..1], Sum::F32(&mut [0.0; 4])).unwrap();
        comm.reduce_scatter(&group, Sum::F64(&mut [0.0; 4])).unwrap();
        comm.all_gather(&group, vec![0; 6]).unwrap();
        comm.broadcast(&group, CellId(1), vec![0; 9]).unwrap();
        metrics.cell_step(&clock, Duration::from_secs(1));
        metrics.step_done(12);
        let text = metrics.text();
        for wanted in [
            "shoal_collective_bytes_total{direction=\"sent\",op=\"send\"} 5",
            "shoal_collective_bytes_total{direction=\"received\",op=\"recv\"} 7",
            "shoal_collective_bytes_total{direction=\"sent\",op=\"all_to_all\"} 5",
            "shoal_collective_bytes_total{direction=\"received\",op=\"all_reduce\"} 16",
            "shoal_collective_bytes_total{direction=\"received\",op=\"reduce_scatter\"} 16",
            "shoal_collective_bytes_total{direction=\"sent\",op=\"all_gather\"} 6",
            "shoal_collective_bytes_total{direction=\"sent\",op=\"broadcast\"} 0",
            "shoal_collective_duration_seconds_count{op=\"all_reduce\"} 2",
            "shoal_step_duration_seconds_count{phase=\"compute\"} 1",
            "shoal_worker_info{run_id=\"run\",worker=\"3\"} 1",
            "shoal_worker_step 12",
        ] {
            assert!(text.contains(wanted), "want {wanted} in:\n{text}");
        }
        // The phases of a step add up to it.
        let sums = text.lines().filter(|line| line.starts_with("shoal_step_duration_seconds_sum"));
        let sum: f64 =
            sums.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }
}
