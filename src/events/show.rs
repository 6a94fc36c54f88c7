//! `shoal events`: what happened in a run, in order, with the fact that triggered it.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Event, FILE_NAME, read};
use crate::cli::{self, Output};
use crate::exit::Stopped;
use crate::show::{json, table};
use crate::terminal::{data, harmless, note};

/// Where launches put their runs.
const RUNS: &str = "runs";

pub(crate) fn show(args: &cli::Events) -> Result<(), Stopped> {
    let run = match &args.run {
        Some(run) => run.clone(),
        None => newest(Path::new(RUNS))?,
    };
    let events = read(&run).map_err(|error| {
        let what = format!("{} has no {FILE_NAME}: {error}", run.display());
        Stopped::Input(format!("{what}\nwanted the directory of a run that was launched"))
    })?;
    let since = args.since.unwrap_or(0);
    let events: Vec<Event> = events.into_iter().filter(|event| event.step >= since).collect();
    data(&match args.output {
        Output::Json => json(&events)?,
        Output::Table => shown(&events),
    });
    Ok(())
}

/// The run that something happened in last.
pub(crate) fn newest(runs: &Path) -> Result<PathBuf, Stopped> {
    let entries = fs::read_dir(runs).into_iter().flatten().flatten();
    let changed = |path: &PathBuf| fs::metadata(path.join(FILE_NAME)).and_then(|f| f.modified());
    let dated = entries.filter_map(|entry| Some((changed(&entry.path()).ok()?, entry.path())));
    let Some((_, run)) = dated.max() else {
        let what = format!("no run with events in {}", runs.display());
        return Err(Stopped::Input(format!("{what}: name the run's directory")));
    };
    note(&format!("the newest: {}", run.display()));
    Ok(run)
}

fn shown(events: &[Event]) -> String {
    if events.is_empty() {
        return "nothing happened".to_owned();
    }
    let header = ["time", "step", "plan", "what", "worker", "because"].map(str::to_owned);
    let rows = events.iter().map(|event| {
        vec![
            clock(event.seconds),
            event.step.to_string(),
            event.generation.0.to_string(),
            name(event),
            event.worker.map_or_else(String::new, |worker| worker.to_string()),
            // One event is one line, whatever a worker said of itself.
            harmless(event.fact.replace('\n', "; ").as_bytes()),
        ]
    });
    table(&std::iter::once(header.to_vec()).chain(rows).collect::<Vec<_>>()).trim_end().to_owned()
}

/// One event, as a log shows it.
pub(crate) fn line(event: &Event) -> String {
    let worker = event.worker.map_or_else(String::new, |worker| format!(" {worker}"));
    let (time, fact) = (clock(event.seconds), event.fact.replace('\n', "; "));
    format!("{time}  step {}  {}{worker}: {fact}", event.step, name(event))
}

/// The kind as in the file, with blanks.
fn name(event: &Event) -> String {
    let name = serde_json::to_value(event.kind).unwrap_or_default();
    name.as_str().unwrap_or_default().replace('_', " ")
}

/// `0:07.3`, `1:02:05.0`: since the launch.
fn clock(seconds: f64) -> String {
    let tenths = (seconds.max(0.0) * 10.0).round() as u64;
    let (tenth, s) = (tenths % 10, tenths / 10);
    match s / 3600 {
        0 => format!("{}:{:02}.{tenth}", s / 60, s % 60),
        hours => format!("{hours}:{:02}:{:02}.{tenth}", s / 60 % 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::plan::{Generation, WorkerId};

    use super::super::Kind;
    use super::*;

    fn event(step: u64, kind: Kind, worker: Option<u32>, fact: &str) -> Event {
        let (worker, fact) = (worker.map(WorkerId), fact.to_owned());
        let (time, seconds, generation) = (1.7e9, step as f64 * 0.7, Generation(1));
        Event { time, seconds, generation, step, kind, worker, fact }
    }

    #[test]
    fn an_event_is_one_line_whatever_the_worker_said() {
        let events = [
            event(0, Kind::Launched, None, "4 workers"),
            event(104, Kind::JoinedLate, Some(2), "evil\n\u{1b}[2Jwords"),
        ];
        let text = shown(&events);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "  time    step  plan  what         worker    because");
        assert_eq!(lines[2], "  1:12.8  104   1     joined late  worker-2  evil; \\u{1b}[2Jwords");
    }

    #[test]
    fn times_are_to_the_tenth_of_a_second() {
        assert_eq!(
            [0.04, 7.25, 61.0, 3725.0].map(clock),
            ["0:00.0", "0:07.3", "1:01.0", "1:02:05.0"]
        );
    }

    #[test]
    fn the_newest_run_is_the_one_with_the_newest_event() {
        let runs = std::env::temp_dir().join(format!("shoal-newest-{}", std::process::id()));
        for (name, seconds) in [("a", 10), ("b", 30), ("c", 20)] {
            fs::create_dir_all(runs.join(name)).unwrap();
            let file = fs::File::create(runs.join(name).join(FILE_NAME)).unwrap();
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.set_modified(at).unwrap();
        }
        fs::create_dir_all(runs.join("without")).unwrap();
        assert_eq!(newest(&runs).unwrap(), runs.join("b"));
        assert!(newest(&runs.join("without")).is_err());
        fs::remove_dir_all(&runs).unwrap();
    }
}
