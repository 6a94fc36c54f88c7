//! Files at a distance: `https://` addresses and `hf://` names of the Hugging Face hub, fetched
//! once into a cache.
//!
//! What is under its final name in the cache is whole and is used without asking the server again;
//! to fetch a file anew, delete it there. A cut transfer goes on where it was, if the server's
//! ETag says that the file is still the same.

mod address;
mod transfer;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_plan::globs::{self, Environment, GlobError};

use crate::error::{DataError, io_error};
use crate::record::write_aside;
use address::Address;

/// Transfers begun in one call before it gives up, each from where the one before was cut.
const ATTEMPTS_MAX: u32 = 5;

/// Where downloads go and what they may say.
#[derive(Clone, Debug)]
pub struct Downloads {
    /// `${SHOAL_CACHE:-~/.cache/shoal}/downloads`.
    cache: PathBuf,
    /// `HF_TOKEN`: sent to huggingface.co and to no other host.
    token: Option<String>,
}

/// What is known of a file in the cache, in a `.json` beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub address: String,
    pub bytes: u64,
    pub blake3: String,
    /// Checked, where the hub gives it.
    pub sha256: Option<String>,
    pub etag: Option<String>,
}

/// How far a download is, in bytes; the size where the server says it.
pub type Told<'a> = &'a mut dyn FnMut(&str, u64, Option<u64>);

/// Why a list of files cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error(transparent)]
    Glob(#[from] GlobError),
    #[error(transparent)]
    Data(#[from] DataError),
}

/// The files of a source: local patterns expanded and sorted, then downloads in their order.
pub fn resolve(
    entries: &[String],
    env: Environment<'_>,
    told: Told<'_>,
) -> Result<Vec<PathBuf>, FilesError> {
    let (remote, local): (Vec<String>, Vec<String>) =
        entries.iter().cloned().partition(|entry| globs::is_address(entry));
    let mut files = if local.is_empty() { Vec::new() } else { globs::expand(&local, env)? };
    if !remote.is_empty() {
        let downloads = Downloads::new(env)?;
        for address in &remote {
            let mut told = |done, all| told(address, done, all);
            files.push(downloads.fetch(address, &mut told)?);
        }
    }
    Ok(files)
}

impl Downloads {
    /// Reads `SHOAL_CACHE`, `HOME` and `HF_TOKEN`.
    pub fn new(env: Environment<'_>) -> Result<Self, DataError> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let home = || set("HOME").map(|home| Path::new(&home).join(".cache").join("shoal"));
        let cache = set("SHOAL_CACHE").map(PathBuf::from).or_else(home);
        let cache = cache.ok_or_else(|| DataError::Settings {
            what: "no place for downloads: set SHOAL_CACHE to a directory".into(),
        })?;
        Ok(Self { cache: cache.join("downloads"), token: set("HF_TOKEN") })
    }

    /// Where a file is, or will be, in the cache.
    pub fn place(&self, address: &str) -> Result<PathBuf, DataError> {
        Ok(self.place_of(&Address::parse(address)?))
    }

    fn place_of(&self, address: &Address) -> PathBuf {
        let key = blake3::hash(address.url.as_bytes()).to_hex();
        self.cache.join(&address.safe_host).join(&key[..16]).join(&address.file_name)
    }

    /// Fetches a file, unless it is in the cache. `progress` is told the bytes and the size.
    ///
    /// # Errors
    /// Which address and which cause; the final name is never given to a part of a file.
    pub fn fetch(
        &self,
        address: &str,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<PathBuf, DataError> {
        let target = Address::parse(address)?;
        let place = self.place_of(&target);
        if place.is_file() {
            return Ok(place);
        }
        let directory = place.parent().expect("it is below the cache");
        fs::create_dir_all(directory).map_err(io_error("creating", directory))?;
        let name = place.file_name().expect("it has one").to_string_lossy().into_owned();
        let lock_path = directory.join(format!("{name}.lock"));
        let lock = File::create(&lock_path).map_err(io_error("creating", &lock_path))?;
        let fail = |failure: transfer::Failure| DataError::Download {
            address: address.to_owned(),
            help: failure.help(&target, &place),
            cause: failure.cause,
        };
        if lock.try_lock().is_err() {
            return Err(fail(transfer::Failure::new("another process is fetching it")));
        }
        let partial = directory.join(format!("{name}.partial"));
        let mut transfer = transfer::Transfer::new(&target, self.token.as_deref(), &partial)?;
        let mut attempt = 1;
        let origin = loop {
            let before = transfer.bytes();
            match transfer.run(progress) {
                Ok(origin) => break origin,
                Err(failure) => {
                    let moved = transfer.bytes() > before;
                    if !failure.is_cut || !moved || attempt == ATTEMPTS_MAX {
                        return Err(fail(failure));
                    }
                    attempt += 1;
                }
            }
        };
        let origin = Origin { address: address.to_owned(), ..origin };
        let text = serde_json::to_vec_pretty(&origin).expect("an origin is plain data");
        write_aside(directory, &format!("{name}.json"), &text)?;
        fs::rename(&partial, &place).map_err(io_error("renaming to", &place))?;
        // What is left beside a whole file is of no use; a failure here harms nothing.
        let _ = fs::remove_file(transfer::notes_of(&partial));
        let _ = fs::remove_file(&lock_path);
        Ok(place)
    }
}

#[cfg(test)]
mod tests;
