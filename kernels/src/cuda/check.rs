//! What an operation looks at before it launches: sizes, and that nothing is written which is read.

use super::error::DeviceError;
use super::memory::{Address, Slice};

/// A matrix whose rows begin `stride` elements apart: all of one, or some neighbouring columns of a wider one.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// From the first element of the first row on.
    pub slice: Slice<'a>,
    /// At least the number of columns.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows of so many columns without gaps.
    pub fn packed(slice: Slice<'a>, cols: usize) -> Self {
        Self { slice, stride: cols }
    }

    pub(super) fn address(self) -> Address {
        self.slice.address()
    }
}

/// The checks of one operation.
#[derive(Clone, Copy)]
pub(super) struct Check(pub(super) &'static str);

impl Check {
    pub(super) fn wrong<T>(self, problem: String) -> Result<T, DeviceError> {
        Err(self.problem(problem))
    }

    /// An error of this operation.
    pub(super) fn problem(self, problem: String) -> DeviceError {
        DeviceError::Sizes { operation: self.0, problem }
    }

    /// Exactly so many bytes, from a multiple of 16 on.
    pub(super) fn bytes(
        self,
        what: &str,
        slice: Slice<'_>,
        want: usize,
    ) -> Result<(), DeviceError> {
        self.bytes_from(what, slice, (want, 16))
    }

    /// Exactly so many bytes, from a multiple of `step` on.
    pub(super) fn bytes_from(
        self,
        what: &str,
        slice: Slice<'_>,
        (want, step): (usize, u64),
    ) -> Result<(), DeviceError> {
        if slice.bytes() != want {
            return self.wrong(format!("{what} has {} bytes, {want} are wanted", slice.bytes()));
        }
        if !slice.is_aligned(step) {
            return self.wrong(format!("{what} begins at no multiple of {step} bytes"));
        }
        Ok(())
    }

    /// So many rows and columns of elements of `size` bytes, from a multiple of that on.
    pub(super) fn rows(
        self,
        what: &str,
        x: Rows<'_>,
        (rows, cols): (usize, usize),
        size: usize,
    ) -> Result<(), DeviceError> {
        if x.stride < cols {
            return self.wrong(format!("{what}: rows of {cols} begin {} apart", x.stride));
        }
        self.number(what, x.stride)?;
        let least = if rows == 0 { 0 } else { ((rows - 1) * x.stride + cols) * size };
        let most = rows * x.stride * size;
        let bytes = x.slice.bytes();
        if !(least..=most).contains(&bytes) {
            let stride = x.stride;
            return self.wrong(format!(
                "{what} has {bytes} bytes, {least} to {most} are wanted for {rows} rows of {cols}, {stride} apart"
            ));
        }
        if !x.slice.is_aligned(size as u64) {
            return self.wrong(format!("{what} begins at no multiple of {size} bytes"));
        }
        Ok(())
    }

    /// As kernels take it.
    pub(super) fn number(self, what: &str, n: usize) -> Result<u32, DeviceError> {
        match i32::try_from(n) {
            Ok(n) => Ok(n as u32),
            Err(_) => self.wrong(format!("{what} is {n}, less than 2^31 is wanted")),
        }
    }

    /// What is written shares no byte with anything else.
    pub(super) fn apart(
        self,
        written: &[(&str, Slice<'_>)],
        read: &[(&str, Slice<'_>)],
    ) -> Result<(), DeviceError> {
        for (i, (what, out)) in written.iter().enumerate() {
            let others = read.iter().chain(&written[..i]);
            for (other, slice) in others {
                if out.overlaps(*slice) {
                    return self.wrong(format!("{what} overlaps with {other}"));
                }
            }
        }
        Ok(())
    }

    /// No element is in both, though rows of one may lie between rows of the other. `size` bytes an element.
    pub(super) fn apart_rows(
        self,
        (what, a, a_cols): (&str, Rows<'_>, usize),
        (other, b, b_cols): (&str, Rows<'_>, usize),
        size: usize,
    ) -> Result<(), DeviceError> {
        let interleaved = || {
            let (a_at, b_at) = (a.address().0, b.address().0);
            let stride = (a.stride * size) as u64;
            // How far right of a row of `a` the next row of `b` begins.
            let right = (b_at % stride + stride - a_at % stride) % stride;
            right >= (a_cols * size) as u64 && right + (b_cols * size) as u64 <= stride
        };
        if a.slice.overlaps(b.slice) && !(a.stride == b.stride && a.stride > 0 && interleaved()) {
            return self.wrong(format!("{what} overlaps with {other}"));
        }
        Ok(())
    }
}

/// Where an optional slice begins; 0, which kernels take for none, if there is none.
pub(super) fn address(slice: Option<Slice<'_>>) -> Address {
    slice.map_or(Address(0), Slice::address)
}
