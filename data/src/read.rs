//! Reads a file into pieces of documents, whatever its format. Nothing here holds more than one
//! document, or one piece of a long one.

mod ids;
mod jsonl;
mod parquet;
mod plain;
mod stream;

use std::ops::ControlFlow;

pub(crate) use stream::{Tally, hash_start};

use crate::error::DataError;
use crate::files::{Layout, Packing, SourceFile, format_of};
use crate::shards::Vocabulary;

/// The largest document of a file of many: 100 MB. Longer ones are mistakes more often than texts.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 100_000_000;

/// What a piece holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Text(Vec<u8>),
    Tokens(Vec<u32>),
}

/// A document, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) body: Body,
    /// Of the whole document; `None` where this piece is the whole document.
    pub(crate) hash: Option<blake3::Hash>,
    pub(crate) is_first: bool,
    pub(crate) is_last: bool,
}

/// How to read a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<'a> {
    pub(crate) file: &'a SourceFile,
    /// Where a document's text is in JSON Lines and Parquet.
    pub(crate) field: &'a str,
    /// What ready-made ids must fit.
    pub(crate) vocabulary: Vocabulary,
    /// Where ready-made ids are cut into documents.
    pub(crate) end_token: Option<u32>,
    /// Text beyond so many bytes is not wanted.
    pub(crate) limit: u64,
}

/// Takes the pieces in order, until it has enough.
pub(crate) type Take<'a> = &'a mut dyn FnMut(Piece) -> Result<ControlFlow<()>, DataError>;

impl Piece {
    fn whole(body: Body) -> Self {
        Self { body, hash: None, is_first: true, is_last: true }
    }
}

/// Reads one file. `tally` counts and hashes the bytes of the file itself.
///
/// # Errors
/// What is wrong with the file's content, and where in it.
pub(crate) fn read(reading: &Reading<'_>, tally: &Tally, take: Take<'_>) -> Result<(), DataError> {
    let path = &reading.file.path;
    match format_of(path) {
        (Layout::Text, packing) => plain::read(reading, packing, tally, take),
        (Layout::JsonLines, packing) => jsonl::read(reading, packing, tally, take),
        (Layout::Parquet, Packing::None) => parquet::read(reading, tally, take),
        (Layout::Parquet, _) => {
            Err(DataError::content(path, "", "Parquet is read in any order: unpack it first"))
        }
        (layout @ (Layout::Shard | Layout::Npy | Layout::Bin), packing) => {
            ids::read(reading, layout, packing, tally, take)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
