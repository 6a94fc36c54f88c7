//! `shoal compare`: runs of one data set against the first of them.
//!
//! A training loss is noisy from step to step, but runs with the same seed see the same text, and so
//! share most of that noise: their smoothed losses are compared at the last step that all have.
//! Smoothing is an exponential mean, as in the curves of the DeepSeek-V3 report (appendix B.1),
//! corrected for its start.

mod plot;

use std::path::Path;

use serde::Serialize;
use shoal_plan::arithmetic::{flops_per_token, parameters};
use shoal_plan::job::Job;
use shoal_plan::report::HELDOUT;

use crate::cli::{self, Output};
use crate::exit::Stopped;
use crate::metrics;
use crate::run_dir::{recorded_job_of, write_atomically};
use crate::show::{json, table};
use crate::terminal::{data, note};

/// One run, as far as it has come.
struct Run {
    name: String,
    job: Job,
    known: metrics::Known,
    /// The smoothed training loss of the main head after each trained step: (step, loss).
    smoothed: Vec<(u64, f64)>,
}

/// One line of the comparison.
#[derive(Debug, Serialize)]
struct Row {
    run: String,
    precision: String,
    parameters: u64,
    active_parameters: u64,
    /// Forward and backward of one token.
    flops_per_token: f64,
    /// Of the step that is compared.
    step: u64,
    /// Nats per token.
    smoothed_loss: f64,
    /// Relative to the baseline, in percent.
    difference_percent: f64,
    /// The widest over the second half of the steps.
    widest_percent: f64,
    /// After the last step, nats per token.
    heldout_loss: Option<f64>,
    tokens_per_second: f64,
}

pub(crate) fn compare(args: &cli::Compare) -> Result<(), Stopped> {
    let open = |path: &std::path::PathBuf| open(path, args.smoothing);
    let runs = args.runs.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let rows = rows(&runs)?;
    if let Some(file) = &args.svg {
        let curves: Vec<_> =
            runs.iter().map(|run| (run.name.as_str(), &run.smoothed[..])).collect();
        write_atomically(file, plot::draw(&curves)?.as_bytes())?;
        note(&format!("drawn: {}", file.display()));
    }
    data(&match args.output {
        Output::Json => json(&rows)?,
        Output::Table => shown(&rows),
    });
    Ok(())
}

fn open(path: &Path, smoothing: f64) -> Result<Run, Stopped> {
    let no_run = |error: anyhow::Error| {
        Stopped::Input(format!("{} is not a run directory: {error:#}", path.display()))
    };
    let job = recorded_job_of(path).map_err(no_run)?;
    let known = metrics::read(&path.join("metrics.jsonl")).map_err(no_run)?;
    let losses = known.rows.iter().map(|row| (row.step, row.main_loss));
    let smoothed = smooth(losses, smoothing);
    let name = path.file_name().map_or_else(|| job.name.clone(), |n| n.to_string_lossy().into());
    Ok(Run { name, job, known, smoothed })
}

/// The exponential mean, divided by the weight it has seen so far.
fn smooth(losses: impl Iterator<Item = (u64, f64)>, smoothing: f64) -> Vec<(u64, f64)> {
    let (mut sum, mut weight) = (0.0, 0.0);
    let of = |(step, loss): (u64, f64)| {
        sum = smoothing * sum + (1.0 - smoothing) * loss;
        weight = smoothing * weight + (1.0 - smoothing);
        (step, sum / weight)
    };
    losses.map(of).collect()
}

/// Every run against the first, at the last step that all have trained.
fn rows(runs: &[Run]) -> Result<Vec<Row>, Stopped> {
    let ends = runs.iter().map(|run| run.smoothed.last().map_or(0, |(step, _)| *step));
    let last = ends.min().unwrap_or(0);
    let base = &runs[0];
    let row = |run: &Run| {
        let differences = differences(&base.smoothed, &run.smoothed);
        let until = || differences.iter().filter(|(step, _)| *step <= last);
        let second_half = until().filter(|(step, _)| 2 * *step >= last);
        let widest = second_half.map(|(_, percent)| percent.abs()).fold(0.0, f64::max);
        let at = run.smoothed.iter().rfind(|(step, _)| *step <= last);
        let (Some((step, smoothed_loss)), Some((_, percent))) = (at, until().next_back()) else {
            let what = format!("{} and {} have no step in common", base.name, run.name);
            return Err(Stopped::Input(what));
        };
        let model = &run.job.model;
        let heldout = run.known.evaluations.iter().rfind(|row| row.set == HELDOUT);
        let tokens: u64 = run.known.rows.iter().map(|row| row.tokens).sum();
        Ok(Row {
            run: run.name.clone(),
            precision: run.job.training.precision.to_string(),
            parameters: parameters(model).total,
            active_parameters: parameters(model).active,
            flops_per_token: flops_per_token(model, run.job.training.sequence),
            step: *step,
            smoothed_loss: *smoothed_loss,
            difference_percent: *percent,
            widest_percent: widest,
            heldout_loss: heldout.and_then(|row| row.loss),
            tokens_per_second: tokens as f64 / run.known.seconds.iter().sum::<f64>(),
        })
    };
    runs.iter().map(row).collect()
}

/// How far `run` is from `base`, in percent, at every step that both have.
fn differences(base: &[(u64, f64)], run: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let of = |(step, loss): &(u64, f64)| {
        let at = base.binary_search_by_key(step, |(step, _)| *step).ok()?;
        Some((*step, 100.0 * (loss / base[at].1 - 1.0)))
    };
    run.iter().filter_map(of).collect()
}

fn shown(rows: &[Row]) -> String {
    let head = [
        "run",
        "precision",
        "parameters, M",
        "active, M",
        "MFLOP/token",
        "step",
        "smoothed loss",
        "difference",
        "widest, 2nd half",
        "held-out loss",
        "tokens/s",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        vec![
            row.run.clone(),
            row.precision.clone(),
            format!("{:.2}", row.parameters as f64 / 1e6),
            format!("{:.2}", row.active_parameters as f64 / 1e6),
            format!("{:.1}", row.flops_per_token / 1e6),
            row.step.to_string(),
            format!("{:.4}", row.smoothed_loss),
            format!("{:+.3} %", row.difference_percent),
            format!("{:.3} %", row.widest_percent),
            row.heldout_loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}")),
            format!("{:.0}", row.tokens_per_second),
        ]
    }));
    table(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smoothed_loss_of_a_level_run_is_level_and_starts_at_its_first_value() {
        let level = smooth((1..=5).map(|step| (step, 3.0)), 0.9);
        assert!(level.iter().all(|(_, loss)| (loss - 3.0).abs() < 1e-12), "{level:?}");
        let falling = smooth([(1, 4.0), (2, 2.0)].into_iter(), 0.5);
        // (0.5 x 4 x 0.5 + 0.5 x 2) / 0.75
        assert!((falling[1].1 - 2.0 / 0.75).abs() < 1e-12, "{falling:?}");
    }

    #[test]
    fn differences_are_of_steps_that_both_runs_have() {
        let base = [(1, 2.0), (2, 2.0), (4, 1.0)];
        let run = [(2, 2.1), (3, 9.0), (4, 0.99)];
        let found = differences(&base, &run);
        assert_eq!(found.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4]);
        assert!((found[0].1 - 5.0).abs() < 1e-9 && (found[1].1 + 1.0).abs() < 1e-9, "{found:?}");
    }
}
