//! The weights that training starts from, looked at before anything is started.

use std::path::{Path, PathBuf};

use shoal_plan::job::Job;
use shoal_weights::Weights;

use crate::exit::Stopped;
use crate::terminal::note;

/// Where the weights of `training.init` are. A relative path starts at the manifest's directory.
pub(crate) fn directory(job: &Job, manifest: &Path) -> Option<PathBuf> {
    job.training.init.as_ref().map(|directory| manifest.join(directory))
}

/// Opens the weights and checks every tensor against their config; says what a person should know.
pub(crate) fn check(job: &Job, manifest: &Path) -> Result<(), Stopped> {
    let Some(directory) = directory(job, manifest) else { return Ok(()) };
    let weights = Weights::open(&directory)?;
    note(&format!("starting from the weights in {}", weights.directory().display()));
    for text in weights.all_notes()? {
        note(&format!("note: {text}"));
    }
    let (found, wanted) =
        (weights.config().num_nextn_predict_layers, job.model.num_nextn_predict_layers);
    if found < wanted {
        let new = wanted - found;
        note(&format!(
            "note: {new} multi-token-prediction module(s) are not there: they start fresh"
        ));
    } else if wanted < found {
        let left = found - wanted;
        note(&format!("note: {left} multi-token-prediction module(s) of the weights are left out"));
    }
    Ok(())
}

/// The job as workers read it: with a path that holds wherever they run on this machine.
pub(crate) fn for_workers(job: &Job, manifest: &Path) -> Job {
    let mut job = job.clone();
    if let Some(directory) = directory(&job, manifest) {
        let absolute = std::path::absolute(&directory).unwrap_or(directory);
        job.training.init = Some(absolute.display().to_string());
    }
    job
}
