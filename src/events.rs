//! `RUN/events.jsonl`: who was lost, who came, what the run did about it, and because of what.
//!
//! One line an event, written by the launcher alone. The file is bounded: when it is full it becomes
//! `events.1.jsonl`, in the place of the one before. A line that cannot be written is worth a
//! warning, never the run.

mod show;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_plan::plan::{Generation, WorkerId};

use crate::clock::{Stopwatch, unix_time};
use crate::logging;

pub(crate) use show::{line, newest, show};

pub(crate) const FILE_NAME: &str = "events.jsonl";
/// The lines before those of `FILE_NAME`.
pub(crate) const OLDER_FILE_NAME: &str = "events.1.jsonl";

/// Some forty thousand events.
const BYTES_MAX: u64 = 8 << 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Seconds since 1970, for comparing with other logs.
    pub time: f64,
    /// Since this launch began, on a clock that does not jump.
    pub seconds: f64,
    /// Of the plan in force; 0 before the first.
    pub generation: Generation,
    /// The last committed step.
    pub step: u64,
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// What triggered it, or what it led to, as a sentence.
    pub fact: String,
}

/// What kind of thing happened. Their names in the file are for programs: they stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// A launch began.
    Launched,
    /// A worker was accepted for the first time.
    Joined,
    /// All workers are ready and train.
    Started,
    /// The launcher saw a worker's process end.
    Exited,
    /// The launcher starts a worker's process anew.
    Restarted,
    /// The launcher starts it no more.
    GivenUp,
    /// The coordinator's process ended; the workers train on.
    CoordinatorExited,
    /// It was started anew, and every worker is back or lost.
    CoordinatorBack,
    /// A worker is no longer of the plan.
    Evicted,
    /// A new plan is out, and from where it goes on.
    Recovering,
    /// All of the new plan train.
    Recovered,
    /// A worker that was lost is back.
    Rejoined,
    /// A worker came when training was under way.
    JoinedLate,
    /// Somebody wants a worker to hand over and go.
    Draining,
    /// A worker went as it was asked to.
    Left,
    /// Cells were moved between two steps; nothing was lost.
    Moved,
    /// A worker that was lost again and again gets no cells for a while.
    Quarantined,
    /// Too few workers, or somebody wanted the machine, or wanted it to wait.
    Paused,
    Resumed,
    /// A worker that the others wait for.
    Straggler,
    /// Cells move from a slow worker to a faster one, or back.
    Shares,
    /// A worker has caught up, and enters at the next edge.
    Prepared,
    /// A worker gives way to whoever needs its machine,
    Yielding,
    /// and may have cells again.
    Available,
    /// Parameters that should be equal are not.
    Diverged,
    /// Too many skipped steps.
    RolledBack,
    CheckpointFailed,
    /// The end: at its last step or early,
    Finished,
    /// or by a signal,
    Stopped,
    /// or because it could not go on.
    Failed,
}

/// The open file.
pub(crate) struct Log {
    file: File,
    directory: PathBuf,
    bytes: u64,
    bytes_max: u64,
    watch: Stopwatch,
    generation: Generation,
    step: u64,
    /// Writing has failed, and that was said.
    warned: bool,
}

impl Log {
    /// Opens the log of a run directory, for a launch that goes on after `step`.
    pub(crate) fn open(directory: &Path, step: u64, watch: Stopwatch) -> io::Result<Self> {
        let (file, bytes) = open(&directory.join(FILE_NAME))?;
        Ok(Self {
            file,
            directory: directory.to_path_buf(),
            bytes,
            bytes_max: BYTES_MAX,
            watch,
            generation: Generation(0),
            step,
            warned: false,
        })
    }

    /// Of the events to come.
    pub(crate) fn generation_is(&mut self, generation: Generation) {
        self.generation = generation;
        logging::generation_is(generation.0);
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Of the events to come.
    pub(crate) fn step_is(&mut self, step: u64) {
        self.step = step;
        logging::step_is(step);
    }

    /// Appends one event.
    pub(crate) fn add(&mut self, kind: Kind, worker: Option<WorkerId>, fact: impl Into<String>) {
        let (generation, step) = (self.generation, self.step);
        let millis = |seconds: f64| (seconds * 1e3).round() / 1e3;
        let (time, seconds) = (millis(unix_time()), millis(self.watch.seconds()));
        let event = Event { time, seconds, generation, step, kind, worker, fact: fact.into() };
        tracing::info!(?kind, worker = worker.map(|worker| worker.0), fact = event.fact, "event");
        if let Err(error) = self.write(&event)
            && !std::mem::replace(&mut self.warned, true)
        {
            let path = self.directory.join(FILE_NAME);
            tracing::warn!(%error, path = %path.display(), "events are not written down");
        }
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_string(event)?;
        line.push('\n');
        let length = line.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.bytes_max {
            let full = self.directory.join(FILE_NAME);
            fs::rename(&full, self.directory.join(OLDER_FILE_NAME))?;
            (self.file, self.bytes) = open(&full)?;
        }
        // Whole or absent: it is written in one call.
        self.file.write_all(line.as_bytes())?;
        self.bytes += length;
        Ok(())
    }
}

/// Opens or creates a log at its end. A last line that was cut short is ended, and so ignored.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let mut bytes = file.metadata()?.len();
    if bytes > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            bytes += 1;
        }
    }
    Ok((file, bytes))
}

/// All events of a run directory that are kept, oldest first. Lines that are none are left out.
pub(crate) fn read(directory: &Path) -> io::Result<Vec<Event>> {
    let older = match fs::read(directory.join(OLDER_FILE_NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    let newer = fs::read(directory.join(FILE_NAME))?;
    let lines = [&older, &newer].into_iter().flat_map(|text| text.split(|byte| *byte == b'\n'));
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::tests::Dir;

    /// Holds no log yet.
    fn empty(name: &str) -> Dir {
        let dir = Dir::new(&format!("events-{name}"));
        fs::create_dir_all(&dir.0).unwrap();
        dir
    }

    fn log(dir: &Dir) -> Log {
        Log::open(&dir.0, 7, Stopwatch::start()).unwrap()
    }

    #[test]
    fn a_line_has_the_keys_that_the_documents_name() {
        let dir = empty("keys");
        let mut log = log(&dir);
        log.add(Kind::Launched, None, "4 workers");
        log.generation_is(Generation(2));
        log.step_is(40);
        log.add(Kind::Evicted, Some(WorkerId(2)), "killed by signal 9");
        let text = fs::read_to_string(dir.0.join(FILE_NAME)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let tails = [
            r#""generation":0,"step":7,"kind":"launched","fact":"4 workers"}"#,
            r#""generation":2,"step":40,"kind":"evicted","worker":2,"fact":"killed by signal 9"}"#,
        ];
        assert!(lines[0].starts_with(r#"{"time":"#), "{text}");
        assert!(lines.iter().zip(tails).all(|(line, tail)| line.ends_with(tail)), "{text}");
        let read = read(&dir.0).unwrap();
        assert_eq!((read.len(), read[1].kind, read[1].step), (2, Kind::Evicted, 40));
    }

    #[test]
    fn a_full_file_becomes_the_older_one_and_the_one_before_it_is_gone() {
        let dir = empty("full");
        let mut log = log(&dir);
        log.bytes_max = 400;
        for number in 0..40 {
            log.add(Kind::Joined, Some(WorkerId(number)), "came");
        }
        for name in [FILE_NAME, OLDER_FILE_NAME] {
            let bytes = fs::metadata(dir.0.join(name)).unwrap().len();
            assert!(bytes <= 400, "{name} has {bytes} bytes");
        }
        let workers: Vec<u32> =
            read(&dir.0).unwrap().iter().map(|event| event.worker.unwrap().0).collect();
        assert!(workers.len() > 3 && workers.len() < 40);
        assert!(workers.iter().copied().eq(40 - workers.len() as u32..40), "{workers:?}");
    }

    #[test]
    fn another_launch_appends_and_a_line_cut_short_by_a_crash_spoils_no_other() {
        let dir = empty("torn");
        log(&dir).add(Kind::Launched, None, "first");
        let path = dir.0.join(FILE_NAME);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"time\":17");
        fs::write(&path, text).unwrap();
        log(&dir).add(Kind::Launched, None, "second");
        let facts: Vec<String> =
            read(&dir.0).unwrap().into_iter().map(|event| event.fact).collect();
        assert_eq!(facts, ["first", "second"]);
    }
}
