//! The weights that training starts from, looked at before anything is started.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context;
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

/// Names of files of weights, among those that rigs fetch, begin so.
const PREFIX: &str = "init.";

/// Lays the weights where rigs fetch files from, or takes them away: a run that goes on does not read them.
pub(crate) fn lay_out(
    job: &Job,
    manifest: &Path,
    (data, begins): (&Path, bool),
) -> Result<(), Stopped> {
    let entries = fs::read_dir(data).with_context(|| format!("reading {}", data.display()))?;
    for path in entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| own_name(&name_of(path)).is_some())
    {
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    let Some(directory) = directory(job, manifest).filter(|_| begins) else { return Ok(()) };
    for file in Weights::open(&directory)?.files()? {
        let link = data.join(format!("{PREFIX}{}", name_of(&file)));
        let to = fs::canonicalize(&file).with_context(|| format!("finding {}", file.display()))?;
        symlink(&to, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    Ok(())
}

/// On a rig: puts weights that were fetched into `data` where they can be opened. Their directory, if there are any.
pub(crate) fn take_in(run_dir: &Path, names: &[&str]) -> io::Result<Option<PathBuf>> {
    let (data, init) = (run_dir.join("data"), run_dir.join("init"));
    match fs::remove_dir_all(&init) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut found = None;
    for name in names {
        let Some(own) = own_name(name) else { continue };
        fs::create_dir_all(&init)?;
        fs::hard_link(data.join(name), init.join(own))?;
        found = Some(init.clone());
    }
    Ok(found)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What a file of weights is called where it comes from.
fn own_name(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)
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
