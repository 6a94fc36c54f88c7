//! Operands and weights as the sides of a product: borrowed where they have its form, decoded or
//! gathered into working memory where not.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::fp8::{BLOCK, Quantized};
use crate::gemm::{Columns, Form, Halves, Isa, Left, Right, View};
use crate::scratch::{HalfScratch, Scratch};
use crate::tensor::{DType, Tensor};

use super::{Operand, Weight};

/// The rows of an operand that a product reads: all of them, or those named by an index, in its
/// order; a row may come several times.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    source: Source<'a>,
    index: Option<&'a [u32]>,
}

/// What rows are read from.
#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    F32(&'a Tensor),
    Bf16(&'a Tensor),
    Fp8(&'a Quantized),
}

impl<'a> From<&'a Operand> for Rows<'a> {
    fn from(operand: &'a Operand) -> Self {
        let source = match operand {
            Operand::F32(x) => Source::F32(x),
            Operand::Bf16(x) => Source::Bf16(x),
            Operand::Fp8(x) => Source::Fp8(x),
        };
        Self { source, index: None }
    }
}

/// As of the operand itself.
impl<'a> From<&'a Arc<Operand>> for Rows<'a> {
    fn from(operand: &'a Arc<Operand>) -> Self {
        Self::from(&**operand)
    }
}

/// A tensor is an operand in its own dtype.
impl<'a> From<&'a Tensor> for Rows<'a> {
    fn from(x: &'a Tensor) -> Self {
        let source = match x.dtype() {
            DType::F32 => Source::F32(x),
            DType::Bf16 => Source::Bf16(x),
        };
        Self { source, index: None }
    }
}

impl<'a> From<&'a Weight> for Source<'a> {
    fn from(weight: &'a Weight) -> Self {
        match weight {
            Weight::F32(w) => Self::F32(w),
            Weight::Bf16(w) => Self::Bf16(w),
            Weight::Fp8(w) => Self::Fp8(w),
        }
    }
}

impl<'a> Source<'a> {
    /// Whether products read the values as pairs: BF16 holds them, and this CPU multiplies pairs.
    fn goes_in_pairs(self) -> bool {
        let exact = match self {
            Self::F32(_) => false,
            Self::Bf16(_) => true,
            Self::Fp8(x) => x.is_exact_in_bf16(),
        };
        exact && Isa::current().multiplies_pairs()
    }

    fn shape(self) -> [usize; 2] {
        match self {
            Self::F32(x) | Self::Bf16(x) => [x.rows(), x.cols()],
            Self::Fp8(x) => [x.rows(), x.cols()],
        }
    }

    /// Some neighbouring rows in FP32.
    fn panel(self, rows: Range<usize>) -> Panel<'a> {
        match self {
            Self::F32(x) => Panel::Borrowed(&x.f32s()[rows.start * x.cols()..rows.end * x.cols()]),
            Self::Bf16(x) => {
                let mut panel = Scratch::new(rows.len() * x.cols());
                x.read_rows(rows, &mut panel);
                Panel::Scratch(panel)
            }
            Self::Fp8(x) => {
                let mut panel = Scratch::new(rows.len() * x.cols());
                x.dequantise_rows(rows, &mut panel);
                Panel::Scratch(panel)
            }
        }
    }

    fn halves_of_row(self, row: usize, out: &mut [u16]) {
        match self {
            Self::Fp8(x) => x.halves_of_row(row, out),
            Self::F32(x) | Self::Bf16(x) => {
                out.copy_from_slice(&x.bf16s()[row * x.cols()..][..x.cols()]);
            }
        }
    }
}

/// A matrix in FP32: borrowed where it is FP32 already.
pub(crate) enum Panel<'a> {
    Borrowed(&'a [f32]),
    Scratch(Scratch),
}

impl Deref for Panel<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Borrowed(values) => values,
            Self::Scratch(values) => values,
        }
    }
}

/// A matrix in BF16: borrowed where it is BF16 already.
pub(crate) enum HalfPanel<'a> {
    Borrowed(&'a [u16]),
    Scratch(HalfScratch),
}

impl Deref for HalfPanel<'_> {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        match self {
            Self::Borrowed(values) => values,
            Self::Scratch(values) => values,
        }
    }
}

/// Some rows as the left side of a product.
pub(crate) enum LeftPanel<'a> {
    Singles(Panel<'a>, [usize; 2]),
    Pairs(HalfPanel<'a>, [usize; 2]),
}

impl LeftPanel<'_> {
    pub(crate) fn view(&self) -> Left<'_> {
        match self {
            Self::Singles(panel, [rows, cols]) => Left::singles(View::new(panel, *rows, *cols)),
            Self::Pairs(panel, [rows, cols]) => Left::pairs(panel, *rows, *cols),
        }
    }
}

impl<'a> Rows<'a> {
    /// Rows of `operand` named by `index`.
    pub fn gathered(operand: &'a Operand, index: &'a [u32]) -> Self {
        let rows = operand.rows();
        assert!(index.iter().all(|row| (*row as usize) < rows), "Rows: an index of {rows} rows");
        Self { index: Some(index), ..operand.into() }
    }

    pub fn rows(&self) -> usize {
        self.index.map_or(self.source.shape()[0], <[u32]>::len)
    }

    pub fn cols(&self) -> usize {
        self.source.shape()[1]
    }

    /// Whether products read the values as pairs: BF16 holds them, and this CPU multiplies pairs.
    pub(super) fn goes_in_pairs(&self) -> bool {
        self.source.goes_in_pairs()
    }

    /// Where row `at` is in the operand.
    fn place(&self, at: usize) -> usize {
        self.index.map_or(at, |index| index[at] as usize)
    }

    /// Some rows in FP32.
    fn panel(&self, rows: Range<usize>) -> Panel<'a> {
        let cols = self.cols();
        if self.index.is_none() {
            return self.source.panel(rows);
        }
        let mut panel = Scratch::new(rows.len() * cols);
        for (row, out) in rows.zip(panel.chunks_exact_mut(cols.max(1))) {
            let row = self.place(row);
            match self.source {
                Source::F32(x) | Source::Bf16(x) => x.read_rows(row..row + 1, out),
                Source::Fp8(x) => x.dequantise_rows(row..row + 1, out),
            }
        }
        Panel::Scratch(panel)
    }

    /// Some rows as the left side of a product of this form.
    pub(super) fn left(&self, rows: Range<usize>, form: Form) -> LeftPanel<'a> {
        let (count, cols) = (rows.len(), self.cols());
        match (self.source, form) {
            (Source::F32(_), _) | (_, Form::Singles) => {
                LeftPanel::Singles(self.panel(rows), [count, cols])
            }
            (Source::Bf16(x), Form::Pairs) if cols.is_multiple_of(2) && self.index.is_none() => {
                let halves = &x.bf16s()[rows.start * cols..rows.end * cols];
                LeftPanel::Pairs(HalfPanel::Borrowed(halves), [count, cols])
            }
            (Source::Bf16(_) | Source::Fp8(_), Form::Pairs) => {
                // The last pair of an odd row is completed with zero.
                let even = cols.next_multiple_of(2);
                let mut panel = HalfScratch::new(count * even);
                for (row, out) in rows.zip(panel.chunks_exact_mut(even.max(1))) {
                    out[cols..].fill(0);
                    self.source.halves_of_row(self.place(row), &mut out[..cols]);
                }
                LeftPanel::Pairs(HalfPanel::Scratch(panel), [count, even])
            }
        }
    }

    /// All rows as both sides of a weight's gradient read them: FP8 through 128 x 1 tiles.
    fn with_columns<R>(&self, read: impl FnOnce(Halves<'_>) -> R) -> R {
        let (rows, cols) = (self.rows(), self.cols());
        match self.source {
            Source::F32(x) | Source::Bf16(x) => {
                let halves = Halves::new(x.bf16s(), x.rows(), cols);
                read(self.index.map_or(halves, |index| halves.gathered(index)))
            }
            Source::Fp8(x) => {
                let mut panel = HalfScratch::new(rows * cols);
                for (tile, out) in panel.chunks_mut((BLOCK * cols).max(1)).enumerate() {
                    let tile = tile * BLOCK..((tile + 1) * BLOCK).min(rows);
                    x.halves_as_columns(tile.map(|row| self.place(row)), out);
                }
                read(Halves::new(&panel, rows, cols))
            }
        }
    }

    /// As the right side, where it goes in pairs.
    pub(super) fn columns_right(&self) -> Right {
        self.with_columns(Right::pairs)
    }

    /// As the left side, turned.
    pub(super) fn columns_left(&self) -> Columns {
        self.with_columns(Columns::of)
    }

    /// All rows in FP32 as the gradient of a weight reads them: FP8 through 128 x 1 tiles.
    pub(super) fn columns_panel(&self) -> Panel<'a> {
        match (self.source, self.index) {
            (Source::F32(_) | Source::Bf16(_), _) => self.panel(0..self.rows()),
            (Source::Fp8(x), None) => columns_of(x),
            (Source::Fp8(x), Some(index)) => columns_of(&x.gather_rows(index)),
        }
    }
}

fn columns_of<'a>(x: &Quantized) -> Panel<'a> {
    let mut panel = Scratch::new(x.rows() * x.cols());
    x.dequantise_as_columns(&mut panel);
    Panel::Scratch(panel)
}

impl Operand {
    /// Some rows in FP32.
    pub(crate) fn panel(&self, rows: Range<usize>) -> Panel<'_> {
        Rows::from(self).source.panel(rows)
    }
}

impl Weight {
    /// `w^T` as the right side of a product, in pairs where `pairs` allows it.
    pub(crate) fn turned(&self, pairs: bool) -> Right {
        let (n, k) = (self.n(), self.k());
        match self.halves(pairs) {
            Some(w) => Right::turned_pairs(Halves::new(&w, n, k)),
            None => Right::singles(View::new(&self.panel(), n, k).transposed()),
        }
    }

    /// `w` itself as the right side of a product.
    pub(crate) fn right(&self, pairs: bool) -> Right {
        let (n, k) = (self.n(), self.k());
        match self.halves(pairs) {
            Some(w) => Right::pairs(Halves::new(&w, n, k)),
            None => Right::singles(View::new(&self.panel(), n, k)),
        }
    }

    /// All values in BF16, where they are wanted and go in pairs.
    fn halves(&self, wanted: bool) -> Option<HalfPanel<'_>> {
        let pairs = wanted && Source::from(self).goes_in_pairs();
        pairs.then(|| match self {
            Self::F32(w) | Self::Bf16(w) => HalfPanel::Borrowed(w.bf16s()),
            Self::Fp8(w) => {
                let mut panel = HalfScratch::new(w.rows() * w.cols());
                for (row, out) in panel.chunks_exact_mut(w.cols().max(1)).enumerate() {
                    w.halves_of_row(row, out);
                }
                HalfPanel::Scratch(panel)
            }
        })
    }

    pub(crate) fn panel(&self) -> Panel<'_> {
        match self {
            Self::F32(_) | Self::Bf16(_) => Source::from(self).panel(0..self.n()),
            Self::Fp8(w) => {
                // Spread over threads, which rows of an operand are already.
                let mut panel = Scratch::new(w.rows() * w.cols());
                w.dequantise_into(&mut panel);
                Panel::Scratch(panel)
            }
        }
    }
}
