//! Matrices quantised to E4M3 with one UE8M0 scale per tile. DeepSeek-V3 report 3.3.2.
//!
//! Tiles at the right and lower edge may be partial: a scale is of the elements that exist, which
//! is what padding with zeros gives.

use std::ops::Range;

use crate::scratch::Scratch;
use crate::simd::vectorised;
use crate::tensor::Tensor;
use crate::{e4m3, spread};

/// Elements that share a scale, along each tiled direction.
pub const BLOCK: usize = 128;

/// Which elements share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiling {
    /// 1 x 128: activations and gradients, contracted along their columns.
    Row,
    /// 128 x 1: the same, contracted along their rows (for the gradient of a weight).
    Column,
    /// 128 x 128: weights.
    Block,
}

impl Tiling {
    /// Scales of `rows` rows that start at a tile's edge.
    fn scales(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Row => rows * cols.div_ceil(BLOCK),
            Self::Column => rows.div_ceil(BLOCK) * cols,
            Self::Block => rows.div_ceil(BLOCK) * cols.div_ceil(BLOCK),
        }
    }
}

/// A quantised matrix.
///
/// - `codes`: `(rows, cols)`, row-major, whatever the tiling.
/// - `scales`: Row `(rows, cols / 128)`, Column `(rows / 128, cols)`, Block `(rows / 128,
///   cols / 128)`, divisions rounded up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantized {
    rows: usize,
    cols: usize,
    tiling: Tiling,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Quantized {
    /// Quantises a tensor seen as `rows() x cols()`. A tile with an infinity or a NaN becomes NaN.
    pub fn quantise(x: &Tensor, tiling: Tiling) -> Self {
        Self::quantise_panels(x.rows(), x.cols(), tiling, |rows, encode| {
            let mut scratch = None;
            encode(x.rows_f32(rows, &mut scratch));
        })
    }

    /// Quantises a row-major matrix.
    pub fn quantise_f32(x: &[f32], rows: usize, cols: usize, tiling: Tiling) -> Self {
        assert_eq!(x.len(), rows * cols, "quantise_f32: {rows} x {cols}");
        Self::quantise_panels(rows, cols, tiling, |rows, encode| {
            encode(&x[rows.start * cols..rows.end * cols]);
        })
    }

    /// Quantises panels of 128 rows, which `panel` shows to its second argument.
    fn quantise_panels(
        rows: usize,
        cols: usize,
        tiling: Tiling,
        panel: impl Fn(Range<usize>, &mut dyn FnMut(&[f32])) + Sync + Send,
    ) -> Self {
        let mut codes = vec![0; rows * cols];
        let mut scales = vec![0; tiling.scales(rows, cols)];
        let code_panels = codes.chunks_mut((BLOCK * cols).max(1));
        let scale_panels = scales.chunks_mut(tiling.scales(BLOCK, cols).max(1));
        spread::each(code_panels.zip(scale_panels).enumerate(), |(i, (codes, scales))| {
            let first = i * BLOCK;
            panel(first..(first + BLOCK).min(rows), &mut |x| match tiling {
                Tiling::Row => encode_rows(x, cols, codes, scales),
                Tiling::Column => encode_by_column(x, cols, codes, scales),
                Tiling::Block => encode_blocks(x, cols, codes, scales),
            });
        });
        Self { rows, cols, tiling, codes, scales }
    }

    /// The values, row-major. Exact: codes times powers of two (as long as FP32 holds them).
    pub fn dequantise(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.dequantise_into(&mut out);
        out
    }

    /// As `dequantise`; `out` is overwritten.
    pub(crate) fn dequantise_into(&self, out: &mut [f32]) {
        let chunks = out.chunks_mut((BLOCK * self.cols).max(1)).enumerate();
        spread::each(chunks, |(i, out)| {
            self.dequantise_rows(i * BLOCK..((i + 1) * BLOCK).min(self.rows), out);
        });
    }

    /// The values of some rows, by the calling thread.
    pub(crate) fn dequantise_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let (cols, blocks) = (self.cols, self.cols.div_ceil(BLOCK));
        let mut column_scales = Scratch::new(if self.tiling == Tiling::Column { cols } else { 0 });
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            let codes = &self.codes[row * cols..][..cols];
            match self.tiling {
                Tiling::Row => decode_row(codes, &self.scales[row * blocks..][..blocks], out),
                Tiling::Block => {
                    decode_row(codes, &self.scales[row / BLOCK * blocks..][..blocks], out);
                }
                Tiling::Column => {
                    let bytes = &self.scales[row / BLOCK * cols..][..cols];
                    for (scale, byte) in column_scales.iter_mut().zip(bytes) {
                        *scale = e4m3::scale_value(*byte);
                    }
                    vectorised(
                        #[inline(always)]
                        || e4m3::decode_columns(codes, &column_scales, out),
                    );
                }
            }
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn tiling(&self) -> Tiling {
        self.tiling
    }

    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    pub fn scales(&self) -> &[u8] {
        &self.scales
    }

    /// The 128 x 1 copy of a 1 x 128 matrix, for the gradient of a weight.
    ///
    /// Both scales are powers of two, so only the rounding of small elements under a larger scale
    /// is added (numerics.md, "Our choices").
    #[must_use]
    pub fn requantise_columns(&self) -> Self {
        assert_eq!(self.tiling, Tiling::Row, "requantise_columns: tiles must be 1 x 128");
        Self::quantise_panels(self.rows, self.cols, Tiling::Column, |rows, encode| {
            let mut panel = Scratch::new(rows.len() * self.cols);
            self.dequantise_rows(rows, &mut panel);
            encode(&panel);
        })
    }

    /// `requantise_columns().dequantise()` in one pass, without the codes; `out` is overwritten.
    pub(crate) fn dequantise_as_columns(&self, out: &mut [f32]) {
        assert_eq!(self.tiling, Tiling::Row, "dequantise_as_columns: tiles must be 1 x 128");
        let chunks = out.chunks_mut((BLOCK * self.cols).max(1)).enumerate();
        spread::each(chunks, |(i, out)| {
            self.dequantise_rows(i * BLOCK..((i + 1) * BLOCK).min(self.rows), out);
            let mut scales = Scratch::new(self.cols);
            let mut inverses = Scratch::new(self.cols);
            vectorised(
                #[inline(always)]
                || {
                    column_scales(out, &mut scales, &mut inverses);
                    for row in out.chunks_exact_mut(scales.len().max(1)) {
                        e4m3::round_columns(row, &inverses, &scales);
                    }
                },
            );
        });
    }

    /// The rows named by `index`, in that order. Row tiling only.
    #[must_use]
    pub fn gather_rows(&self, index: &[u32]) -> Self {
        assert_eq!(self.tiling, Tiling::Row, "gather_rows: tiles must be 1 x 128");
        let blocks = self.cols.div_ceil(BLOCK);
        let mut gathered = Self::empty_rows(self.cols, index.len());
        for &row in index {
            let row = row as usize;
            gathered.codes.extend_from_slice(&self.codes[row * self.cols..][..self.cols]);
            gathered.scales.extend_from_slice(&self.scales[row * blocks..][..blocks]);
        }
        gathered.rows = index.len();
        gathered
    }

    /// All rows of `parts`, which are of one width and Row tiling, one part after the other.
    pub fn concat_rows(parts: &[Self]) -> Self {
        let cols = parts.first().map_or(0, |part| part.cols);
        let mut whole = Self::empty_rows(cols, parts.iter().map(|part| part.rows).sum());
        for part in parts {
            assert_eq!(part.tiling, Tiling::Row, "concat_rows: tiles must be 1 x 128");
            assert_eq!(part.cols, cols, "concat_rows: widths");
            whole.codes.extend_from_slice(&part.codes);
            whole.scales.extend_from_slice(&part.scales);
            whole.rows += part.rows;
        }
        whole
    }

    fn empty_rows(cols: usize, capacity: usize) -> Self {
        let codes = Vec::with_capacity(capacity * cols);
        let scales = Vec::with_capacity(capacity * cols.div_ceil(BLOCK));
        Self { rows: 0, cols, tiling: Tiling::Row, codes, scales }
    }

    /// Bytes of one row on the wire: its codes, then its scales.
    pub fn row_wire_bytes(cols: usize) -> usize {
        cols + cols.div_ceil(BLOCK)
    }

    /// Appends one row in wire form. Row tiling only.
    pub fn append_row_wire(&self, row: usize, out: &mut Vec<u8>) {
        assert_eq!(self.tiling, Tiling::Row, "append_row_wire: tiles must be 1 x 128");
        let blocks = self.cols.div_ceil(BLOCK);
        out.extend_from_slice(&self.codes[row * self.cols..][..self.cols]);
        out.extend_from_slice(&self.scales[row * blocks..][..blocks]);
    }

    /// Rebuilds a matrix from rows in wire form, each of exactly `row_wire_bytes(cols)` bytes: the
    /// receiver of a message checks its length before it cuts rows.
    pub fn from_row_wire<'a>(cols: usize, rows: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut whole = Self::empty_rows(cols, rows.size_hint().0);
        for row in rows {
            assert_eq!(row.len(), Self::row_wire_bytes(cols), "from_row_wire: bytes of a row");
            let (codes, scales) = row.split_at(cols);
            whole.codes.extend_from_slice(codes);
            whole.scales.extend_from_slice(scales);
            whole.rows += 1;
        }
        whole
    }
}

/// Quantises a panel in 1 x 128 tiles.
fn encode_rows(x: &[f32], cols: usize, codes: &mut [u8], scales: &mut [u8]) {
    vectorised(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(cols).zip(codes.chunks_exact_mut(cols));
            for ((x, codes), scales) in rows.zip(scales.chunks_exact_mut(cols.div_ceil(BLOCK))) {
                for ((x, codes), scale) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales)
                {
                    *scale = e4m3::scale_byte(e4m3::largest_bits(x));
                    e4m3::encode_scaled(x, e4m3::inverse_scale(*scale), codes);
                }
            }
        },
    );
}

/// Quantises a panel of at most 128 rows in 128 x 1 tiles.
fn encode_by_column(x: &[f32], cols: usize, codes: &mut [u8], bytes: &mut [u8]) {
    let mut scales = Scratch::new(cols);
    let mut inverses = Scratch::new(cols);
    vectorised(
        #[inline(always)]
        || {
            column_scales(x, &mut scales, &mut inverses);
            for (byte, scale) in bytes.iter_mut().zip(scales.iter()) {
                *byte = if scale.is_nan() { 255 } else { (scale.to_bits() >> 23) as u8 };
            }
            for (x, codes) in x.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)) {
                e4m3::encode_columns(x, &inverses, codes);
            }
        },
    );
}

/// The scales of the columns of a panel, and their inverses.
#[inline(always)]
fn column_scales(x: &[f32], scales: &mut [f32], inverses: &mut [f32]) {
    // The largest bits of each column are kept as the floats they are, which order the same.
    scales.fill(0.0);
    for row in x.chunks_exact(scales.len().max(1)) {
        for (largest, x) in scales.iter_mut().zip(row) {
            let bits = e4m3::magnitude_bits(*largest).max(e4m3::magnitude_bits(*x));
            *largest = f32::from_bits(bits as u32);
        }
    }
    for (scale, inverse) in scales.iter_mut().zip(inverses) {
        let byte = e4m3::scale_byte(e4m3::magnitude_bits(*scale));
        *scale = e4m3::scale_value(byte);
        *inverse = e4m3::inverse_scale(byte);
    }
}

/// Quantises a panel of at most 128 rows in 128 x 128 tiles.
fn encode_blocks(x: &[f32], cols: usize, codes: &mut [u8], scales: &mut [u8]) {
    vectorised(
        #[inline(always)]
        || {
            for (block, scale) in scales.iter_mut().enumerate() {
                let range = block * BLOCK..((block + 1) * BLOCK).min(cols);
                let mut largest = 0;
                for x in x.chunks_exact(cols) {
                    largest = largest.max(e4m3::largest_bits(&x[range.clone()]));
                }
                *scale = e4m3::scale_byte(largest);
                let inverse = e4m3::inverse_scale(*scale);
                for (x, codes) in x.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)) {
                    e4m3::encode_scaled(&x[range.clone()], inverse, &mut codes[range.clone()]);
                }
            }
        },
    );
}

/// Decodes one row whose stretches of 128 columns have a scale each.
fn decode_row(codes: &[u8], scales: &[u8], out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for ((codes, out), scale) in codes.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).zip(scales)
            {
                e4m3::decode_scaled(codes, e4m3::scale_value(*scale), out);
            }
        },
    );
}

#[cfg(test)]
#[path = "fp8/tests.rs"]
mod tests;
