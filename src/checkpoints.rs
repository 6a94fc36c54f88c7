//! The verb `checkpoints`: what a run has saved, whether it is whole, and what of it may go.

mod gc;
mod listing;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use shoal_plan::checkpoint::complete_name;

use crate::cli::{Checkpoints, ExportStep, OfRun};
use crate::exit::Stopped;
use crate::models;
use crate::terminal::note;

/// Where runs are made that were given no directory.
const RUNS: &str = "runs";

pub(crate) fn run(verb: Checkpoints) -> Result<(), Stopped> {
    match verb {
        Checkpoints::Ls(args) => listing::ls(&args),
        Checkpoints::Verify(args) => verify::verify(&args),
        Checkpoints::Gc(args) => gc::gc(&args),
        Checkpoints::Export(args) => export(args),
    }
}

fn export(args: ExportStep) -> Result<(), Stopped> {
    let run = run_of(&args.of)?;
    let model = match args.step {
        Some(step) => directory_of(&run, step)?,
        None => run,
    };
    models::export(&args.of_model(model))
}

/// The run that is meant: the one named, else this directory, else the newest in `runs/`.
fn run_of(of: &OfRun) -> Result<PathBuf, Stopped> {
    if let Some(run) = &of.run {
        if is_run(run) {
            return Ok(run.clone());
        }
        let shown = run.display();
        return Err(Stopped::Input(format!(
            "{shown} is not a run directory: it has no checkpoints/. `shoal launch` makes one"
        )));
    }
    if is_run(Path::new(".")) {
        return Ok(PathBuf::from("."));
    }
    let entries = fs::read_dir(RUNS).into_iter().flatten().flatten();
    let runs = entries.map(|entry| entry.path()).filter(|path| is_run(path));
    let newest = runs.max_by_key(|run| (changed(&run.join("checkpoints")), run.clone()));
    let Some(run) = newest else {
        return Err(Stopped::Input(format!(
            "which run? Neither this directory nor any in {RUNS}/ is one: name it, as in `shoal \
             checkpoints ls runs/quickstart`"
        )));
    };
    note(&format!("of {}, the newest run in {RUNS}/", run.display()));
    Ok(run)
}

fn is_run(path: &Path) -> bool {
    path.join("checkpoints").is_dir()
}

/// When the directory was last changed; `None` sorts before any time.
fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|found| found.modified()).ok()
}

/// The directory of one step, which must be there.
fn directory_of(run: &Path, step: u64) -> Result<PathBuf, Stopped> {
    let checkpoints = run.join("checkpoints");
    let directory = checkpoints.join(complete_name(step));
    if directory.is_dir() {
        return Ok(directory);
    }
    let steps = shoal_weights::steps(&checkpoints)?;
    let there: Vec<String> = steps.iter().map(u64::to_string).collect();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    let shown = checkpoints.display();
    Err(Stopped::Checkpoint(format!(
        "{shown} has no checkpoint of step {step}; there are: {there}"
    )))
}
