//! Ready-made ids: our own shards, NumPy arrays, and plain little-endian u16.
//!
//! Documents end at the end token. Where none comes for long, a stretch counts as a document: it
//! is held out, or trained on, as a whole.

use std::io::{BufRead, Read};

use super::stream::{open, stream_error};
use super::{Body, Piece, Reading, Take, Tally};
use crate::error::DataError;
use crate::files::{Layout, Packing};
use crate::shards::{HEADER_BYTES, Header, Vocabulary, ids};

/// The longest stretch without an end token: 64 Ki tokens.
const STRETCH_TOKENS: usize = 64 << 10;

/// The magic number and the bytes of the header that llm.c puts before its u16 ids.
const LLM_C: (u32, usize) = (20_240_520, 1024);

const READ_TOKENS: usize = 256 << 10;

/// What the ids are written as.
struct Encoding {
    token_bytes: usize,
    /// Negative ids are possible, and wrong.
    is_signed: bool,
    /// How many there are, where the file says so.
    tokens: Option<u64>,
    hash: Option<blake3::Hash>,
}

pub(super) fn read(
    reading: &Reading<'_>,
    layout: Layout,
    packing: Packing,
    tally: &Tally,
    take: Take<'_>,
) -> Result<(), DataError> {
    let fail = stream_error(reading, packing);
    let mut bytes = open(reading, packing, tally)?;
    let wrong = |at: String, what: String| DataError::content(&reading.file.path, at, what);
    let encoding = match layout {
        Layout::Shard => shard_header(&mut bytes, reading.vocabulary),
        Layout::Npy => npy_header(&mut bytes),
        Layout::Bin | Layout::Text | Layout::JsonLines | Layout::Parquet => bin_header(&mut bytes),
    };
    let encoding = encoding.map_err(|what| wrong(String::new(), what))?;
    let (mut buffer, mut hasher) = (Vec::new(), blake3::Hasher::new());
    let (mut document, mut seen) = (Vec::new(), 0_u64);
    loop {
        buffer.clear();
        let wanted = (READ_TOKENS * encoding.token_bytes) as u64;
        bytes.by_ref().take(wanted).read_to_end(&mut buffer).map_err(&fail)?;
        if buffer.is_empty() {
            break;
        }
        hasher.update(&buffer);
        if !buffer.len().is_multiple_of(encoding.token_bytes) {
            let what = format!("it ends within an id of {} bytes", encoding.token_bytes);
            return Err(wrong(String::new(), what));
        }
        for id in ids(&buffer, encoding.token_bytes) {
            if id >= reading.vocabulary.size {
                let shown = if encoding.is_signed { i64::from(id as i32) } else { i64::from(id) };
                let what = format!("id {shown}, want ids below {}", reading.vocabulary.size);
                return Err(wrong(format!(" token {seen}"), what));
            }
            seen += 1;
            let is_end = reading.end_token == Some(id);
            if !is_end {
                document.push(id);
            }
            if (is_end || document.len() == STRETCH_TOKENS)
                && hand_over(&mut document, is_end, take)?
            {
                return Ok(());
            }
        }
    }
    let is_short = encoding.tokens.is_some_and(|tokens| tokens != seen);
    if is_short || encoding.hash.is_some_and(|hash| hash != hasher.finalize()) {
        let what = format!("it is damaged: {seen} tokens do not match its header");
        return Err(wrong(String::new(), what));
    }
    hand_over(&mut document, false, take).map(|_| ())
}

/// Hands a document over; whether that was enough.
fn hand_over(document: &mut Vec<u32>, is_last: bool, take: Take<'_>) -> Result<bool, DataError> {
    if document.is_empty() {
        return Ok(false);
    }
    let body = Body::Tokens(std::mem::take(document));
    take(Piece { is_last, ..Piece::whole(body) }).map(|flow| flow.is_break())
}

fn shard_header(bytes: &mut impl Read, want: Vocabulary) -> Result<Encoding, String> {
    let mut header = [0; HEADER_BYTES];
    bytes.read_exact(&mut header).map_err(|error| format!("it has no header: {error}"))?;
    let Header { vocabulary, tokens, hash } = Header::decode(&header)?;
    // Bytes mean the same with or without an end token behind them.
    let is_same = vocabulary.id == want.id && (vocabulary.size == want.size || want.id == 0);
    if !is_same {
        return Err(format!(
            "it was made with another tokenizer ({} tokens, id {:08x}; want {} tokens, id {:08x})",
            vocabulary.size, vocabulary.id, want.size, want.id
        ));
    }
    let token_bytes = vocabulary.token_bytes();
    Ok(Encoding { token_bytes, is_signed: false, tokens: Some(tokens), hash: Some(hash) })
}

/// NumPy's format: magic, version, length of a Python dict, the dict, the numbers.
/// Source: numpy.org/doc/stable/reference/generated/numpy.lib.format.html
fn npy_header(bytes: &mut impl Read) -> Result<Encoding, String> {
    let cut = |error: std::io::Error| format!("its NumPy header is cut: {error}");
    let mut start = [0; 8];
    bytes.read_exact(&mut start).map_err(cut)?;
    if start[..6] != *b"\x93NUMPY" {
        return Err("it does not begin like a NumPy array".into());
    }
    let mut length = [0; 4];
    let length_bytes = if start[6] == 1 { 2 } else { 4 };
    bytes.read_exact(&mut length[..length_bytes]).map_err(cut)?;
    let length = u32::from_le_bytes(length);
    if length > 1 << 16 {
        return Err(format!("its NumPy header says it is {length} bytes long"));
    }
    let mut dict = vec![0; length as usize];
    bytes.read_exact(&mut dict).map_err(cut)?;
    let dict = String::from_utf8_lossy(&dict).replace('"', "'");
    let after = |key: &str| dict.split_once(key).map(|(_, rest)| rest.trim_start());
    let kind = after("'descr':").and_then(|rest| rest.split('\'').nth(1)).unwrap_or("nothing");
    let (token_bytes, is_signed) = match kind {
        "<u2" => (2, false),
        "<u4" => (4, false),
        "<i4" => (4, true),
        _ => return Err(format!("its numbers are {kind:?}, want <u2, <u4 or <i4")),
    };
    let shape = after("'shape':").and_then(|rest| rest.strip_prefix('(')?.split(')').next());
    let sizes: Option<Vec<u64>> =
        shape.map(|shape| shape.split(',').filter_map(|size| size.trim().parse().ok()).collect());
    let in_order = after("'fortran_order':").is_some_and(|rest| rest.starts_with("False"));
    match sizes.as_deref() {
        Some([_]) => {}
        Some([_, _]) if in_order => {}
        _ => return Err("want an array of one dimension, or of two in C order".into()),
    }
    let tokens = sizes.map(|sizes| sizes.iter().fold(1_u64, |all, size| all.saturating_mul(*size)));
    Ok(Encoding { token_bytes, is_signed, tokens, hash: None })
}

fn bin_header(bytes: &mut impl BufRead) -> Result<Encoding, String> {
    let start = bytes.fill_buf().map_err(|error| error.to_string())?;
    if start.len() >= LLM_C.1 && start[..4] == LLM_C.0.to_le_bytes() {
        bytes.consume(LLM_C.1);
    }
    Ok(Encoding { token_bytes: 2, is_signed: false, tokens: None, hash: None })
}
