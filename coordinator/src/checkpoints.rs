//! The last act of a checkpoint: when all cells have written and fsynced their files aside, the
//! manifest is written, the directory gets its final name, and old checkpoints go.
//!
//! A crash between any two acts leaves the previous checkpoint whole: only a directory named
//! `step-N` that holds a manifest counts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use shoal_plan::checkpoint::{
    BEST_FILE_NAME, CheckpointManifest, FILE_NAME, Keep, Named, complete_name, partial_name,
    replaced_name,
};
use shoal_plan::plan::Generation;
use shoal_plan::standing::Best;

use crate::error::Error;

/// Completes the checkpoint whose files the plan of `generation` wrote aside, names the best one, then
/// deletes those not to keep and what was written aside of this step and of older ones.
///
/// After `Ok` the checkpoint survives a power cut. What cannot be deleted is left, and is no error.
///
/// # Errors
/// A file that is not as its worker wrote it, or a disk that takes no more. Then what was written
/// aside is gone, and the checkpoints before are as they were.
pub fn commit(
    checkpoints: &Path,
    generation: Generation,
    manifest: &CheckpointManifest,
    keep: Keep,
) -> Result<(), Error> {
    let partial = checkpoints.join(partial_name(manifest.standing.step, generation));
    if is_complete(checkpoints, &partial, manifest) {
        // The name may not have been synced, and what follows it not been done.
        sync_dir(checkpoints)?;
    } else {
        let completed = complete(checkpoints, &partial, manifest);
        if completed.is_err() {
            // Its room may be what the next one lacks.
            remove(&partial);
            return completed;
        }
    }
    let step = manifest.standing.step;
    // The best may have been seen before `keep_best` was set; then there is nothing to name.
    let best = manifest.standing.best.filter(|best| {
        keep.best && checkpoints.join(complete_name(best.step)).join(FILE_NAME).exists()
    });
    if let Some(Err(error)) = best.map(|best| name_best(checkpoints, best)) {
        // The checkpoint is complete all the same. `best.json` names the best before, which must
        // not go; the next commit tries again.
        tracing::warn!(step, %error, "could not name the best checkpoint");
        return Ok(());
    }
    prune(checkpoints, step, keep, best.map(|best| best.step));
    Ok(())
}

/// A coordinator that died in this very act is told to do it again.
fn is_complete(checkpoints: &Path, partial: &Path, manifest: &CheckpointManifest) -> bool {
    let complete = checkpoints.join(complete_name(manifest.standing.step)).join(FILE_NAME);
    !partial.exists() && fs::read_to_string(complete).is_ok_and(|text| text == manifest.to_text())
}

/// Gives the files aside a manifest and their final name.
fn complete(
    checkpoints: &Path,
    partial: &Path,
    manifest: &CheckpointManifest,
) -> Result<(), Error> {
    let step = manifest.standing.step;
    let complete = checkpoints.join(complete_name(step));
    check_files(partial, manifest)?;
    write_manifest(partial, manifest)?;
    sync_dir(partial)?;
    // A complete one of this step is one that the run could not load or went back behind.
    let replaced = checkpoints.join(replaced_name(step));
    let had_one = complete.exists();
    if had_one {
        remove(&replaced);
        rename(&complete, &replaced)?;
    }
    if let Err(error) = rename(partial, &complete) {
        if had_one {
            fs::rename(&replaced, &complete).ok();
        }
        return Err(error);
    }
    sync_dir(checkpoints)?;
    if had_one {
        remove(&replaced);
    }
    Ok(())
}

/// Removes what cells wrote of a step that will not be completed, under whatever plan. No cell of the
/// plan in force may be writing it any more; those of a later plan write elsewhere.
///
/// The files go on another thread. What stays costs only space: the next commit tries again.
pub fn discard(checkpoints: &Path, step: u64) {
    let Ok(entries) = fs::read_dir(checkpoints) else { return };
    let of_step = |entry: &fs::DirEntry| {
        let named = entry.file_name().to_str().and_then(Named::of);
        named == Some(Named::Leftover(step))
    };
    let paths: Vec<PathBuf> = entries.flatten().filter(of_step).map(|entry| entry.path()).collect();
    std::thread::spawn(move || paths.iter().for_each(|path| remove(path)));
}

/// Written anew with every checkpoint: a run that went back to an older one may have had another
/// best then.
fn name_best(checkpoints: &Path, best: Best) -> Result<(), Error> {
    let (path, aside) = (checkpoints.join(BEST_FILE_NAME), checkpoints.join(".best.json.partial"));
    let mut text = serde_json::to_string(&best).expect("a step and a finite loss");
    text.push('\n');
    let named = write_synced(&aside, &text).and_then(|()| rename(&aside, &path));
    if named.is_err() {
        remove(&aside);
        return named;
    }
    sync_dir(checkpoints)
}

/// Every file is there in full, and nothing else is: what an earlier attempt left behind goes.
fn check_files(partial: &Path, manifest: &CheckpointManifest) -> Result<(), Error> {
    for file in &manifest.files {
        let path = partial.join(&file.name);
        let got = path.metadata().map_err(io("looking for", &path))?.len();
        if got != file.bytes {
            return Err(Error::FileSize { path, got, want: file.bytes });
        }
    }
    for entry in fs::read_dir(partial).map_err(io("reading", partial))? {
        let entry = entry.map_err(io("reading", partial))?;
        if !manifest.files.iter().any(|file| entry.file_name() == file.name.as_str()) {
            remove(&entry.path());
        }
    }
    Ok(())
}

fn write_manifest(partial: &Path, manifest: &CheckpointManifest) -> Result<(), Error> {
    let path = partial.join(FILE_NAME);
    write_synced(&path, &manifest.to_text())
}

fn prune(checkpoints: &Path, newest: u64, keep: Keep, best: Option<u64>) {
    let Ok(entries) = fs::read_dir(checkpoints) else { return };
    let mut complete = Vec::new();
    for entry in entries.flatten() {
        match entry.file_name().to_str().and_then(Named::of) {
            Some(Named::Complete(step)) if step <= newest => complete.push(step),
            Some(Named::Leftover(step)) if step <= newest => remove(&entry.path()),
            Some(Named::Complete(_) | Named::Leftover(_)) | None => {}
        }
    }
    for step in keep.gone(&complete, best) {
        remove_complete(checkpoints, step);
    }
}

/// Deletes a complete checkpoint. Without its manifest it no longer counts, however far the rest
/// gets.
pub fn remove_complete(checkpoints: &Path, step: u64) {
    let path = checkpoints.join(complete_name(step));
    remove(&path.join(FILE_NAME));
    remove(&path);
}

/// Deletes a file or a directory. What stays costs only space, and the next checkpoint tries again.
pub fn remove(path: &Path) {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => remove_directory(path),
        Ok(_) => remove_file(path),
        Err(_) => return,
    };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "could not delete an old checkpoint's files");
    }
}

/// File by file: a directory of a checkpoint has no others in it.
fn remove_directory(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            remove_file(&entry.path())?;
        }
    }
    crash::point();
    fs::remove_dir(path)
}

fn remove_file(path: &Path) -> io::Result<()> {
    crash::point();
    fs::remove_file(path)
}

fn write_synced(path: &Path, text: &str) -> Result<(), Error> {
    let write = || {
        crash::point();
        let mut file = File::create(path)?;
        crash::point();
        file.write_all(text.as_bytes())?;
        crash::point();
        file.sync_all()
    };
    write().map_err(io("writing", path))
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    crash::point();
    fs::rename(from, to).map_err(io("renaming", from))
}

fn sync_dir(path: &Path) -> Result<(), Error> {
    crash::point();
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io("syncing", path))
}

/// Where a test may stop the world: right before each call that changes the disk.
mod crash {
    #[cfg(not(test))]
    pub(super) fn point() {}

    #[cfg(test)]
    pub(super) use super::tests::crash_point as point;
}

/// What a failed call was to do, and where.
pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = PathBuf::from(path);
    move |source| Error::Io { doing, path, source }
}

#[cfg(test)]
pub(crate) mod tests;
