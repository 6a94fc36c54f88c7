//! `shoal checkpoints verify`: every byte against the hashes.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use shoal_plan::checkpoint::complete_name;
use shoal_weights::{Problem, Verified};

use super::listing::weigh;
use super::{directory_of, run_of};
use crate::cli::{self, Output};
use crate::exit::Stopped;
use crate::progress::{Reading, short};
use crate::show::json;
use crate::terminal::data;

/// What was found in one checkpoint.
#[derive(Debug, Serialize)]
struct Found {
    step: u64,
    good: bool,
    files: u64,
    bytes: u64,
    path: PathBuf,
    problems: Vec<Problem>,
}

/// Verifies checkpoints one after the other and shows how far it is.
pub(super) struct Verifier {
    reading: Reading,
    done: u64,
    all: u64,
}

pub(super) fn verify(args: &cli::Verify) -> Result<(), Stopped> {
    let run = run_of(&args.of)?;
    let checkpoints = run.join("checkpoints");
    let steps = match args.step {
        Some(step) => {
            directory_of(&run, step)?;
            vec![step]
        }
        None => shoal_weights::steps(&checkpoints)?,
    };
    if steps.is_empty() {
        return Err(Stopped::Checkpoint(format!("{} has no checkpoint", checkpoints.display())));
    }
    let mut verifier = Verifier::of(&checkpoints, &steps);
    let mut all = Vec::new();
    for step in steps {
        let path = checkpoints.join(complete_name(step));
        let Verified { problems, .. } = verifier.verify(&checkpoints, step)?;
        let (bytes, files) = weigh(&path);
        all.push(Found { step, good: problems.is_empty(), files, bytes, path, problems });
    }
    drop(verifier);
    match args.output {
        Output::Json => data(&json(&all)?),
        Output::Table => all.iter().for_each(|found| data(&shown(found))),
    }
    let damaged: Vec<_> = all.iter().filter(|found| !found.good).collect();
    if damaged.is_empty() {
        return Ok(());
    }
    let good = all.iter().filter(|found| found.good).map(|found| found.step).max();
    let next = match (args.step, good) {
        (Some(_), _) => "a launch passes over it".to_owned(),
        (None, Some(step)) => format!("a launch goes on from step {step}"),
        (None, None) => "a launch would start over".to_owned(),
    };
    let (n, of) = (damaged.len(), all.len());
    let are = if n == 1 { "is" } else { "are" };
    Err(Stopped::Checkpoint(format!("{n} of {of} checkpoint(s) {are} damaged; {next}")))
}

fn shown(found: &Found) -> String {
    let Found { step, good, files, bytes, .. } = found;
    let state = if *good { "good" } else { "damaged" };
    let mut text = format!("step-{step}  {state}  {files} files  {}B", short(*bytes as f64));
    for problem in &found.problems {
        let _ = write!(text, "\n  {problem}");
    }
    text
}

impl Verifier {
    pub(super) fn of(checkpoints: &Path, steps: &[u64]) -> Self {
        let bytes = |step: &u64| weigh(&checkpoints.join(complete_name(*step))).0;
        Self { reading: Reading::start(), done: 0, all: steps.iter().map(bytes).sum() }
    }

    pub(super) fn verify(&mut self, checkpoints: &Path, step: u64) -> Result<Verified, Stopped> {
        let Self { reading, done, all } = self;
        let task = format!("verifying step-{step}");
        let mut read = |bytes| {
            *done += bytes;
            reading.bytes(&task, *done, Some(*all));
        };
        Ok(shoal_weights::verify(&checkpoints.join(complete_name(step)), step, &mut read)?)
    }
}
