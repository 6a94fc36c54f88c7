//! Finds the checkpoint to resume from: the newest whose every byte is as it was written.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use shoal_plan::checkpoint::{
    CheckpointFile, CheckpointManifest, FILE_NAME, ManifestError, Named, SCHEMA_VERSION,
};

use crate::verify::hash_of;
use crate::{CheckpointError, TensorKind, directory, io_error, is_plain};

/// A manifest is a few hundred bytes a file; one beyond this is not ours.
pub const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// What `newest_good` found.
#[derive(Debug, Default)]
pub struct Newest {
    /// The step to resume after; `None` if no checkpoint can be used.
    pub step: Option<u64>,
    /// Where it is.
    pub directory: Option<PathBuf>,
    pub manifest: Option<CheckpointManifest>,
    /// Newer ones that were passed over.
    pub warnings: Vec<Warning>,
}

/// A checkpoint that cannot be used, and why.
#[derive(Debug)]
pub struct Warning {
    pub step: u64,
    pub reason: CheckpointError,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the checkpoint of step {} is passed over: {}", self.step, self.reason)
    }
}

/// The newest complete and undamaged checkpoint of `checkpoints/`, which need not exist. Every file
/// of the candidates is read. What could be read by another shoal or another user is an error, not
/// a reason to go back further.
pub fn newest_good(checkpoints: &Path) -> Result<Newest, CheckpointError> {
    let mut newest = Newest::default();
    for step in steps(checkpoints)? {
        let directory = directory(checkpoints, step);
        match verify(&directory, step) {
            Ok(manifest) => {
                newest.step = Some(step);
                newest.directory = Some(directory);
                newest.manifest = Some(manifest);
                break;
            }
            Err(reason) if is_damage(&reason) => newest.warnings.push(Warning { step, reason }),
            Err(error) => return Err(error),
        }
    }
    Ok(newest)
}

/// Reads and checks the manifest of a checkpoint's directory, but not the files it names.
pub fn read_manifest(directory: &Path) -> Result<CheckpointManifest, CheckpointError> {
    let path = directory.join(FILE_NAME);
    let damaged = |what: String| CheckpointError::Damaged { path: path.clone(), what };
    let bytes = fs::metadata(&path).map_err(io_error("reading", &path))?.len();
    if bytes > MANIFEST_BYTES_MAX {
        return Err(damaged(format!("{bytes} bytes, want at most {MANIFEST_BYTES_MAX}")));
    }
    manifest_of(&path, &fs::read(&path).map_err(io_error("reading", &path))?)
}

/// The manifest that `text` is, checked; an error calls it `path`.
pub fn manifest_of(path: &Path, text: &[u8]) -> Result<CheckpointManifest, CheckpointError> {
    let damaged = |what: String| CheckpointError::Damaged { path: path.to_path_buf(), what };
    let manifest = CheckpointManifest::from_text(text).map_err(|error| match error {
        ManifestError::Damaged(what) => damaged(what),
        ManifestError::Schema { got } => {
            CheckpointError::Schema { path: path.to_path_buf(), got, want: SCHEMA_VERSION }
        }
    })?;
    if manifest.files.is_empty() {
        return Err(damaged("it names no file".into()));
    }
    for (at, file) in manifest.files.iter().enumerate() {
        if !is_plain(&file.name) {
            return Err(damaged(format!("{:?} is no plain file name", file.name)));
        }
        if manifest.files[..at].iter().any(|other| other.name == file.name) {
            return Err(damaged(format!("{} is named twice", file.name)));
        }
    }
    Ok(manifest)
}

/// Steps with a directory in `checkpoints`, which need not exist; the newest first.
pub fn steps(checkpoints: &Path) -> Result<Vec<u64>, CheckpointError> {
    let entries = match fs::read_dir(checkpoints) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("reading", checkpoints)(error)),
    };
    let mut steps = Vec::new();
    for entry in entries {
        let name = entry.map_err(io_error("reading", checkpoints))?.file_name();
        if let Some(Named::Complete(step)) = name.to_str().and_then(Named::of) {
            steps.push(step);
        }
    }
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

fn verify(directory: &Path, step: u64) -> Result<CheckpointManifest, CheckpointError> {
    let manifest = read_manifest(directory)?;
    if manifest.standing.step != step {
        let what = format!("it is of step {}, want {step}", manifest.standing.step);
        return Err(CheckpointError::Damaged { path: directory.join(FILE_NAME), what });
    }
    for file in &manifest.files {
        verify_file(&directory.join(&file.name), file)?;
    }
    Ok(manifest)
}

/// Holds the weights of a checkpoint that was named, rather than found, against their hashes.
pub(super) fn verify_weights(directory: &Path) -> Result<(), CheckpointError> {
    for file in &read_manifest(directory)?.files {
        if TensorKind::of_file(&file.name).is_some_and(TensorKind::is_weight) {
            verify_file(&directory.join(&file.name), file)?;
        }
    }
    Ok(())
}

fn verify_file(path: &Path, want: &CheckpointFile) -> Result<(), CheckpointError> {
    let damaged = |what: String| CheckpointError::Damaged { path: path.to_path_buf(), what };
    let metadata = fs::symlink_metadata(path).map_err(io_error("reading", path))?;
    if !metadata.is_file() {
        return Err(damaged("it is not a file".into()));
    }
    if metadata.len() != want.bytes {
        return Err(damaged(format!("{} bytes, want {}", metadata.len(), want.bytes)));
    }
    let got = hash_of(path, &mut |_| {}).map_err(io_error("reading", path))?.blake3;
    if got != want.blake3 {
        return Err(damaged(format!("blake3 {got}, want {}", want.blake3)));
    }
    Ok(())
}

/// Whether an older checkpoint should be tried: the bytes are gone, not merely out of reach.
fn is_damage(error: &CheckpointError) -> bool {
    match error {
        CheckpointError::Damaged { .. } => true,
        CheckpointError::Io { source, .. } => {
            matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        }
        CheckpointError::Schema { .. }
        | CheckpointError::Missing { .. }
        | CheckpointError::Tensor { .. }
        | CheckpointError::NoTensor { .. }
        | CheckpointError::Unfit { .. }
        | CheckpointError::NoModel { .. }
        | CheckpointError::Exists { .. }
        | CheckpointError::Data(_)
        | CheckpointError::Config(_)
        | CheckpointError::Unwritable { .. } => false,
    }
}
