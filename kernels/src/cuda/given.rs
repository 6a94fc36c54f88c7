//! What an operation was given, looked at before anything is launched, where it is one slice after the other: each is
//! held against those before it. What does not fit is [`Check`]'s error.

use super::check::Check;
use super::error::DeviceError;
use super::memory::Slice;

/// The slices of one call.
pub(super) struct Given<'a> {
    check: Check,
    read: Vec<(&'static str, Slice<'a>)>,
    written: Vec<(&'static str, Slice<'a>)>,
}

impl<'a> Given<'a> {
    pub(super) fn new(operation: &'static str) -> Self {
        let (read, written) = (Vec::with_capacity(8), Vec::with_capacity(4));
        Self { check: Check(operation), read, written }
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
        self.check.apart(&[(what, slice)], &self.written)?;
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
        self.check.apart(&[(what, slice)], &self.read)?;
        self.check.apart(&[(what, slice)], &self.written)?;
        self.written.push((what, slice));
        Ok(())
    }

    /// A condition that holds, or what is wrong.
    pub(super) fn wants(
        &self,
        holds: bool,
        problem: impl FnOnce() -> String,
    ) -> Result<(), DeviceError> {
        if holds { Ok(()) } else { self.check.wrong(problem()) }
    }

    /// A size as kernels count.
    pub(super) fn size(&self, what: &str, size: usize) -> Result<u32, DeviceError> {
        self.check.number(what, size)
    }

    /// An error of this operation.
    pub(super) fn problem(&self, problem: String) -> DeviceError {
        self.check.problem(problem)
    }

    /// Nothing begins anywhere.
    fn fits(
        &self,
        what: &str,
        slice: Slice<'_>,
        bytes: usize,
        element: u64,
    ) -> Result<(), DeviceError> {
        let got = slice.bytes();
        self.wants(got == bytes, || format!("{what} has {got} bytes, want {bytes}"))?;
        let step = if bytes == 0 { 1 } else { element };
        self.check.bytes_from(what, slice, (bytes, step))
    }
}
