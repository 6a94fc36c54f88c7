//! Checkpoints outside the run directory: in a bucket that speaks S3's protocol, or in a directory on
//! another disk. A copy, never the original: a store that fails stops nobody.
//!
//! Keys are those of `checkpoints/`: `step-N/FILE` and `step-N/manifest.json`. The manifest is written
//! last, and only if there is none: a step with a manifest is complete. It is deleted first, too. An
//! answer that was lost is asked for again with the same bytes, which the manifest's hashes vouch for.
//!
//! Reading order: `open` (which store), `upload`, `fetch`, `tidy` (what is there, and what goes),
//! `mirror` (the task that keeps the copy up to date).

mod error;
mod fetch;
mod mirror;
mod open;
mod tidy;
mod upload;

use std::fmt;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path as Key;
use shoal_plan::checkpoint::{FILE_NAME, complete_name};

pub use error::Error;
pub use mirror::{Mirror, Said, Settings};
pub use open::open;
pub use upload::Upload;

/// The record of the run that a store belongs to.
const RUN_FILE_NAME: &str = "run.json";

/// Parts of larger files: S3 wants at least 5 MiB and takes 10,000, so files of up to 160 GB. In
/// tests a few bytes do.
const PART_BYTES: usize = if cfg!(test) { 64 } else { 16 << 20 };

/// A place for the checkpoints of one run.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Key,
    /// For people; it holds no secret.
    shown: String,
}

impl Store {
    /// A store over any objects: those of `open`, or of a test.
    pub fn over(objects: Arc<dyn ObjectStore>, prefix: Key, shown: String) -> Self {
        Self { objects, prefix, shown }
    }

    fn key(&self, step: u64, file: &str) -> Key {
        self.prefix.clone().join(complete_name(step)).join(file)
    }

    fn manifest_key(&self, step: u64) -> Key {
        self.key(step, FILE_NAME)
    }

    fn run_key(&self) -> Key {
        self.prefix.clone().join(RUN_FILE_NAME)
    }

    /// Attaches what was being done to which object.
    fn failed<'a>(
        &'a self,
        doing: &'static str,
        key: &'a Key,
    ) -> impl FnOnce(object_store::Error) -> Error + 'a {
        move |source| Error::Object { doing, object: format!("{}: {key}", self.shown), source }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.shown)
    }
}

#[cfg(test)]
mod tests;
