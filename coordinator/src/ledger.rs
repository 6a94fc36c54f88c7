//! `ledger.jsonl`: one line per committed step, which proves that each sample was trained once, or
//! is named as skipped.
//!
//! A line `{"rolled_back_to": N}` takes back all that stands above it and comes after step N: the
//! run went on from the checkpoint of step N. With `"next_sequence": M` it also passes over the
//! sequences from the end of step N up to M, which are never trained: too many steps in a row were
//! not finite on the way there. Rows are synced to disk with every checkpoint.
//!
//! A launch numbers its rows. A coordinator that is started anew says the last ones again, and those that
//! are here are left out.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_plan::plan::Generation;

use crate::appended::Appended;
use crate::error::Error;

const FILE_NAME: &str = "ledger.jsonl";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LedgerRow {
    Step(StepLine),
    RolledBack(Rollback),
}

/// One committed step: with a loss it was trained, without it was skipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepLine {
    pub generation: Generation,
    pub step: u64,
    /// Index of the step's first sequence in the sample order.
    pub first_sequence: u64,
    /// Sequences of this step.
    pub sequences: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Where the value was that was not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Of the parameters of all cells after the step, in hexadecimal: equal on every run of the same
    /// numbers, whoever hosts what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<String>,
}

/// All after a step is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    pub rolled_back_to: u64,
    /// The first sequence of the next step, if those between are passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_sequence: Option<u64>,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Ledger {
    lines: Appended,
    path: PathBuf,
    /// Lines, with those that wait for the disk; and those before the launch's first row.
    count: u64,
    first: u64,
}

impl Ledger {
    /// Opens or creates the ledger of a run directory. A last line that was cut short by a crash
    /// is removed; what comes after step `resume_from` is rolled back.
    pub(crate) fn open(run_dir: &Path, resume_from: Option<u64>) -> Result<Self, Error> {
        let (mut ledger, reach) = Self::read(run_dir)?;
        let resume_from = resume_from.unwrap_or(0);
        if reach > resume_from {
            let back = Rollback { rolled_back_to: resume_from, next_sequence: None };
            ledger.write(&LedgerRow::RolledBack(back))?;
        }
        ledger.first = ledger.count;
        Ok(ledger)
    }

    /// Opens the ledger of a launch that goes on under a new coordinator, and began after `first` lines.
    pub(crate) fn reopen(run_dir: &Path, first: u64) -> Result<Self, Error> {
        let (mut ledger, _) = Self::read(run_dir)?;
        ledger.first = first;
        Ok(ledger)
    }

    /// The ledger without a torn last line, and how far it reaches.
    fn read(run_dir: &Path) -> Result<(Self, u64), Error> {
        let path = run_dir.join(FILE_NAME);
        let io = |doing| {
            let path = path.clone();
            move |source| Error::Io { doing, path, source }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("opening"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("reading"))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64).map_err(io("cutting the broken last line of"))?;
        let reach = reach(&bytes[..whole], &path)?;
        let lines = Appended::to(file).map_err(io("reading"))?;
        let count = bytes[..whole].split_inclusive(|byte| *byte == b'\n').count() as u64;
        Ok((Self { lines, path, count, first: 0 }, reach))
    }

    /// Lines before the launch's first row.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Rows of this launch.
    pub(crate) fn rows(&self) -> u64 {
        self.count.saturating_sub(self.first)
    }

    /// Appends the launch's nth row, from 1, unless it is here.
    pub(crate) fn record(&mut self, number: u64, row: &LedgerRow) -> Result<(), Error> {
        if number <= self.rows() { Ok(()) } else { self.write(row) }
    }

    /// Appends one row. On a full disk it waits for the next one, or for the sync of a checkpoint,
    /// which fails without it.
    fn write(&mut self, row: &LedgerRow) -> Result<(), Error> {
        self.count += 1;
        let mut text = serde_json::to_string(row).expect("a ledger line has only string keys");
        text.push('\n');
        self.lines.push(text.as_bytes()).map_err(|source| self.error("writing", source))
    }

    /// Makes the rows recorded so far durable when it is called, on any thread.
    pub(crate) fn syncer(&mut self) -> Result<impl FnOnce() -> Result<(), Error> + use<>, Error> {
        self.lines.flush().map_err(|source| self.error("writing", source))?;
        let file = self.lines.file().try_clone().map_err(|source| self.error("opening", source))?;
        let path = self.path.clone();
        Ok(move || file.sync_data().map_err(|source| Error::Io { doing: "syncing", path, source }))
    }

    fn error(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Io { doing, path: self.path.clone(), source }
    }
}

/// The last step that something in force is about. Sequences passed over after step N are about
/// step N + 1, whether or not it was done.
fn reach(bytes: &[u8], path: &Path) -> Result<u64, Error> {
    let mut reach = 0;
    for (i, text) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, t)| !t.is_empty()) {
        let parsed = serde_json::from_slice(text);
        reach = match parsed.map_err(|source| Error::Ledger {
            path: path.into(),
            line: i + 1,
            source,
        })? {
            LedgerRow::Step(row) => row.step,
            LedgerRow::RolledBack(Rollback { rolled_back_to, next_sequence }) => {
                rolled_back_to + u64::from(next_sequence.is_some())
            }
        };
    }
    Ok(reach)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoints::tests::TestDir;

    fn row(step: u64) -> LedgerRow {
        let (generation, first_sequence) = (Generation(1), (step - 1) * 8);
        let (loss, skipped) = (Some(2.5), None);
        let sum = None;
        LedgerRow::Step(StepLine {
            generation,
            step,
            first_sequence,
            sequences: 8,
            loss,
            skipped,
            sum,
        })
    }

    fn back(rolled_back_to: u64, next_sequence: Option<u64>) -> LedgerRow {
        LedgerRow::RolledBack(Rollback { rolled_back_to, next_sequence })
    }

    fn text(dir: &Path) -> String {
        std::fs::read_to_string(dir.join(FILE_NAME)).unwrap()
    }

    #[test]
    fn a_resumed_run_takes_back_the_rows_after_its_checkpoint_once() {
        let dir = TestDir::new("ledger-resume");
        let mut ledger = Ledger::open(&dir.0, None).unwrap();
        (1..=3).for_each(|step| ledger.write(&row(step)).unwrap());
        ledger.syncer().unwrap()().unwrap();
        drop(ledger);
        let before = text(&dir.0);
        let first = r#"{"generation":1,"step":1,"first_sequence":0,"sequences":8,"loss":2.5}"#;
        assert_eq!(before.lines().next(), Some(first));
        for _ in 0..2 {
            Ledger::open(&dir.0, Some(2)).unwrap();
            assert_eq!(text(&dir.0), format!("{before}{{\"rolled_back_to\":2}}\n"));
        }
        let mut ledger = Ledger::open(&dir.0, Some(2)).unwrap();
        ledger.write(&row(3)).unwrap();
        Ledger::open(&dir.0, Some(3)).unwrap();
        assert_eq!(text(&dir.0).lines().count(), 5);
    }

    #[test]
    fn what_a_rollback_passed_over_is_taken_back_with_the_rows_before_it() {
        let dir = TestDir::new("ledger-passed-over");
        let mut ledger = Ledger::open(&dir.0, None).unwrap();
        ledger.write(&row(1)).unwrap();
        let (first_sequence, skipped) = (8, Some("worker-1: layer 3 forward".to_owned()));
        let LedgerRow::Step(line) = row(2) else { panic!("a step's row") };
        let skip = StepLine { first_sequence, loss: None, skipped, ..line };
        ledger.write(&LedgerRow::Step(skip)).unwrap();
        ledger.write(&back(1, Some(16))).unwrap();
        let before = text(&dir.0);
        let want = [
            r#""sequences":8,"skipped":"worker-1: layer 3 forward"}"#,
            r#"{"rolled_back_to":1,"next_sequence":16}"#,
        ];
        assert!(want.iter().all(|want| before.contains(want)), "{before}");
        for _ in 0..2 {
            // The checkpoint of step 1 knows nothing of it: its run meets the same step again.
            Ledger::open(&dir.0, Some(1)).unwrap();
            assert_eq!(text(&dir.0), format!("{before}{{\"rolled_back_to\":1}}\n"));
        }
    }

    #[test]
    fn a_line_cut_short_by_a_crash_is_removed_and_another_broken_line_is_named() {
        let dir = TestDir::new("ledger-torn");
        Ledger::open(&dir.0, None).unwrap().write(&row(1)).unwrap();
        let whole = text(&dir.0);
        std::fs::write(dir.0.join(FILE_NAME), format!("{whole}{{\"gener")).unwrap();
        Ledger::open(&dir.0, Some(1)).unwrap();
        assert_eq!(text(&dir.0), whole);
        std::fs::write(dir.0.join(FILE_NAME), format!("{whole}nonsense\n")).unwrap();
        let error = Ledger::open(&dir.0, Some(1)).unwrap_err().to_string();
        assert!(error.contains("ledger.jsonl, line 2, is not a line of the ledger"), "{error}");
    }

    #[test]
    fn rows_that_are_said_again_after_a_restart_stand_there_once() {
        let dir = TestDir::new("ledger-again");
        let mut ledger = Ledger::open(&dir.0, None).unwrap();
        ledger.record(1, &row(1)).unwrap();
        drop(ledger);
        let mut ledger = Ledger::open(&dir.0, Some(1)).unwrap();
        let first = ledger.first();
        (1..=2).for_each(|n| ledger.record(n, &row(n + 1)).unwrap());
        drop(ledger);
        let whole = text(&dir.0);
        // The third was cut short: it is said again, as are those before.
        std::fs::write(dir.0.join(FILE_NAME), format!("{whole}{{\"gen")).unwrap();
        let mut ledger = Ledger::reopen(&dir.0, first).unwrap();
        assert_eq!(ledger.rows(), 2);
        (1..=4).for_each(|n| ledger.record(n, &row(n + 1)).unwrap());
        let steps = text(&dir.0).lines().count();
        assert_eq!((steps, ledger.rows()), (5, 4));
        assert!(text(&dir.0).starts_with(&whole));
    }
}
