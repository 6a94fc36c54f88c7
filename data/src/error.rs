//! Why text cannot be used: where, what was found, what was wanted, what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why the text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error("no text: the list of files is empty")]
    NoFiles,

    /// The caller's settings contradict themselves.
    #[error("{what}")]
    Settings { what: String },

    #[error(
        "too little text{}: {got} tokens in {files} files, want {want} or more for one batch and \
         one evaluation window of {sequence} tokens; add files, or lower batch or sequence",
        of_source(.source_name.as_deref())
    )]
    TooSmall { source_name: Option<String>, got: u64, files: usize, want: u64, sequence: u32 },

    /// A file of text that is not what its extension says. `at` is a place in it, like `:12`.
    #[error("{}{at}: {what}", path.display())]
    Content { path: PathBuf, at: String, what: String },

    #[error("the tokenizer {}: {what}", path.display())]
    Tokenizer { path: PathBuf, what: String },

    #[error(
        "the tokenizer has {tokens} tokens but the model's vocab_size is {vocab_size}: raise \
         vocab_size to {tokens} or more, or take a smaller tokenizer"
    )]
    VocabularyTooSmall { tokens: u32, vocab_size: u32 },

    #[error("no end token: {what}; set spec.data.end_token to a token's name or to none")]
    EndToken { what: String },

    #[error(
        "{} has changed since this run was started ({what}): the sample order would change; \
         restore it, or start over with --fresh",
        path.display()
    )]
    Changed { path: PathBuf, what: String },

    #[error("{} has changed while it was read; run again", path.display())]
    ChangedWhileRead { path: PathBuf },

    /// Written by an older shoal, whose shards this one does not continue.
    #[error("{} is of version {got}, want {want}: start over with --fresh", path.display())]
    OldVersion { path: PathBuf, got: u64, want: u32 },

    /// Shards and their description are written by `prepare` alone.
    #[error("{} is damaged: {what}; delete it and launch again to rebuild it", path.display())]
    Damaged { path: PathBuf, what: String },

    /// Nothing under the file's final name was written.
    #[error("cannot download {address}: {cause}; {help}")]
    Download { address: String, cause: String, help: String },
}

fn of_source(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!(" in source {name:?}"))
}

impl DataError {
    /// Whether other settings or other text would help; otherwise the machine failed.
    pub fn is_about_input(&self) -> bool {
        match self {
            Self::NoFiles
            | Self::Settings { .. }
            | Self::TooSmall { .. }
            | Self::Content { .. }
            | Self::Tokenizer { .. }
            | Self::VocabularyTooSmall { .. }
            | Self::EndToken { .. }
            | Self::Changed { .. }
            | Self::OldVersion { .. } => true,
            // A file that is not there was named wrongly.
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::ChangedWhileRead { .. } | Self::Damaged { .. } | Self::Download { .. } => false,
        }
    }

    pub(crate) fn content(path: &Path, at: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Content { path: path.to_path_buf(), at: at.into(), what: what.into() }
    }
}

/// Attaches the path and what was being done to an I/O error.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |source| DataError::Io { action, path: path.to_path_buf(), source }
}
