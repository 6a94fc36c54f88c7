//! How far the reading of text is: a bar on a terminal, otherwise a plain line now and then.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use shoal_data::Phase;

use super::{duration, short};
use crate::clock::Stopwatch;
use crate::terminal;

/// Plain lines come at most this often, so that what takes a moment says nothing.
const LINE_SECONDS: f64 = 5.0;

/// Progress of everything that happens to text before it is trained on.
pub(crate) struct Reading {
    /// Hidden without a terminal.
    bar: ProgressBar,
    watch: Stopwatch,
    pace: Pace,
    /// Bytes of text that a tokenizer was trained on.
    trained_on: Option<u64>,
}

/// What is under way since when.
#[derive(Debug, Default)]
struct Pace {
    /// The phase with its subject.
    task: String,
    started_seconds: f64,
    /// What was done when it was first heard of: a transfer may go on where one was cut.
    started_bytes: u64,
    said_seconds: f64,
}

impl Reading {
    pub(crate) fn start() -> Self {
        let bar = if terminal::redraws() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:24} {wide_msg}");
        let bar = bar.with_style(style.expect("the template names known keys"));
        Self { bar, watch: Stopwatch::start(), pace: Pace::default(), trained_on: None }
    }

    /// Shows one piece of news from the preparation of a dataset.
    pub(crate) fn show(&mut self, at: shoal_data::Progress<'_>) {
        let task = match at.phase {
            Phase::Checking => format!("checking {}", at.subject),
            Phase::Sampling => format!("sampling {} for the tokenizer", at.subject),
            Phase::TrainingTokenizer => return self.tokenizer(at.done, at.all),
            Phase::Tokenising => format!("tokenising {}", at.subject),
            Phase::Splitting => format!("splitting {}", at.subject),
        };
        self.bytes(&task, at.done, Some(at.all));
    }

    /// Shows a task measured in bytes; `all` where it is known.
    pub(crate) fn bytes(&mut self, task: &str, done: u64, all: Option<u64>) {
        self.counted(task, (done, all), "B");
    }

    /// Shows a task measured in tokens.
    pub(crate) fn tokens(&mut self, task: &str, done: u64, all: u64) {
        self.counted(task, (done, Some(all)), " tokens");
    }

    fn counted(&mut self, task: &str, (done, all): (u64, Option<u64>), unit: &str) {
        let now = self.watch.seconds();
        let is_due = self.pace.at(task, done, now);
        self.bar.set_length(all.unwrap_or(0));
        self.bar.set_position(done);
        let text = self.pace.figures((done, all), unit, now);
        if self.bar.is_hidden() && is_due {
            terminal::note(&text);
        }
        self.bar.set_message(text);
    }

    /// After the last byte come the merges, of which nothing is heard until they are done.
    pub(crate) fn tokenizer(&mut self, done: u64, all: u64) {
        const TASK: &str = "training the tokenizer";
        self.trained_on = Some(all);
        self.bytes(TASK, done, Some(all));
        if done == all {
            let text = format!("{TASK}: {}B counted, now merging", short(all as f64));
            if self.bar.is_hidden() {
                terminal::note(&text);
            }
            let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
            self.bar.set_style(style.expect("the template names known keys"));
            self.bar.reset_elapsed();
            self.bar.enable_steady_tick(Duration::from_millis(200));
            self.bar.set_message(text);
        }
    }

    /// Bytes of text that a tokenizer was trained on, if one was.
    pub(crate) fn trained_on(&self) -> Option<u64> {
        self.trained_on
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Pace {
    /// Whether a plain line is due.
    fn at(&mut self, task: &str, done: u64, now: f64) -> bool {
        if self.task != task {
            let (task, said_seconds) = (task.to_owned(), now);
            *self = Self { task, started_seconds: now, started_bytes: done, said_seconds };
            return false;
        }
        let is_due = now - self.said_seconds >= LINE_SECONDS;
        if is_due {
            self.said_seconds = now;
        }
        is_due
    }

    /// `tokenising code: 1.2MB of 8.0MB, 400.0kB/s, 0:17 left`.
    fn figures(&self, (done, all): (u64, Option<u64>), unit: &str, now: f64) -> String {
        let of = all.map_or(String::new(), |all| format!(" of {}{unit}", short(all as f64)));
        let mut text = format!("{}: {}{unit}{of}", self.task, short(done as f64));
        let seconds = now - self.started_seconds;
        let rate = done.saturating_sub(self.started_bytes) as f64 / seconds;
        if seconds > 0.0 && rate > 0.0 {
            let _ = write!(text, ", {}{unit}/s", short(rate));
            if let Some(all) = all {
                let left = duration(all.saturating_sub(done) as f64 / rate);
                let _ = write!(text, ", {left} left");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_takes_a_moment_is_silent_and_a_long_one_says_rate_and_time_left() {
        let mut pace = Pace::default();
        assert!(!pace.at("tokenising code", 0, 1.0));
        assert!(!pace.at("tokenising code", 1_000_000, 5.9));
        assert!(pace.at("tokenising code", 2_000_000, 6.0));
        assert!(!pace.at("tokenising code", 2_100_000, 6.1));
        let text = pace.figures((2_000_000, Some(8_000_000)), "B", 6.0);
        assert_eq!(text, "tokenising code: 2.0MB of 8.0MB, 400.0kB/s, 0:15 left");
        assert!(!pace.at("tokenising books", 0, 60.0), "each task has its own clock");
        assert_eq!(pace.figures((0, Some(10)), "B", 60.0), "tokenising books: 0B of 10B");
    }

    #[test]
    fn a_transfer_that_goes_on_counts_only_what_is_new() {
        let mut pace = Pace::default();
        pace.at("fetching x", 9_000_000, 0.0);
        let text = pace.figures((10_000_000, None), "B", 2.0);
        assert_eq!(text, "fetching x: 10.0MB, 500.0kB/s");
        let text = pace.figures((9_000_500, Some(9_001_000)), " tokens", 1.0);
        assert!(text.ends_with(" of 9.0M tokens, 500 tokens/s, 0:01 left"), "{text}");
    }
}
