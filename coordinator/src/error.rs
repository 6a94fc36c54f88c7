//! Why a coordinator cannot start, or cannot write something down.

use std::io;
use std::path::PathBuf;

/// The coordinator's only error type.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("opening a port for the workers on 127.0.0.1")]
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

    #[error("{} has {got} bytes, and its worker wrote {want}", path.display())]
    FileSize { path: PathBuf, got: u64, want: u64 },
}
