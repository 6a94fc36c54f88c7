//! Rows moved and summed by lists that are on the device.

use shoal_kernels::DType;
use shoal_kernels::cuda::{DeviceError, Slice, dispatch};

use super::gpu::Gpu;
use super::matrix::{Matrix, Operand};
use super::room::Extent;

impl Gpu {
    /// Rows of an operand by an index of u32, `rows` of them; zeros where it names none.
    pub(super) fn gather(
        &self,
        what: &'static str,
        x: &Operand,
        index: Slice<'_>,
        rows: Extent,
    ) -> Result<Operand, DeviceError> {
        let cols = x.cols();
        let out = self.unwritten(what, x.math(), (rows, cols))?;
        let moved = dispatch::Moved { from: x.rows(), to: rows.rows, columns: cols };
        self.kernels.dispatch.gather_rows(&self.stream, x.side(), out.side(), index, moved)?;
        Ok(out)
    }

    /// FP32 numbers by an index of u32, one for each of it; zeros where it names none.
    pub(super) fn gather_numbers(
        &self,
        x: Slice<'_>,
        index: Slice<'_>,
        to: Slice<'_>,
    ) -> Result<(), DeviceError> {
        let numbers = (x.bytes() / 4, to.bytes() / 4);
        self.kernels.dispatch.gather_numbers(&self.stream, x, index, to, numbers)
    }

    /// Row r of the result is the sum of the rows that `terms[first[r] .. first[r + 1]]` name, in that order, and of row r
    /// of `also`, FP32; rounded once.
    pub(super) fn sum_rows(
        &self,
        x: &Matrix,
        (first, terms): (Slice<'_>, Slice<'_>),
        rows: Extent,
        also: Option<&Matrix>,
        out: DType,
    ) -> Result<Matrix, DeviceError> {
        let y = self.matrix("sums of rows", out, (rows, x.cols))?;
        let terms = dispatch::Terms { first, index: terms };
        let from = dispatch::Values { values: x.slice(), dtype: x.dtype };
        let to = dispatch::Values { values: y.slice(), dtype: out };
        let moved = dispatch::Moved { from: x.rows, to: rows.rows, columns: x.cols };
        let also = also.map(Matrix::slice);
        self.kernels.dispatch.sum_rows(&self.stream, from, terms, also, to, moved)?;
        Ok(y)
    }
}
