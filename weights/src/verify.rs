//! Holds every file of a checkpoint against the manifest, and says of each what is wrong with it:
//! where `newest_good` stops at the first fault, this finds them all.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use serde::Serialize;
use shoal_plan::checkpoint::{CheckpointFile, CheckpointManifest, FILE_NAME};

use crate::{CheckpointError, read_manifest};

/// Read at a time: large enough for the disk and for blake3's widest vectors.
const BLOCK: usize = 1 << 20;

/// Size and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fingerprint {
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub blake3: String,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    Missing,
    /// A directory, a link, a device.
    NotAFile,
    /// It has no bytes at all, as after a power cut on some file systems.
    Empty,
    /// It ends too early.
    Truncated,
    /// It goes on after its end.
    TooLong,
    /// It has the right size and other bytes.
    Changed,
    /// It holds what belongs into another file of this checkpoint.
    Swapped {
        holds: String,
    },
    Unreadable {
        why: String,
    },
    /// The manifest itself: damaged, or of another step.
    Manifest {
        why: String,
    },
}

/// One file that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Its name in the checkpoint's directory.
    pub file: String,
    pub fault: Fault,
    /// As the manifest has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<Fingerprint>,
    /// As it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<Fingerprint>,
}

/// What was found in a checkpoint's directory.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// `None` where it is missing or damaged; then no other file can be judged.
    pub manifest: Option<CheckpointManifest>,
    /// Empty for a good checkpoint.
    pub problems: Vec<Problem>,
}

/// Reads every file that the manifest names; `read` hears how many bytes each look took. What is
/// damaged is found, not an error.
///
/// # Errors
/// A manifest that another shoal can read, or another user.
pub fn verify(
    directory: &Path,
    step: u64,
    read: &mut dyn FnMut(u64),
) -> Result<Verified, CheckpointError> {
    let of_manifest =
        |fault| Problem { file: FILE_NAME.to_owned(), fault, expected: None, actual: None };
    let manifest = match read_manifest(directory) {
        Ok(manifest) => manifest,
        Err(CheckpointError::Io { source, .. })
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
        {
            return Ok(Verified { manifest: None, problems: vec![of_manifest(Fault::Missing)] });
        }
        Err(CheckpointError::Damaged { what: why, .. }) => {
            let problems = vec![of_manifest(Fault::Manifest { why })];
            return Ok(Verified { manifest: None, problems });
        }
        Err(error) => return Err(error),
    };
    let mut problems = Vec::new();
    if manifest.standing.step != step {
        let why = format!("it is of step {}, want {step}", manifest.standing.step);
        problems.push(of_manifest(Fault::Manifest { why }));
    }
    for file in &manifest.files {
        problems.extend(look_at(directory, file, &manifest.files, read));
    }
    Ok(Verified { manifest: Some(manifest), problems })
}

/// What is wrong with one file, if anything is.
fn look_at(
    directory: &Path,
    want: &CheckpointFile,
    all: &[CheckpointFile],
    read: &mut dyn FnMut(u64),
) -> Option<Problem> {
    let path = directory.join(&want.name);
    let expected = Fingerprint { bytes: want.bytes, blake3: want.blake3.clone() };
    let problem = |fault, actual| {
        let (file, expected) = (want.name.clone(), Some(expected.clone()));
        Some(Problem { file, fault, expected, actual })
    };
    let unreadable = |error: io::Error| {
        let fault = if error.kind() == ErrorKind::NotFound {
            Fault::Missing
        } else {
            Fault::Unreadable { why: error.to_string() }
        };
        problem(fault, None)
    };
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.is_file() => return problem(Fault::NotAFile, None),
        Ok(_) => {}
        Err(error) => return unreadable(error),
    }
    let actual = match hash_of(&path, read) {
        Ok(actual) => actual,
        Err(error) => return unreadable(error),
    };
    if actual == expected {
        return None;
    }
    let is_there = |other: &&CheckpointFile| {
        other.name != want.name && other.bytes == actual.bytes && other.blake3 == actual.blake3
    };
    let fault = match all.iter().find(is_there) {
        Some(other) => Fault::Swapped { holds: other.name.clone() },
        None if actual.bytes == 0 => Fault::Empty,
        None if actual.bytes < expected.bytes => Fault::Truncated,
        None if actual.bytes > expected.bytes => Fault::TooLong,
        None => Fault::Changed,
    };
    problem(fault, Some(actual))
}

/// Size and hash of a file; `read` hears of every block.
pub(crate) fn hash_of(path: &Path, read: &mut dyn FnMut(u64)) -> io::Result<Fingerprint> {
    let mut file = File::open(path)?;
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    let mut block = vec![0; BLOCK];
    loop {
        let n = match file.read(&mut block) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&block[..n]);
        bytes += n as u64;
        read(n as u64);
    }
    Ok(Fingerprint { bytes, blake3: hasher.finalize().to_hex().to_string() })
}

impl Verified {
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.file)?;
        match &self.fault {
            Fault::Missing => f.write_str("is missing")?,
            Fault::NotAFile => f.write_str("is not a file")?,
            Fault::Empty => f.write_str("is empty")?,
            Fault::Truncated => f.write_str("is cut short")?,
            Fault::TooLong => f.write_str("goes on after its end")?,
            Fault::Changed => f.write_str("has other bytes than were written")?,
            Fault::Swapped { holds } => write!(f, "holds what belongs into {holds}")?,
            Fault::Unreadable { why } => write!(f, "cannot be read: {why}")?,
            Fault::Manifest { why } => write!(f, "is damaged: {why}")?,
        }
        let Some(want) = &self.expected else { return Ok(()) };
        write!(f, "\n    expected {} bytes, blake3 {}", want.bytes, want.blake3)?;
        match &self.actual {
            Some(got) => write!(f, "\n    actual   {} bytes, blake3 {}", got.bytes, got.blake3),
            None => Ok(()),
        }
    }
}
