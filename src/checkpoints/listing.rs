//! `shoal checkpoints ls`: every checkpoint of a run, the newest first, as far as names, sizes and
//! manifests tell.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use shoal_plan::checkpoint::{BEST_FILE_NAME, CheckpointManifest, Named};
use shoal_plan::report::HELDOUT;
use shoal_plan::standing::Best;
use shoal_weights::read_manifest;

use super::{changed, run_of};
use crate::cli::{Ls, Output};
use crate::clock::age_seconds;
use crate::exit::Stopped;
use crate::metrics;
use crate::progress::short;
use crate::show::{json, table};
use crate::terminal::data;

/// One directory in `checkpoints/`.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    pub step: u64,
    pub state: State,
    /// What is wrong, if something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Training loss of the step, nats per token.
    pub train_loss: Option<f64>,
    /// Where the model was evaluated then.
    pub heldout_loss: Option<f64>,
    pub best: bool,
    /// Of all files, on disk.
    pub bytes: u64,
    pub files: u64,
    /// That wrote it: stages x expert shards x replicas.
    pub grid: Option<String>,
    pub age_seconds: u64,
    pub path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// Manifest and files are there, in their sizes.
    Complete,
    /// A file or the manifest is not as it was written.
    Damaged,
    /// Never completed, or on its way out.
    Incomplete,
}

pub(super) fn ls(args: &Ls) -> Result<(), Stopped> {
    let run = run_of(&args.of)?;
    let listed = list(&run)?;
    match args.output {
        Output::Json => data(&json(&listed)?),
        Output::Table => data(shown(&listed).trim_end()),
    }
    Ok(())
}

/// What there is, the newest first.
pub(super) fn list(run: &Path) -> Result<Vec<Listed>, Stopped> {
    let checkpoints = run.join("checkpoints");
    let best = best_of(&checkpoints);
    let (train, heldout) = losses(run);
    let mut all = Vec::new();
    let context = || format!("reading {}", checkpoints.display());
    for entry in fs::read_dir(&checkpoints).with_context(context)? {
        let entry = entry.with_context(context)?;
        let Some(named) = entry.file_name().to_str().and_then(Named::of) else { continue };
        let path = entry.path();
        let (step, (state, why), manifest) = match named {
            Named::Complete(step) => match read_manifest(&path) {
                Ok(manifest) => (step, sizes(&path, step, &manifest), Some(manifest)),
                Err(error) => (step, (State::Damaged, Some(error.to_string())), None),
            },
            Named::Leftover(step) => {
                let why = "left behind by a crash or a failure; gc removes it".to_owned();
                (step, (State::Incomplete, Some(why)), None)
            }
        };
        let (bytes, files) = weigh(&path);
        all.push(Listed {
            step,
            state,
            why,
            train_loss: train.get(&step).copied(),
            heldout_loss: heldout.get(&step).copied(),
            best: state == State::Complete && best == Some(step),
            bytes,
            files,
            grid: manifest.map(|manifest| manifest.grid.to_string()),
            age_seconds: changed(&path).map_or(0, age_seconds),
            path,
        });
    }
    all.sort_by(|a, b| (b.step, &b.path).cmp(&(a.step, &a.path)));
    Ok(all)
}

/// The step that `best.json` names.
pub(super) fn best_of(checkpoints: &Path) -> Option<u64> {
    let text = fs::read(checkpoints.join(BEST_FILE_NAME)).ok()?;
    serde_json::from_slice::<Best>(&text).ok().map(|best| best.step)
}

/// Losses by step: of training, and of the held-out text. A run without figures has none.
fn losses(run: &Path) -> (BTreeMap<u64, f64>, BTreeMap<u64, f64>) {
    let Ok(known) = metrics::read(&run.join("metrics.jsonl")) else {
        return Default::default();
    };
    let train = known.rows.iter().map(|row| (row.step, row.main_loss)).collect();
    let heldout = known.evaluations.iter().filter(|row| row.set == HELDOUT);
    (train, heldout.filter_map(|row| Some((row.step, row.loss?))).collect())
}

/// Whether all files are there in their sizes.
fn sizes(directory: &Path, step: u64, manifest: &CheckpointManifest) -> (State, Option<String>) {
    if manifest.standing.step != step {
        let why = format!("its manifest is of step {}", manifest.standing.step);
        return (State::Damaged, Some(why));
    }
    for file in &manifest.files {
        let why = match fs::symlink_metadata(directory.join(&file.name)) {
            Ok(found) if found.is_file() && found.len() == file.bytes => continue,
            Ok(found) => format!("{}: {} bytes, want {}", file.name, found.len(), file.bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                format!("{} is missing", file.name)
            }
            Err(error) => format!("{}: {error}", file.name),
        };
        return (State::Damaged, Some(why));
    }
    (State::Complete, None)
}

/// Bytes and number of the files in a directory.
pub(super) fn weigh(directory: &Path) -> (u64, u64) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file);
    sizes.fold((0, 0), |(bytes, files), found| (bytes + found.len(), files + 1))
}

fn shown(listed: &[Listed]) -> String {
    let head = ["STEP", "LOSS", "HELD-OUT", "BEST", "SIZE", "FILES", "GRID", "AGE", "STATE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let loss = |loss: Option<f64>| loss.map_or("-".to_owned(), |loss| format!("{loss:.4}"));
    rows.extend(listed.iter().map(|one| {
        let state = match (one.state, &one.why) {
            (State::Complete, _) => "complete".to_owned(),
            (State::Damaged, why) => format!("damaged: {}", why.as_deref().unwrap_or_default()),
            (State::Incomplete, why) => why.clone().unwrap_or_default(),
        };
        vec![
            one.step.to_string(),
            loss(one.train_loss),
            loss(one.heldout_loss),
            if one.best { "best" } else { "" }.to_owned(),
            format!("{}B", short(one.bytes as f64)),
            one.files.to_string(),
            one.grid.clone().unwrap_or_else(|| "-".to_owned()),
            age(one.age_seconds),
            state,
        ]
    }));
    table(&rows)
}

/// `40s`, `12m`, `5h`, `3d`.
fn age(seconds: u64) -> String {
    match seconds {
        s if s < 120 => format!("{s}s"),
        s if s < 2 * 3600 => format!("{}m", s / 60),
        s if s < 48 * 3600 => format!("{}h", s / 3600),
        s => format!("{}d", s / (24 * 3600)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let ages = [5, 119, 120, 7199, 7200, 172_799, 172_800];
        assert_eq!(ages.map(age), ["5s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }
}
