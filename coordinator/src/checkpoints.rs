//! The last act of a checkpoint: when all cells have written and fsynced their files aside, the
//! manifest is written, the directory gets its final name, and old checkpoints go.
//!
//! A crash between any two acts leaves the previous checkpoint whole: only a directory named
//! `step-N` that holds a manifest counts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use shoal_plan::checkpoint::{
    BEST_FILE_NAME, CheckpointManifest, FILE_NAME, Keep, Named, complete_name, discarded_name,
    partial_name, replaced_name,
};
use shoal_plan::standing::Best;

use crate::error::Error;

/// Completes the checkpoint whose files lie in `checkpoints/.step-N.partial/`, names the best one,
/// then deletes those not to keep and the partial ones that are older.
///
/// After `Ok` the checkpoint survives a power cut. What cannot be deleted is left, and is no error.
///
/// # Errors
/// A file that is not as its worker wrote it, or a disk that takes no more. Then what was written
/// aside is gone, and the checkpoints before are as they were.
pub fn commit(checkpoints: &Path, manifest: &CheckpointManifest, keep: Keep) -> Result<(), Error> {
    let partial = checkpoints.join(partial_name(manifest.standing.step));
    let completed = complete(checkpoints, &partial, manifest);
    if completed.is_err() {
        // Its room may be what the next one lacks.
        remove(&partial);
        return completed;
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

/// Removes what cells wrote of a step that will not be completed. No cell may be writing any more.
///
/// The name goes at once, so that cells of a later generation of the plan can write the same step;
/// the files go on another thread. What stays costs only space: the next commit tries again.
pub fn discard(checkpoints: &Path, step: u64) {
    let partial = checkpoints.join(partial_name(step));
    let discarded = checkpoints.join(discarded_name(step));
    match fs::rename(&partial, &discarded) {
        Ok(()) => drop(std::thread::spawn(move || remove(&discarded))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %partial.display(), %error, "could not discard a checkpoint");
        }
    }
}

/// Written anew with every checkpoint: a run that went back to an older one may have had another
/// best then.
fn name_best(checkpoints: &Path, best: Best) -> Result<(), Error> {
    let (path, aside) = (checkpoints.join(BEST_FILE_NAME), checkpoints.join(".best.json.partial"));
    let mut text = serde_json::to_string(&best).expect("a step and a finite loss");
    text.push('\n');
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    let named = write().map_err(io("writing", &aside)).and_then(|()| rename(&aside, &path));
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
    let text = manifest.to_text();
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(io("writing", &path))
}

fn prune(checkpoints: &Path, newest: u64, keep: Keep, best: Option<u64>) {
    let Ok(entries) = fs::read_dir(checkpoints) else { return };
    let mut complete = Vec::new();
    for entry in entries.flatten() {
        match entry.file_name().to_str().and_then(Named::of) {
            Some(Named::Complete(step)) if step <= newest => complete.push(step),
            Some(Named::Leftover(step)) if step < newest => remove(&entry.path()),
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
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return,
    };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "could not delete an old checkpoint's files");
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(io("renaming", from))
}

fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io("syncing", path))
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = PathBuf::from(path);
    move |source| Error::Io { doing, path, source }
}

#[cfg(test)]
pub(crate) mod tests {
    use shoal_plan::checkpoint::{CheckpointFile, SCHEMA_VERSION};
    use shoal_plan::grid::Grid;
    use shoal_plan::standing::Standing;

    use super::*;

    /// A directory that is gone when the test is over.
    pub(crate) struct TestDir(pub(crate) PathBuf);

    impl TestDir {
        pub(crate) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("shoal-{name}-{}", std::process::id()));
            remove(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            remove(&self.0);
        }
    }

    fn written(dir: &Path, step: u64) -> CheckpointManifest {
        let partial = dir.join(partial_name(step));
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join("model-0.safetensors"), step.to_string()).unwrap();
        let bytes = step.to_string().len() as u64;
        let (name, blake3) = ("model-0.safetensors".into(), "00".repeat(32));
        CheckpointManifest {
            schema_version: SCHEMA_VERSION,
            standing: Standing { step, sequences: 8 * step, ..Standing::default() },
            grid: Grid::ONE,
            files: vec![CheckpointFile { name, bytes, blake3 }],
        }
    }

    /// Only the newest two.
    const TWO: Keep = Keep { newest: 2, best: false };

    fn names(dir: &Path) -> Vec<String> {
        let names =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_committed_checkpoint_holds_its_files_and_manifest_and_old_ones_go() {
        let dir = TestDir::new("commit");
        for step in [50, 100, 150] {
            let manifest = written(&dir.0, step);
            fs::write(dir.0.join(format!(".step-{step}.partial/leftover")), "x").unwrap();
            fs::create_dir(dir.0.join(format!(".step-{}.partial", step - 1))).unwrap();
            fs::create_dir(dir.0.join(format!(".step-{}.partial", step + 1))).unwrap();
            commit(&dir.0, &manifest, TWO).unwrap();
            let complete = dir.0.join(format!("step-{step}"));
            assert_eq!(names(&complete), ["manifest.json", "model-0.safetensors"]);
            let text = fs::read_to_string(complete.join(FILE_NAME)).unwrap();
            assert_eq!(CheckpointManifest::from_text(text.as_bytes()).unwrap(), manifest);
        }
        assert_eq!(names(&dir.0), [".step-151.partial", "step-100", "step-150"]);
    }

    #[test]
    fn a_checkpoint_newer_than_this_one_does_not_count_and_is_replaced_in_its_turn() {
        let dir = TestDir::new("newer");
        fs::create_dir(dir.0.join("step-100")).unwrap();
        fs::write(dir.0.join("step-100/damaged"), "x").unwrap();
        for step in [50, 75, 100] {
            commit(&dir.0, &written(&dir.0, step), TWO).unwrap();
        }
        assert_eq!(names(&dir.0), ["step-100", "step-75"]);
        assert_eq!(names(&dir.0.join("step-100")), ["manifest.json", "model-0.safetensors"]);
    }

    #[test]
    fn a_missing_or_short_file_is_named_and_nothing_is_committed() {
        let dir = TestDir::new("short");
        let manifest = written(&dir.0, 50);
        let file = dir.0.join(".step-50.partial/model-0.safetensors");
        fs::write(&file, "5").unwrap();
        let error = commit(&dir.0, &manifest, TWO).unwrap_err().to_string();
        assert!(
            error.ends_with("model-0.safetensors has 1 bytes, and its worker wrote 2"),
            "{error}"
        );
        assert!(names(&dir.0).is_empty(), "its room may be what the next one lacks");
        let manifest = written(&dir.0, 50);
        fs::remove_file(&file).unwrap();
        let error = commit(&dir.0, &manifest, TWO).unwrap_err().to_string();
        assert!(error.starts_with("looking for "), "{error}");
        assert!(names(&dir.0).is_empty());
    }

    #[test]
    fn the_best_checkpoint_is_named_and_outlives_newer_ones() {
        let dir = TestDir::new("best");
        let keep = Keep { newest: 1, best: true };
        let commit_with = |step, best_step, loss| {
            let mut manifest = written(&dir.0, step);
            manifest.standing.best = Some(Best { step: best_step, loss });
            commit(&dir.0, &manifest, keep).unwrap();
            fs::read_to_string(dir.0.join(BEST_FILE_NAME)).unwrap_or_default()
        };
        // The best so far has no checkpoint: `keep_best` was not set then.
        assert_eq!(commit_with(10, 5, 3.0), "");
        assert_eq!(commit_with(20, 20, 2.5), "{\"step\":20,\"loss\":2.5}\n");
        assert_eq!(commit_with(30, 20, 2.5), "{\"step\":20,\"loss\":2.5}\n");
        assert_eq!(names(&dir.0), ["best.json", "step-20", "step-30"]);
        assert_eq!(commit_with(40, 40, 2.0), "{\"step\":40,\"loss\":2.0}\n");
        assert_eq!(names(&dir.0), ["best.json", "step-40"]);
    }
}
