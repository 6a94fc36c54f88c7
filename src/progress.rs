//! How far training is: a bar on a terminal, otherwise a plain line now and then.

mod reading;

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use shoal_plan::report::{SkippedStep, StepRow};

use crate::clock::Stopwatch;
use crate::metrics::EvaluationRow;
use crate::terminal;

pub(crate) use reading::Reading;

/// Plain lines come at most this often, unless a tenth of the run went by.
const LINE_SECONDS: f64 = 2.0;

/// The newest step's weight in the mean duration of a step.
const SMOOTHING: f64 = 0.1;

/// What is shown while training.
pub(crate) struct Progress {
    shown: Shown,
    steps: u64,
    watch: Stopwatch,
    pace: Pace,
}

enum Shown {
    Bar(ProgressBar),
    Lines(Lines),
}

/// Seconds per step, smoothed.
#[derive(Default)]
struct Pace {
    last_seconds: f64,
    mean: Option<f64>,
}

/// When the next plain line is due.
struct Lines {
    last_seconds: f64,
    last_tenth: u64,
}

impl Progress {
    /// Shown from now on; the steps' clock starts with `begin`.
    pub(crate) fn start(step: u64, steps: u64) -> Self {
        let shown = if terminal::redraws() {
            let bar = ProgressBar::new(steps).with_position(step).with_style(style());
            bar.set_message("waiting for the workers");
            bar.enable_steady_tick(Duration::from_millis(200));
            Shown::Bar(bar)
        } else {
            Shown::Lines(Lines { last_seconds: 0.0, last_tenth: step * 10 / steps.max(1) })
        };
        Self { shown, steps, watch: Stopwatch::start(), pace: Pace::default() }
    }

    /// The workers begin their first step now: at the start, and after a rollback.
    pub(crate) fn begin(&mut self) {
        self.pace.rest(self.watch.seconds());
        if let Shown::Bar(bar) = &self.shown {
            bar.set_message("the first step");
        }
    }

    /// Shows a committed step and returns the seconds since the one before.
    pub(crate) fn step(&mut self, row: &StepRow) -> f64 {
        let now = self.watch.seconds();
        let seconds = self.pace.step(now);
        let mut text = figures(row, &self.pace, self.steps);
        if row.step == self.steps {
            text.push_str("  evaluating");
        }
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_position(row.step);
                bar.set_message(text);
            }
            Shown::Lines(lines) => {
                if lines.due(now, row.step, self.steps) {
                    terminal::note(&format!("step {}/{}  {text}", row.step, self.steps));
                }
            }
        }
        seconds
    }

    /// Shows a step that was not trained. Its time counts for no other step.
    pub(crate) fn skipped(&mut self, skipped: &SkippedStep) {
        self.pace.rest(self.watch.seconds());
        if let Shown::Bar(bar) = &self.shown {
            bar.set_position(skipped.step);
        }
        let SkippedStep { step, skipped, worker, in_a_row, .. } = skipped;
        self.say(&format!("step {step} skipped: {skipped} on {worker} ({in_a_row} in a row)"));
    }

    /// Shows an evaluation; `best` is the best of the set before it. Its time counts for no step.
    pub(crate) fn evaluated(&mut self, row: &EvaluationRow, best: Option<(u64, f64)>) {
        self.pace.rest(self.watch.seconds());
        self.say(&evaluation(row, best));
    }

    /// Shows that the run stands at an earlier step again.
    pub(crate) fn rolled_back(&mut self, to: u64, text: &str) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(to),
            Shown::Lines(lines) => lines.last_tenth = to * 10 / self.steps.max(1),
        }
        self.say(text);
    }

    /// The workers make a new plan and go on after step `to`.
    pub(crate) fn recovering(&mut self, to: u64) {
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_position(to);
                bar.set_message("recovering");
            }
            Shown::Lines(lines) => lines.last_tenth = to * 10 / self.steps.max(1),
        }
    }

    /// Nothing goes on for now.
    pub(crate) fn pause(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.set_message("paused");
        }
    }

    /// A line above the bar.
    pub(crate) fn say(&self, text: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| terminal::note(text)),
            Shown::Lines(_) => terminal::note(text),
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("training {bar:24} step {pos}/{len}  {wide_msg}")
        .expect("the template names known keys")
}

/// `loss 2.713  4.1k tokens/s  1:32 left`.
fn figures(row: &StepRow, pace: &Pace, steps: u64) -> String {
    let mean = pace.mean.unwrap_or_default();
    let left = mean * steps.saturating_sub(row.step) as f64;
    format!(
        "loss {:.3}  {} tokens/s  {} left",
        row.loss,
        short(row.tokens as f64 / mean.max(1e-6)),
        duration(left)
    )
}

/// `812`, `4.1k`, `1.2M`.
pub(crate) fn short(count: f64) -> String {
    match count {
        c if c < 1e3 => format!("{c:.0}"),
        c if c < 1e6 => format!("{:.1}k", c / 1e3),
        c if c < 1e9 => format!("{:.1}M", c / 1e6),
        c => format!("{:.1}G", c / 1e9),
    }
}

/// `0:07`, `1:32`, `2:05:00`.
pub(crate) fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        hours => format!("{hours}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

/// `step 50  heldout: loss 2.131, 3.07 bits/byte, perplexity 8.42, best so far`.
fn evaluation(row: &EvaluationRow, best: Option<(u64, f64)>) -> String {
    let (step, set) = (row.step, &row.set);
    let (Some(loss), Some(bits)) = (row.loss, row.bits_per_byte) else {
        return format!("step {step}  {set}: the loss is not finite");
    };
    let place = match best {
        Some((at, least)) if least <= loss && at != step => {
            format!("best was {least:.3} at step {at}")
        }
        _ => "best so far".to_owned(),
    };
    let perplexity = row.perplexity.map_or("infinite".to_owned(), |p| format!("{p:.2}"));
    format!(
        "step {step}  {set}: loss {loss:.3}, {bits:.2} bits/byte, perplexity {perplexity}, {place}"
    )
}

impl Pace {
    /// The time up to `now` was no step's.
    fn rest(&mut self, now: f64) {
        self.last_seconds = now;
    }

    fn step(&mut self, now: f64) -> f64 {
        let seconds = (now - self.last_seconds).max(0.0);
        self.last_seconds = now;
        self.mean = Some(self.mean.map_or(seconds, |mean| mean + SMOOTHING * (seconds - mean)));
        seconds
    }
}

impl Lines {
    fn due(&mut self, now: f64, step: u64, steps: u64) -> bool {
        let tenth = step * 10 / steps.max(1);
        let due = tenth > self.last_tenth || now - self.last_seconds >= LINE_SECONDS || step == 1;
        if due {
            (self.last_seconds, self.last_tenth) = (now, tenth);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::report::Evaluation;

    use super::*;

    #[test]
    fn plain_lines_come_with_time_or_with_a_tenth_of_the_run() {
        let mut lines = Lines { last_seconds: 0.0, last_tenth: 0 };
        assert!(lines.due(0.1, 1, 100), "the first step shows that it works");
        assert!(!lines.due(0.2, 2, 100));
        assert!(lines.due(2.2, 5, 100));
        assert!(lines.due(2.3, 10, 100));
        assert!(!lines.due(2.4, 11, 100));
        assert!(lines.due(2.5, 100, 100));
    }

    #[test]
    fn the_pace_starts_with_the_first_step_and_follows_slowly() {
        let mut pace = Pace::default();
        assert!((pace.step(1.0) - 1.0).abs() < 1e-12);
        assert!((pace.step(3.0) - 2.0).abs() < 1e-12);
        assert!((pace.mean.unwrap() - 1.1).abs() < 1e-12);
    }

    #[test]
    fn the_time_of_an_evaluation_counts_for_no_step() {
        let mut pace = Pace::default();
        pace.step(1.0);
        pace.rest(31.0);
        assert!((pace.step(32.0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn an_evaluation_is_one_line_and_says_whether_it_is_the_best() {
        let row = |loss| {
            let evaluation = Evaluation { set: "heldout".into(), loss, tokens: 10, bytes: 10 };
            EvaluationRow::new(50, &evaluation)
        };
        let first = evaluation(&row(2.0), None);
        assert_eq!(
            first,
            "step 50  heldout: loss 2.000, 2.89 bits/byte, perplexity 7.39, best so far"
        );
        assert!(evaluation(&row(2.0), Some((40, 2.5))).ends_with("best so far"));
        assert!(evaluation(&row(2.0), Some((40, 1.5))).ends_with("best was 1.500 at step 40"));
        let infinite = evaluation(&row(f64::INFINITY), None);
        assert_eq!(infinite, "step 50  heldout: the loss is not finite");
    }

    #[test]
    fn counts_and_durations_are_short() {
        assert_eq!([812.4, 4100.0, 1.25e6, 2e9].map(short), ["812", "4.1k", "1.2M", "2.0G"]);
        assert_eq!([7.4, 92.0, 7500.0].map(duration), ["0:07", "1:32", "2:05:00"]);
    }
}
