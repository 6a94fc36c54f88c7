//! What a cluster must know after a crash: small facts by key, changed together or not at all. Never a tensor.
//!
//! One trait, and a file of its own by default (`embedded`); with the feature `etcd` an etcd that several coordinators
//! share, of which one is active. Every value carries its BLAKE3: no database notices every flipped bit, and a rig that
//! is let in by a damaged record is worse than none.

use std::path::PathBuf;

use serde::de::DeserializeOwned;

use crate::state::{Key, Known};

mod embedded;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(not(feature = "etcd"))]
#[path = "store/etcd_left_out.rs"]
mod etcd;
pub mod remote;
mod seal;

pub use embedded::Embedded;
pub use etcd::open as open_etcd;

/// Why something is not written down, or cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}: {doing}: {why}", path.display())]
    Database { path: PathBuf, doing: &'static str, why: String },
    #[error("{}: the record {key} is damaged: {why}. Restore the file from a copy, or move it away and let every rig join anew", path.display())]
    Damaged { path: PathBuf, key: String, why: String },
    #[error("{}: etcd does not answer: {why}", place.display())]
    Away { place: PathBuf, why: String },
    /// Another coordinator is active, or must be taken to be.
    #[error("{}: this coordinator is not the active one any more: {why}", place.display())]
    Fenced { place: PathBuf, why: String },
    /// Nothing that another try mends.
    #[error("{0}")]
    Unfit(String),
}

/// One change: a key, and what it holds from now on; nothing removes it.
pub type Change = (String, Option<Vec<u8>>);

/// Keeps what a cluster knows.
pub trait Store: Send {
    /// Everything, in the order of keys.
    fn load(&mut self) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// All of these changes or none. Durable when it returns.
    fn write(&mut self, changes: &[Change]) -> Result<(), StoreError>;

    /// For messages.
    fn place(&self) -> PathBuf;

    /// Whether this coordinator is the one that decides, now.
    ///
    /// # Errors
    /// Another one is, or it cannot be known.
    fn may_decide(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// One value may have so many bytes.
    fn value_bytes_max(&self) -> usize {
        usize::MAX
    }
}

impl Key {
    /// As it is kept.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Rig(name) => format!("rig/{name}"),
            Self::Job(name) => format!("job/{name}"),
            Self::Token(id) => format!("token/{id}"),
            Self::Denied(serial) => format!("denied/{serial}"),
        }
    }
}

/// What a store holds, read.
///
/// # Errors
/// A record is none of ours.
pub fn known(store: &mut dyn Store) -> Result<Known, StoreError> {
    let mut known = Known::default();
    let path = store.place();
    for (key, value) in store.load()? {
        let (kind, name) = key.split_once('/').unwrap_or((&key, ""));
        let name = name.to_owned();
        match kind {
            "rig" => drop(known.rigs.insert(name, read(&path, &key, &value)?)),
            "job" => drop(known.jobs.insert(name, read(&path, &key, &value)?)),
            "token" => drop(known.tokens.insert(name, read(&path, &key, &value)?)),
            "denied" => drop(known.denied.insert(name, read(&path, &key, &value)?)),
            _ => {
                let why = "this version of shoal keeps nothing under such a name".to_owned();
                return Err(StoreError::Damaged { path, key, why });
            }
        }
    }
    Ok(known)
}

fn read<T: DeserializeOwned>(
    path: &std::path::Path,
    key: &str,
    value: &[u8],
) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|error| StoreError::Damaged {
        path: path.to_path_buf(),
        key: key.to_owned(),
        why: format!("{error}; it may be of another version of shoal"),
    })
}

#[cfg(test)]
mod tests;
