//! The verbs `drain`, `stop`, `pause` and `resume`: an order to a run under way, and what came of it.
//!
//! Whoever is interrupted while they wait has given their order all the same.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use shoal_cluster::words::JobPhase;
use shoal_coordinator::control::{Answer, Ask, Order, RunPhase, Status, WorkerIs};
use shoal_plan::plan::WorkerId;

use crate::cli;
use crate::control::{ANOTHER, Run, Unanswered};
use crate::events::{self, Kind};
use crate::exit::Stopped;
use crate::people;
use crate::terminal::{harmless, note};

/// Between two looks at how it goes.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) fn drain(args: &cli::Drain) -> Result<(), Stopped> {
    let Some(worker) = args.worker else {
        if args.run.components().count() > 1 || args.run.join("manifest.json").is_file() {
            let run = args.run.display();
            return Err(Stopped::Input(format!(
                "which worker? `shoal drain {run} WORKER`, such as worker-2; a rig of a cluster is called by its name"
            )));
        }
        let rig = args.run.display().to_string();
        return people::drain(&rig, args.force, &args.home);
    };
    let run = Run::under_way(&args.run, &args.home)?;
    give(&run, &args.run, Order::Drain { worker, force: args.force })?;
    if args.no_wait {
        return Ok(());
    }
    loop {
        let Some(status) = look(&run, &args.run)? else {
            note(&format!("the run has ended, and {worker} with it"));
            return how_it_ended(&run, &args.run).map(drop);
        };
        if let Some(ended) = drained(&status, worker) {
            return ended.map(|what| note(&what)).map_err(Stopped::Failed);
        }
        run.wait(LOOK);
    }
}

/// What became of a drained worker, once that is certain.
fn drained(status: &Status, worker: WorkerId) -> Option<anyhow::Result<String>> {
    let found = status.workers.iter().find(|found| found.worker == worker)?;
    let others = status.workers.iter().filter(|other| !other.cells.is_empty()).count();
    if found.state == WorkerIs::Left {
        let step = status.step;
        let rest = match others {
            1 => "1 worker goes on".to_owned(),
            n => format!("{n} workers go on"),
        };
        return Some(Ok(format!("{worker} has left after step {step}; {rest}")));
    }
    if found.state == WorkerIs::Lost {
        return Some(Err(anyhow!(
            "{worker} was lost before it had handed over; the run goes on without it, and it is not \
             wanted back"
        )));
    }
    if status.phase == RunPhase::Paused {
        let why = status.why.as_deref().unwrap_or_default();
        let why = harmless(why.as_bytes());
        return Some(Ok(format!("the run is paused ({why}): {worker} leaves when it goes on")));
    }
    None
}

pub(crate) fn stop(args: &cli::Stop) -> Result<(), Stopped> {
    let run = Run::under_way(&args.run, &args.home)?;
    give(&run, &args.run, Order::Stop { now: args.now })?;
    if args.no_wait {
        return Ok(());
    }
    while look(&run, &args.run)?.is_some() {
        run.wait(LOOK);
    }
    note(&how_it_ended(&run, &args.run)?);
    Ok(())
}

pub(crate) fn pause(args: &cli::Pause) -> Result<(), Stopped> {
    let run = Run::under_way(&args.run, &args.home)?;
    give(&run, &args.run, Order::Pause)?;
    if args.no_wait {
        return Ok(());
    }
    loop {
        let Some(status) = look(&run, &args.run)? else {
            return Err(Stopped::Failed(anyhow!("the run has ended before it paused")));
        };
        if status.phase == RunPhase::Paused {
            let run = args.run.display();
            note(&format!("paused after step {}; `shoal resume {run}` lets it go on", status.step));
            return Ok(());
        }
        run.wait(LOOK);
    }
}

pub(crate) fn resume(args: &cli::Resume) -> Result<(), Stopped> {
    let run = Run::under_way(&args.run, &args.home)?;
    give(&run, &args.run, Order::Resume)
}

/// Gives an order, and says what comes of it.
pub(crate) fn give(run: &Run, directory: &Path, order: Order) -> Result<(), Stopped> {
    let ends_at_once = order == Order::Stop { now: true };
    match run.ask(&Ask::Order(order)) {
        Ok(Answer::Accepted(what)) => {
            note(&harmless(what.as_bytes()));
            Ok(())
        }
        Ok(Answer::Refused(why)) => Err(Stopped::Refused(harmless(why.as_bytes()))),
        Ok(Answer::Status(_) | Answer::Traced(_)) => Err(Stopped::Refused(ANOTHER.to_owned())),
        // It was there a moment ago: an order to end at once leaves no time for an answer.
        Err(Unanswered::Nobody) if ends_at_once => Ok(()),
        Err(unanswered) => Err(unanswered.stops(directory)),
    }
}

/// How the run is now; `None` once it is not under way.
fn look(run: &Run, directory: &Path) -> Result<Option<Status>, Stopped> {
    if let Some(job) = run.job() {
        let job = job?;
        if !job.phase.is_under_way() {
            return Ok(None);
        }
        if let Some(status) = job.run {
            return Ok(Some(*status));
        }
    }
    match run.status() {
        Ok(status) => Ok(Some(status)),
        Err(Unanswered::Nobody) => Ok(None),
        Err(unanswered) => Err(unanswered.stops(directory)),
    }
}

/// By the log of events, which the launcher writes before it lets go of the port.
fn how_it_ended(run: &Run, directory: &Path) -> Result<String, Stopped> {
    if let Some(job) = run.job() {
        let job = job?;
        let why = harmless(job.why.unwrap_or_default().as_bytes());
        return match job.phase {
            JobPhase::Failed => Err(Stopped::Failed(anyhow!("the run has failed: {why}"))),
            phase @ (JobPhase::Queued
            | JobPhase::Starting
            | JobPhase::Running
            | JobPhase::Finished
            | JobPhase::Stopped) => {
                Ok(format!("{} is {phase}; `shoal apply` lets it go on", job.name))
            }
        };
    }
    let events = events::read(directory).unwrap_or_default();
    let is_end =
        |kind: Kind| matches!(kind, Kind::Finished | Kind::Stopped | Kind::Failed | Kind::Launched);
    let last = events.iter().rev().find(|event| is_end(event.kind));
    match last {
        Some(event) if event.kind == Kind::Stopped => {
            Ok(format!("stopped after step {}; to continue, launch it again", event.step))
        }
        Some(event) if event.kind == Kind::Finished => {
            Ok(format!("the run has come to its end, after step {}", event.step))
        }
        Some(event) if event.kind == Kind::Failed => {
            Err(Stopped::Failed(anyhow!("the run has failed: {}", harmless(event.fact.as_bytes()))))
        }
        Some(_) | None => Err(Stopped::Failed(anyhow!(
            "the launcher is gone and has not said how the run ended: see `shoal status {}`",
            directory.display()
        ))),
    }
}
