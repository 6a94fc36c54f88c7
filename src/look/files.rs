//! What a run of this machine has written down: losses and events by its files, traffic by its workers' metrics.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;
use shoal_cluster::exposition;
use shoal_plan::plan::WorkerId;
use shoal_plan::report::HELDOUT;

use super::past::thin;
use super::{NewestStep, Traffic};
use crate::events;
use crate::scrape;

/// Read of a file at one look; the next goes on there.
const READ_MAX: u64 = 8 << 20;

/// The end of the events: some hundreds.
const EVENTS_BYTES: u64 = 64 << 10;

/// Metrics of one process: a hundred times what they are.
const METRICS_MAX: u64 = 4 << 20;

/// The most processes of one run that are asked.
const PROCESSES_MAX: usize = 256;

/// Losses of `metrics.jsonl`, read on from look to look.
#[derive(Debug, Default)]
pub(super) struct Losses {
    path: PathBuf,
    offset: u64,
    /// A line of which the end is not written yet.
    rest: Vec<u8>,
    pub(super) known: Vec<(u64, f64)>,
    /// Of the held-out text.
    pub(super) heldout: Vec<(u64, f64)>,
}

impl Losses {
    pub(super) fn of(run: &Path) -> Self {
        Self { path: run.join("metrics.jsonl"), ..Self::default() }
    }

    /// What was added. A file that is not there or cannot be read adds nothing.
    pub(super) fn read_on(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        let length = file.metadata().map_or(0, |file| file.len());
        if length < self.offset {
            // Lines about steps that are trained again were taken back.
            *self = Self { path: std::mem::take(&mut self.path), ..Self::default() };
        }
        let mut bytes = Vec::new();
        let read = file
            .seek(SeekFrom::Start(self.offset))
            .and_then(|_| file.take(READ_MAX).read_to_end(&mut bytes));
        let Ok(n) = read else { return };
        self.offset += n as u64;
        self.rest.extend(bytes);
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        for line in whole.split(|byte| *byte == b'\n') {
            self.line(line);
        }
        thin(&mut self.known);
        thin(&mut self.heldout);
    }

    fn line(&mut self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Value>(line) else { return };
        if let Some(to) = line["rolled_back_to"].as_u64() {
            self.known.retain(|(step, _)| *step <= to);
            self.heldout.retain(|(step, _)| *step <= to);
        } else if line["evaluation"] == HELDOUT {
            if let (Some(step), Some(loss)) = (line["step"].as_u64(), line["loss"].as_f64()) {
                self.heldout.push((step, loss));
            }
        } else if line.get("main_loss").is_some()
            && let (Some(step), Some(loss)) = (line["step"].as_u64(), line["loss"].as_f64())
        {
            self.known.retain(|(known, _)| *known < step);
            self.known.push((step, loss));
        }
    }
}

/// The newest events, a line each.
pub(super) fn events(run: &Path) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(run.join(events::FILE_NAME))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(EVENTS_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(EVENTS_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let lines = bytes.split(|byte| *byte == b'\n');
    // The first may be the end of one.
    lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .map(|one| events::line(&one))
        .collect()
}

/// Bytes of the data plane of every worker that answers.
pub(super) fn traffic(run: &Path) -> BTreeMap<WorkerId, Traffic> {
    let targets = scrape::workers_of(run).into_iter().take(PROCESSES_MAX);
    let found = targets.filter_map(|(worker, address)| {
        Some((worker, bytes(&scrape::fetch(address, METRICS_MAX).ok()?)))
    });
    found.collect()
}

/// The newest step of every worker that answers.
pub(super) fn newest(run: &Path) -> BTreeMap<WorkerId, NewestStep> {
    let targets = scrape::workers_of(run).into_iter().take(PROCESSES_MAX);
    let found = targets.filter_map(|(worker, address)| {
        let text = scrape::fetch_step(address, METRICS_MAX).ok()?;
        Some((worker, serde_json::from_str(&text).ok()?))
    });
    found.collect()
}

/// Of all operations together.
pub(super) fn bytes(text: &str) -> Traffic {
    let mut traffic = Traffic::default();
    let bytes = |sample: &exposition::Sample<'_>| sample.name == "shoal_collective_bytes_total";
    for sample in exposition::samples(text).filter(bytes) {
        match sample.label("direction") {
            Some("sent") => traffic.sent += sample.value,
            Some("received") => traffic.received += sample.value,
            Some(_) | None => {}
        }
    }
    traffic
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;
    use crate::run_dir::tests::Dir;

    #[test]
    fn losses_are_read_on_and_taken_back_and_half_a_line_waits() {
        let dir = Dir::new("top-losses");
        fs::create_dir_all(&dir.0).unwrap();
        let mut losses = Losses::of(&dir.0);
        losses.read_on();
        assert!(losses.known.is_empty(), "there is no file yet");
        let path = dir.0.join("metrics.jsonl");
        let mut file = File::create(&path).unwrap();
        let step = |n: u64| format!("{{\"step\": {n}, \"loss\": {n}.5, \"main_loss\": 1.0}}\n");
        write!(
            file,
            "{}{{\"evaluation\": \"a\", \"step\": 1, \"loss\": 9}}\n{}",
            step(1),
            &step(2)[..9]
        )
        .unwrap();
        losses.read_on();
        assert_eq!(losses.known, [(1, 1.5)]);
        write!(file, "{}{}", &step(2)[9..], step(3)).unwrap();
        writeln!(file, "not json").unwrap();
        losses.read_on();
        assert_eq!(losses.known, [(1, 1.5), (2, 2.5), (3, 3.5)]);
        write!(file, "{{\"rolled_back_to\": 1, \"from\": 3}}\n{}", step(2)).unwrap();
        losses.read_on();
        assert_eq!(losses.known, [(1, 1.5), (2, 2.5)]);
        fs::write(&path, step(1)).unwrap();
        losses.read_on();
        assert_eq!(losses.known, [(1, 1.5)], "a file that became shorter is read anew");
    }

    #[test]
    fn bytes_of_all_operations_are_added_up() {
        let text = "shoal_collective_bytes_total{op=\"a\",direction=\"sent\"} 3\n\
                    shoal_collective_bytes_total{op=\"b\",direction=\"sent\"} 4\n\
                    shoal_collective_bytes_total{op=\"b\",direction=\"received\"} 5\nother 6\n";
        assert_eq!(bytes(text), Traffic { sent: 7.0, received: 5.0 });
    }
}
