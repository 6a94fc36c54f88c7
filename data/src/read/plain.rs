//! Plain text: a file is one document. A long one is read twice, first for its hash.

use std::io::{BufRead, Read, Take as Limited};

use super::stream::{open, stream_error};
use super::{Body, Piece, Reading, Take, Tally};
use crate::error::DataError;
use crate::files::Packing;

/// Longer documents are handed over in pieces of at most this many bytes, 4 MiB, cut after a line
/// end where there is one. A tokenizer may cut differently there than in the whole text.
pub(super) const PIECE_BYTES: usize = 4 << 20;

pub(super) fn read(
    reading: &Reading<'_>,
    packing: Packing,
    tally: &Tally,
    take: Take<'_>,
) -> Result<(), DataError> {
    let fail = stream_error(reading, packing);
    let mut text = open(reading, packing, tally)?.take(reading.limit);
    let mut piece = Vec::new();
    fill(&mut text, &mut piece).map_err(&fail)?;
    if piece.len() < PIECE_BYTES {
        if !piece.is_empty() {
            let whole = Piece { is_last: !is_cut(reading, packing, &text), ..of(piece) };
            let _ = take(whole)?;
        }
        return Ok(());
    }
    let mut hasher = blake3::Hasher::new();
    while !piece.is_empty() {
        hasher.update(&piece);
        piece.clear();
        fill(&mut text, &mut piece).map_err(&fail)?;
    }
    tally.restart();
    let mut text = open(reading, packing, tally)?.take(reading.limit);
    let (hash, mut is_first) = (Some(hasher.finalize()), true);
    loop {
        fill(&mut text, &mut piece).map_err(&fail)?;
        let at_end = piece.len() < PIECE_BYTES;
        let cut = if at_end { piece.len() } else { after_last_line(&piece) };
        let rest = piece.split_off(cut);
        let is_last = at_end && !is_cut(reading, packing, &text);
        let next = Piece { body: Body::Text(piece), hash, is_first, is_last };
        if take(next)?.is_break() || at_end {
            return Ok(());
        }
        (piece, is_first) = (rest, false);
    }
}

fn of(text: Vec<u8>) -> Piece {
    Piece::whole(Body::Text(text))
}

/// Fills `piece` up to its full size, or to the end of the text.
fn fill(text: &mut impl Read, piece: &mut Vec<u8>) -> std::io::Result<()> {
    let room = (PIECE_BYTES - piece.len()) as u64;
    text.take(room).read_to_end(piece).map(|_| ())
}

/// Whether the limit ended the text before the file did. A packed file's true length is unknown:
/// one that ends exactly at the limit counts as cut.
fn is_cut(reading: &Reading<'_>, packing: Packing, text: &Limited<Box<dyn BufRead>>) -> bool {
    text.limit() == 0 && (packing != Packing::None || reading.limit < reading.file.bytes)
}

/// Where to cut: after the last line end, else before the last character.
fn after_last_line(piece: &[u8]) -> usize {
    if let Some(at) = piece.iter().rposition(|byte| *byte == b'\n') {
        return at + 1;
    }
    let is_start = |byte: &u8| !(0x80..0xC0).contains(byte);
    // A character has at most 4 bytes; what has none in 8 is not text.
    let tail = &piece[piece.len() - 8..];
    tail.iter().rposition(is_start).map_or(piece.len(), |at| piece.len() - 8 + at)
}
