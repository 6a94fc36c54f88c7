//! What an operation was given, looked at before anything is launched: what does not fit is an error that says
//! which operation, which operand, what it has and what was wanted.

use super::error::DeviceError;
use super::memory::Slice;

/// The slices of one call.
#[derive(Debug)]
pub(super) struct Given<'a> {
    operation: &'static str,
    read: Vec<(&'static str, Slice<'a>)>,
    written: Vec<(&'static str, Slice<'a>)>,
}

impl<'a> Given<'a> {
    pub(super) fn new(operation: &'static str) -> Self {
        Self { operation, read: Vec::with_capacity(8), written: Vec::with_capacity(4) }
    }

    /// A slice that is only read: so many bytes, beginning at a multiple of `element` bytes.
    pub(super) fn reads(
        &mut self,
        what: &'static str,
        slice: Slice<'a>,
        bytes: usize,
        element: u64,
    ) -> Result<(), DeviceError> {
        self.fits(what, slice, bytes, element)?;
        self.apart(what, slice, &self.written)?;
        self.read.push((what, slice));
        Ok(())
    }

    /// A slice that is written: as above, and apart from all others.
    pub(super) fn writes(
        &mut self,
        what: &'static str,
        slice: Slice<'a>,
        bytes: usize,
        element: u64,
    ) -> Result<(), DeviceError> {
        self.fits(what, slice, bytes, element)?;
        self.apart(what, slice, &self.read)?;
        self.apart(what, slice, &self.written)?;
        self.written.push((what, slice));
        Ok(())
    }

    /// A condition that holds, or what is wrong.
    pub(super) fn wants(
        &self,
        holds: bool,
        problem: impl FnOnce() -> String,
    ) -> Result<(), DeviceError> {
        if holds { Ok(()) } else { Err(self.problem(problem())) }
    }

    /// A size as kernels count.
    pub(super) fn size(&self, what: &str, size: usize) -> Result<u32, DeviceError> {
        let small = u32::try_from(size).ok().filter(|size| *size < 1 << 31);
        small.ok_or_else(|| self.problem(format!("{what} is {size}, want at most 2^31 - 1")))
    }

    /// An error of this operation.
    pub(super) fn problem(&self, problem: String) -> DeviceError {
        DeviceError::Sizes { operation: self.operation, problem }
    }

    fn fits(
        &self,
        what: &str,
        slice: Slice<'_>,
        bytes: usize,
        element: u64,
    ) -> Result<(), DeviceError> {
        let got = slice.bytes();
        self.wants(got == bytes, || format!("{what} has {got} bytes, want {bytes}"))?;
        let aligned = bytes == 0 || slice.is_aligned(element);
        self.wants(aligned, || format!("{what} begins at no multiple of {element} bytes"))
    }

    fn apart(
        &self,
        what: &str,
        slice: Slice<'_>,
        others: &[(&str, Slice<'_>)],
    ) -> Result<(), DeviceError> {
        match others.iter().find(|(_, other)| slice.overlaps(*other)) {
            None => Ok(()),
            Some((other, _)) => Err(self.problem(format!("{what} overlaps with {other}"))),
        }
    }
}
