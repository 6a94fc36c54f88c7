//! Reads a stream of documents and cuts them into tokens on all threads. What comes out does not
//! depend on the number of threads; no more than a batch is held.

use std::ops::ControlFlow;
use std::path::PathBuf;

use rayon::prelude::*;

use crate::error::DataError;
use crate::files::{Layout, Packing, format_of, look_at};
use crate::read::{Body, Piece, Reading, Tally, read};
use crate::record::FileRecord;
use crate::tokenizer::Tokenizer;

/// Text read before it is tokenised, for each thread.
const BATCH_BYTES_PER_THREAD: u64 = 4 << 20;

/// Documents without text cost something too.
const PIECE_BYTES_MIN: u64 = 64;

/// What to read, and how.
#[derive(Clone, Copy)]
pub(crate) struct Stream<'a> {
    pub(crate) files: &'a [PathBuf],
    pub(crate) field: &'a str,
    pub(crate) tokenizer: &'a Tokenizer,
    /// Bytes of text at most.
    pub(crate) limit: u64,
}

/// The tokens of a document, or of a piece of a long one.
pub(crate) struct Chunk {
    /// Of the whole document.
    pub(crate) hash: blake3::Hash,
    /// With the end token where the document ends.
    pub(crate) tokens: Vec<u32>,
    /// Of text.
    pub(crate) bytes: u64,
    pub(crate) is_first: bool,
    /// Whether something of it was not UTF-8.
    pub(crate) replaced: bool,
}

/// What was read.
pub(crate) struct Done {
    pub(crate) files: Vec<FileRecord>,
    /// Whether the limit ended it.
    pub(crate) cut: bool,
}

type Sink<'a> = &'a mut dyn FnMut(Chunk) -> Result<(), DataError>;

/// Hands over all documents in order. `progress` is told the bytes of files read and in all.
pub(crate) fn for_each_chunk(
    stream: &Stream<'_>,
    progress: &mut dyn FnMut(u64, u64),
    sink: Sink<'_>,
) -> Result<Done, DataError> {
    let all = expected_bytes(stream)?;
    let mut left = stream.limit;
    let (mut files, mut done) = (Vec::new(), 0);
    let mut batch = Batch::new(stream.tokenizer);
    for path in stream.files {
        if left == 0 {
            break;
        }
        let file = look_at(path)?;
        let tally = Tally::default();
        let reading = Reading {
            file: &file,
            field: stream.field,
            vocabulary: stream.tokenizer.vocabulary(),
            end_token: stream.tokenizer.end_token(),
            limit: left,
        };
        read(&reading, &tally, &mut |piece| {
            let (piece, bytes) = cut(piece, stream.tokenizer, left);
            left -= bytes;
            if batch.push(piece, bytes) {
                batch.flush(sink)?;
                progress((done + tally.bytes()).min(all), all);
            }
            Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if look_at(path)? != file {
            return Err(DataError::ChangedWhileRead { path: path.clone() });
        }
        done += tally.bytes();
        files.push(FileRecord {
            path: file.path,
            bytes: file.bytes,
            bytes_read: tally.bytes(),
            modified_ns: file.modified_ns,
            blake3: tally.hash().to_hex().to_string(),
        });
        progress(done.min(all), all);
    }
    batch.flush(sink)?;
    progress(all, all);
    Ok(Done { files, cut: left == 0 })
}

/// Bytes of files that will be read: not many more than the limit, where nothing is packed.
fn expected_bytes(stream: &Stream<'_>) -> Result<u64, DataError> {
    let (mut bytes, mut is_plain) = (0, true);
    for path in stream.files {
        is_plain &= format_of(path) == (Layout::Text, Packing::None);
        bytes += look_at(path)?.bytes;
        if is_plain && bytes >= stream.limit {
            return Ok(stream.limit);
        }
    }
    Ok(bytes)
}

/// A piece with no more than `left` bytes of text, and how many it has.
fn cut(mut piece: Piece, tokenizer: &Tokenizer, left: u64) -> (Piece, u64) {
    match &mut piece.body {
        Body::Text(text) => {
            if text.len() as u64 > left {
                text.truncate(left as usize);
                piece.is_last = false;
            }
            let bytes = text.len() as u64;
            (piece, bytes)
        }
        Body::Tokens(tokens) => {
            let mut bytes = 0;
            let fits = |token: &u32| {
                let more = bytes + u64::from(tokenizer.token_bytes(*token));
                let fits = more <= left;
                bytes = if fits { more } else { left };
                fits
            };
            let n = tokens.iter().copied().take_while(fits).count();
            if n < tokens.len() {
                tokens.truncate(n);
                piece.is_last = false;
            }
            (piece, bytes)
        }
    }
}

/// Pieces with the bytes of text in each, to be tokenised at once.
struct Batch<'a> {
    tokenizer: &'a Tokenizer,
    pieces: Vec<(Piece, u64)>,
    bytes: u64,
    bytes_max: u64,
}

impl<'a> Batch<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        let bytes_max = BATCH_BYTES_PER_THREAD * rayon::current_num_threads() as u64;
        Self { tokenizer, pieces: Vec::new(), bytes: 0, bytes_max }
    }

    /// Takes a piece; whether there is enough to work on.
    fn push(&mut self, piece: Piece, bytes: u64) -> bool {
        self.bytes += bytes.max(PIECE_BYTES_MIN);
        self.pieces.push((piece, bytes));
        self.bytes >= self.bytes_max
    }

    fn flush(&mut self, sink: Sink<'_>) -> Result<(), DataError> {
        let tokenizer = self.tokenizer;
        let pieces = std::mem::take(&mut self.pieces);
        self.bytes = 0;
        let chunks: Vec<Result<Chunk, DataError>> = pieces
            .into_par_iter()
            .map(|(piece, bytes)| chunk_of(piece, bytes, tokenizer))
            .collect();
        chunks.into_iter().try_for_each(|chunk| sink(chunk?))
    }
}

fn chunk_of(piece: Piece, bytes: u64, tokenizer: &Tokenizer) -> Result<Chunk, DataError> {
    let hash = piece.hash.unwrap_or_else(|| hash_of(&piece.body));
    let (mut tokens, replaced) = match piece.body {
        Body::Text(text) => {
            let encoded = tokenizer.encode(&text)?;
            (encoded.tokens, encoded.replaced)
        }
        Body::Tokens(tokens) => (tokens, false),
    };
    if piece.is_last {
        tokens.extend(tokenizer.end_token());
    }
    Ok(Chunk { hash, tokens, bytes, is_first: piece.is_first, replaced })
}

/// What makes a document the same as another.
pub(crate) fn hash_of(body: &Body) -> blake3::Hash {
    match body {
        Body::Text(text) => blake3::hash(text),
        Body::Tokens(tokens) => {
            let mut hasher = blake3::Hasher::new();
            for token in tokens {
                hasher.update(&token.to_le_bytes());
            }
            hasher.finalize()
        }
    }
}
