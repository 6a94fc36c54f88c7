//! `metrics.jsonl` and the figures of `summary.json`.
//!
//! A line of `metrics.jsonl` is one of four, told apart by their keys: a step that was trained (it
//! has `main_loss`), a step that was skipped (`skipped`), an evaluation (`evaluation`: the name of
//! its set), or `rolled_back_to`: all lines above it about later steps are superseded.

use std::fs::{self, OpenOptions};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shoal_coordinator::appended::Appended;
use shoal_plan::report::{Evaluation, HELDOUT, SkippedStep, StepRow};
use shoal_plan::routing::RouterHealth;
use shoal_plan::standing::{Best, Standing};

use crate::run_dir::write_atomically;
use crate::tensorboard::EventFile;

/// `train_loss` is the mean over this many last steps: one step alone is noisy.
const TRAIN_LOSS_STEPS: usize = 10;

/// What stands in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Trained(StepRow),
    Skipped(SkippedStep),
    Evaluated(EvaluationRow),
    RolledBack(RolledBack),
}

/// One evaluation of one set. A figure that is not finite is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EvaluationRow {
    pub step: u64,
    #[serde(rename = "evaluation")]
    pub set: String,
    /// Nats per token.
    pub loss: Option<f64>,
    pub bits_per_byte: Option<f64>,
    pub perplexity: Option<f64>,
    pub tokens: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct RolledBack {
    #[serde(rename = "rolled_back_to")]
    to: u64,
    from: u64,
    /// Sequences that no step draws again.
    passed_over: u64,
}

impl EvaluationRow {
    pub(crate) fn new(step: u64, evaluation: &Evaluation) -> Self {
        let finite = |figure: f64| Some(figure).filter(|figure| figure.is_finite());
        Self {
            step,
            set: evaluation.set.clone(),
            loss: finite(evaluation.loss),
            bits_per_byte: finite(evaluation.bits_per_byte()),
            perplexity: finite(evaluation.perplexity()),
            tokens: evaluation.tokens,
            bytes: evaluation.bytes,
        }
    }
}

impl Line {
    fn step(&self) -> u64 {
        match self {
            Self::Trained(row) => row.step,
            Self::Skipped(skipped) => skipped.step,
            Self::Evaluated(row) => row.step,
            Self::RolledBack(back) => back.to,
        }
    }
}

/// What the lines in force of a finished or running run say; the file is left as it is.
pub(crate) fn read(path: &Path) -> anyhow::Result<Known> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(keep(&text, u64::MAX).1)
}

/// The lines of a run that are in force, in memory and in the file.
pub(crate) struct Metrics {
    lines: Appended,
    known: Known,
    rollbacks: u32,
    tensorboard: Option<EventFile>,
}

/// What the lines in force say.
#[derive(Default)]
pub(crate) struct Known {
    pub rows: Vec<StepRow>,
    /// How long each of them took, over all launches of the run.
    pub seconds: Vec<f64>,
    skipped: Vec<SkippedStep>,
    pub evaluations: Vec<EvaluationRow>,
}

/// How the run ended, for `summary.json`.
pub(crate) struct Ending {
    pub best: Option<Best>,
    /// Before its last step, because evaluations no longer improved.
    pub no_improvement: bool,
    pub workers: u32,
    /// From the launch to the end, this launch only.
    pub wall_seconds: f64,
}

impl Metrics {
    /// Opens the file and forgets every line that is superseded or about a step after the one the
    /// run goes on from: those steps are trained again.
    pub(crate) fn open(path: &Path, standing: &Standing) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let (kept, known) = keep(&text, standing.step);
        write_atomically(path, kept.as_bytes())?;
        let lines = OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(Appended::to)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { lines, known, rollbacks: standing.rollbacks, tensorboard: None })
    }

    /// From now on the same goes into an event file. A run does not end for want of one.
    pub(crate) fn also_for_tensorboard(&mut self, directory: &Path) {
        match EventFile::create(directory, self.known.last_step()) {
            Ok(file) => self.tensorboard = Some(file),
            Err(error) => {
                tracing::warn!(%error, directory = %directory.display(), "nothing for TensorBoard");
            }
        }
    }

    /// Adds a step that took `seconds`.
    pub(crate) fn push(&mut self, row: StepRow, seconds: f64) -> anyhow::Result<()> {
        self.write(&trained(&row, seconds)?)?;
        self.tensorboard.iter_mut().for_each(|file| file.step(&row, rate(&row, seconds)));
        self.known.rows.push(row);
        self.known.seconds.push(seconds);
        Ok(())
    }

    /// Adds a step that was not trained.
    pub(crate) fn push_skipped(&mut self, skipped: SkippedStep) -> anyhow::Result<()> {
        self.write(&text(&Line::Skipped(skipped.clone()))?)?;
        self.tensorboard.iter_mut().for_each(|file| file.skipped(&skipped));
        self.known.skipped.push(skipped);
        Ok(())
    }

    /// Adds an evaluation, unless it is known: a run that was ended between its last evaluation and
    /// its summary evaluates again when it goes on.
    pub(crate) fn push_evaluation(&mut self, row: EvaluationRow) -> anyhow::Result<()> {
        if !self.known.evaluations.contains(&row) {
            self.write(&text(&Line::Evaluated(row.clone()))?)?;
            self.tensorboard.iter_mut().for_each(|file| file.evaluated(&row));
            self.known.evaluations.push(row);
        }
        Ok(())
    }

    /// From here on, what was said of the steps after `to` no longer holds.
    pub(crate) fn roll_back(
        &mut self,
        (from, to): (u64, u64),
        passed_over: u64,
        rollbacks: u32,
    ) -> anyhow::Result<()> {
        let back = RolledBack { to, from, passed_over };
        self.write(&text(&Line::RolledBack(back))?)?;
        self.tensorboard.iter_mut().for_each(|file| file.superseded_after(to));
        self.known.forget_after(to);
        self.rollbacks = rollbacks;
        Ok(())
    }

    /// The steps after `to` are done again, and with the same figures: a worker was lost with what
    /// it knew of them.
    pub(crate) fn take_back(&mut self, (from, to): (u64, u64)) -> anyhow::Result<()> {
        if to < from { self.roll_back((from, to), 0, self.rollbacks) } else { Ok(()) }
    }

    /// Steps that were trained.
    pub(crate) fn rows(&self) -> &[StepRow] {
        &self.known.rows
    }

    pub(crate) fn evaluations(&self) -> &[EvaluationRow] {
        &self.known.evaluations
    }

    /// The least loss of a set so far, and after which step.
    pub(crate) fn best(&self, set: &str) -> Option<(u64, f64)> {
        let of_set = self.known.evaluations.iter().filter(|row| row.set == set);
        let finite = of_set.filter_map(|row| Some((row.step, row.loss?)));
        finite.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The object of `summary.json`.
    pub(crate) fn summary(&self, ending: &Ending) -> Value {
        let Known { rows, seconds, skipped, evaluations } = &self.known;
        let tail = &rows[rows.len().saturating_sub(TRAIN_LOSS_STEPS)..];
        let train_loss = tail.iter().map(|row| row.main_loss).sum::<f64>() / tail.len() as f64;
        let tokens = rows.iter().map(|row| row.tokens).sum::<u64>();
        let steps = self.known.last_step();
        let last = || evaluations.iter().filter(|row| row.step == steps);
        let sets: serde_json::Map<String, Value> =
            last().map(|row| (row.set.clone(), json!(row))).collect();
        let heldout = last().find(|row| row.set == HELDOUT);
        let nats = |row: &EvaluationRow| row.bits_per_byte.map(|b| b * std::f64::consts::LN_2);
        json!({
            "steps": steps,
            "skipped_steps": skipped.len(),
            "rollbacks": self.rollbacks,
            "stopped_early": ending.no_improvement,
            "tokens": tokens,
            "train_loss": train_loss,
            "heldout_loss": heldout.and_then(|row| row.loss),
            "heldout_nats_per_byte": heldout.and_then(nats),
            "evaluations": sets,
            "best": ending.best,
            "tokens_per_second": tokens as f64 / seconds.iter().sum::<f64>(),
            "wall_seconds": ending.wall_seconds,
            "workers": ending.workers,
            "router": router(rows),
        })
    }

    /// The line is whole or absent: it is written in one call.
    /// Lines that a full disk did not take go out now.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        self.lines.flush().context("writing metrics.jsonl")
    }

    fn write(&mut self, line: &str) -> anyhow::Result<()> {
        self.lines.push(line.as_bytes()).context("writing metrics.jsonl")
    }
}

impl Known {
    /// The last step, trained or skipped.
    fn last_step(&self) -> u64 {
        let (row, skipped) = (self.rows.last(), self.skipped.last());
        row.map_or(0, |row| row.step).max(skipped.map_or(0, |skipped| skipped.step))
    }

    fn forget_after(&mut self, step: u64) {
        self.rows.retain(|row| row.step <= step);
        self.seconds.truncate(self.rows.len());
        self.skipped.retain(|skipped| skipped.step <= step);
        self.evaluations.retain(|row| row.step <= step);
    }
}

/// The routers over the last steps, as `train_loss` is taken; dropped tokens over all. Null for a
/// dense model.
fn router(rows: &[StepRow]) -> Value {
    let health = |row: &StepRow| RouterHealth::of(&row.router);
    let tail: Vec<RouterHealth> =
        rows[rows.len().saturating_sub(TRAIN_LOSS_STEPS)..].iter().filter_map(health).collect();
    let Some(last) = tail.last() else { return Value::Null };
    let mean = |of: fn(&RouterHealth) -> f64| tail.iter().map(of).sum::<f64>() / tail.len() as f64;
    json!({
        "load_entropy": mean(|health| health.load_entropy),
        "load_max": mean(|health| health.load_max),
        "dropped_tokens": rows.iter().flat_map(|row| &row.router).map(|layer| layer.dropped).sum::<u64>(),
        "bias_min": last.bias_min,
        "bias_max": last.bias_max,
    })
}

fn text(line: &Line) -> anyhow::Result<String> {
    let mut text = serde_json::to_string(line).context("writing a line of metrics.jsonl")?;
    text.push('\n');
    Ok(text)
}

/// One line: the row's keys and the rate, without which a step took no time.
fn trained(row: &StepRow, seconds: f64) -> anyhow::Result<String> {
    let row_text = serde_json::to_string(row).context("writing a step's figures")?;
    let body = row_text.strip_suffix('}').expect("a struct becomes an object");
    let rate = rate(row, seconds);
    Ok(format!("{body},\"tokens_per_second\":{rate:.1}}}\n"))
}

/// Tokens a second; no step takes no time.
fn rate(row: &StepRow, seconds: f64) -> f64 {
    row.tokens as f64 / seconds.max(1e-6)
}

/// The leading lines in force up to `last_step`, and what they say. A torn or foreign line ends
/// them: what follows it cannot be trusted.
fn keep(text: &str, last_step: u64) -> (String, Known) {
    let (mut kept, mut known) = (Vec::<(u64, &str)>::new(), Known::default());
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let Ok(parsed) = serde_json::from_str::<Line>(line) else { break };
        let (step, last) = (parsed.step(), known.last_step());
        let fits = match parsed {
            Line::Trained(_) | Line::Skipped(_) => step == last + 1,
            Line::Evaluated(_) => step == last,
            Line::RolledBack(_) => step <= last,
        };
        if !fits {
            break;
        }
        match parsed {
            Line::Trained(row) => {
                known.seconds.push(seconds(line, row.tokens));
                known.rows.push(row);
            }
            Line::Skipped(skipped) => known.skipped.push(skipped),
            Line::Evaluated(row) => known.evaluations.push(row),
            Line::RolledBack(_) => {
                known.forget_after(step);
                kept.retain(|(of, _)| *of <= step);
                continue;
            }
        }
        kept.push((step, line));
    }
    known.forget_after(last_step);
    kept.retain(|(of, _)| *of <= last_step);
    (kept.into_iter().map(|(_, line)| line).collect(), known)
}

/// How long a step of so many tokens took, from its line's rate.
fn seconds(line: &str, tokens: u64) -> f64 {
    let value = serde_json::from_str::<Value>(line).unwrap_or_default();
    let rate = value["tokens_per_second"].as_f64().filter(|rate| *rate > 0.0);
    rate.map_or(0.0, |rate| tokens as f64 / rate)
}

#[cfg(test)]
mod tests {
    use shoal_plan::plan::WorkerId;
    use shoal_plan::report::Pass;
    use shoal_plan::routing::Routing;

    use super::*;

    fn row(step: u64) -> StepRow {
        let loss = 5.0 / step as f64;
        StepRow {
            step,
            loss: loss + 0.5,
            main_loss: loss,
            mtp_loss: 1.0,
            balance_loss: 0.1,
            grad_norm: 1.0,
            lr: 2e-3,
            tokens: 2048,
            router: vec![Routing::of(1, &[3, 5], 8, &[0.25, -0.5])],
        }
    }

    fn at(step: u64) -> Standing {
        Standing { step, ..Standing::default() }
    }

    fn evaluated(step: u64, loss: f64) -> EvaluationRow {
        let evaluation = Evaluation { set: HELDOUT.into(), loss, tokens: 100, bytes: 200 };
        EvaluationRow::new(step, &evaluation)
    }

    fn skipped(step: u64) -> SkippedStep {
        let (skipped, worker) = ("layer 3 forward".to_owned(), WorkerId(1));
        SkippedStep { step, skipped, worker, in_a_row: 1, pass: Pass::Forward }
    }

    fn ending() -> Ending {
        Ending { best: None, no_improvement: false, workers: 4, wall_seconds: 12.0 }
    }

    fn rows(steps: std::ops::RangeInclusive<u64>) -> String {
        steps.map(|step| trained(&row(step), 0.5).unwrap()).collect()
    }

    #[test]
    fn a_line_has_every_key_once() {
        let line = trained(&row(3), 0.5).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut wanted =
            ["step", "loss", "main_loss", "mtp_loss", "balance_loss", "grad_norm", "lr"]
                .into_iter()
                .chain(["tokens", "router", "tokens_per_second"])
                .collect::<Vec<_>>();
        wanted.sort_unstable();
        assert_eq!(keys, wanted);
        assert!(line.ends_with("\"tokens_per_second\":4096.0}\n"), "{line}");
    }

    #[test]
    fn rows_after_the_resume_step_are_forgotten() {
        let (kept, known) = keep(&rows(1..=20), 15);
        assert_eq!(kept, rows(1..=15));
        assert_eq!(known.rows.len(), 15);
        let seconds = known.seconds.iter().sum::<f64>();
        assert!((seconds - 7.5).abs() < 1e-3, "{seconds}");
        assert_eq!(keep(&rows(1..=20), 0).0, "");
    }

    #[test]
    fn a_torn_line_and_a_gap_end_what_is_kept() {
        let whole = rows(1..=3);
        assert_eq!(keep(&whole[..whole.len() - 5], 9).1.rows.len(), 2);
        assert_eq!(keep(&format!("{}{}", rows(1..=2), rows(5..=6)), 9).1.rows.len(), 2);
        assert_eq!(keep(&format!("{}garbage\n{}", rows(1..=2), rows(3..=3)), 9).1.rows.len(), 2);
    }

    #[test]
    fn the_summary_takes_the_mean_of_the_last_ten_main_losses() {
        let dir = std::env::temp_dir().join(format!("shoal-metrics-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("metrics.jsonl");
        fs::write(&path, rows(1..=30)).unwrap();
        let mut metrics = Metrics::open(&path, &at(20)).unwrap();
        metrics.push(row(21), 0.5).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), rows(1..=21));
        metrics.push_evaluation(evaluated(21, 2.0)).unwrap();
        let summary = metrics.summary(&ending());
        let mean = (12..=21).map(|step| 5.0 / f64::from(step)).sum::<f64>() / 10.0;
        assert!((summary["train_loss"].as_f64().unwrap() - mean).abs() < 1e-12);
        assert_eq!(summary["workers"].as_u64(), Some(4));
        let router = &summary["router"];
        assert_eq!(
            (router["dropped_tokens"].as_u64(), router["load_max"].as_f64()),
            (Some(0), Some(1.25))
        );
        assert_eq!(summary["steps"].as_u64(), Some(21));
        assert_eq!(summary["tokens"].as_u64(), Some(21 * 2048));
        assert!((summary["tokens_per_second"].as_f64().unwrap() - 4096.0).abs() < 1.0);
        assert!((summary["heldout_nats_per_byte"].as_f64().unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(summary["evaluations"][HELDOUT]["loss"].as_f64(), Some(2.0));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_rollback_supersedes_what_stands_above_it_in_memory_and_when_read_again() {
        let path = std::env::temp_dir().join(format!("shoal-rollback-{}", std::process::id()));
        fs::write(&path, rows(1..=2)).unwrap();
        let mut metrics = Metrics::open(&path, &at(2)).unwrap();
        metrics.push_evaluation(evaluated(2, 3.0)).unwrap();
        metrics.push(row(3), 0.5).unwrap();
        metrics.push_evaluation(evaluated(3, 1.0)).unwrap();
        metrics.push_skipped(skipped(4)).unwrap();
        assert_eq!(metrics.best(HELDOUT), Some((3, 1.0)));
        metrics.roll_back((4, 2), 16, 1).unwrap();
        assert_eq!(metrics.best(HELDOUT), Some((2, 3.0)));
        metrics.push(row(3), 0.25).unwrap();
        metrics.push_skipped(skipped(4)).unwrap();
        metrics.push_evaluation(evaluated(4, f64::INFINITY)).unwrap();
        let summary = metrics.summary(&ending());
        let figures = ["steps", "skipped_steps", "rollbacks", "tokens"];
        assert_eq!(figures.map(|key| summary[key].as_u64()), [4, 1, 1, 3 * 2048].map(Some));
        assert_eq!(summary["evaluations"][HELDOUT]["loss"], Value::Null);
        drop(metrics);

        let text = fs::read_to_string(&path).unwrap();
        let back = r#"{"rolled_back_to":2,"from":4,"passed_over":16}"#;
        assert_eq!(text.lines().nth(6), Some(back), "{text}");
        let skip =
            r#"{"step":4,"skipped":"layer 3 forward","worker":1,"in_a_row":1,"pass":"forward"}"#;
        assert_eq!(text.lines().nth(5), Some(skip), "{text}");
        let standing = Standing { rollbacks: 1, ..at(4) };
        let again = Metrics::open(&path, &standing).unwrap();
        assert_eq!(again.summary(&ending()), summary);
        let kept = fs::read_to_string(&path).unwrap();
        assert_eq!(kept.lines().count(), 6, "{kept}");
        assert_eq!(Metrics::open(&path, &at(2)).unwrap().best(HELDOUT), Some((2, 3.0)));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_evaluation_that_is_repeated_stands_in_the_file_once() {
        let path = std::env::temp_dir().join(format!("shoal-evaluation-{}", std::process::id()));
        fs::write(&path, rows(1..=2)).unwrap();
        let mut metrics = Metrics::open(&path, &at(2)).unwrap();
        for _ in 0..2 {
            metrics.push_evaluation(evaluated(2, 3.0)).unwrap();
        }
        assert_eq!(metrics.evaluations(), [evaluated(2, 3.0)]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
        fs::remove_file(&path).unwrap();
    }
}
