//! Brings matrices into the order in which micro-kernels read their right side: panels as wide as a
//! tile, in each the cells of one step along the contracted side next to each other.
#![expect(unsafe_code, reason = "vector instructions, and panels written by pointer")]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "each vector is loaded and stored by pointer"
)]

use std::ops::Range;

use super::isa::Isa;

/// A row-major matrix of BF16 numbers; its rows may be named by an index.
#[derive(Clone, Copy)]
pub(crate) struct Halves<'a> {
    data: &'a [u16],
    rows: usize,
    cols: usize,
    index: Option<&'a [u32]>,
}

impl<'a> Halves<'a> {
    pub(crate) fn new(data: &'a [u16], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "Halves::new: {rows} x {cols}");
        Self { data, rows, cols, index: None }
    }

    /// The rows named by `index`, in that order; a row may come several times.
    pub(crate) fn gathered(self, index: &'a [u32]) -> Self {
        let inside = index.iter().all(|row| (*row as usize) < self.rows);
        assert!(self.index.is_none() && inside, "Halves::gathered: rows of {}", self.rows);
        Self { rows: index.len(), index: Some(index), ..self }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// All numbers, of a matrix that is not gathered.
    pub(crate) fn data(&self) -> &'a [u16] {
        assert!(self.index.is_none(), "Halves::data: rows are gathered");
        self.data
    }

    pub(crate) fn row(&self, row: usize) -> &'a [u16] {
        let row = self.index.map_or(row, |index| index[row] as usize);
        &self.data[row * self.cols..][..self.cols]
    }
}

/// Where cell (p, j) goes: `j / width * panel + p * step + j % width`.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) width: usize,
    pub(super) panel: usize,
    pub(super) step: usize,
}

impl Layout {
    /// Panels of a right side.
    pub(super) fn panels(width: usize, depth: usize) -> Self {
        Self { width, panel: width * depth, step: width }
    }

    /// Panels of a left side: as many rows as a tile has, each step on a cache line of its own.
    pub(super) fn tiles(depth: usize) -> Self {
        Self { width: TILE_ROWS, panel: LINE * depth, step: LINE }
    }

    fn at(self, p: usize, j: usize) -> usize {
        j / self.width * self.panel + p * self.step + j % self.width
    }
}

/// Rows of the largest tile of pairs.
const TILE_ROWS: usize = 14;

/// Cells of a cache line.
const LINE: usize = 16;

fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// Pairs of neighbouring rows: cell (p, j) is rows 2 p and 2 p + 1 of column j, the missing row and
/// columns up to `cols` zero.
pub(super) fn interleave(isa: Isa, x: Halves<'_>, cols: usize, layout: Layout, out: &mut [u32]) {
    let depth = x.rows.div_ceil(2);
    if depth == 0 || cols == 0 {
        return;
    }
    assert!(x.cols <= cols && layout.at(depth - 1, cols - 1) < out.len(), "interleave: room");
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Bf16 && cols.is_multiple_of(32) && layout.width.is_multiple_of(32) {
        // SAFETY: AVX-512 is a part of what was found; `x` gives rows of its length, and the last
        // cell was found inside `out` just now, a whole number of 32 cells from where each row starts.
        unsafe { avx512::interleave(x, cols, layout, out) };
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Bf16 && layout.width < LINE && layout.step == LINE {
        assert!(layout.panel.is_multiple_of(LINE) && out.len().is_multiple_of(LINE), "interleave");
        // SAFETY: as above; steps begin at whole lines and `out` ends at one, so the last cell's line
        // is inside it.
        unsafe { avx512::interleave_tiles(x, cols, layout, out) };
        return;
    }
    let _ = isa;
    for p in 0..depth {
        let (low, high) = (x.row(2 * p), (2 * p + 1 < x.rows).then(|| x.row(2 * p + 1)));
        for j in 0..cols {
            let low = low.get(j).copied().unwrap_or(0);
            let high = high.and_then(|high| high.get(j)).copied().unwrap_or(0);
            out[layout.at(p, j)] = pair(low, high);
        }
    }
}

/// Rows of numbers turned: cell (p, j) is cell p of row j. Rows up to a full panel are zero.
///
/// - `units`: 16-bit halves of a row's cells; an odd last one is completed with zero.
pub(super) fn turn(isa: Isa, rows: &Rows<'_>, layout: Layout, out: &mut [u32]) {
    let depth = rows.units.div_ceil(2);
    if depth == 0 || rows.count == 0 {
        return;
    }
    let padded = rows.count.next_multiple_of(layout.width);
    assert!(layout.at(depth - 1, padded - 1) < out.len(), "turn: room");
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx512Bf16 | Isa::Avx512) && layout.width.is_multiple_of(16) {
        // SAFETY: AVX-512 is a part of what was found; `Rows` holds its rows inside its slice; the
        // last cell of the last panel was found inside `out` just now.
        unsafe { avx512::turn(rows, padded, layout, out) };
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2) && layout.width.is_multiple_of(8) {
        // SAFETY: AVX2 is a part of what was found; the rest as above.
        let done = unsafe { avx2::turn(rows, padded, layout, out) };
        turn_cells(rows, done..depth, padded, layout, out);
        return;
    }
    let _ = isa;
    turn_cells(rows, 0..depth, padded, layout, out);
}

/// `turn`, for some steps along the contracted side.
fn turn_cells(
    rows: &Rows<'_>,
    steps: Range<usize>,
    padded: usize,
    layout: Layout,
    out: &mut [u32],
) {
    for j in 0..padded {
        let row = (j < rows.count).then(|| rows.row(j));
        for p in steps.clone() {
            let unit = |at: usize| {
                let bytes = row.and_then(|row| row.get(at * 2..at * 2 + 2));
                bytes.map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
            };
            out[layout.at(p, j)] = pair(unit(2 * p), unit(2 * p + 1));
        }
    }
}

/// Rows of cells at equal distances.
pub(super) struct Rows<'a> {
    bytes: &'a [u8],
    count: usize,
    units: usize,
    /// From row to row.
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Row-major numbers, whole rows.
    pub(super) fn of<T: bytemuck::NoUninit>(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    pub(super) fn strided<T: bytemuck::NoUninit>(
        data: &'a [T],
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Self {
        let size = size_of::<T>();
        let enough = rows == 0 || (rows - 1) * stride + cols <= data.len();
        assert!(enough && size.is_multiple_of(2), "Rows: {rows} x {cols}, {stride} apart");
        let bytes = bytemuck::cast_slice(data);
        Self { bytes, count: rows, units: cols * size / 2, stride: stride * size }
    }

    fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.units * 2]
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    #[cfg_attr(
        not(test),
        expect(clippy::wildcard_imports, reason = "instructions go by their names")
    )]
    use std::arch::x86_64::*;

    use super::{Halves, Layout, Rows};

    /// A mask of the lowest bits.
    fn lowest(count: usize) -> u32 {
        if count >= 32 { u32::MAX } else { (1 << count) - 1 }
    }

    /// Numbers of the rows `2 p` and `2 p + 1` from `start` on; zeros for a row past the last.
    ///
    /// # Safety
    /// Every row has a number at each bit of `mask`, counted from `start`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn row_pair(x: Halves<'_>, p: usize, start: usize, mask: u32) -> (__m512i, __m512i) {
        let row = |r: usize| {
            let numbers = x.row(r)[start..].as_ptr().cast();
            // SAFETY: as promised; what the mask leaves out is not read.
            unsafe { _mm512_maskz_loadu_epi16(mask, numbers) }
        };
        let high = if 2 * p + 1 < x.rows() { row(2 * p + 1) } else { _mm512_setzero_si512() };
        (row(2 * p), high)
    }

    /// # Safety
    /// `out` holds the last cell, and `cols` and the layout's width are whole numbers of 32.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn interleave(x: Halves<'_>, cols: usize, layout: Layout, out: &mut [u32]) {
        let lanes: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 32) as u16);
        // SAFETY: 32 numbers of 16 bits are as long as a register.
        let first = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
        let second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
        let columns = x.cols();
        for j in (0..cols).step_by(32) {
            let mask = lowest(columns.saturating_sub(j));
            let start = j.min(columns);
            let mut to = out.as_mut_ptr().wrapping_add(layout.at(0, j));
            for p in 0..x.rows().div_ceil(2) {
                // SAFETY: the mask reads only what is left of a row of `columns` numbers; the
                // caller found the last cell, and so every one before it, inside `out`.
                unsafe {
                    let (low, high) = row_pair(x, p, start, mask);
                    let left = _mm512_permutex2var_epi16(low, first, high);
                    let right = _mm512_permutex2var_epi16(low, second, high);
                    _mm512_storeu_si512(to.cast(), left);
                    _mm512_storeu_si512(to.add(16).cast(), right);
                }
                to = to.wrapping_add(layout.step);
            }
        }
    }

    /// # Safety
    /// `out` holds whole lines for `cols` columns, a whole number of the layout's width, which is less
    /// than a line.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn interleave_tiles(
        x: Halves<'_>,
        cols: usize,
        layout: Layout,
        out: &mut [u32],
    ) {
        let lanes: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 32) as u16);
        // SAFETY: 32 numbers of 16 bits are as long as a register.
        let order = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
        let columns = x.cols();
        for j in (0..cols).step_by(layout.width) {
            let mask = lowest(columns.saturating_sub(j).min(layout.width));
            let start = j.min(columns);
            let mut to = out.as_mut_ptr().wrapping_add(layout.at(0, j));
            for p in 0..x.rows().div_ceil(2) {
                // SAFETY: the mask reads only what is left of a row of `columns` numbers; the caller
                // promises the line.
                unsafe {
                    let (low, high) = row_pair(x, p, start, mask);
                    let cells = _mm512_permutex2var_epi16(low, order, high);
                    _mm512_storeu_si512(to.cast(), cells);
                }
                to = to.wrapping_add(layout.step);
            }
        }
    }

    /// # Safety
    /// `out` holds the cells of `padded` columns; the layout's width is a whole number of 16.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn turn(rows: &Rows<'_>, padded: usize, layout: Layout, out: &mut [u32]) {
        let depth = rows.units.div_ceil(2);
        for j in (0..padded).step_by(16) {
            let to = out.as_mut_ptr().wrapping_add(layout.at(0, j));
            for p in (0..depth).step_by(16) {
                let mask = lowest(rows.units - 2 * p);
                let mut block = [_mm512_setzero_si512(); 16];
                for (i, row) in block.iter_mut().enumerate().take(rows.count.saturating_sub(j)) {
                    let from = rows.row(j + i)[4 * p..].as_ptr().cast();
                    // SAFETY: the mask reads only what is left of the row.
                    *row = unsafe { _mm512_maskz_loadu_epi16(mask, from) };
                }
                let block = transpose(&block);
                for (i, cells) in block.into_iter().enumerate().take(depth - p) {
                    // SAFETY: step `p + i` is below `depth`, columns `j..j + 16` below `padded`.
                    unsafe { _mm512_storeu_si512(to.add((p + i) * layout.step).cast(), cells) };
                }
            }
        }
    }

    /// 16 x 16 cells: pairs, fours, then whole lanes of four change places.
    #[target_feature(enable = "avx512f")]
    fn transpose(x: &[__m512i; 16]) -> [__m512i; 16] {
        let mut pairs = *x;
        for i in (0..16).step_by(2) {
            pairs[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
            pairs[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        }
        // Row 4 g + c: lane l holds column 4 l + c of rows 4 g .. 4 g + 4.
        let mut fours = pairs;
        for i in (0..16).step_by(4) {
            fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
            fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
            fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
            fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
        }
        let mut out = fours;
        for c in 0..4 {
            // Lanes 0 and 2, 1 and 3 of two groups of four rows.
            let even = _mm512_shuffle_i32x4::<0x88>(fours[c], fours[c + 4]);
            let odd = _mm512_shuffle_i32x4::<0xdd>(fours[c], fours[c + 4]);
            let even_high = _mm512_shuffle_i32x4::<0x88>(fours[c + 8], fours[c + 12]);
            let odd_high = _mm512_shuffle_i32x4::<0xdd>(fours[c + 8], fours[c + 12]);
            out[c] = _mm512_shuffle_i32x4::<0x88>(even, even_high);
            out[c + 4] = _mm512_shuffle_i32x4::<0x88>(odd, odd_high);
            out[c + 8] = _mm512_shuffle_i32x4::<0xdd>(even, even_high);
            out[c + 12] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_high);
        }
        out
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    #[cfg_attr(
        not(test),
        expect(clippy::wildcard_imports, reason = "instructions go by their names")
    )]
    use std::arch::x86_64::*;

    use super::{Layout, Rows};

    /// Steps of which every row has all of its cells, in eights; returns how many steps that is.
    ///
    /// # Safety
    /// `out` holds the cells of `padded` columns; the layout's width is a whole number of 8.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn turn(
        rows: &Rows<'_>,
        padded: usize,
        layout: Layout,
        out: &mut [u32],
    ) -> usize {
        let whole = rows.units / 16 * 8;
        for j in (0..padded).step_by(8) {
            let to = out.as_mut_ptr().wrapping_add(layout.at(0, j));
            for p in (0..whole).step_by(8) {
                let mut block = [_mm256_setzero_si256(); 8];
                for (i, row) in block.iter_mut().enumerate().take(rows.count.saturating_sub(j)) {
                    let from = rows.row(j + i)[4 * p..].as_ptr().cast();
                    // SAFETY: a row has `whole` cells, and so eight from `p` on.
                    *row = unsafe { _mm256_loadu_si256(from) };
                }
                for (i, cells) in transpose(&block).into_iter().enumerate() {
                    // SAFETY: step `p + i` is below the depth, columns `j..j + 8` below `padded`.
                    unsafe { _mm256_storeu_si256(to.add((p + i) * layout.step).cast(), cells) };
                }
            }
        }
        whole
    }

    /// 8 x 8 cells: pairs, fours, then lanes of four change places.
    #[target_feature(enable = "avx2")]
    fn transpose(x: &[__m256i; 8]) -> [__m256i; 8] {
        let mut pairs = *x;
        for i in (0..8).step_by(2) {
            pairs[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
        }
        // Row 4 g + c: lane l holds column 4 l + c of rows 4 g .. 4 g + 4.
        let mut fours = pairs;
        for i in (0..8).step_by(4) {
            fours[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
            fours[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
            fours[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
            fours[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
        }
        let mut out = fours;
        for c in 0..4 {
            out[c] = _mm256_permute2x128_si256::<0x20>(fours[c], fours[c + 4]);
            out[c + 4] = _mm256_permute2x128_si256::<0x31>(fours[c], fours[c + 4]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Random;

    /// Whatever instructions turn rows, the cells are those that are turned one by one.
    #[test]
    fn rows_are_turned_alike_on_every_path() {
        let mut random = Random::new(7);
        for (count, units) in [(1, 1), (8, 16), (9, 15), (16, 33), (17, 32), (31, 130), (64, 48)] {
            for width in [8, 16, 32] {
                let stride = units + 3;
                let data: Vec<u16> =
                    (0..count * stride).map(|_| random.below(1 << 16) as u16).collect();
                let rows = Rows::strided(&data, count, units, stride);
                let (depth, padded) = (units.div_ceil(2), count.next_multiple_of(width));
                let layout = Layout::panels(width, depth);
                let mut want = vec![0; padded * depth];
                turn_cells(&rows, 0..depth, padded, layout, &mut want);
                for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                    let mut got = vec![u32::MAX; padded * depth];
                    turn(isa, &rows, layout, &mut got);
                    assert_eq!(
                        got, want,
                        "{isa:?}: {count} rows of {units} units, panels of {width}"
                    );
                }
            }
        }
    }
}
