//! The verb `status`: how a run is, by its own word while it is under way, by its files afterwards.

mod ended;
pub(crate) mod yaml;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use shoal_coordinator::control::{DIRECT, RunPhase, Status, WayStatus, WorkerStatus};

use crate::cli;
use crate::control::{Run, Unanswered};
use crate::exit::Stopped;
use crate::progress::{duration, short};
use crate::show::{json, table};
use crate::terminal::{data, harmless, note};
use ended::Ended;

/// For programs: the keys of one or the other follow, and those of `Ended` are among those of `Status`.
#[derive(Debug, Serialize)]
struct Shown<'a, T> {
    run: PathBuf,
    under_way: bool,
    #[serde(flatten)]
    what: &'a T,
}

pub(crate) fn status(args: &cli::Status) -> Result<(), Stopped> {
    let answer = match Run::open(&args.run, &args.home)? {
        Ok(run) => run.status(),
        Err(unanswered) => Err(unanswered),
    };
    match answer {
        Ok(status) => show(args, (true, &status), live(&args.run, &status)),
        Err(Unanswered::Refused(why)) => Err(Stopped::Refused(why)),
        Err(unanswered) => {
            let silent = matches!(unanswered, Unanswered::Silent(_));
            if let Unanswered::Silent(why) = unanswered {
                note(&format!("{why}; what follows is what the files say"));
            }
            let ended = Ended::of(&args.run, silent)?;
            show(args, (ended.is_under_way(), &ended), ended.text(&args.run))
        }
    }
}

fn show<T: Serialize>(
    args: &cli::Status,
    (under_way, what): (bool, &T),
    text: String,
) -> Result<(), Stopped> {
    let shown = Shown { run: args.run.clone(), under_way, what };
    match args.output {
        cli::Form::Table => data(text.trim_end()),
        cli::Form::Json => data(&json(&shown)?),
        cli::Form::Yaml => {
            let value =
                serde_json::to_value(&shown).map_err(|error| Stopped::Failed(error.into()))?;
            data(yaml::of(&value).trim_end());
        }
    }
    Ok(())
}

fn live(run: &Path, status: &Status) -> String {
    let Status { phase, step, steps, .. } = status;
    let mut head = format!("{}: {phase}, step {step} of {steps}", run.display());
    if let Some(seconds) = status.seconds_left.filter(|_| *phase == RunPhase::Training) {
        let _ = write!(head, ", {} left", duration(seconds));
    }
    if let Some(why) = &status.why {
        let _ = write!(head, "\n{}", harmless(why.replace('\n', "; ").as_bytes()));
    }
    let row = |name: &str, what: String| vec![name.to_owned(), what];
    let saved = |step: u64| if step == 0 { "none".to_owned() } else { format!("step {step}") };
    let mut rows = Vec::new();
    rows.extend(status.loss.map(|loss| row("loss", format!("{loss:.4}"))));
    if let (Some(seconds), Some(tokens)) = (status.seconds_per_step, status.tokens_per_second) {
        let text = format!("{} tokens/s, {seconds:.3} s a step", short(tokens));
        rows.push(row("speed", text));
    }
    rows.push(row("checkpoint", saved(status.checkpoint_step)));
    rows.push(row("in memory", saved(status.snapshot_step)));
    rows.push(row("plan", format!("generation {}", status.generation)));
    let restarts = match status.coordinator_restarts {
        0 => String::new(),
        n => format!(", of the coordinator {n}"),
    };
    rows.push(row("recoveries", format!("{}{restarts}", status.recoveries)));
    if !status.ways.is_empty() {
        rows.push(row("data", direct(&status.ways)));
    }
    let head_of_workers = ["worker", "state", "cells", "heard", "pace", "notes"].map(str::to_owned);
    let workers = status.workers.iter().map(worker);
    let workers = std::iter::once(head_of_workers.to_vec()).chain(workers);
    let mut text = format!("{head}\n{}\n{}", table(&rows), table(&workers.collect::<Vec<_>>()));
    let others = others(&status.ways);
    if others.len() > 1 {
        let _ = write!(text, "\n{}", table(&others));
    }
    text
}

/// How many pairs dial as usual.
fn direct(ways: &[WayStatus]) -> String {
    let direct = ways.iter().filter(|way| way.way == DIRECT).count();
    if direct == ways.len() {
        return "direct between all workers".to_owned();
    }
    format!("direct between {direct} of {} pairs", ways.len())
}

/// The pairs that do not.
fn others(ways: &[WayStatus]) -> Vec<Vec<String>> {
    let other = |way: &WayStatus| {
        let WayStatus { workers: (a, b), way } = way;
        vec![format!("{a} and {b}"), harmless(way.as_bytes())]
    };
    let head = vec!["pair".to_owned(), "data goes".to_owned()];
    let others = ways.iter().filter(|way| way.way != DIRECT).map(other);
    std::iter::once(head).chain(others).collect()
}

fn worker(worker: &WorkerStatus) -> Vec<String> {
    let cells: Vec<String> = worker.cells.iter().map(u32::to_string).collect();
    let heard = worker.heard_seconds_ago.map_or_else(dash, |ago| format!("{ago:.1} s ago"));
    let pace = worker.pace.map_or_else(dash, |pace| format!("{pace:.2} x"));
    let mut notes = Vec::new();
    if worker.straggler {
        notes.push("slow".to_owned());
    }
    notes.extend(worker.yields_to.as_ref().map(|reason| format!("gives way: {reason}")));
    let quarantine = worker.quarantine_seconds;
    notes.extend(quarantine.map(|seconds| format!("in quarantine for {seconds} s")));
    match worker.losses {
        0 => {}
        1 => notes.push("lost once".to_owned()),
        n => notes.push(format!("lost {n} times")),
    }
    vec![
        worker.worker.to_string(),
        worker.state.to_string(),
        if cells.is_empty() { dash() } else { cells.join(", ") },
        heard,
        pace,
        harmless(notes.join("; ").replace('\n', "; ").as_bytes()),
    ]
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use shoal_coordinator::control::WorkerIs;
    use shoal_plan::plan::WorkerId;

    use super::*;

    fn one(worker: u32, state: WorkerIs, cells: &[u32]) -> WorkerStatus {
        WorkerStatus {
            worker: WorkerId(worker),
            state,
            cells: cells.to_vec(),
            heard_seconds_ago: (!cells.is_empty()).then_some(0.24),
            pace: (!cells.is_empty()).then_some(1.0),
            straggler: false,
            yields_to: None,
            quarantine_seconds: None,
            losses: 0,
        }
    }

    fn training() -> Status {
        let mut yields = one(1, WorkerIs::Yielding, &[]);
        yields.yields_to = Some("evil\n\u{1b}[2Jgame runs".to_owned());
        (yields.losses, yields.quarantine_seconds) = (2, Some(31));
        Status {
            phase: RunPhase::Training,
            why: None,
            step: 123,
            steps: 400,
            loss: Some(2.34567),
            seconds_per_step: Some(0.25),
            tokens_per_second: Some(4096.0),
            seconds_left: Some(69.25),
            generation: 3,
            checkpoint_step: 0,
            snapshot_step: 120,
            recoveries: 1,
            coordinator_restarts: 2,
            workers_min: 1,
            workers: vec![one(0, WorkerIs::Training, &[0, 1]), yields],
            grid: None,
            routers: Vec::new(),
            ways: Vec::new(),
        }
    }

    #[test]
    fn ways_that_are_not_direct_are_listed() {
        let way = |a, b, way: &str| WayStatus {
            workers: (WorkerId(a), WorkerId(b)),
            way: way.to_owned(),
        };
        let mut status = training();
        status.ways = vec![way(0, 1, DIRECT), way(0, 2, DIRECT)];
        let text = live(Path::new("a"), &status);
        assert!(text.contains("  data        direct between all workers\n"), "{text}");
        status.ways[1].way = "from rig-b".to_owned();
        let text = live(Path::new("a"), &status);
        assert!(text.contains("  data        direct between 1 of 2 pairs\n"), "{text}");
        let list = "  pair                   data goes\n  worker-0 and worker-2  from rig-b\n";
        assert!(text.ends_with(list), "{text}");
    }

    #[test]
    fn a_person_sees_how_far_it_is_and_who_is_at_what() {
        let text = live(Path::new("runs/small"), &training());
        let want = "\
runs/small: training, step 123 of 400, 1:09 left
  loss        2.3457
  speed       4.1k tokens/s, 0.250 s a step
  checkpoint  none
  in memory   step 120
  plan        generation 3
  recoveries  1, of the coordinator 2

  worker    state     cells  heard      pace    notes
  worker-0  training  0, 1   0.2 s ago  1.00 x
  worker-1  yielding  -      -          -       gives way: evil; \\u{1b}[2Jgame runs; in quarantine for 31 s; lost 2 times
";
        assert_eq!(text, want);
    }

    #[test]
    fn a_program_sees_the_same_keys_whether_the_run_is_under_way_or_over() {
        let (status, ended) = (training(), ended::tests::ended());
        let keys = |value: serde_json::Value| {
            value.as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>()
        };
        let run = PathBuf::from("runs/small");
        let live = Shown { run: run.clone(), under_way: true, what: &status };
        let over = Shown { run, under_way: false, what: &ended };
        let live = keys(serde_json::to_value(live).unwrap());
        let over = keys(serde_json::to_value(over).unwrap());
        let only_over: Vec<_> = over.difference(&live).collect();
        assert_eq!(only_over, ["ended"], "{over:?}");
    }
}
