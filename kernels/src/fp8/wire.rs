//! Rows of 1 x 128 tiles as they travel: the codes of all, then the scales of all, little endian. A device packs them so
//! with a copy of whole planes.

use super::{BLOCK, Quantized, ScaleFormat, Tiling};
use crate::spread;

/// Bytes that one task copies.
const PART: usize = 1 << 18;

impl Quantized {
    /// Bytes of one row on the wire: its codes and its scales.
    pub fn row_wire_bytes(cols: usize, format: ScaleFormat) -> usize {
        cols + cols.div_ceil(BLOCK) * format.bytes()
    }

    /// Writes some rows in wire form, of `row_wire_bytes` bytes each: the codes of all, then the scales of all. Row tiling
    /// only.
    pub fn write_wire(&self, rows: &[u32], out: &mut [u8]) {
        assert_eq!(self.tiling, Tiling::Row, "write_wire: tiles must be 1 x 128");
        let (cols, blocks) = (self.cols, self.cols.div_ceil(BLOCK));
        let (codes, scales) = out.split_at_mut(rows.len() * cols);
        let chunks = codes.chunks_mut((spread::ROWS * cols).max(1));
        spread::each(chunks.zip(rows.chunks(spread::ROWS)), |(out, rows)| {
            for (out, row) in out.chunks_exact_mut(cols.max(1)).zip(rows) {
                out.copy_from_slice(&self.codes[*row as usize * cols..][..cols]);
            }
        });
        let bytes = blocks * self.scales.format().bytes();
        for (out, row) in scales.chunks_exact_mut(bytes.max(1)).zip(rows) {
            self.scales.write_wire(*row as usize * blocks, blocks, out);
        }
    }

    /// Rebuilds a matrix from rows in wire form, those of one part after those of the other: the receiver of a message checks
    /// that its length is a multiple of `row_wire_bytes`.
    ///
    /// # Errors
    /// When a scale is one that no tile has: which part's row, and what is wrong with it.
    pub fn from_wire(
        cols: usize,
        format: ScaleFormat,
        parts: &[&[u8]],
    ) -> Result<Self, (usize, String)> {
        let rows = |part: &[u8]| part.len() / Self::row_wire_bytes(cols, format).max(1);
        let total = parts.iter().map(|part| rows(part)).sum();
        let mut whole = Self::unwritten_rows(total, cols, format);
        let (mut codes, mut at) = (&mut whole.codes[..], 0);
        for (number, part) in parts.iter().enumerate() {
            let (theirs, scales) = part.split_at(rows(part) * cols);
            let (mine, rest) = codes.split_at_mut(theirs.len());
            copy(mine, theirs);
            codes = rest;
            check_scales(cols, format, scales).map_err(|problem| (number, problem))?;
            whole.scales.read_wire(at, scales);
            at += scales.len() / format.bytes();
        }
        Ok(whole)
    }
}

/// Looks at the scales of rows in wire form.
///
/// # Errors
/// When one is such as no tile has: which row's, and what is wrong with it.
pub fn check_scales(cols: usize, format: ScaleFormat, scales: &[u8]) -> Result<(), String> {
    let Some((at, problem)) = format.impossible(scales) else { return Ok(()) };
    Err(format!("row {} with {problem}", at / cols.div_ceil(BLOCK).max(1)))
}

/// Copies bytes by several threads.
fn copy(to: &mut [u8], from: &[u8]) {
    spread::each(to.chunks_mut(PART).zip(from.chunks(PART)), |(to, from)| to.copy_from_slice(from));
}
