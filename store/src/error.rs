//! Why a store cannot be used, or did not take or give something.

use std::io;
use std::path::PathBuf;

/// The crate's only error type. A message says what, where, and what to do; none holds a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{store}: no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({missing} is not set)"
    )]
    NoCredentials { store: String, missing: &'static str },

    #[error("{store}: there is no such bucket; make it, or correct spec.checkpoint.store")]
    NoBucket { store: String },

    #[error(
        "{store}: not allowed: {why}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION \
         and what this key may do"
    )]
    Denied { store: String, why: String },

    #[error(
        "{store}: cannot be reached: {why}; check the network and AWS_ENDPOINT_URL, or train \
         without it: --set checkpoint.store=null"
    )]
    Unreachable { store: String, why: String },

    #[error("{store}: AWS_ENDPOINT_URL {why}")]
    Endpoint { store: String, why: String },

    #[error("{store}: {doing}: {source}; choose a directory that can be written to")]
    Directory { store: String, doing: &'static str, source: io::Error },

    #[error("{doing} {object}: {source}")]
    Object { doing: &'static str, object: String, source: object_store::Error },

    #[error("{doing} {}: {source}", path.display())]
    Local { doing: &'static str, path: PathBuf, source: io::Error },

    /// What lies on this disk is not what its manifest says: it is not sent.
    #[error(
        "{} has {got_bytes} bytes, blake3 {got}; its manifest says {want_bytes}, blake3 {want}",
        path.display()
    )]
    NotAsWritten { path: PathBuf, got_bytes: u64, got: String, want_bytes: u64, want: String },

    /// What the store gave is not what was sent.
    #[error("{object} is damaged: {what}")]
    Damaged { object: String, what: String },

    /// Two runs write to one place.
    #[error(
        "{store} got another checkpoint of step {step} meanwhile: another run writes there; give \
         each run a prefix of its own"
    )]
    Conflict { store: String, step: u64 },
}

impl Error {
    /// Whether the fault lies in what was asked for, and trying again would not help.
    pub fn is_about_input(&self) -> bool {
        match self {
            Self::NoCredentials { .. }
            | Self::NoBucket { .. }
            | Self::Denied { .. }
            | Self::Endpoint { .. }
            | Self::Directory { .. } => true,
            Self::Unreachable { .. }
            | Self::Object { .. }
            | Self::Local { .. }
            | Self::NotAsWritten { .. }
            | Self::Damaged { .. }
            | Self::Conflict { .. } => false,
        }
    }

    /// Whether an older checkpoint should be tried: the bytes are wrong, not out of reach.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Object { source, .. } => matches!(source, object_store::Error::NotFound { .. }),
            Self::NoCredentials { .. }
            | Self::NoBucket { .. }
            | Self::Denied { .. }
            | Self::Endpoint { .. }
            | Self::Directory { .. }
            | Self::Unreachable { .. }
            | Self::Local { .. }
            | Self::NotAsWritten { .. }
            | Self::Conflict { .. } => false,
        }
    }
}
