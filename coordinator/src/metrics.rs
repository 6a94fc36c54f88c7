//! What the coordinator tells Prometheus about a run: losses, steps, workers, checkpoints.
//!
//! Names and units: `docs/metrics.md`. Fed with the same news the launcher hears.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};
use shoal_plan::arithmetic;
use shoal_plan::report::{Outcome, StepRow};

use crate::news::News;
use crate::settings::Settings;

/// A millisecond to a minute and a half: a tiny step on a laptop, a large one on slow links.
const BUCKETS_S: (f64, f64, usize) = (1e-3, 2.0, 17);

/// The figures of one run. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    step: IntGauge,
    steps: IntCounter,
    tokens: IntCounter,
    loss: GaugeVec,
    grad_norm: Gauge,
    learning_rate: Gauge,
    step_seconds: Histogram,
    evaluation_loss: GaugeVec,
    workers: IntGauge,
    generation: IntGauge,
    checkpoints: IntCounter,
    checkpoint_failures: IntCounter,
    checkpoint_step: IntGauge,
    nonfinite: IntCounterVec,
    rollbacks: IntCounter,
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new(settings: &Settings) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let (start, factor, count) = BUCKETS_S;
        let buckets = prometheus::exponential_buckets(start, factor, count)?;
        let facts = facts(settings)?;
        let metrics = Self {
            step: IntGauge::new("shoal_step", "The last committed step.")?,
            steps: IntCounter::new("shoal_steps_total", "Steps committed since the start.")?,
            tokens: IntCounter::new("shoal_tokens_total", "Target tokens trained.")?,
            loss: GaugeVec::new(
                Opts::new("shoal_train_loss", "Training loss of the last step, in nats per token."),
                &["part"],
            )?,
            grad_norm: Gauge::new("shoal_grad_norm", "Global gradient norm before clipping.")?,
            learning_rate: Gauge::new("shoal_learning_rate", "Learning rate of the last step.")?,
            step_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "shoal_step_interval_seconds",
                    "Time from one committed step to the next.",
                )
                .buckets(buckets),
            )?,
            evaluation_loss: GaugeVec::new(
                Opts::new(
                    "shoal_evaluation_loss",
                    "Loss of the last evaluation, in nats per token.",
                ),
                &["set"],
            )?,
            workers: IntGauge::new("shoal_workers", "Workers that have joined.")?,
            generation: IntGauge::new("shoal_plan_generation", "Number of the plan in force.")?,
            checkpoints: IntCounter::new("shoal_checkpoints_total", "Checkpoints completed.")?,
            checkpoint_failures: IntCounter::new(
                "shoal_checkpoint_failures_total",
                "Checkpoints that could not be completed.",
            )?,
            checkpoint_step: IntGauge::new(
                "shoal_checkpoint_last_step",
                "The step of the newest complete checkpoint.",
            )?,
            nonfinite: IntCounterVec::new(
                Opts::new(
                    "shoal_nonfinite_total",
                    "Steps that were skipped because a value was not finite.",
                ),
                &["worker"],
            )?,
            rollbacks: IntCounter::new(
                "shoal_rollbacks_total",
                "How often the run went back to a checkpoint.",
            )?,
            registry,
        };
        metrics.register(facts)?;
        Ok(metrics)
    }

    fn register(&self, facts: Vec<Box<dyn Collector>>) -> prometheus::Result<()> {
        let all: [Box<dyn Collector>; 15] = [
            Box::new(self.step.clone()),
            Box::new(self.steps.clone()),
            Box::new(self.tokens.clone()),
            Box::new(self.loss.clone()),
            Box::new(self.grad_norm.clone()),
            Box::new(self.learning_rate.clone()),
            Box::new(self.step_seconds.clone()),
            Box::new(self.evaluation_loss.clone()),
            Box::new(self.workers.clone()),
            Box::new(self.generation.clone()),
            Box::new(self.checkpoints.clone()),
            Box::new(self.checkpoint_failures.clone()),
            Box::new(self.checkpoint_step.clone()),
            Box::new(self.nonfinite.clone()),
            Box::new(self.rollbacks.clone()),
        ];
        for one in facts.into_iter().chain(all) {
            self.registry.register(one)?;
        }
        #[cfg(target_os = "linux")]
        self.registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(())
    }

    /// Takes in one piece of news; `seconds` is the time since the step before.
    pub(crate) fn observe(&self, news: &News, seconds: Option<f64>) {
        match news {
            News::Joined { joined, .. } => self.workers.set((*joined).into()),
            News::Planned(plan) => self.generation.set(whole(plan.generation.0)),
            News::Started | News::Finished { .. } | News::Failed(_) => {}
            News::Step(report) => {
                self.step.set(whole(report.step()));
                self.steps.inc();
                if let Some(seconds) = seconds {
                    self.step_seconds.observe(seconds);
                }
                match &report.outcome {
                    Outcome::Trained(row) => self.trained(row),
                    Outcome::Skipped(skipped) => {
                        let worker = skipped.worker.0.to_string();
                        self.nonfinite.with_label_values(&[&worker]).inc();
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
                self.rollbacks.inc();
                self.step.set(whole(*to));
            }
            News::CheckpointCommitted { step } => {
                self.checkpoints.inc();
                self.checkpoint_step.set(whole(*step));
            }
            News::CheckpointFailed { .. } => self.checkpoint_failures.inc(),
        }
    }

    fn trained(&self, row: &StepRow) {
        self.tokens.inc_by(row.tokens);
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
    }

    /// Everything, in the text format 0.0.4.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.expect("the registry holds no two metrics of one name");
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// What does not change: which run this is, of which program, and how large the network.
fn facts(settings: &Settings) -> prometheus::Result<Vec<Box<dyn Collector>>> {
    let job = &settings.job;
    let parameters = arithmetic::parameters(&job.model);
    let info = Opts::new("shoal_run_info", "What is trained.")
        .const_label("run_id", settings.run.0.clone())
        .const_label("name", job.name.clone())
        .const_label("precision", job.training.precision.to_string())
        .const_label("grid", job.grid.to_string());
    let info = IntGauge::with_opts(info)?;
    info.set(1);
    let build = Opts::new("shoal_build_info", "The program's version.")
        .const_label("version", env!("CARGO_PKG_VERSION"));
    let build = IntGauge::with_opts(build)?;
    build.set(1);
    let counts = GaugeVec::new(
        Opts::new("shoal_model_parameters", "Parameters of the network."),
        &["kind"],
    )?;
    counts.with_label_values(&["total"]).set(parameters.total as f64);
    counts.with_label_values(&["active"]).set(parameters.active as f64);
    Ok(vec![Box::new(info), Box::new(build), Box::new(counts)])
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
