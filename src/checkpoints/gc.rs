//! `shoal checkpoints gc`: deletes what a run no longer needs. Never the newest good checkpoint, and
//! never the best.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use shoal_coordinator::checkpoints::{remove, remove_complete};
use shoal_plan::checkpoint::{Keep, Named};

use super::listing::{best_of, weigh};
use super::run_of;
use super::verify::Verifier;
use crate::cli::{self, Output};
use crate::exit::Stopped;
use crate::progress::short;
use crate::run_dir::{self, RunDir};
use crate::show::{json, table};
use crate::terminal::{data, note};

/// What is to become of a directory in `checkpoints/`.
#[derive(Debug, Serialize)]
struct Verdict {
    name: String,
    goes: bool,
    why: &'static str,
    bytes: u64,
    #[serde(skip)]
    path: PathBuf,
    #[serde(skip)]
    named: Named,
}

#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    /// Freed, or that would be.
    bytes: u64,
    checkpoints: &'a [Verdict],
}

pub(super) fn gc(args: &cli::Gc) -> Result<(), Stopped> {
    let run = run_of(&args.of)?;
    // Whoever trains here writes and deletes, too. Only looking harms nobody.
    let _lock = if args.dry_run { None } else { Some(RunDir::open(&run)?) };
    let keep = keep_of(&run, args.keep)?;
    let verdicts = judge(&run.join("checkpoints"), keep, args.damaged)?;
    if !args.dry_run {
        for verdict in verdicts.iter().filter(|verdict| verdict.goes) {
            match verdict.named {
                Named::Complete(step) => remove_complete(&run.join("checkpoints"), step),
                Named::Leftover(_) => remove(&verdict.path),
            }
            if verdict.path.exists() {
                let what = format!("{} could not be deleted", verdict.path.display());
                return Err(Stopped::Failed(anyhow::anyhow!(what)));
            }
        }
    }
    tell(args, &verdicts)
}

fn keep_of(run: &Path, newest: Option<u32>) -> Result<Keep, Stopped> {
    let recorded = run_dir::recorded_job_of(run).map(|job| Keep::of(&job.checkpoint));
    match (newest, recorded) {
        (Some(newest), recorded) => {
            Ok(Keep { newest, best: recorded.map_or(true, |keep| keep.best) })
        }
        (None, Ok(keep)) => Ok(keep),
        (None, Err(error)) => Err(Stopped::Input(format!(
            "how many checkpoints does this run keep? {error:#}; say --keep N"
        ))),
    }
}

/// The newest first, verified until there are enough good ones.
fn judge(checkpoints: &Path, keep: Keep, damaged_go: bool) -> Result<Vec<Verdict>, Stopped> {
    let steps = shoal_weights::steps(checkpoints)?;
    let mut verifier = Verifier::of(checkpoints, &steps);
    let (mut good, mut damaged) = (BTreeSet::new(), BTreeSet::new());
    for step in &steps {
        if good.len() >= keep.newest.max(1) as usize {
            break;
        }
        let is_good = verifier.verify(checkpoints, *step)?.is_good();
        if is_good {
            good.insert(*step)
        } else {
            damaged.insert(*step)
        };
    }
    drop(verifier);
    // By hash or not, those below are older than all that are needed.
    let whole: Vec<u64> = steps.iter().copied().filter(|step| !damaged.contains(step)).collect();
    let best = best_of(checkpoints);
    let gone = keep.gone(&whole, best);
    let verdict_on_step = |step: u64| {
        if damaged.contains(&step) {
            let why = if damaged_go { "damaged" } else { "damaged; --damaged deletes it" };
            return (damaged_go && !good.is_empty(), why);
        }
        if gone.contains(&step) {
            return (true, "older than those to keep");
        }
        (false, if best == Some(step) { "the best" } else { "good" })
    };
    let mut verdicts = Vec::new();
    let context = || format!("reading {}", checkpoints.display());
    for entry in fs::read_dir(checkpoints).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(named) = Named::of(&name) else { continue };
        let (goes, why) = match named {
            Named::Complete(step) => verdict_on_step(step),
            Named::Leftover(_) => (true, "left behind by a crash or a failure"),
        };
        verdicts.push(Verdict { bytes: weigh(&path).0, name, goes, why, path, named });
    }
    verdicts.sort_by_key(|verdict| match verdict.named {
        Named::Complete(step) | Named::Leftover(step) => (u64::MAX - step, verdict.name.clone()),
    });
    Ok(verdicts)
}

fn tell(args: &cli::Gc, verdicts: &[Verdict]) -> Result<(), Stopped> {
    let bytes = verdicts.iter().filter(|verdict| verdict.goes).map(|verdict| verdict.bytes).sum();
    let goes = if args.dry_run { "would go" } else { "gone" };
    match args.output {
        Output::Json => {
            data(&json(&Report { dry_run: args.dry_run, bytes, checkpoints: verdicts })?);
        }
        Output::Table => {
            let row = |verdict: &Verdict| {
                let fate = if verdict.goes { goes } else { "stays" };
                let size = format!("{}B", short(verdict.bytes as f64));
                vec![verdict.name.clone(), fate.to_owned(), size, verdict.why.to_owned()]
            };
            let rows: Vec<_> = verdicts.iter().map(row).collect();
            data(table(&rows).trim_end());
        }
    }
    let n = verdicts.iter().filter(|verdict| verdict.goes).count();
    note(&format!("{n} {goes}, {}B", short(bytes as f64)));
    Ok(())
}
