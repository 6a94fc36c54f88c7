//! What a cluster's process tells Prometheus of itself: who is here, what waits, what was refused, how its store does.
//! Runs have metrics of their own, and so have rigs' workers.
//!
//! Names and units: `docs/metrics.md`. Counters are fed as things happen, gauges are set when somebody looks.

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, Result, TextEncoder,
};
use shoal_coordinator::Book;

use crate::state::RigFigures;
use crate::words::{JobPhase, RigIs};

/// A tenth of a millisecond to three seconds: a commit waits for the disk.
const COMMIT_S: (f64, f64, usize) = (1e-4, 2.0, 15);

const PHASES: [JobPhase; 6] = [
    JobPhase::Queued,
    JobPhase::Starting,
    JobPhase::Running,
    JobPhase::Finished,
    JobPhase::Stopped,
    JobPhase::Failed,
];
const RIGS: [RigIs; 3] = [RigIs::Free, RigIs::Busy, RigIs::Away];

/// The figures of one process. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    rigs: IntGaugeVec,
    rig_up: IntGaugeVec,
    rig_heard: GaugeVec,
    rig_disk: GaugeVec,
    jobs: IntGaugeVec,
    tokens: IntGauge,
    denied: IntGauge,
    connections: IntGaugeVec,
    pub(crate) messages: IntCounterVec,
    pub(crate) heartbeats: IntCounter,
    pub(crate) tokens_refused: IntCounter,
    pub(crate) enrolments: IntCounter,
    pub(crate) calls_refused: IntCounter,
    pub(crate) launches: IntCounter,
    pub(crate) commits: IntCounter,
    pub(crate) commit_failures: IntCounter,
    pub(crate) commit_seconds: Histogram,
    unwritten: IntGauge,
}

/// All that is counted when somebody looks.
#[derive(Clone, Debug)]
pub(crate) struct Figures<'a> {
    /// When, in seconds of the calendar.
    pub(crate) unix: u64,
    pub(crate) rigs: Vec<RigFigures<'a>>,
    pub(crate) jobs: Vec<JobPhase>,
    pub(crate) tokens: usize,
    pub(crate) denied: usize,
    pub(crate) strangers: usize,
    pub(crate) members: usize,
    pub(crate) unwritten: usize,
}

impl Metrics {
    pub(crate) fn new(cluster: &str) -> Result<Self> {
        let registry = Registry::new();
        let book = Book::new(&registry);
        book.fact("shoal_cluster_info", "Which cluster this is.", &[("name", cluster.to_owned())])?;
        let version = [("version", env!("CARGO_PKG_VERSION").to_owned())];
        book.fact("shoal_build_info", "The program's version.", &version)?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let (start, factor, count) = COMMIT_S;
        let commit = HistogramOpts::new(
            "shoal_cluster_store_commit_seconds",
            "Time until a change was written down and synced.",
        );
        let buckets = prometheus::exponential_buckets(start, factor, count)?;
        Ok(Self {
            rigs: book.integers("shoal_cluster_rigs", "Rigs that have joined.", "state")?,
            rig_up: book.integers("shoal_cluster_rig_up", "1: the rig is here.", "rig")?,
            rig_heard: book.gauges(
                "shoal_cluster_rig_last_heartbeat_timestamp_seconds",
                "Unix time at which a rig was last heard.",
                &["rig"],
            )?,
            rig_disk: book.gauges(
                "shoal_cluster_rig_disk_available_bytes",
                "Bytes that a rig may still write.",
                &["rig"],
            )?,
            jobs: book.integers("shoal_cluster_jobs", "Jobs that were applied.", "phase")?,
            tokens: book.integer("shoal_cluster_tokens", "Invitations that are good still.")?,
            denied: book.integer(
                "shoal_cluster_denied_certificates",
                "Certificates that count no more and are not over yet.",
            )?,
            connections: book.integers(
                "shoal_cluster_connections",
                "Connections of those who have proven themselves, and of those who have not.",
                "of",
            )?,
            messages: book.counters(
                "shoal_cluster_messages_total",
                "Messages that the cluster's loop has heard.",
                ("from", &["rig", "launcher", "person"]),
            )?,
            heartbeats: book.counter("shoal_cluster_heartbeats_total", "Heartbeats of rigs.")?,
            tokens_refused: book.counter(
                "shoal_cluster_tokens_refused_total",
                "Attempts to join that were refused.",
            )?,
            enrolments: book.counter(
                "shoal_cluster_enrolments_total",
                "Members that have joined by a token.",
            )?,
            calls_refused: book.counter(
                "shoal_cluster_calls_refused_total",
                "Calls that are not for whoever called.",
            )?,
            launches: book
                .counter("shoal_cluster_launches_total", "Launchers that were started for jobs.")?,
            commits: book
                .counter("shoal_cluster_store_commits_total", "Changes that were written down.")?,
            commit_failures: book.counter(
                "shoal_cluster_store_failures_total",
                "Attempts to write changes down that failed; they are tried again.",
            )?,
            commit_seconds: book.take(Histogram::with_opts(commit.buckets(buckets))?)?,
            unwritten: book.integer(
                "shoal_cluster_store_unwritten",
                "Facts that have changed and are not written down: nothing is done about them.",
            )?,
            registry,
        })
    }

    /// Everything in Prometheus's text format.
    pub(crate) fn text(&self, figures: &Figures<'_>) -> String {
        self.set(figures);
        let mut text = Vec::new();
        // Only fails where a family has no metrics, which `gather` leaves out.
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "metrics cannot be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn set(&self, figures: &Figures<'_>) {
        for state in RIGS {
            let n = figures.rigs.iter().filter(|rig| rig.is == state).count();
            self.rigs.with_label_values(&[&state.to_string()]).set(whole(n));
        }
        for phase in PHASES {
            let n = figures.jobs.iter().filter(|job| **job == phase).count();
            self.jobs.with_label_values(&[&phase.to_string()]).set(whole(n));
        }
        // A rig that was forgotten has no figures any more.
        self.rig_up.reset();
        self.rig_heard.reset();
        self.rig_disk.reset();
        for rig in &figures.rigs {
            let labels = [rig.name];
            // None: it was not heard by this process.
            let heard = rig.heard_seconds_ago.map_or(0.0, |ago| figures.unix as f64 - ago);
            self.rig_up.with_label_values(&labels).set(i64::from(rig.is != RigIs::Away));
            self.rig_heard.with_label_values(&labels).set(heard);
            self.rig_disk.with_label_values(&labels).set(rig.disk_free_mb as f64 * 1e6);
        }
        self.tokens.set(whole(figures.tokens));
        self.denied.set(whole(figures.denied));
        self.connections.with_label_values(&["strangers"]).set(whole(figures.strangers));
        self.connections.with_label_values(&["members"]).set(whole(figures.members));
        self.unwritten.set(whole(figures.unwritten));
    }
}

fn whole(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition;

    #[test]
    fn what_is_counted_is_what_is_there_now() {
        let metrics = Metrics::new("lab").unwrap();
        let rig =
            |name, is| RigFigures { name, is, heard_seconds_ago: Some(1.0), disk_free_mb: 5_000 };
        let mut figures = Figures {
            unix: 1_700_000_000,
            rigs: vec![rig("a", RigIs::Busy), rig("b", RigIs::Away)],
            jobs: vec![JobPhase::Running, JobPhase::Queued, JobPhase::Queued],
            tokens: 1,
            denied: 2,
            strangers: 3,
            members: 4,
            unwritten: 0,
        };
        metrics.tokens_refused.inc();
        let text = metrics.text(&figures);
        for wanted in [
            "shoal_cluster_info{name=\"lab\"} 1",
            "shoal_cluster_rigs{state=\"away\"} 1",
            "shoal_cluster_rigs{state=\"free\"} 0",
            "shoal_cluster_rig_up{rig=\"a\"} 1",
            "shoal_cluster_rig_up{rig=\"b\"} 0",
            "shoal_cluster_jobs{phase=\"queued\"} 2",
            "shoal_cluster_connections{of=\"members\"} 4",
            "shoal_cluster_tokens_refused_total 1",
            "shoal_cluster_messages_total{from=\"rig\"} 0",
        ] {
            assert!(text.contains(&format!("{wanted}\n")), "{wanted} in\n{text}");
        }
        exposition::check(&text).unwrap();
        figures.rigs.pop();
        let text = metrics.text(&figures);
        assert!(!text.contains("rig=\"b\""), "whoever was forgotten is\n{text}");
    }
}
