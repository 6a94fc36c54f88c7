//! The tokenizer of a model on disk.

use std::path::{Path, PathBuf};

use super::{FILE_NAME, Tokenizer};
use crate::error::DataError;
use crate::settings::EndToken;

impl Tokenizer {
    /// The tokenizer of the model in `directory`: its `tokenizer.json`, that of the run it is a
    /// checkpoint of, or bytes where the model's vocabulary is theirs. With the usual end token, if
    /// it has one.
    ///
    /// # Errors
    /// None of these, or a tokenizer that does not fit `vocab_size`.
    pub fn beside(directory: &Path, vocab_size: u32) -> Result<Self, DataError> {
        let file = directory.join(FILE_NAME);
        if file.exists() {
            return Self::read(&file)?.usual(vocab_size);
        }
        if let Some(data) = run_data(directory) {
            return Self::open(&data);
        }
        if vocab_size <= 257 {
            return Self::bytes().usual(vocab_size);
        }
        Err(DataError::Tokenizer {
            path: file,
            what: "there is none, and the vocabulary is not the 256 bytes; name one with \
                   --tokenizer"
                .into(),
        })
    }

    /// With the end token that its names suggest, or none.
    pub fn usual(self, vocab_size: u32) -> Result<Self, DataError> {
        self.clone()
            .for_model(&EndToken::Auto, vocab_size)
            .or_else(|_| self.for_model(&EndToken::None, vocab_size))
    }
}

/// The text of the run that `directory` is, or is a checkpoint of, where there is any.
pub(super) fn run_data(directory: &Path) -> Option<PathBuf> {
    let places = ["data", "../../data"].map(|data| directory.join(data));
    places.into_iter().find(|data| data.join(crate::record::FILE_NAME).exists())
}
