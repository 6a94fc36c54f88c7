//! Products cut into tiles: the loops around a micro-kernel, for both forms of cells.
#![expect(unsafe_code, reason = "tiles are handed to micro-kernels by address")]

use std::ops::Range;

use super::View;
use super::isa::Isa;
use super::pack::{self, Halves, Layout, Rows};
use super::tile::{Kernel, Tile, prefetch};
use crate::bf16;
use crate::scratch::Scratch;

/// Cells of the contracted side that one pass over the result takes: a panel of the right side stays
/// in the second-level cache.
const DEPTH: usize = 512;

/// Floats of the largest tile.
const TILE: usize = 14 * 32;

/// How both sides of a product are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// FP32 numbers.
    Singles,
    /// Pairs of BF16 numbers; where there is no such instruction, their FP32 values.
    Pairs,
}

/// The left side of a product, `(rows, K)`, read where it is.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    bytes: &'a [u8],
    rows: usize,
    /// Cells.
    depth: usize,
    row_stride: usize,
    depth_stride: usize,
    /// Rows that lie together, and cells from these to the next ones: a tile reads whole lines.
    panel: Option<(usize, usize)>,
    /// Of the first row, counted from the first panel.
    first: usize,
}

impl<'a> Left<'a> {
    pub(crate) fn singles(a: View<'a>) -> Self {
        let (rows, depth) = (a.rows, a.cols);
        let (row_stride, depth_stride) = (a.row_stride, a.col_stride);
        Self::checked(bytemuck::cast_slice(a.data), [rows, depth, row_stride, depth_stride])
    }

    /// Row-major, with an even number of columns.
    pub(crate) fn pairs(a: &'a [u16], rows: usize, cols: usize) -> Self {
        assert!(cols.is_multiple_of(2) && a.len() == rows * cols, "Left: {rows} x {cols} in pairs");
        Self::checked(bytemuck::cast_slice(a), [rows, cols / 2, cols / 2, 1])
    }

    fn checked(bytes: &'a [u8], [rows, depth, row_stride, depth_stride]: [usize; 4]) -> Self {
        let last = rows.saturating_sub(1) * row_stride + depth.saturating_sub(1) * depth_stride;
        let inside = rows == 0 || depth == 0 || (last + 1) * 4 <= bytes.len();
        assert!(inside, "Left: an operand ends behind its slice");
        Self { bytes, rows, depth, row_stride, depth_stride, panel: None, first: 0 }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.rows == 0
    }

    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "Left::rows: {rows:?}");
        Self { first: self.first + rows.start, rows: rows.len(), ..self }
    }

    /// The cell of a row at a step.
    fn at(self, row: usize, step: usize) -> usize {
        let row = self.first + row;
        let (panel, row) = match self.panel {
            Some((rows, cells)) => (row / rows * cells, row % rows),
            None => (0, row),
        };
        panel + row * self.row_stride + step * self.depth_stride
    }

    /// Cuts the rows into blocks for tiles of at most `most` rows: of equal height, not full ones
    /// and a rest, but never across two panels.
    fn block(self, number: usize, most: usize) -> Range<usize> {
        let Some((rows, _)) = self.panel else {
            let blocks = self.rows.div_ceil(most);
            return self.rows * number / blocks..self.rows * (number + 1) / blocks;
        };
        let number = self.first / rows + number;
        let start = (number * rows).max(self.first) - self.first;
        start..((number + 1) * rows - self.first).min(self.rows)
    }

    /// Number of these.
    fn blocks(self, most: usize) -> usize {
        match self.panel {
            Some((rows, _)) => (self.first + self.rows).div_ceil(rows) - self.first / rows,
            None => self.rows.div_ceil(most),
        }
    }
}

/// A left side made of columns: the transposed matrix, pairs along its rows.
pub(crate) struct Columns {
    cells: Scratch,
    /// Columns of the matrix, rows of the left side.
    rows: usize,
    depth: usize,
    layout: Layout,
}

impl Columns {
    /// `x^T`.
    pub(crate) fn of(x: Halves<'_>) -> Self {
        Self::with(Isa::current(), x)
    }

    pub(super) fn with(isa: Isa, x: Halves<'_>) -> Self {
        let (rows, depth) = (x.cols(), x.rows().div_ceil(2));
        let layout = Layout::tiles(depth);
        let panels = rows.div_ceil(layout.width);
        let mut cells = Scratch::new(panels * layout.panel);
        let padded = panels * layout.width;
        pack::interleave(isa, x, padded, layout, bytemuck::cast_slice_mut(&mut cells));
        Self { cells, rows, depth, layout }
    }

    pub(crate) fn left(&self) -> Left<'_> {
        let Layout { width, panel, step } = self.layout;
        let panels = self.rows.div_ceil(width);
        assert!(panels * panel <= self.cells.len(), "Columns: panels end behind their slice");
        Left {
            bytes: bytemuck::cast_slice(&self.cells),
            rows: self.rows,
            depth: self.depth,
            row_stride: 1,
            depth_stride: step,
            panel: Some((width, panel)),
            first: 0,
        }
    }
}

/// The right side of a product, `(K, cols)`, in panels.
pub(crate) struct Right {
    kernel: Kernel,
    form: Form,
    cells: Scratch,
    depth: usize,
    cols: usize,
}

impl Right {
    /// `b` in FP32.
    pub(crate) fn singles(b: View<'_>) -> Self {
        Self::singles_with(Isa::current(), b)
    }

    pub(super) fn singles_with(isa: Isa, b: View<'_>) -> Self {
        let kernel = Kernel::singles(isa);
        let (depth, cols) = (b.rows, b.cols);
        let layout = Layout::panels(kernel.cols, depth);
        let mut cells = Scratch::new(cols.next_multiple_of(kernel.cols) * depth);
        if b.col_stride == 1 {
            copy_rows(b, layout, &mut cells);
        } else {
            assert_eq!(b.row_stride, 1, "Right: rows or columns are whole");
            let rows = Rows::strided(b.data, cols, depth, b.col_stride);
            pack::turn(isa, &rows, layout, bytemuck::cast_slice_mut(&mut cells));
        }
        Self { kernel, form: Form::Singles, cells, depth, cols }
    }

    /// `x^T` in pairs along its rows: `x` is `(cols, K)`. Where `Isa::multiplies_pairs` only.
    pub(crate) fn turned_pairs(x: Halves<'_>) -> Self {
        Self::turned_pairs_with(Isa::current(), x)
            .expect("callers ask whether pairs are multiplied")
    }

    /// None without an instruction for pairs.
    pub(super) fn turned_pairs_with(isa: Isa, x: Halves<'_>) -> Option<Self> {
        let kernel = Kernel::pairs(isa)?;
        let (depth, cols) = (x.cols().div_ceil(2), x.rows());
        let mut cells = Scratch::new(cols.next_multiple_of(kernel.cols) * depth);
        let rows = Rows::of(x.data(), cols, x.cols());
        let layout = Layout::panels(kernel.cols, depth);
        pack::turn(isa, &rows, layout, bytemuck::cast_slice_mut(&mut cells));
        Some(Self { kernel, form: Form::Pairs, cells, depth, cols })
    }

    /// `x` itself, `(K, cols)`, in pairs down its columns. Where `Isa::multiplies_pairs` only.
    pub(crate) fn pairs(x: Halves<'_>) -> Self {
        Self::pairs_with(Isa::current(), x).expect("callers ask whether pairs are multiplied")
    }

    /// None without an instruction for pairs.
    pub(super) fn pairs_with(isa: Isa, x: Halves<'_>) -> Option<Self> {
        let kernel = Kernel::pairs(isa)?;
        let (depth, cols) = (x.rows().div_ceil(2), x.cols());
        let padded = cols.next_multiple_of(kernel.cols);
        let mut cells = Scratch::new(padded * depth);
        let layout = Layout::panels(kernel.cols, depth);
        pack::interleave(isa, x, padded, layout, bytemuck::cast_slice_mut(&mut cells));
        Some(Self { kernel, form: Form::Pairs, cells, depth, cols })
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }
}

/// Panels of a row-major matrix; columns up to a full panel are zero.
fn copy_rows(b: View<'_>, layout: Layout, out: &mut [f32]) {
    for (panel, out) in out.chunks_exact_mut(layout.panel.max(1)).enumerate() {
        let first = panel * layout.width;
        let width = layout.width.min(b.cols - first);
        for (p, out) in out.chunks_exact_mut(layout.step).enumerate() {
            out[..width].copy_from_slice(&b.data[p * b.row_stride + first..][..width]);
            out[width..].fill(0.0);
        }
    }
}

/// Where a product goes: whole rows of the right side's columns.
pub(crate) enum Out<'a> {
    Set(&'a mut [f32]),
    Add(&'a mut [f32]),
    /// Rounded once.
    Bf16(&'a mut [u16]),
}

impl Out<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Set(c) | Self::Add(c) => c.len(),
            Self::Bf16(c) => c.len(),
        }
    }

    fn fill_with_empty_sums(&mut self) {
        match self {
            Self::Set(c) => c.fill(0.0),
            Self::Add(_) => {}
            Self::Bf16(c) => c.fill(0),
        }
    }
}

/// `out = a b` or `out += a b`, by the calling thread. Each sum runs along K in order, whatever the
/// tiles, so its bits depend on neither rows nor columns beside it.
pub(crate) fn multiply(a: Left<'_>, b: &Right, mut out: Out<'_>) {
    assert_eq!(a.depth, b.depth, "multiply: inner sizes");
    assert_eq!(out.len(), a.rows * b.cols, "multiply: the result is {} x {}", a.rows, b.cols);
    let fits = a.panel.is_none_or(|(rows, _)| rows <= b.kernel.rows);
    assert!(fits, "multiply: panels of the left side are higher than a tile");
    if a.rows == 0 || b.cols == 0 || b.depth == 0 {
        return out.fill_with_empty_sums();
    }
    // Partial sums are kept in the result, so one that is not FP32 is made in one pass.
    let pass = if matches!(out, Out::Bf16(_)) { b.depth } else { DEPTH };
    let blocks = a.blocks(b.kernel.rows);
    for first in (0..b.depth).step_by(pass) {
        let depth = first..(first + pass).min(b.depth);
        for panel in 0..b.cols.div_ceil(b.kernel.cols) {
            for block in 0..blocks {
                let rows = a.block(block, b.kernel.rows);
                tile(a, b, &mut out, (rows, panel, depth.clone()));
            }
        }
    }
}

/// One tile: straight into the result where it has its shape, by way of the stack where not.
fn tile(
    a: Left<'_>,
    b: &Right,
    out: &mut Out<'_>,
    (rows, panel, depth): (Range<usize>, usize, Range<usize>),
) {
    let Right { kernel, cells, cols, .. } = b;
    let first = panel * kernel.cols;
    let width = kernel.cols.min(cols - first);
    let vectors = if width * 2 <= kernel.cols { 1 } else { 2 };
    let wide = kernel.cols / 2 * vectors;
    let start = rows.start * cols + first;
    let add = matches!(out, Out::Add(_)) || 0 < depth.start;
    let a_at = a.at(rows.start, depth.start);
    let b_at = panel * b.depth * kernel.cols + depth.start * kernel.cols;
    let mut tile = Tile {
        depth: depth.len(),
        a: a.bytes[a_at * 4..].as_ptr().cast(),
        a_row: a.row_stride,
        a_depth: a.depth_stride,
        b: cells[b_at..][..depth.len() * kernel.cols].as_ptr().cast(),
        c: std::ptr::null_mut(),
        c_row: kernel.cols,
        add: false,
        halves: std::ptr::null_mut(),
    };
    let last = (rows.len() - 1) * cols + wide;
    match out {
        Out::Set(c) | Out::Add(c) if width == wide => {
            let c = &mut c[start..][..last];
            (tile.c, tile.c_row, tile.add) = (c.as_mut_ptr(), *cols, add);
            if add {
                // Weight gradients lie far away: they come while the tile's sums are made.
                c.chunks(*cols).for_each(|row| prefetch(&row[..wide.min(row.len())]));
            }
            // SAFETY: `Left` and `multiply` found the rows of `a` inside its slice, the slices of
            // `b` and `c` were cut here to what the tile reads and writes, and `Kernel` gives only
            // what the CPU has.
            unsafe { (kernel.run)(rows.len(), vectors, &tile) };
        }
        Out::Bf16(c) if width == wide => {
            let c = &mut c[start..][..last];
            (tile.halves, tile.c_row) = (c.as_mut_ptr(), *cols);
            // SAFETY: as above.
            unsafe { (kernel.run)(rows.len(), vectors, &tile) };
        }
        Out::Set(_) | Out::Add(_) | Out::Bf16(_) => {
            let mut sums = [0.0; TILE];
            let room = &mut sums[..rows.len() * kernel.cols];
            tile.c = room.as_mut_ptr();
            // SAFETY: as above; the room has `rows` rows as wide as the kernel's tile.
            unsafe { (kernel.run)(rows.len(), vectors, &tile) };
            let sums = sums.chunks_exact(kernel.cols).map(|sums| &sums[..width]);
            store(out, start, *cols, add, sums.take(rows.len()));
        }
    }
}

/// Rows of sums to their places.
fn store<'s>(
    out: &mut Out<'_>,
    start: usize,
    stride: usize,
    add: bool,
    sums: impl Iterator<Item = &'s [f32]>,
) {
    for (i, sums) in sums.enumerate() {
        let range = start + i * stride..start + i * stride + sums.len();
        match out {
            Out::Bf16(c) => bf16::narrow(sums, &mut c[range]),
            Out::Set(c) | Out::Add(c) if add => {
                for (c, sum) in c[range].iter_mut().zip(sums) {
                    *c += sum;
                }
            }
            Out::Set(c) | Out::Add(c) => c[range].copy_from_slice(sums),
        }
    }
}
