//! `metrics.jsonl`, one line a committed step, and the figures of `summary.json`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use shoal_plan::report::{Evaluation, StepRow};

use crate::run_dir::write_atomically;

/// `train_loss` is the mean over this many last steps: one step alone is noisy.
const TRAIN_LOSS_STEPS: usize = 10;

/// The rows of a run so far, in memory and in the file.
pub(crate) struct Metrics {
    file: File,
    rows: Vec<StepRow>,
    /// Seconds the steps took, over all launches of the run.
    step_seconds: f64,
}

/// How the run ended, for `summary.json`.
pub(crate) struct Ending {
    /// Not there when the run was stopped early.
    pub evaluation: Option<Evaluation>,
    pub workers: u32,
    /// From the launch to the end, this launch only.
    pub wall_seconds: f64,
}

impl Metrics {
    /// Opens the file and forgets every row after `resume_step`: those steps are trained again.
    pub(crate) fn open(path: &Path, resume_step: u64) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let (kept, rows, step_seconds) = keep(&text, resume_step);
        write_atomically(path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { file, rows, step_seconds })
    }

    /// Adds a step that took `seconds`. The line is whole or absent: it is written in one call.
    pub(crate) fn push(&mut self, row: StepRow, seconds: f64) -> anyhow::Result<()> {
        self.file.write_all(line(&row, seconds)?.as_bytes()).context("writing metrics.jsonl")?;
        self.rows.push(row);
        self.step_seconds += seconds;
        Ok(())
    }

    pub(crate) fn rows(&self) -> &[StepRow] {
        &self.rows
    }

    /// The object of `summary.json`.
    pub(crate) fn summary(&self, ending: &Ending) -> Value {
        let tail = &self.rows[self.rows.len().saturating_sub(TRAIN_LOSS_STEPS)..];
        let train_loss = tail.iter().map(|row| row.main_loss).sum::<f64>() / tail.len() as f64;
        let tokens = self.rows.iter().map(|row| row.tokens).sum::<u64>();
        let evaluation = ending.evaluation.filter(|evaluation| evaluation.bytes > 0);
        json!({
            "steps": self.rows.last().map_or(0, |row| row.step),
            "tokens": tokens,
            "train_loss": train_loss,
            "heldout_loss": evaluation.map(|evaluation| evaluation.loss),
            "heldout_nats_per_byte": evaluation.map(nats_per_byte),
            "tokens_per_second": tokens as f64 / self.step_seconds,
            "wall_seconds": ending.wall_seconds,
            "workers": ending.workers,
        })
    }
}

/// The held-out loss per byte of text: equal to the loss for byte tokens.
pub(crate) fn nats_per_byte(evaluation: Evaluation) -> f64 {
    evaluation.loss * evaluation.tokens as f64 / evaluation.bytes as f64
}

/// One line: the row's keys and the rate, without which a step took no time.
fn line(row: &StepRow, seconds: f64) -> anyhow::Result<String> {
    let row_text = serde_json::to_string(row).context("writing a step's figures")?;
    let body = row_text.strip_suffix('}').expect("a struct becomes an object");
    let rate = row.tokens as f64 / seconds.max(1e-6);
    Ok(format!("{body},\"tokens_per_second\":{rate:.1}}}\n"))
}

/// The leading lines up to `last_step`, what they say, and how long their steps took. A torn or
/// foreign line ends them: what follows it cannot be trusted.
fn keep(text: &str, last_step: u64) -> (String, Vec<StepRow>, f64) {
    let (mut kept, mut rows, mut seconds) = (String::new(), Vec::<StepRow>::new(), 0.0);
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let Ok(row) = serde_json::from_str::<StepRow>(line) else { break };
        let next = rows.last().map_or(row.step, |last| last.step + 1);
        if row.step > last_step || row.step != next {
            break;
        }
        let rate =
            serde_json::from_str::<Value>(line).ok().and_then(|v| v["tokens_per_second"].as_f64());
        seconds += rate.filter(|rate| *rate > 0.0).map_or(0.0, |rate| row.tokens as f64 / rate);
        kept.push_str(line);
        rows.push(row);
    }
    (kept, rows, seconds)
}

#[cfg(test)]
mod tests {
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
        }
    }

    fn text(steps: std::ops::RangeInclusive<u64>) -> String {
        steps.map(|step| line(&row(step), 0.5).unwrap()).collect()
    }

    #[test]
    fn a_line_has_every_key_once() {
        let line = line(&row(3), 0.5).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut wanted =
            ["step", "loss", "main_loss", "mtp_loss", "balance_loss", "grad_norm", "lr"]
                .into_iter()
                .chain(["tokens", "tokens_per_second"])
                .collect::<Vec<_>>();
        wanted.sort_unstable();
        assert_eq!(keys, wanted);
        assert!(line.ends_with("\"tokens_per_second\":4096.0}\n"), "{line}");
    }

    #[test]
    fn rows_after_the_resume_step_are_forgotten() {
        let (kept, rows, seconds) = keep(&text(1..=20), 15);
        assert_eq!(kept, text(1..=15));
        assert_eq!(rows.len(), 15);
        assert!((seconds - 7.5).abs() < 1e-3, "{seconds}");
        assert_eq!(keep(&text(1..=20), 0).0, "");
    }

    #[test]
    fn a_torn_line_and_a_gap_end_what_is_kept() {
        let whole = text(1..=3);
        assert_eq!(keep(&whole[..whole.len() - 5], 9).1.len(), 2);
        assert_eq!(keep(&format!("{}{}", text(1..=2), text(5..=6)), 9).1.len(), 2);
        assert_eq!(keep(&format!("{}garbage\n{}", text(1..=2), text(3..=3)), 9).1.len(), 2);
    }

    #[test]
    fn the_summary_takes_the_mean_of_the_last_ten_main_losses() {
        let dir = std::env::temp_dir().join(format!("shoal-metrics-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("metrics.jsonl");
        fs::write(&path, text(1..=30)).unwrap();
        let mut metrics = Metrics::open(&path, 20).unwrap();
        metrics.push(row(21), 0.5).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text(1..=21));
        let evaluation = Some(Evaluation { loss: 2.0, tokens: 100, bytes: 100 });
        let summary = metrics.summary(&Ending { evaluation, workers: 4, wall_seconds: 12.0 });
        let mean = (12..=21).map(|step| 5.0 / f64::from(step)).sum::<f64>() / 10.0;
        assert!((summary["train_loss"].as_f64().unwrap() - mean).abs() < 1e-12);
        assert_eq!(summary["workers"].as_u64(), Some(4));
        assert_eq!(summary["steps"].as_u64(), Some(21));
        assert_eq!(summary["tokens"].as_u64(), Some(21 * 2048));
        assert!((summary["tokens_per_second"].as_f64().unwrap() - 4096.0).abs() < 1.0);
        assert_eq!(summary["heldout_nats_per_byte"].as_f64(), Some(2.0));
        fs::remove_dir_all(&dir).unwrap();
    }
}
