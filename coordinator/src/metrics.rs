//! What the coordinator tells Prometheus about a run: losses, steps, routers, workers, checkpoints.
//!
//! Names and units: `docs/metrics.md`. Fed with the same news the launcher hears, and by the rims:
//! whatever reads a clock stands there.

mod book;
mod changes;
mod checkpoints;
mod disk;
mod store;
mod workers;

use std::collections::BTreeMap;

use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, Registry,
    TextEncoder,
};
use shoal_plan::arithmetic;
use shoal_plan::job::Job;
use shoal_plan::plan::{Plan, WorkerId};
use shoal_plan::report::{Outcome, StepRow};

use crate::error::Error;
use crate::news::News;
use crate::settings::Settings;
pub use book::Book;
use changes::Changes;
use checkpoints::Checkpoints;
use store::Store;
use workers::Workers;

pub(crate) use checkpoints::Committed;
pub(crate) use workers::{AuthFailure, Rejected, WorkerState};

/// The figures of one run. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    job: Job,
    step: IntGauge,
    steps: IntCounter,
    tokens: IntCounter,
    flops: Counter,
    loss: GaugeVec,
    grad_norm: Gauge,
    learning_rate: Gauge,
    step_seconds: Histogram,
    evaluation_loss: GaugeVec,
    epoch: IntGauge,
    nonfinite: IntCounterVec,
    changes: Changes,
    routers: Routers,
    workers: Workers,
    checkpoints: Checkpoints,
    store: Store,
}

/// By layer: there are as many as the network has.
#[derive(Clone, Debug)]
struct Routers {
    entropy: GaugeVec,
    busiest: GaugeVec,
    bias: GaugeVec,
    dropped: IntCounter,
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new(settings: &Settings) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let book = Book::new(&registry);
        facts(&book, settings)?;
        disk::register(&registry, settings.run_dir.clone())?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            job: settings.job.clone(),
            step: book.integer("shoal_step", "The last committed step.")?,
            steps: book.counter("shoal_steps_total", "Steps committed since the start.")?,
            tokens: book.counter("shoal_tokens_total", "Target tokens trained.")?,
            flops: book.large_counter(
                "shoal_model_flops_total",
                "FLOPs that the network asks for, forward and backward, of the tokens trained.",
            )?,
            loss: book.gauges(
                "shoal_train_loss",
                "Training loss of the last step, in nats per token.",
                &["part"],
            )?,
            grad_norm: book.gauge("shoal_grad_norm", "Global gradient norm before clipping.")?,
            learning_rate: book.gauge("shoal_learning_rate", "Learning rate of the last step.")?,
            step_seconds: book.seconds(
                "shoal_step_interval_seconds",
                "Time from one committed step to the next.",
            )?,
            evaluation_loss: book.gauges(
                "shoal_evaluation_loss",
                "Loss of the last evaluation, in nats per token.",
                &["set"],
            )?,
            epoch: book.integer(
                "shoal_membership_epoch",
                "Number of the plan in force: who trains, and what. 0 before the first.",
            )?,
            nonfinite: book.counters(
                "shoal_nonfinite_total",
                "Steps that were skipped because a value was not finite, by where it was met.",
                ("where", &["forward", "backward", "gradient"]),
            )?,
            changes: Changes::new(&book)?,
            routers: Routers::new(&book)?,
            workers: Workers::new(&book)?,
            checkpoints: Checkpoints::new(&book)?,
            store: Store::new(&book)?,
            registry,
        })
    }

    /// The plan in force, and the last committed step: where the run stands.
    pub fn stands_at(&self) -> (u64, u64) {
        (self.epoch.get().unsigned_abs(), self.step.get().unsigned_abs())
    }

    /// Takes in one piece of news; `seconds` is the time since what it ends: of a step since the one
    /// before, of a start since the run went back.
    pub(crate) fn observe(&self, news: &News, seconds: Option<f64>) {
        match news {
            News::Planned(plan) => {
                self.epoch.set(whole(plan.generation.0));
                self.workers.planned(&self.job, plan);
            }
            News::Started => {
                if let Some(seconds) = seconds {
                    self.changes.recovered(seconds);
                }
            }
            News::Step(report) => {
                self.step.set(whole(report.step()));
                self.steps.inc();
                if let Some(seconds) = seconds {
                    self.step_seconds.observe(seconds);
                }
                match &report.outcome {
                    Outcome::Trained(row) => self.trained(row),
                    Outcome::Skipped(skipped) => {
                        self.nonfinite.with_label_values(&[&skipped.pass.to_string()]).inc();
                    }
                }
            }
            News::Evaluated { evaluations, .. } => {
                for evaluation in evaluations {
                    let loss = self.evaluation_loss.with_label_values(&[&evaluation.set]);
                    loss.set(evaluation.loss);
                }
            }
            News::RolledBack { to, .. } => {
                self.changes.observe(news);
                self.step.set(whole(*to));
            }
            News::CheckpointFailed { cell: Some(_), .. } => self.checkpoints.not_written(),
            News::Recovering { to_step, .. } => {
                self.changes.observe(news);
                self.step.set(whole(*to_step));
            }
            News::Evicted { .. }
            | News::Recovered { .. }
            | News::Quarantined { .. }
            | News::Parted { .. }
            | News::SharesMove { .. }
            | News::Prepared { .. }
            | News::Yielding { .. }
            | News::Diverged { .. }
            | News::Straggler { .. }
            | News::MovedAtEdge { .. } => self.changes.observe(news),
            News::CaughtUp { restarts, .. } => self.changes.restarted(*restarts),
            // Other checkpoints are counted where they are committed.
            News::Rejoined { .. }
            | News::JoinedLate { .. }
            | News::Left { .. }
            | News::Draining { .. }
            | News::StopAsked { .. }
            | News::Paused { .. }
            | News::Resumed
            | News::CheckpointCommitted { .. }
            | News::CheckpointFailed { cell: None, .. }
            | News::Joined { .. }
            | News::Finished { .. }
            | News::Failed(_) => {}
        }
    }

    fn trained(&self, row: &StepRow) {
        self.tokens.inc_by(row.tokens);
        let Job { model, training, .. } = &self.job;
        let per_token = arithmetic::flops_per_token(model, training.sequence);
        self.flops.inc_by(row.tokens as f64 * per_token);
        for (part, loss) in [
            ("total", row.loss),
            ("main", row.main_loss),
            ("mtp", row.mtp_loss),
            ("balance", row.balance_loss),
        ] {
            self.loss.with_label_values(&[part]).set(loss);
        }
        self.grad_norm.set(row.grad_norm);
        self.learning_rate.set(row.lr);
        self.routers.routed(row);
    }

    /// The coordinator was started anew and goes on from here.
    pub(crate) fn restored(&self, restarts: u64, step: u64, plan: Option<&Plan>) {
        self.changes.restarted(restarts);
        self.step.set(whole(step));
        if let Some(plan) = plan {
            self.epoch.set(whole(plan.generation.0));
            self.workers.planned(&self.job, plan);
        }
    }

    /// What was decided could not be written down before it was said.
    pub(crate) fn not_journalled(&self) {
        self.changes.not_journalled();
    }

    /// So many workers are in each state.
    pub(crate) fn workers(&self, count: &BTreeMap<WorkerState, u32>) {
        self.workers.states(count);
    }

    /// The newest steps that are whole in memory, and whole after the loss of any worker; and
    /// whether the run is paused.
    pub(crate) fn kept(&self, (in_memory, durable): (u64, u64), paused: bool) {
        self.changes.kept(whole(in_memory), whole(durable), paused);
    }

    /// A worker was heard at this Unix time.
    pub(crate) fn heard(&self, worker: WorkerId, unix_seconds: f64) {
        self.workers.heard(worker, unix_seconds);
    }

    /// A worker computed for so long in one step.
    pub(crate) fn computed(&self, worker: WorkerId, seconds: f64) {
        self.workers.computed(worker, seconds);
    }

    /// A call without the run's secret was refused.
    pub(crate) fn auth_failed(&self, why: AuthFailure) {
        self.workers.auth_failed(why);
    }

    /// A connection or a call was turned away.
    pub(crate) fn rejected(&self, why: Rejected) {
        self.workers.rejected(why);
    }

    /// The last act of a checkpoint is over.
    pub(crate) fn committed(&self, what: &Committed, result: Result<(), &Error>) {
        self.checkpoints.committed(what, result);
    }

    /// All checkpoints up to `step` are in the store: so many were sent, with so many bytes.
    pub fn stored(&self, step: u64, (checkpoints, bytes): (u64, u64), unix_seconds: f64) {
        self.store.stored(step, (checkpoints, bytes), unix_seconds);
    }

    /// An attempt to bring checkpoints into the store failed.
    pub fn not_stored(&self) {
        self.store.failed();
    }

    /// Everything, in the text format 0.0.4.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.expect("the registry holds no two metrics of one name");
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Routers {
    fn new(book: &Book) -> prometheus::Result<Self> {
        Ok(Self {
            entropy: book.gauges(
                "shoal_router_load_entropy_ratio",
                "Entropy of the experts' shares of the tokens; 1: all experts have as many.",
                &["layer"],
            )?,
            busiest: book.gauges(
                "shoal_router_load_max_ratio",
                "Tokens of the busiest expert as a multiple of the mean.",
                &["layer"],
            )?,
            bias: book.gauges(
                "shoal_router_bias",
                "Least and largest of the biases that balance the experts.",
                &["layer", "bound"],
            )?,
            dropped: book.counter(
                "shoal_router_dropped_tokens_total",
                "Choices of an expert that no expert has counted. Always 0.",
            )?,
        })
    }

    fn routed(&self, row: &StepRow) {
        for routing in &row.router {
            let layer = routing.layer.to_string();
            self.entropy.with_label_values(&[&layer]).set(routing.load_entropy);
            self.busiest.with_label_values(&[&layer]).set(routing.load_max);
            self.bias.with_label_values(&[&*layer, "min"]).set(routing.bias_min.into());
            self.bias.with_label_values(&[&*layer, "max"]).set(routing.bias_max.into());
            self.dropped.inc_by(routing.dropped);
        }
    }
}

/// What does not change: which run this is, of which program, and how large the network.
fn facts(book: &Book, settings: &Settings) -> prometheus::Result<()> {
    let job = &settings.job;
    let parameters = arithmetic::parameters(&job.model);
    book.fact(
        "shoal_run_info",
        "What is trained.",
        &[
            ("run_id", settings.run.0.clone()),
            ("name", job.name.clone()),
            ("precision", job.training.precision.to_string()),
            ("grid", job.grid.to_string()),
        ],
    )?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    book.fact("shoal_build_info", "The program's version.", &[("version", version)])?;
    let counts = book.gauges("shoal_model_parameters", "Parameters of the network.", &["kind"])?;
    counts.with_label_values(&["total"]).set(parameters.total as f64);
    counts.with_label_values(&["active"]).set(parameters.active as f64);
    let target = book.integer("shoal_steps_target", "The step at which the run is finished.")?;
    target.set(whole(job.training.steps));
    Ok(())
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
