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

mod sides;

use std::borrow::Cow;

use crate::bf16;
use crate::fp8::{BlockRowsMut, Quantized, ScaleFormat, Tiling};
use crate::gemm::{Left, Out, Right, View, add_by_rows, multiply};
use crate::spread;
use crate::tensor::{DType, RowsMut, Tensor};

pub use self::sides::Rows;

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

/// Some rows of a weight.
pub enum WeightPiece<'a> {
    Rows(RowsMut<'a>),
    Blocks(BlockRowsMut<'a>),
}

impl WeightPiece<'_> {
    /// Numbers.
    pub fn len(&self) -> usize {
        match self {
            Self::Rows(RowsMut::F32(rows)) => rows.len(),
            Self::Rows(RowsMut::Bf16(rows)) => rows.len(),
            Self::Blocks(rows) => rows.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `Weight::refresh` of these rows, by the calling thread: `master` has as many numbers.
    pub fn refresh(self, master: &[f32]) {
        assert_eq!(master.len(), self.len(), "WeightPiece: master");
        match self {
            Self::Rows(RowsMut::F32(rows)) => rows.copy_from_slice(master),
            Self::Rows(RowsMut::Bf16(rows)) => bf16::narrow(master, rows),
            Self::Blocks(rows) => rows.encode(master),
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

    /// `prepare` again after an update, in the memory that it has: FP32 master `(N, K)`.
    pub fn refresh(&mut self, master: &[f32]) {
        match self {
            Self::F32(w) | Self::Bf16(w) => w.write_rows(0, master),
            Self::Fp8(w) => w.replace_f32(master),
        }
    }

    /// Pieces of rows for `refresh` by several threads: some whole tiles of FP8 each, or about
    /// `spread::ELEMENTS` numbers.
    pub fn pieces_mut(&mut self) -> impl Iterator<Item = WeightPiece<'_>> {
        let rows = (spread::ELEMENTS / self.k().max(1)).max(1);
        let (rows, blocks) = match self {
            Self::F32(w) | Self::Bf16(w) => (Some(w.row_chunks_mut(rows)), None),
            Self::Fp8(w) => (None, Some(w.block_rows_mut())),
        };
        let rows = rows.into_iter().flatten().map(WeightPiece::Rows);
        rows.chain(blocks.into_iter().flatten().map(WeightPiece::Blocks))
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
}

/// `y = x w^T`.
///
/// - `x`: `(T, K)`; `w`: `(N, K)`; returns `(T, N)`, rounded to `out`.
pub fn forward<'a>(x: impl Into<Rows<'a>>, w: &Weight, out: DType) -> Tensor {
    let [y] = forward_each(x, [w], out);
    y
}

/// `forward` of several layers that read one input, which is gathered or decoded once: the same bits.
pub fn forward_each<'a, const N: usize>(
    x: impl Into<Rows<'a>>,
    w: [&Weight; N],
    out: DType,
) -> [Tensor; N] {
    let x = x.into();
    let k = x.cols();
    assert!(w.iter().all(|w| w.k() == k), "linear forward: x and w have one K");
    times(x, &w.map(|w| w.turned(x.goes_in_pairs())), out)
}

/// `dx = dy w`.
///
/// - `dy`: `(T, N)`; `w`: `(N, K)`; returns `(T, K)`, rounded to `out`.
pub fn backward_input<'a>(dy: impl Into<Rows<'a>>, w: &Weight, out: DType) -> Tensor {
    let dy = dy.into();
    assert_eq!(dy.cols(), w.n(), "linear backward_input: dy and w have one N");
    let [dx] = times(dy, &[w.right(dy.goes_in_pairs())], out);
    dx
}

/// `dx += dy w`, in FP32: the second of two layers that read one input.
///
/// - `dy`: `(T, N)`; `w`: `(N, K)`; `dx`: `(T, K)`, FP32, accumulated.
pub fn add_backward_input<'a>(dy: impl Into<Rows<'a>>, w: &Weight, dx: &mut Tensor) {
    let dy = dy.into();
    assert_eq!(dy.cols(), w.n(), "linear add_backward_input: dy and w have one N");
    assert_eq!((dx.rows(), dx.cols()), (dy.rows(), w.k()), "linear add_backward_input: dx");
    let right = w.right(dy.goes_in_pairs());
    let chunks = dx.f32s_mut().chunks_mut((ROWS * w.k()).max(1));
    spread::each(chunks.enumerate(), |(i, dx)| {
        let left = dy.left(i * ROWS..((i + 1) * ROWS).min(dy.rows()), right.form());
        multiply(left.view(), &right, Out::Add(dx));
    });
}

/// `x b` of each `b`, by chunks of rows.
fn times<const N: usize>(x: Rows<'_>, b: &[Right; N], out: DType) -> [Tensor; N] {
    let rows = x.rows();
    let mut y = b.each_ref().map(|b| Tensor::unwritten(out, &[rows, b.cols()]));
    let one_form = b.iter().all(|other| other.form() == b[0].form());
    assert!(one_form, "linear: weights of one input have one precision");
    let mut chunks = y.each_mut().map(|y| y.row_chunks_mut(ROWS));
    let tasks = (0..rows).step_by(ROWS).map(|first| {
        let chunks = chunks.each_mut().map(Iterator::next);
        (first..(first + ROWS).min(rows), chunks)
    });
    spread::each(tasks, |(rows, chunks)| {
        let Some(form) = b.first().map(Right::form) else { return };
        let left = x.left(rows, form);
        for (b, chunk) in b.iter().zip(chunks) {
            // A result without columns has no chunks.
            if let Some(chunk) = chunk {
                multiply(left.view(), b, chunk.into());
            }
        }
    });
    y
}

/// `dw += dy^T x`.
///
/// - `x`: `(T, K)`; `dy`: `(T, N)`; `dw`: `(N, K)`, accumulated.
/// - FP8: both are requantised to 128 x 1 tiles first, T being the contracted side.
pub fn backward_weight<'a>(x: impl Into<Rows<'a>>, dy: impl Into<Rows<'a>>, dw: &mut [f32]) {
    WeightGradients::new(x.into()).add(dy.into(), dw);
}

/// Weight gradients of several layers that read one input, which is brought into order once: the same
/// bits as of `backward_weight`.
pub struct WeightGradients<'a> {
    x: Rows<'a>,
    /// Made when the first layer asks for it.
    pairs: Option<Right>,
    singles: Option<Right>,
}

impl<'a> WeightGradients<'a> {
    /// `x`: `(T, K)`.
    pub fn new(x: Rows<'a>) -> Self {
        Self { x, pairs: None, singles: None }
    }

    /// `dw += dy^T x`, as `backward_weight`.
    pub fn add(&mut self, dy: Rows<'_>, dw: &mut [f32]) {
        let (x, t, k, n) = (self.x, self.x.rows(), self.x.cols(), dy.cols());
        assert_eq!(dy.rows(), t, "linear backward_weight: x and dy have one T");
        assert_eq!(dw.len(), n * k, "linear backward_weight: dw is ({n}, {k})");
        if x.goes_in_pairs() && dy.goes_in_pairs() {
            let right = self.pairs.get_or_insert_with(|| x.columns_right());
            return add_by_rows(dw, dy.columns_left().left(), right, WEIGHT_ROWS);
        }
        let in_singles = || Right::singles(View::new(&x.columns_panel(), t, k));
        let right = self.singles.get_or_insert_with(in_singles);
        let dy_panel = dy.columns_panel();
        let dy_turned = Left::singles(View::new(&dy_panel, t, n).transposed());
        add_by_rows(dw, dy_turned, right, WEIGHT_ROWS);
    }
}

#[cfg(test)]
#[path = "linear/tests.rs"]
mod tests;
