//! Columns of some rows of a matrix, to be written by one task while others write the columns beside
//! them.
#![expect(unsafe_code, reason = "the compiler cannot see that columns do not overlap")]

use std::marker::PhantomData;

use crate::bf16::f32_to_bf16;
use crate::tensor::Tensor;

/// Columns of neighbouring rows, in the dtype of their matrix.
pub(crate) enum Panel<'a> {
    F32(Columns<'a, f32>),
    Bf16(Columns<'a, u16>),
}

impl<'a> Panel<'a> {
    /// Cuts `x`, `(blocks * rows, panels * width)`, into panels of `rows` rows and `width` columns:
    /// all blocks of rows of the first columns, then those of the next.
    pub(crate) fn cut(x: &'a mut Tensor, rows: usize, width: usize) -> Vec<Self> {
        let cols = x.cols();
        match x.dtype() {
            crate::DType::F32 => {
                let columns = Columns::cut(x.f32s_mut(), cols, rows, width);
                columns.into_iter().map(Self::F32).collect()
            }
            crate::DType::Bf16 => {
                let columns = Columns::cut(x.bf16s_mut(), cols, rows, width);
                columns.into_iter().map(Self::Bf16).collect()
            }
        }
    }

    /// Rounds `values` into a row, from its `column` on.
    #[inline(always)]
    pub(crate) fn write(&mut self, row: usize, column: usize, values: &[f32]) {
        let range = column..column + values.len();
        match self {
            Self::F32(columns) => columns.row(row)[range].copy_from_slice(values),
            Self::Bf16(columns) => {
                for (out, x) in columns.row(row)[range].iter_mut().zip(values) {
                    *out = f32_to_bf16(*x);
                }
            }
        }
    }
}

/// Columns of neighbouring rows of a row-major matrix.
pub(crate) struct Columns<'a, T> {
    first: *mut T,
    rows: usize,
    width: usize,
    stride: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: a panel is the only way to its elements while the matrix is borrowed, as a slice is.
unsafe impl<T: Send> Send for Columns<'_, T> {}

impl<'a, T> Columns<'a, T> {
    fn cut(matrix: &'a mut [T], cols: usize, rows: usize, width: usize) -> Vec<Self> {
        let block = rows * cols;
        if block == 0 || width == 0 {
            return Vec::new();
        }
        assert!(matrix.len().is_multiple_of(block), "panel: whole blocks of {rows} rows");
        assert!(cols.is_multiple_of(width), "panel: whole panels of {width} columns");
        let (blocks, first) = (matrix.len() / block, matrix.as_mut_ptr());
        let mut panels = Vec::with_capacity(blocks * (cols / width));
        for column in (0..cols).step_by(width) {
            for at in 0..blocks {
                // SAFETY: the offset is below the length: `at < blocks` and `column < cols`.
                let first = unsafe { first.add(at * block + column) };
                panels.push(Self { first, rows, width, stride: cols, matrix: PhantomData });
            }
        }
        panels
    }

    #[inline(always)]
    fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "panel: row {row} of {}", self.rows);
        // SAFETY: the row is one of this panel's, which end inside the matrix.
        let first = unsafe { self.first.add(row * self.stride) };
        // SAFETY: `width` columns of this row belong to this panel alone, and it is borrowed.
        unsafe { std::slice::from_raw_parts_mut(first, self.width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn panels_cover_a_matrix_and_do_not_overlap() {
        for dtype in [DType::F32, DType::Bf16] {
            let mut x = Tensor::zeros(dtype, &[6, 10]);
            let panels = Panel::cut(&mut x, 3, 5);
            assert_eq!(panels.len(), 4);
            for (i, mut panel) in panels.into_iter().enumerate() {
                for row in 0..3 {
                    panel.write(row, 0, &[(1 + i) as f32; 2]);
                    panel.write(row, 2, &[(1 + i) as f32; 3]);
                }
            }
            let x = x.to_f32();
            for (at, x) in x.iter().enumerate() {
                let (row, column) = (at / 10, at % 10);
                let want = 1 + column / 5 * 2 + row / 3;
                assert_eq!(*x as usize, want, "{at}");
            }
            assert!(Panel::cut(&mut Tensor::zeros(dtype, &[0, 10]), 3, 5).is_empty());
        }
    }

    #[test]
    #[should_panic(expected = "row 3 of 3")]
    fn a_row_behind_the_panel_is_refused() {
        let mut x = Tensor::zeros(DType::F32, &[6, 10]);
        Panel::cut(&mut x, 3, 5)[0].write(3, 0, &[1.0]);
    }
}
