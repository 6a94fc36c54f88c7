//! FP32 matrix products: the only door to the `gemm` crate.
//!
//! A product runs in one thread. `products_by_rows` cuts the result into chunks of rows by shape
//! alone, so its bits do not depend on the number of threads.
#![expect(unsafe_code, reason = "the product takes raw pointers and strides")]

use std::ops::Range;

use crate::spread;

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

    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "View::rows: {rows:?}");
        let start = (rows.start * self.row_stride).min(self.data.len());
        Self { data: &self.data[start..], rows: rows.len(), ..self }
    }
}

/// `c = a b`, or `c += a b`, in the calling thread.
///
/// - `c`: `(M, N)`, row-major; `a`: `(M, K)`; `b`: `(K, N)`.
/// - An empty sum is zero.
pub(crate) fn product(c: &mut [f32], a: View<'_>, b: View<'_>, accumulate: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(b.rows, k, "product: inner sizes");
    assert_eq!(c.len(), m * n, "product: c is {m} x {n}");
    if m == 0 || n == 0 || k == 0 {
        if !accumulate {
            c.fill(0.0);
        }
        return;
    }
    for view in [a, b] {
        let last = (view.rows - 1) * view.row_stride + (view.cols - 1) * view.col_stride;
        assert!(last < view.data.len(), "product: an operand ends behind its slice");
    }
    // SAFETY: element (i, j) of each operand is at `i * row_stride + j * col_stride`, largest at
    // the last row and column, which the loop above found inside the slice; `c` has m * n elements
    // by the second assert and is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `c += a b`, spread over chunks of `rows` rows of the result.
pub(crate) fn add_product_by_rows(c: &mut [f32], a: View<'_>, b: View<'_>, rows: usize) {
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    spread::each(c.chunks_mut(rows * b.cols).enumerate(), |(i, c)| {
        let first = i * rows;
        product(c, a.rows(first..(first + rows).min(a.rows)), b, true);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Random, Tolerance, assert_close};

    fn plain(c: &[f32], a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
        let element = |i: usize, j: usize| -> f64 {
            (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum()
        };
        (0..m * n).map(|at| (f64::from(c[at]) + element(at / n, at % n)) as f32).collect()
    }

    fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    }

    #[test]
    fn products_agree_with_three_loops_in_every_layout() {
        for size in [
            (1, 1, 1),
            (1, 129, 127),
            (127, 1, 129),
            (129, 127, 1),
            (9, 1, 2),
            (7, 7, 1),
            (5, 7, 0),
            (0, 3, 2),
            (64, 65, 300),
        ] {
            let (m, n, k) = size;
            let mut random = Random::new(3);
            let (a, b, c) = (random.normal(m * k), random.normal(k * n), random.normal(m * n));
            let (a_turned, b_turned) = (transpose(&a, m, k), transpose(&b, k, n));
            let rows = [View::new(&a, m, k), View::new(&a_turned, k, m).transposed()];
            let cols = [View::new(&b, k, n), View::new(&b_turned, n, k).transposed()];
            let tolerance = Tolerance::F32.times(4.0);
            for a_view in rows {
                for b_view in cols {
                    let mut got = c.clone();
                    product(&mut got, a_view, b_view, true);
                    assert_close("added", &got, &plain(&c, &a, &b, size), tolerance);
                    // What was there before must not show, not even a NaN.
                    got.fill(f32::NAN);
                    product(&mut got, a_view, b_view, false);
                    assert_close("set", &got, &plain(&vec![0.0; m * n], &a, &b, size), tolerance);
                    let mut got = c.clone();
                    add_product_by_rows(&mut got, a_view, b_view, 50);
                    assert_close("chunks", &got, &plain(&c, &a, &b, size), tolerance);
                }
            }
        }
    }
}
