//! `ledger.jsonl`: one line per committed step, which proves that each sample was trained once.
//!
//! A line `{"rolled_back_to": N}` takes back the rows after step N that stand above it: the run
//! went on from the checkpoint of step N. Rows are synced to disk with every checkpoint.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_plan::plan::Generation;

use crate::error::Error;

const FILE_NAME: &str = "ledger.jsonl";

/// One committed step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerRow {
    pub generation: Generation,
    pub step: u64,
    /// Index of the step's first sequence in the sample order.
    pub first_sequence: u64,
    /// Sequences of this step.
    pub sequences: u64,
    pub loss: f64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Step(LedgerRow),
    RolledBack { rolled_back_to: u64 },
}

/// The open file, at its end.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: File,
    path: PathBuf,
}

impl Ledger {
    /// Opens or creates the ledger of a run directory. A last line that was cut short by a crash
    /// is removed; rows after `resume_from` are rolled back.
    pub(crate) fn open(run_dir: &Path, resume_from: Option<u64>) -> Result<Self, Error> {
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
        file.seek(SeekFrom::End(0)).map_err(io("reading"))?;
        let last = last_step(&bytes[..whole], &path)?;
        let mut ledger = Self { file, path };
        let resume_from = resume_from.unwrap_or(0);
        if last > resume_from {
            ledger.write(&Line::RolledBack { rolled_back_to: resume_from })?;
        }
        Ok(ledger)
    }

    /// Appends one row.
    pub(crate) fn record(&mut self, row: LedgerRow) -> Result<(), Error> {
        self.write(&Line::Step(row))
    }

    /// Makes the rows recorded so far durable when it is called, on any thread.
    pub(crate) fn syncer(&self) -> Result<impl FnOnce() -> Result<(), Error> + use<>, Error> {
        let file = self.file.try_clone().map_err(|source| self.error("opening", source))?;
        let path = self.path.clone();
        Ok(move || file.sync_data().map_err(|source| Error::Io { doing: "syncing", path, source }))
    }

    fn write(&mut self, line: &Line) -> Result<(), Error> {
        let mut text = serde_json::to_string(line).expect("a ledger line has only string keys");
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|source| self.error("writing", source))
    }

    fn error(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Io { doing, path: self.path.clone(), source }
    }
}

/// The last step that was not rolled back.
fn last_step(bytes: &[u8], path: &Path) -> Result<u64, Error> {
    let mut last = 0;
    for (i, text) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, t)| !t.is_empty()) {
        let parsed = serde_json::from_slice(text);
        last = match parsed.map_err(|source| Error::Ledger {
            path: path.into(),
            line: i + 1,
            source,
        })? {
            Line::Step(row) => row.step,
            Line::RolledBack { rolled_back_to } => rolled_back_to,
        };
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoints::tests::TestDir;

    fn row(step: u64) -> LedgerRow {
        let generation = Generation(1);
        LedgerRow { generation, step, first_sequence: (step - 1) * 8, sequences: 8, loss: 2.5 }
    }

    fn text(dir: &Path) -> String {
        std::fs::read_to_string(dir.join(FILE_NAME)).unwrap()
    }

    #[test]
    fn a_resumed_run_takes_back_the_rows_after_its_checkpoint_once() {
        let dir = TestDir::new("ledger-resume");
        let mut ledger = Ledger::open(&dir.0, None).unwrap();
        (1..=3).for_each(|step| ledger.record(row(step)).unwrap());
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
        ledger.record(row(3)).unwrap();
        Ledger::open(&dir.0, Some(3)).unwrap();
        assert_eq!(text(&dir.0).lines().count(), 5);
    }

    #[test]
    fn a_line_cut_short_by_a_crash_is_removed_and_another_broken_line_is_named() {
        let dir = TestDir::new("ledger-torn");
        Ledger::open(&dir.0, None).unwrap().record(row(1)).unwrap();
        let whole = text(&dir.0);
        std::fs::write(dir.0.join(FILE_NAME), format!("{whole}{{\"gener")).unwrap();
        Ledger::open(&dir.0, Some(1)).unwrap();
        assert_eq!(text(&dir.0), whole);
        std::fs::write(dir.0.join(FILE_NAME), format!("{whole}nonsense\n")).unwrap();
        let error = Ledger::open(&dir.0, Some(1)).unwrap_err().to_string();
        assert!(error.contains("ledger.jsonl, line 2, is not a line of the ledger"), "{error}");
    }
}
