//! A linear layer, `y = x w^T`, in FP32, BF16 or FP8. T rows, K inputs, N outputs.
//!
//! FP8 (DeepSeek-V3 report 3.3): activations and gradients in 1 x 128 tiles, weights in 128 x 128
//! blocks, E4M3 everywhere; for the gradient of a weight both operands are requantised to 128 x 1
//! tiles. The GPU recipe multiplies codes, and every 128 of K scales the partial sum and adds it up
//! in FP32. Here operands are dequantised first. Codes have 4 significant bits, so where scales are
//! powers of two BF16 holds every element, every product of two is exact, and scaling commutes with
//! rounding: in a given order of summation the two ways give the same bits, and FP8 runs on the
//! products of BF16 (`gemm`). With FP32 scales elements are dequantised to FP32, and the ways differ
//! by FP32 roundings. Sums are FP32.

use std::borrow::Cow;
use std::ops::{Deref, Range};

use crate::fp8::{Quantized, ScaleFormat, Tiling};
use crate::gemm::{
    Columns, Form, Halves, Left, Out, Right, View, add_by_rows, add_product_by_rows, multiply,
};
use crate::scratch::{HalfScratch, Scratch};
use crate::spread;
use crate::tensor::{DType, RowsMut, Tensor};

/// Rows of a result that one task computes.
const ROWS: usize = 128;

/// Rows of a weight gradient that one task computes.
const WEIGHT_ROWS: usize = 128;

/// The arithmetic of one linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Math {
    /// The reference.
    F32,
    /// Operands rounded to BF16, sums in FP32: every layer of a BF16 model, and of an FP8 model the
    /// output head and `eh_proj`.
    Bf16,
    /// Operands quantised to E4M3, with scales of this format, sums in FP32: every other layer of an
    /// FP8 model.
    Fp8(ScaleFormat),
}

/// What a linear layer reads, `(T, inputs)`, in the form in which it is kept for backward.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    F32(Tensor),
    Bf16(Tensor),
    /// Row tiling.
    Fp8(Quantized),
}

/// A weight, `(N, K)`, "out, in" as on disk, in the form in which it is multiplied.
#[derive(Clone, Debug, PartialEq)]
pub enum Weight {
    F32(Tensor),
    Bf16(Tensor),
    /// Block tiling.
    Fp8(Quantized),
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
enum HalfPanel<'a> {
    Borrowed(&'a [u16]),
    Scratch(HalfScratch),
}

impl HalfPanel<'_> {
    fn values(&self) -> &[u16] {
        match self {
            Self::Borrowed(values) => values,
            Self::Scratch(values) => values,
        }
    }

    fn view(&self, rows: usize, cols: usize) -> Halves<'_> {
        Halves::new(self.values(), rows, cols)
    }
}

/// Some rows as the left side of a product.
enum LeftPanel<'a> {
    Singles(Panel<'a>, [usize; 2]),
    Pairs(HalfPanel<'a>, [usize; 2]),
}

impl LeftPanel<'_> {
    fn view(&self) -> Left<'_> {
        match self {
            Self::Singles(panel, [rows, cols]) => Left::singles(View::new(panel, *rows, *cols)),
            Self::Pairs(panel, [rows, cols]) => Left::pairs(panel.values(), *rows, *cols),
        }
    }
}

impl<'a> From<RowsMut<'a>> for Out<'a> {
    fn from(rows: RowsMut<'a>) -> Self {
        match rows {
            RowsMut::F32(rows) => Self::Set(rows),
            RowsMut::Bf16(rows) => Self::Bf16(rows),
        }
    }
}

impl Operand {
    pub fn prepare(x: &Tensor, math: Math) -> Self {
        match math {
            Math::F32 => Self::F32(to_dtype(x, DType::F32)),
            Math::Bf16 => Self::Bf16(to_dtype(x, DType::Bf16)),
            Math::Fp8(format) => Self::Fp8(Quantized::quantise(x, Tiling::Row, format)),
        }
    }

    pub fn rows(&self) -> usize {
        match self {
            Self::F32(x) | Self::Bf16(x) => x.rows(),
            Self::Fp8(x) => x.rows(),
        }
    }

    pub fn cols(&self) -> usize {
        match self {
            Self::F32(x) | Self::Bf16(x) => x.cols(),
            Self::Fp8(x) => x.cols(),
        }
    }

    /// Bytes in memory, scales included.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(x) | Self::Bf16(x) => x.bytes().len(),
            Self::Fp8(x) => x.bytes(),
        }
    }

    #[must_use]
    pub fn gather_rows(&self, index: &[u32]) -> Self {
        match self {
            Self::F32(x) => Self::F32(x.gather_rows(index)),
            Self::Bf16(x) => Self::Bf16(x.gather_rows(index)),
            Self::Fp8(x) => Self::Fp8(x.gather_rows(index)),
        }
    }

    /// The values that the layer multiplies.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(x) | Self::Bf16(x) => x.to_f32(),
            Self::Fp8(x) => x.dequantise(),
        }
    }

    /// Some rows in FP32.
    pub(crate) fn panel(&self, rows: Range<usize>) -> Panel<'_> {
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

    /// Whether BF16 holds its values: then products may read them as pairs.
    fn is_exact_in_bf16(&self) -> bool {
        match self {
            Self::F32(_) => false,
            Self::Bf16(_) => true,
            Self::Fp8(x) => x.is_exact_in_bf16(),
        }
    }

    /// Some rows as the left side of a product of this form.
    fn left(&self, rows: Range<usize>, form: Form) -> LeftPanel<'_> {
        let (count, cols) = (rows.len(), self.cols());
        match (self, form) {
            (_, Form::Singles) | (Self::F32(_), Form::Pairs) => {
                LeftPanel::Singles(self.panel(rows), [count, cols])
            }
            (Self::Bf16(x), Form::Pairs) if cols.is_multiple_of(2) => {
                let halves = &x.bf16s()[rows.start * cols..rows.end * cols];
                LeftPanel::Pairs(HalfPanel::Borrowed(halves), [count, cols])
            }
            (Self::Bf16(_) | Self::Fp8(_), Form::Pairs) => {
                // The last pair of an odd row is completed with zero.
                let even = cols.next_multiple_of(2);
                let mut panel = HalfScratch::new(count * even);
                for (row, out) in rows.zip(panel.chunks_exact_mut(even.max(1))) {
                    out[cols..].fill(0);
                    match self {
                        Self::Fp8(x) => x.halves_into(row..row + 1, &mut out[..cols]),
                        Self::F32(x) | Self::Bf16(x) => {
                            out[..cols].copy_from_slice(&x.bf16s()[row * cols..][..cols]);
                        }
                    }
                }
                LeftPanel::Pairs(HalfPanel::Scratch(panel), [count, even])
            }
        }
    }

    /// All rows in BF16 as the gradient of a weight reads them: FP8 through 128 x 1 tiles.
    fn columns_halves(&self) -> HalfPanel<'_> {
        match self {
            Self::F32(x) | Self::Bf16(x) => HalfPanel::Borrowed(x.bf16s()),
            Self::Fp8(x) => {
                let mut panel = HalfScratch::new(x.rows() * x.cols());
                x.halves_as_columns(&mut panel);
                HalfPanel::Scratch(panel)
            }
        }
    }

    /// All rows in FP32 as the gradient of a weight reads them: FP8 through 128 x 1 tiles.
    fn columns_panel(&self) -> Panel<'_> {
        match self {
            Self::F32(_) | Self::Bf16(_) => self.panel(0..self.rows()),
            Self::Fp8(x) => {
                let mut panel = Scratch::new(x.rows() * x.cols());
                x.dequantise_as_columns(&mut panel);
                Panel::Scratch(panel)
            }
        }
    }
}

fn to_dtype(x: &Tensor, dtype: DType) -> Tensor {
    if x.dtype() == dtype {
        return x.clone();
    }
    let values = match x.dtype() {
        DType::F32 => Cow::Borrowed(x.f32s()),
        DType::Bf16 => Cow::Owned(x.to_f32()),
    };
    Tensor::from_f32(dtype, x.shape(), &values)
}

impl Weight {
    /// Rounds an FP32 master, `(N, K)`; once per optimizer step, never per microbatch.
    pub fn prepare(master: &[f32], n: usize, k: usize, math: Math) -> Self {
        match math {
            Math::F32 => Self::F32(Tensor::from_f32(DType::F32, &[n, k], master)),
            Math::Bf16 => Self::Bf16(Tensor::from_f32(DType::Bf16, &[n, k], master)),
            Math::Fp8(format) => {
                Self::Fp8(Quantized::quantise_f32(master, n, k, Tiling::Block, format))
            }
        }
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        match self {
            Self::F32(w) | Self::Bf16(w) => w.rows(),
            Self::Fp8(w) => w.rows(),
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match self {
            Self::F32(w) | Self::Bf16(w) => w.cols(),
            Self::Fp8(w) => w.cols(),
        }
    }

    /// Bytes in memory, scales included.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(w) | Self::Bf16(w) => w.bytes().len(),
            Self::Fp8(w) => w.bytes(),
        }
    }

    /// The values that the layer multiplies.
    pub fn to_f32(&self) -> Vec<f32> {
        self.panel().to_vec()
    }

    /// Whether BF16 holds its values.
    fn is_exact_in_bf16(&self) -> bool {
        match self {
            Self::F32(_) => false,
            Self::Bf16(_) => true,
            Self::Fp8(w) => w.is_exact_in_bf16(),
        }
    }

    /// `w^T` as the right side of a product, in pairs where `pairs` allows it.
    pub(crate) fn turned(&self, pairs: bool) -> Right {
        let turned = pairs.then(|| self.halves()).flatten();
        turned.and_then(|w| Right::turned_pairs(w.view(self.n(), self.k()))).unwrap_or_else(|| {
            Right::singles(View::new(&self.panel(), self.n(), self.k()).transposed())
        })
    }

    /// `w` itself as the right side of a product.
    pub(crate) fn right(&self, pairs: bool) -> Right {
        let halves = pairs.then(|| self.halves()).flatten();
        halves
            .and_then(|w| Right::pairs(w.view(self.n(), self.k())))
            .unwrap_or_else(|| Right::singles(View::new(&self.panel(), self.n(), self.k())))
    }

    /// All values in BF16, where it holds them.
    fn halves(&self) -> Option<HalfPanel<'_>> {
        self.is_exact_in_bf16().then(|| match self {
            Self::F32(w) | Self::Bf16(w) => HalfPanel::Borrowed(w.bf16s()),
            Self::Fp8(w) => {
                let mut panel = HalfScratch::new(w.rows() * w.cols());
                w.halves_into(0..w.rows(), &mut panel);
                HalfPanel::Scratch(panel)
            }
        })
    }

    pub(crate) fn panel(&self) -> Panel<'_> {
        match self {
            Self::F32(w) => Panel::Borrowed(w.f32s()),
            Self::Bf16(w) => {
                let mut panel = Scratch::new(w.rows() * w.cols());
                w.read_rows(0..w.rows(), &mut panel);
                Panel::Scratch(panel)
            }
            Self::Fp8(w) => {
                let mut panel = Scratch::new(w.rows() * w.cols());
                w.dequantise_into(&mut panel);
                Panel::Scratch(panel)
            }
        }
    }
}

/// `y = x w^T`.
///
/// - `x`: `(T, K)`; `w`: `(N, K)`; returns `(T, N)`, rounded to `out`.
pub fn forward(x: &Operand, w: &Weight, out: DType) -> Tensor {
    assert_eq!(x.cols(), w.k(), "linear forward: x and w have one K");
    times(x, &w.turned(x.is_exact_in_bf16()), out)
}

/// `dx = dy w`.
///
/// - `dy`: `(T, N)`; `w`: `(N, K)`; returns `(T, K)`, rounded to `out`.
pub fn backward_input(dy: &Operand, w: &Weight, out: DType) -> Tensor {
    assert_eq!(dy.cols(), w.n(), "linear backward_input: dy and w have one N");
    times(dy, &w.right(dy.is_exact_in_bf16()), out)
}

/// `x b`, by chunks of rows.
fn times(x: &Operand, b: &Right, out: DType) -> Tensor {
    let rows = x.rows();
    let mut y = Tensor::zeros(out, &[rows, b.cols()]);
    spread::each(y.row_chunks_mut(ROWS).into_iter().enumerate(), |(i, chunk)| {
        let first = i * ROWS;
        let left = x.left(first..(first + ROWS).min(rows), b.form());
        multiply(left.view(), b, chunk.into());
    });
    y
}

/// `dw += dy^T x`.
///
/// - `x`: `(T, K)`; `dy`: `(T, N)`; `dw`: `(N, K)`, accumulated.
/// - FP8: both are requantised to 128 x 1 tiles first, T being the contracted side.
pub fn backward_weight(x: &Operand, dy: &Operand, dw: &mut [f32]) {
    let (t, k, n) = (x.rows(), x.cols(), dy.cols());
    assert_eq!(dy.rows(), t, "linear backward_weight: x and dy have one T");
    assert_eq!(dw.len(), n * k, "linear backward_weight: dw is ({n}, {k})");
    let exact = x.is_exact_in_bf16() && dy.is_exact_in_bf16();
    let right = exact.then(|| Right::pairs(x.columns_halves().view(t, k))).flatten();
    if let Some(right) = right {
        let left = Columns::of(dy.columns_halves().view(t, n));
        return add_by_rows(dw, left.left(), &right, WEIGHT_ROWS);
    }
    let (x_panel, dy_panel) = (x.columns_panel(), dy.columns_panel());
    let dy_turned = View::new(&dy_panel, t, n).transposed();
    add_product_by_rows(dw, dy_turned, View::new(&x_panel, t, k), WEIGHT_ROWS);
}

#[cfg(test)]
#[path = "linear/tests.rs"]
mod tests;
