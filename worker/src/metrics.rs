//! What a worker tells Prometheus: its steps by phase, what its cells' collectives moved, how the
//! experts were chosen, and what its GPUs say.
//!
//! Names and units: `docs/metrics.md`. Phases of a step on one cell: `bubble` (waiting for the
//! neighbouring stage), `communication` (inside collectives, waiting for peers included; nothing is
//! computed meanwhile, so all of it is exposed), `optimizer` (the update), `compute` (all the rest).

mod gpus;
mod latest;
mod recorder;
mod watch;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};
use shoal_plan::grid::CellId;
use shoal_plan::job::Precision;
use shoal_plan::plan::Generation;
use shoal_plan::trace::{Doing, Span};

use crate::comm::{Comm, CommError, Sum};
use latest::Latest;
use watch::now;
pub(crate) use watch::{CellClock, StepWatch};

/// Seconds of a step's phases: a millisecond to a minute and a half, a tiny step on a laptop, a large
/// one on slow links.
const STEP_BUCKETS: (f64, f64, usize) = (1e-3, 2.0, 17);

/// Seconds of one operation of the data plane: 20 microseconds (memory, loopback) to 42 s.
const COLLECTIVE_BUCKETS: (f64, f64, usize) = (2e-5, 2.0, 22);

/// Tokens of one expert in one step, as multiples of the mean. An expert in the first has died.
const LOAD_BUCKETS: [f64; 10] = [0.01, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0, 8.0];

/// The figures of one worker process. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    steps: IntCounter,
    step: IntGauge,
    generation: IntGauge,
    cells: IntGauge,
    peak: Gauge,
    peaks: Peaks,
    phases: HistogramVec,
    checkpoints: HistogramVec,
    durations: HistogramVec,
    bytes: IntCounterVec,
    loads: HistogramVec,
    latest: Latest,
}

/// FLOP/s that this worker's threads can do in multiply-adds, by the width of the operands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peaks {
    pub f32: f64,
    /// FP8 is multiplied as BF16 where the device has no units for it.
    pub bf16: f64,
}

impl Metrics {
    /// Nothing has happened yet. `worker` becomes a constant label of `shoal_worker_info`.
    pub fn new(worker: u32, run: &str, peaks: Peaks) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            steps: IntCounter::new("shoal_worker_steps_total", "Steps done since the start.")?,
            step: IntGauge::new("shoal_worker_step", "The last step done.")?,
            generation: IntGauge::new(
                "shoal_worker_generation",
                "The plan that this worker's cells were last started for; 0 before the first.",
            )?,
            cells: IntGauge::new("shoal_worker_cells", "Cells that this worker hosts.")?,
            peak: Gauge::new(
                "shoal_worker_peak_flops",
                "FLOP/s of multiply-adds in the run's precision, all threads; 0 before the first plan.",
            )?,
            peaks,
            phases: seconds(
                "shoal_step_duration_seconds",
                "Time a cell spent in each phase of a training step.",
                ("phase", STEP_BUCKETS),
            )?,
            checkpoints: seconds(
                "shoal_checkpoint_duration_seconds",
                "Time that a phase of writing a checkpoint took.",
                ("phase", STEP_BUCKETS),
            )?,
            durations: seconds(
                "shoal_collective_duration_seconds",
                "Time a cell spent inside an operation of the data plane.",
                ("op", COLLECTIVE_BUCKETS),
            )?,
            bytes: IntCounterVec::new(
                Opts::new(
                    "shoal_collective_bytes_total",
                    "Payload that cells handed to the data plane or took from it.",
                ),
                &["op", "direction"],
            )?,
            loads: HistogramVec::new(
                HistogramOpts::new(
                    "shoal_expert_load_ratio",
                    "Tokens of an expert in a step as a multiple of the mean over its layer's experts.",
                )
                .buckets(LOAD_BUCKETS.to_vec()),
                &["layer"],
            )?,
            latest: Latest::default(),
            registry,
        };
        // The other phase is the coordinator's.
        for phase in ["write", "memory", "send"] {
            metrics.checkpoints.with_label_values(&[phase]);
        }
        metrics.register_all(worker, run)?;
        Ok(metrics)
    }

    fn register_all(&self, worker: u32, run: &str) -> prometheus::Result<()> {
        let info = Opts::new("shoal_worker_info", "Which worker this is.")
            .const_label("worker", worker.to_string())
            .const_label("run_id", run);
        let build = Opts::new("shoal_build_info", "The program's version.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        for fact in [info, build] {
            let fact = IntGauge::with_opts(fact)?;
            fact.set(1);
            self.register(&fact)?;
        }
        for histogram in [&self.phases, &self.checkpoints, &self.durations, &self.loads] {
            self.register(histogram)?;
        }
        for gauge in [&self.step, &self.generation, &self.cells] {
            self.register(gauge)?;
        }
        self.register(&self.peak)?;
        self.register(&self.bytes)?;
        self.register(&self.steps)?;
        #[cfg(target_os = "linux")]
        self.registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(())
    }

    fn register(&self, metric: &(impl Collector + Clone + 'static)) -> prometheus::Result<()> {
        self.registry.register(Box::new(metric.clone()))
    }

    /// From now on a thread asks this machine's GPUs every few seconds, if its driver is there.
    pub fn watch_gpus(&self) -> prometheus::Result<()> {
        gpus::watch(&self.registry)
    }

    /// Everything, in the text format 0.0.4.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.expect("the registry holds no two metrics of one name");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The newest steps of this worker's cells, as JSON: what each did when, what it sent to whom, what each expert took.
    /// Steps are noted for a while after somebody has asked.
    pub fn newest_step(&self) -> String {
        self.latest.ask(now());
        self.latest.json()
    }

    /// The plan in force, and the last step done: where this worker stands.
    pub fn stands_at(&self) -> (u64, u64) {
        (self.generation.get().unsigned_abs(), self.step.get().unsigned_abs())
    }

    /// An engine of this plan begins, with so many cells here.
    pub(crate) fn begins(&self, generation: Generation, cells: usize, precision: Precision) {
        self.generation.set(i64::try_from(generation.0).unwrap_or(i64::MAX));
        self.cells.set(cells as i64);
        self.latest.forget();
        self.peak.set(match precision {
            Precision::F32 => self.peaks.f32,
            Precision::Bf16 | Precision::Fp8 => self.peaks.bf16,
        });
    }

    /// All cells of this worker have done a step.
    pub(crate) fn step_done(&self, step: u64) {
        self.steps.inc();
        self.step.set(i64::try_from(step).unwrap_or(i64::MAX));
    }

    /// The tokens that each expert of a layer took in a step.
    fn routed(&self, layer: u32, counts: &[u64]) {
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return;
        }
        if self.latest.is_wanted(now()) {
            self.latest.routed(layer, counts);
        }
        let mean = total as f64 / counts.len() as f64;
        // Gathered first: one look into the shared histogram instead of one for each expert.
        let loads = self.loads.with_label_values(&[&layer.to_string()]).local();
        for count in counts {
            loads.observe(*count as f64 / mean);
        }
        loads.flush();
    }

    /// One cell has done a step that took `total`. Returns how long it computed, its update
    /// included.
    fn cell_step(&self, clock: &CellClock, total: Duration) -> Duration {
        let watch::Spent { bubble, communication, optimizer } = clock.take();
        let busy = total.saturating_sub(bubble + communication);
        let compute = busy.saturating_sub(optimizer);
        for (phase, time) in [
            ("bubble", bubble),
            ("communication", communication),
            ("optimizer", optimizer),
            ("compute", compute),
        ] {
            self.phases.with_label_values(&[phase]).observe(time.as_secs_f64());
        }
        busy
    }
}

fn seconds(
    name: &str,
    help: &str,
    (label, (start, factor, count)): (&str, (f64, f64, usize)),
) -> prometheus::Result<HistogramVec> {
    let buckets = prometheus::exponential_buckets(start, factor, count)?;
    HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &[label])
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

    /// Runs one operation that sends `sent` bytes, to one peer or a group; `received` reads off what came.
    fn watch<T>(
        &mut self,
        (op, peer): (Doing, Option<CellId>),
        sent: usize,
        run: impl FnOnce(&mut C) -> Result<T, CommError>,
        received: impl FnOnce(&T) -> usize,
    ) -> Result<T, CommError> {
        let started = now();
        let result = run(&mut self.inner);
        let time = started.elapsed();
        let ns = if op == Doing::Recv { &self.clock.bubble } else { &self.clock.communication };
        ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.metrics.durations.with_label_values(&[op.name()]).observe(time.as_secs_f64());
        let count = |direction: &str, n: usize| {
            self.metrics.bytes.with_label_values(&[op.name(), direction]).inc_by(n as u64);
        };
        count("sent", sent);
        let came = result.as_ref().map_or(0, received);
        if result.is_ok() {
            count("received", came);
        }
        let (sent_bytes, received_bytes) = (sent as u64, came as u64);
        let what = Span { peer, sent_bytes, received_bytes, ..Span::new(op) };
        self.clock.recorder.note(what, started, time);
        result
    }
}

impl<C: Comm> Comm for Metered<C> {
    fn cell(&self) -> CellId {
        self.inner.cell()
    }

    fn send(&mut self, to: CellId, bytes: Vec<u8>) -> Result<(), CommError> {
        self.clock.sent(to, bytes.len());
        self.watch((Doing::Send, Some(to)), bytes.len(), |comm| comm.send(to, bytes), |()| 0)
    }

    fn recv(&mut self, from: CellId) -> Result<Vec<u8>, CommError> {
        self.watch((Doing::Recv, Some(from)), 0, |comm| comm.recv(from), Vec::len)
    }

    fn all_to_all(
        &mut self,
        group: &[CellId],
        outgoing: Vec<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, CommError> {
        for (to, part) in group.iter().zip(&outgoing).filter(|(to, _)| **to != self.inner.cell()) {
            self.clock.sent(*to, part.len());
        }
        let sent = outgoing.iter().map(Vec::len).sum();
        self.watch(
            (Doing::AllToAll, None),
            sent,
            |comm| comm.all_to_all(group, outgoing),
            |parts| total(parts),
        )
    }

    fn all_reduce(&mut self, group: &[CellId], data: Sum<'_>) -> Result<(), CommError> {
        let bytes = if group.len() > 1 { data.bytes() } else { 0 };
        self.watch((Doing::AllReduce, None), bytes, |comm| comm.all_reduce(group, data), |()| bytes)
    }

    fn reduce_scatter(
        &mut self,
        group: &[CellId],
        data: Sum<'_>,
    ) -> Result<Range<usize>, CommError> {
        let bytes = if group.len() > 1 { data.bytes() } else { 0 };
        let run = |comm: &mut C| comm.reduce_scatter(group, data);
        self.watch((Doing::ReduceScatter, None), bytes, run, |_| bytes / group.len())
    }

    fn all_gather(&mut self, group: &[CellId], mine: Vec<u8>) -> Result<Vec<Vec<u8>>, CommError> {
        let sent = mine.len();
        self.watch(
            (Doing::AllGather, None),
            sent,
            |comm| comm.all_gather(group, mine),
            |parts| total(parts),
        )
    }

    fn broadcast(
        &mut self,
        group: &[CellId],
        root: CellId,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, CommError> {
        let sent = if root == self.inner.cell() { bytes.len() } else { 0 };
        self.watch(
            (Doing::Broadcast, None),
            sent,
            |comm| comm.broadcast(group, root, bytes),
            Vec::len,
        )
    }
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
        let metrics = Metrics::new(3, "run", Peaks { f32: 1e9, bf16: 2e9 }).unwrap();
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
        let watch = StepWatch::new(metrics.clone(), Arc::clone(&clock));
        watch.optimizer(|| ());
        watch.routed(&[2, 4], &[3, 1, 2, 2, 8, 0, 0, 0]);
        metrics.cell_step(&clock, Duration::from_secs(1));
        metrics.step_done(12);
        metrics.begins(Generation(5), 2, Precision::Fp8);
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
            "shoal_step_duration_seconds_count{phase=\"optimizer\"} 1",
            "shoal_expert_load_ratio_bucket{layer=\"2\",le=\"1\"} 3",
            "shoal_expert_load_ratio_bucket{layer=\"4\",le=\"0.01\"} 3",
            "shoal_expert_load_ratio_bucket{layer=\"4\",le=\"2\"} 3",
            "shoal_expert_load_ratio_bucket{layer=\"4\",le=\"4\"} 4",
            "shoal_worker_peak_flops 2000000000",
            "shoal_worker_cells 2",
            "shoal_worker_info{run_id=\"run\",worker=\"3\"} 1",
            "shoal_worker_step 12",
        ] {
            assert!(text.contains(wanted), "want {wanted} in:\n{text}");
        }
        assert_eq!(metrics.stands_at(), (5, 12));
        // The phases of a step add up to it.
        let sums = text.lines().filter(|line| line.starts_with("shoal_step_duration_seconds_sum"));
        let sum: f64 =
            sums.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }
}
