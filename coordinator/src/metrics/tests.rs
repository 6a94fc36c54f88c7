//! What Prometheus reads after some news.

use shoal_plan::plan::WorkerId;
use shoal_plan::report::{Outcome, Pass, SkippedStep, StepReport};
use shoal_plan::routing::Routing;

use super::*;
use crate::state::fixtures::{self, G1, row};

fn metrics() -> (Metrics, Settings) {
    let settings = fixtures::settings();
    (Metrics::new(&settings).unwrap(), settings)
}

#[track_caller]
fn shows(metrics: &Metrics, wanted: &[&str]) {
    let text = metrics.text();
    for line in wanted {
        assert!(text.lines().any(|found| found == *line), "want {line} in:\n{text}");
    }
}

fn step(outcome: Outcome) -> News {
    News::Step(StepReport { first_sequence: 0, sequences: 8, outcome })
}

#[test]
fn what_nobody_has_caused_yet_stands_at_zero() {
    let (metrics, _) = metrics();
    shows(
        &metrics,
        &[
            "shoal_recoveries_total{cause=\"nonfinite\"} 0",
            "shoal_nonfinite_total{where=\"backward\"} 0",
            "shoal_auth_failures_total{reason=\"wrong\"} 0",
            "shoal_rpc_rejected_total{reason=\"connections\"} 0",
            "shoal_checkpoint_failures_total{reason=\"file_size\"} 0",
            "shoal_workers{state=\"training\"} 0",
            "shoal_recovery_duration_seconds_count 0",
            "shoal_membership_epoch 0",
        ],
    );
}

#[test]
fn a_skipped_step_is_counted_by_its_pass_and_a_rollback_by_its_cause() {
    let (metrics, _) = metrics();
    let skipped = SkippedStep {
        step: 3,
        skipped: "layer 3 expert 5 backward".into(),
        worker: WorkerId(1),
        in_a_row: 1,
        pass: Pass::Backward,
    };
    metrics.observe(&step(Outcome::Skipped(skipped)), Some(0.5));
    metrics.observe(&News::RolledBack { from: 3, to: 2, passed_over: 8, rollbacks: 1 }, None);
    metrics.observe(&News::Started, Some(1.5));
    shows(
        &metrics,
        &[
            "shoal_nonfinite_total{where=\"backward\"} 1",
            "shoal_nonfinite_total{where=\"forward\"} 0",
            "shoal_recoveries_total{cause=\"nonfinite\"} 1",
            "shoal_recovery_duration_seconds_sum 1.5",
            "shoal_step 2",
        ],
    );
}

#[test]
fn what_a_run_has_computed_and_what_it_has_ahead_is_told() {
    let settings = Settings { run_dir: std::env::temp_dir(), ..fixtures::settings() };
    let metrics = Metrics::new(&settings).unwrap();
    metrics.observe(&step(Outcome::Trained(row(1))), Some(0.5));
    let sequence = settings.job.training.sequence;
    let flops = row(1).tokens as f64 * arithmetic::flops_per_token(&settings.job.model, sequence);
    shows(
        &metrics,
        &[
            &format!("shoal_model_flops_total {flops}"),
            &format!("shoal_steps_target {}", settings.job.training.steps),
        ],
    );
    // The run directory's disk is there, and not full.
    let text = metrics.text();
    let value = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    let (available, size) = (value("shoal_disk_available_bytes "), value("shoal_disk_size_bytes "));
    assert!(0 < available && available <= size, "{available} of {size}");
}

#[test]
fn the_routers_are_told_by_layer() {
    let (metrics, _) = metrics();
    let row = StepRow { router: vec![Routing::of(2, &[6, 2, 0, 0], 8, &[0.5, -0.25])], ..row(1) };
    metrics.observe(&step(Outcome::Trained(row)), None);
    shows(
        &metrics,
        &[
            "shoal_router_load_max_ratio{layer=\"2\"} 3",
            "shoal_router_bias{bound=\"min\",layer=\"2\"} -0.25",
            "shoal_router_bias{bound=\"max\",layer=\"2\"} 0.5",
            "shoal_router_dropped_tokens_total 0",
        ],
    );
}

#[test]
fn the_fastest_worker_has_speed_one_whatever_its_share_of_the_work() {
    let (metrics, settings) = metrics();
    let workers = [WorkerId(0), WorkerId(1)];
    let plan = (settings.make_plan)(&settings.job, &workers, G1).unwrap();
    metrics.observe(&News::Planned(plan), None);
    // The stages have equal work: half the time is twice the speed.
    metrics.computed(WorkerId(0), 0.25);
    metrics.computed(WorkerId(1), 0.5);
    // A clock that did not move says nothing.
    metrics.computed(WorkerId(1), 0.0);
    shows(&metrics, &["shoal_worker_speed_ratio{worker=\"0\"} 1"]);
    // The slower worker's half second, and the bubble of the schedule.
    let n_micro = settings.job.largest_division().n_microbatches();
    let predicted = 0.5 / (1.0 - settings.job.pipeline().bubble_share(n_micro));
    shows(&metrics, &[&format!("shoal_step_predicted_seconds {predicted}")]);
    let text = metrics.text();
    let slow = text.lines().find(|line| line.starts_with("shoal_worker_speed_ratio{worker=\"1\"}"));
    let slow: f64 = slow.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    // The MTP module's experts count in the second stage only.
    assert!(slow > 0.4 && slow < 0.7, "{slow}");
}

#[test]
fn a_checkpoint_leaves_its_size_its_time_and_the_reason_of_its_failure() {
    let (metrics, _) = metrics();
    let what = Committed { step: 4, bytes: 1000, seconds: 0.25, unix_seconds: 1.5e9 };
    metrics.committed(&what, Ok(()));
    let short = Error::FileSize { path: "a".into(), got: 1, want: 2 };
    metrics.committed(&Committed { step: 6, ..what }, Err(&short));
    shows(
        &metrics,
        &[
            "shoal_checkpoints_total 1",
            "shoal_checkpoint_last_step 4",
            "shoal_checkpoint_size_bytes 1000",
            "shoal_checkpoint_last_success_timestamp_seconds 1500000000",
            "shoal_checkpoint_duration_seconds_sum{phase=\"commit\"} 0.25",
            "shoal_checkpoint_failures_total{reason=\"file_size\"} 1",
        ],
    );
}
