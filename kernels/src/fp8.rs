//! Matrices quantised to E4M3 with one scale per tile, a power of two (UE8M0) or FP32.
//! DeepSeek-V3 report 3.3.2. A value is multiplied by the inverse of its tile's scale and rounded.
//!
//! Tiles at the right and lower edge may be partial: a scale is of the elements that exist, which
//! is what padding with zeros gives.

mod blocks;
mod parts;
mod scale;
mod wire;

use std::ops::Range;

use crate::scratch::{HalfScratch, Scratch};
use crate::simd::vectorised;
use crate::storage::Storage;
use crate::tensor::Tensor;
use crate::{bf16, e4m3, gemm, spread};

pub use self::blocks::BlockRowsMut;
use self::scale::Scale;
pub use self::scale::{ScaleFormat, Scales};
pub use self::wire::check_scales;

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
    pub(crate) fn scales(self, rows: usize, cols: usize) -> usize {
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
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    rows: usize,
    cols: usize,
    tiling: Tiling,
    codes: Storage<u8>,
    scales: Scales,
}

/// Shows the rows of a panel to its second argument.
type Panel<'a> = &'a (dyn Fn(Range<usize>, &mut dyn FnMut(&[f32])) + Sync);

impl Quantized {
    /// Quantises a tensor seen as `rows() x cols()`. A tile with an infinity or a NaN becomes NaN.
    pub fn quantise(x: &Tensor, tiling: Tiling, format: ScaleFormat) -> Self {
        Self::quantise_panels((x.rows(), x.cols()), tiling, format, &|rows, encode| {
            let mut scratch = None;
            encode(x.rows_f32(rows, &mut scratch));
        })
    }

    /// Quantises a row-major matrix.
    pub fn quantise_f32(
        x: &[f32],
        rows: usize,
        cols: usize,
        tiling: Tiling,
        format: ScaleFormat,
    ) -> Self {
        assert_eq!(x.len(), rows * cols, "quantise_f32: {rows} x {cols}");
        Self::quantise_panels((rows, cols), tiling, format, &|rows, encode| {
            encode(&x[rows.start * cols..rows.end * cols]);
        })
    }

    /// Quantises another matrix of the same shape into the place of this one.
    pub(crate) fn replace_f32(&mut self, x: &[f32]) {
        let cols = self.cols;
        assert_eq!(x.len(), self.rows * cols, "replace_f32: {} x {cols}", self.rows);
        self.encode(&|rows, encode| encode(&x[rows.start * cols..rows.end * cols]));
    }

    /// Quantises panels of 128 rows.
    fn quantise_panels(
        (rows, cols): (usize, usize),
        tiling: Tiling,
        format: ScaleFormat,
        panel: Panel<'_>,
    ) -> Self {
        let codes = Storage::new(rows * cols);
        let scales = Scales::unwritten(format, tiling.scales(rows, cols));
        let mut whole = Self { rows, cols, tiling, codes, scales };
        whole.encode(panel);
        whole
    }

    /// Writes all codes and scales.
    fn encode(&mut self, panel: Panel<'_>) {
        let shape = (self.rows, self.cols);
        match &mut self.scales {
            Scales::Pow2(scales) => {
                encode_panels(shape, self.tiling, &mut self.codes, scales, panel);
            }
            Scales::Fp32(scales) => {
                encode_panels(shape, self.tiling, &mut self.codes, scales, panel);
            }
        }
    }

    /// The values, row-major. With powers of two exact, as long as FP32 holds them; with FP32 scales
    /// each is rounded once.
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
        match &self.scales {
            Scales::Pow2(scales) => self.decode_rows(scales, rows, out),
            Scales::Fp32(scales) => self.decode_rows(scales, rows, out),
        }
    }

    fn decode_rows<S: Scale>(&self, scales: &[S], rows: Range<usize>, out: &mut [f32]) {
        let (cols, blocks) = (self.cols, self.cols.div_ceil(BLOCK));
        let mut column_scales = Scratch::new(if self.tiling == Tiling::Column { cols } else { 0 });
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            let codes = &self.codes[row * cols..][..cols];
            match self.tiling {
                Tiling::Row => decode_row(codes, &scales[row * blocks..][..blocks], out),
                Tiling::Block => {
                    decode_row(codes, &scales[row / BLOCK * blocks..][..blocks], out);
                }
                Tiling::Column => {
                    let scales = &scales[row / BLOCK * cols..][..cols];
                    for (value, scale) in column_scales.iter_mut().zip(scales) {
                        *value = scale.value();
                    }
                    vectorised(
                        #[inline(always)]
                        || e4m3::decode_columns(codes, &column_scales, out),
                    );
                }
            }
        }
    }

    /// Whether BF16 holds the values, but for some below 2^-126: an element has 4 significant bits,
    /// and a power of two adds none.
    pub(crate) fn is_exact_in_bf16(&self) -> bool {
        matches!(self.scales, Scales::Pow2(_))
    }

    /// The values of one row in BF16, for a matrix that it holds exactly.
    pub(crate) fn halves_of_row(&self, row: usize, out: &mut [u16]) {
        let Scales::Pow2(scales) = &self.scales else {
            panic!("halves_of_row: scales are powers of two")
        };
        let blocks = self.cols.div_ceil(BLOCK);
        let first = match self.tiling {
            Tiling::Row => row * blocks,
            Tiling::Block => row / BLOCK * blocks,
            Tiling::Column => panic!("halves_of_row: tiles lie in rows"),
        };
        let codes = &self.codes[row * self.cols..][..self.cols];
        let tiles = codes.chunks(BLOCK).zip(out.chunks_mut(BLOCK));
        for ((codes, out), scale) in tiles.zip(&scales[first..]) {
            gemm::decode(codes, *scale, out);
        }
    }

    /// `requantise_columns().dequantise()` in BF16, of at most 128 rows that begin a tile: those of
    /// this matrix, or those that an index names. `out` is overwritten, by the calling thread.
    pub(crate) fn halves_as_columns(&self, rows: impl Iterator<Item = usize>, out: &mut [u16]) {
        assert_eq!(self.tiling, Tiling::Row, "halves_as_columns: tiles must be 1 x 128");
        let cols = self.cols.max(1);
        assert!(out.len() <= BLOCK * cols, "halves_as_columns: one tile of rows");
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            self.halves_of_row(row, out);
        }
        let mut rounders = Scratch::new(self.cols);
        let mut largest = HalfScratch::new(self.cols);
        vectorised(
            #[inline(always)]
            || round_to_columns(out, &mut largest, &mut rounders),
        );
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

    /// Bytes in memory: one for each code, and the scales.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() * self.scales.format().bytes()
    }

    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The 128 x 1 copy of a 1 x 128 matrix, for the gradient of a weight, with scales of the same
    /// format.
    ///
    /// Where both scales are powers of two, only the rounding of small elements under a larger scale
    /// is added. With FP32 scales every element is rounded a second time, as in the report (3.5.2).
    #[must_use]
    pub fn requantise_columns(&self) -> Self {
        assert_eq!(self.tiling, Tiling::Row, "requantise_columns: tiles must be 1 x 128");
        let format = self.scales.format();
        Self::quantise_panels((self.rows, self.cols), Tiling::Column, format, &|rows, encode| {
            let mut panel = Scratch::new(rows.len() * self.cols);
            self.dequantise_rows(rows, &mut panel);
            encode(&panel);
        })
    }

    /// `requantise_columns().dequantise()` in one pass, without the codes; `out` is overwritten.
    pub(crate) fn dequantise_as_columns(&self, out: &mut [f32]) {
        match self.scales {
            Scales::Pow2(_) => self.decode_as_columns::<u8>(out),
            Scales::Fp32(_) => self.decode_as_columns::<f32>(out),
        }
    }

    fn decode_as_columns<S: Scale>(&self, out: &mut [f32]) {
        assert_eq!(self.tiling, Tiling::Row, "dequantise_as_columns: tiles must be 1 x 128");
        let chunks = out.chunks_mut((BLOCK * self.cols).max(1)).enumerate();
        spread::each(chunks, |(i, out)| {
            self.dequantise_rows(i * BLOCK..((i + 1) * BLOCK).min(self.rows), out);
            let mut scales = Scratch::new(self.cols);
            let mut inverses = Scratch::new(self.cols);
            vectorised(
                #[inline(always)]
                || {
                    column_scales::<S>(out, &mut scales, &mut inverses);
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
        let (cols, blocks) = (self.cols, self.cols.div_ceil(BLOCK));
        let mut gathered = Self::unwritten_rows(index.len(), cols, self.scales.format());
        for (at, &row) in index.iter().enumerate() {
            let row = row as usize;
            gathered.codes[at * cols..][..cols].copy_from_slice(&self.codes[row * cols..][..cols]);
            gathered.scales.copy_from(at * blocks, &self.scales, row * blocks, blocks);
        }
        gathered
    }

    fn unwritten_rows(rows: usize, cols: usize, format: ScaleFormat) -> Self {
        let codes = Storage::new(rows * cols);
        let scales = Scales::unwritten(format, rows * cols.div_ceil(BLOCK));
        Self { rows, cols, tiling: Tiling::Row, codes, scales }
    }
}

/// Writes codes and scales, 128 rows at a time.
fn encode_panels<S: Scale>(
    (rows, cols): (usize, usize),
    tiling: Tiling,
    codes: &mut [u8],
    scales: &mut [S],
    panel: Panel<'_>,
) {
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
}

/// Quantises a panel in 1 x 128 tiles.
fn encode_rows<S: Scale>(x: &[f32], cols: usize, codes: &mut [u8], scales: &mut [S]) {
    vectorised(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(cols).zip(codes.chunks_exact_mut(cols));
            for ((x, codes), scales) in rows.zip(scales.chunks_exact_mut(cols.div_ceil(BLOCK))) {
                for ((x, codes), scale) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales)
                {
                    *scale = S::of(e4m3::largest_bits(x));
                    e4m3::encode_scaled(x, scale.inverse(), codes);
                }
            }
        },
    );
}

/// Quantises a panel of at most 128 rows in 128 x 1 tiles.
fn encode_by_column<S: Scale>(x: &[f32], cols: usize, codes: &mut [u8], out: &mut [S]) {
    let mut scales = Scratch::new(cols);
    let mut inverses = Scratch::new(cols);
    vectorised(
        #[inline(always)]
        || {
            column_scales::<S>(x, &mut scales, &mut inverses);
            for (out, scale) in out.iter_mut().zip(scales.iter()) {
                *out = S::from_value(*scale);
            }
            for (x, codes) in x.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)) {
                e4m3::encode_columns(x, &inverses, codes);
            }
        },
    );
}

/// The scales of the columns of a panel, and their inverses.
#[inline(always)]
fn column_scales<S: Scale>(x: &[f32], scales: &mut [f32], inverses: &mut [f32]) {
    // The largest bits of each column are kept as the floats they are, which order the same.
    scales.fill(0.0);
    for row in x.chunks_exact(scales.len().max(1)) {
        for (largest, x) in scales.iter_mut().zip(row) {
            let bits = e4m3::magnitude_bits(*largest).max(e4m3::magnitude_bits(*x));
            *largest = f32::from_bits(bits as u32);
        }
    }
    for (scale, inverse) in scales.iter_mut().zip(inverses) {
        let kept = S::of(e4m3::magnitude_bits(*scale));
        *scale = kept.value();
        *inverse = kept.inverse();
    }
}

/// Rounds a panel of values that have 4 significant bits to E4M3 under each column's scale.
///
/// Only those that are subnormal under the larger scale have bits to lose: the others are multiples
/// of 2^-9 times it already. Adding a number whose last bit counts those rounds to nearest even.
#[inline(always)]
fn round_to_columns(x: &mut [u16], largest: &mut [u16], rounders: &mut [f32]) {
    let cols = largest.len().max(1);
    largest.fill(0);
    for row in x.chunks_exact(cols) {
        for (largest, x) in largest.iter_mut().zip(row) {
            *largest = (*largest).max(x & 0x7fff);
        }
    }
    for (rounder, largest) in rounders.iter_mut().zip(largest.iter()) {
        let scale = e4m3::scale_byte(i32::from(*largest) << 16);
        // A column with a NaN or an infinity becomes NaN. Beyond 2^112 the sum would leave FP32: such
        // a column keeps some bits that E4M3 would not.
        let scale = if scale == 255 { scale } else { scale.min(127 + 112) };
        *rounder = 1.5 * 16_384.0 * e4m3::scale_value(scale);
    }
    for row in x.chunks_exact_mut(cols) {
        for (x, rounder) in row.iter_mut().zip(rounders.iter()) {
            let rounded = (bf16::bf16_to_f32(*x) + rounder) - rounder;
            *x = (rounded.to_bits() >> 16) as u16;
        }
    }
}

/// Quantises a panel of at most 128 rows in 128 x 128 tiles.
fn encode_blocks<S: Scale>(x: &[f32], cols: usize, codes: &mut [u8], scales: &mut [S]) {
    vectorised(
        #[inline(always)]
        || {
            for (block, scale) in scales.iter_mut().enumerate() {
                let range = block * BLOCK..((block + 1) * BLOCK).min(cols);
                let mut largest = 0;
                for x in x.chunks_exact(cols) {
                    largest = largest.max(e4m3::largest_bits(&x[range.clone()]));
                }
                *scale = S::of(largest);
                let inverse = scale.inverse();
                for (x, codes) in x.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)) {
                    e4m3::encode_scaled(&x[range.clone()], inverse, &mut codes[range.clone()]);
                }
            }
        },
    );
}

/// Decodes one row whose stretches of 128 columns have a scale each.
fn decode_row<S: Scale>(codes: &[u8], scales: &[S], out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for ((codes, out), scale) in codes.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).zip(scales)
            {
                e4m3::decode_scaled(codes, scale.value(), out);
            }
        },
    );
}

#[cfg(test)]
#[path = "fp8/tests.rs"]
mod tests;
