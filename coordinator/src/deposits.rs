//! Files of checkpoints as they come in: written aside under another name, hashed on the way, and renamed when
//! they are durable and as they were announced. One that is not leaves nothing.
//!
//! Whether a file may come is the state's to say; where it may be disk and bytes say it here.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_plan::checkpoint::{CheckpointFile, Named, partial_name};
use shoal_plan::plan::Generation;
use shoal_proto::Deposit;

use crate::checkpoints::{io as failed, remove};
use crate::error::Error;

/// Files on their way at the same time, in either direction. A cell has one, and its worker's connections are
/// counted at the door; each holds no more in memory than HTTP/2 lets wait, a megabyte.
pub(crate) const UNDER_WAY_MAX: usize = 64;

/// Checkpoints that a plan has in the making: cells are at the same one, or at the next.
const BEGUN_MAX: usize = 8;

/// Written out to the disk this often, so that the end of a large file is not waited for.
const SYNC_BYTES: u64 = 64 << 20;

/// Bytes read at a time where a file is read again.
const BLOCK_BYTES: usize = 1 << 20;

/// What is under way in one run directory.
#[derive(Debug)]
pub(crate) struct Deposits {
    checkpoints: PathBuf,
    under_way: Mutex<BTreeSet<PathBuf>>,
}

/// How a deposit begins.
#[derive(Debug)]
pub(crate) enum Begun {
    /// The same file is there: whoever asks did not hear so.
    Here,
    Incoming(Box<Incoming>),
}

/// Why a deposit does not go well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DepositError {
    /// Passes by itself.
    #[error("{0}")]
    Busy(String),
    /// The file is not what was announced, or may not come.
    #[error("{0}")]
    Unfit(String),
    #[error("{}: {}", .0, std::error::Error::source(.0).map_or_else(String::new, ToString::to_string))]
    Disk(#[from] Error),
}

/// A file that is being written. Dropping it removes what there is of it.
#[derive(Debug)]
pub(crate) struct Incoming {
    deposits: Arc<Deposits>,
    want: CheckpointFile,
    directory: PathBuf,
    path: PathBuf,
    aside: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
    unsynced: u64,
}

impl Deposits {
    pub(crate) fn new(checkpoints: PathBuf) -> Arc<Self> {
        Arc::new(Self { checkpoints, under_way: Mutex::default() })
    }

    pub(crate) fn checkpoints(&self) -> &Path {
        &self.checkpoints
    }

    /// Makes room for a file that the state lets in. What a coordinator before this one began is begun anew.
    ///
    /// # Errors
    /// Another file of that name, there or on its way; or a disk that takes nothing.
    pub(crate) fn begin(self: &Arc<Self>, deposit: &Deposit) -> Result<Begun, DepositError> {
        let Deposit { generation, standing, file: want, .. } = deposit;
        let directory = self.checkpoints.join(partial_name(standing.step, *generation));
        let path = directory.join(&want.name);
        let place = Place::take(self, &path)?;
        if path.symlink_metadata().is_ok() {
            return same_file(&path, want).map(|()| Begun::Here);
        }
        self.make(&directory, *generation)?;
        let aside = directory.join(format!(".{}.deposit", want.name));
        // A directory that was made for this file alone.
        let file = open_anew(&aside).inspect_err(|_| drop(fs::remove_dir(&directory)))?;
        place.keep();
        Ok(Begun::Incoming(Box::new(Incoming {
            deposits: Arc::clone(self),
            want: want.clone(),
            directory,
            path,
            aside,
            file,
            hasher: blake3::Hasher::new(),
            bytes: 0,
            unsynced: 0,
        })))
    }

    /// The directory of a checkpoint in the making, if there are not too many. Those of other plans go: the plan
    /// in force is never made before what the last one had to complete is complete.
    fn make(&self, directory: &Path, generation: Generation) -> Result<(), DepositError> {
        if directory.is_dir() {
            return Ok(());
        }
        let entries = fs::read_dir(&self.checkpoints).map_err(failed("reading", &self.checkpoints));
        let mut begun = 0;
        for entry in entries?.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(".partial")) else {
                continue;
            };
            match Named::of(name) {
                Some(Named::Leftover(step)) if name == partial_name(step, generation) => begun += 1,
                Some(Named::Leftover(_)) => remove(&entry.path()),
                Some(Named::Complete(_)) | None => {}
            }
        }
        if begun >= BEGUN_MAX {
            let why = format!("{begun} checkpoints are begun and not complete, and no more are");
            return Err(DepositError::Unfit(why));
        }
        match fs::create_dir(directory) {
            // Another cell's file was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => Ok(made.map_err(failed("making", directory))?),
        }
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that nobody else writes to, for as long as this lives.
struct Place<'a> {
    deposits: &'a Deposits,
    path: &'a Path,
    is_kept: bool,
}

impl<'a> Place<'a> {
    fn take(deposits: &'a Deposits, path: &'a Path) -> Result<Self, DepositError> {
        if !deposits.under_way().insert(path.to_path_buf()) {
            let name = path.file_name().unwrap_or_default().display();
            return Err(DepositError::Busy(format!("{name} is on its way already")));
        }
        Ok(Self { deposits, path, is_kept: false })
    }

    /// The file that is being written gives it back.
    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.deposits.under_way().remove(self.path);
        }
    }
}

impl Incoming {
    /// Writes the next bytes.
    pub(crate) fn take(&mut self, chunk: &[u8]) -> Result<(), DepositError> {
        let (more, CheckpointFile { name, bytes: want, .. }) = (chunk.len() as u64, &self.want);
        if self.bytes + more > *want {
            return Err(DepositError::Unfit(format!("{name} is longer than {want} bytes")));
        }
        self.hasher.update(chunk);
        self.file.write_all(chunk).map_err(failed("writing", &self.aside))?;
        (self.bytes, self.unsynced) = (self.bytes + more, self.unsynced + more);
        if self.unsynced >= SYNC_BYTES {
            self.file.sync_data().map_err(failed("syncing", &self.aside))?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Whether all has come as it was announced; then it is durable, under its other name.
    pub(crate) fn sync(&mut self) -> Result<(), DepositError> {
        let CheckpointFile { name, bytes: want, blake3 } = &self.want;
        let got = self.bytes;
        if got != *want {
            return Err(DepositError::Unfit(format!("{name} ends after {got} of {want} bytes")));
        }
        let got = self.hasher.finalize().to_hex();
        if got.as_str() != blake3 {
            let why =
                format!("{name} has blake3 {got} as it came, and {blake3} where it was written");
            return Err(DepositError::Unfit(why));
        }
        Ok(self.file.sync_all().map_err(failed("syncing", &self.aside))?)
    }

    /// Gives the file its name; after `sync`.
    pub(crate) fn finish(self) -> Result<(), DepositError> {
        fs::rename(&self.aside, &self.path).map_err(failed("renaming", &self.aside))?;
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(failed("syncing", &self.directory))?;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After a rename there is none; and a directory with other files in it stays.
        if fs::remove_file(&self.aside).is_ok() {
            fs::remove_dir(&self.directory).ok();
        }
        self.deposits.under_way().remove(&self.path);
    }
}

/// Replaces what a coordinator that died has left. Nothing here follows a link.
fn open_anew(path: &Path) -> Result<File, DepositError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("removing", path)(error).into());
        }
        Ok(()) | Err(_) => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    Ok(file.map_err(failed("creating", path))?)
}

/// Whether the file that is there is the one that was announced.
fn same_file(path: &Path, want: &CheckpointFile) -> Result<(), DepositError> {
    let reading = || failed("reading", path);
    let mut file = File::open(path).map_err(reading())?;
    let bytes = file.metadata().map_err(reading())?.len();
    let mut hasher = blake3::Hasher::new();
    if bytes == want.bytes {
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let n = file.read(&mut block).map_err(reading())?;
            if n == 0 {
                break;
            }
            hasher.update(&block[..n]);
        }
        if hasher.finalize().to_hex().as_str() == want.blake3 {
            return Ok(());
        }
    }
    Err(DepositError::Unfit(format!("another {} is here already", want.name)))
}

#[cfg(test)]
mod tests;
