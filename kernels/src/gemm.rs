//! Matrix products of FP32 and of BF16 numbers, sums in FP32.
//!
//! The right side is packed into panels (`Right`), once for all rows of the left side, which is read
//! where it is (`Left`); `multiply` is the product. A product runs in one thread; callers cut results
//! into chunks of rows by shape alone, so bits do not depend on the number of threads.
//!
//! - FP32: multiplied and added with one rounding (FMA; in portable Rust two), in order along K.
//! - BF16, where the CPU has `vdpbf16ps`: two neighbours along K are added to a sum at a time, each
//!   product exact, each addition rounded to nearest even; subnormal numbers count as zero, and
//!   results below 2^-126 become zero. Elsewhere their FP32 values are multiplied as above. The two
//!   ways differ by FP32 roundings.
//!
//! Infinities and NaN go their usual ways. An empty sum is zero.

mod blocked;
mod codes;
mod isa;
mod pack;
mod tile;

use crate::spread;

pub(crate) use self::blocked::{Columns, Form, Left, Out, Right, multiply};
pub(crate) use self::codes::decode;
pub use self::isa::Isa;
pub(crate) use self::pack::Halves;
pub(crate) use self::tile::prefetch;

/// A matrix inside a slice, in rows or in columns.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "View::new: {rows} x {cols}");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// `c += a b`, spread over chunks of `rows` rows of the result.
///
/// - `c`: `(M, N)`, row-major; `a`: `(M, K)`; `b`: `(K, N)`.
pub(crate) fn add_by_rows(c: &mut [f32], a: Left<'_>, b: &Right, rows: usize) {
    if a.is_empty() || b.cols() == 0 {
        return;
    }
    spread::each(c.chunks_mut(rows * b.cols()).enumerate(), |(i, c)| {
        let first = i * rows;
        multiply(a.rows(first..first + c.len() / b.cols()), b, Out::Add(c));
    });
}

#[cfg(test)]
#[path = "gemm/tests.rs"]
mod tests;
