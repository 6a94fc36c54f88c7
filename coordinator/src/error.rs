//! Why a coordinator cannot start, or cannot write something down.

use std::io;
use std::path::PathBuf;

/// The coordinator's only error type.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listening for workers on 127.0.0.1")]
    Listen { source: io::Error },

    #[error("registering the metrics")]
    Metrics { source: prometheus::Error },

    #[error("{doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },

    #[error(
        "{}, line {line}, is not a line of the ledger: move the file away to start a new one",
        path.display()
    )]
    Ledger { path: PathBuf, line: usize, source: serde_json::Error },

    #[error(
        "{} is damaged at byte {at}: what the coordinator knew is lost. End the run and start it again \
         with the same command: it continues from the newest checkpoint",
        path.display()
    )]
    Journal { path: PathBuf, at: u64 },

    #[error(
        "what the coordinator wrote down is not of this version of shoal. End the run and start it \
         again with the same command: it continues from the newest checkpoint"
    )]
    Record { source: serde_json::Error },

    #[error("{} has {got} bytes, and its worker wrote {want}", path.display())]
    FileSize { path: PathBuf, got: u64, want: u64 },
}
