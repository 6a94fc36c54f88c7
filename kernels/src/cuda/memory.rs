//! Memory of a device: owned by a [`Buffer`], seen through a [`Slice`].
#![expect(unsafe_code, reason = "calls the driver")]

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUresult;

use super::device::Context;
use super::driver::OrFail;
use super::error::DeviceError;

/// Where memory of an imagined device begins: anywhere, as well aligned as the driver's.
const IMAGINED: u64 = 1 << 20;

/// Bytes on a device. Dropping it waits for the device, so that no kernel is left writing into it.
#[derive(Debug)]
pub struct Buffer {
    context: Arc<Context>,
    address: u64,
    bytes: usize,
}

/// Part of a buffer. A copy names the same bytes: who may write them when is said by streams and events.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    address: u64,
    bytes: usize,
    buffer: PhantomData<&'a Buffer>,
}

/// Where a slice begins, as a kernel gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub(super) u64);

impl Buffer {
    pub(super) fn new(
        context: &Arc<Context>,
        what: &str,
        bytes: usize,
    ) -> Result<Self, DeviceError> {
        let is_there = context.bind()?;
        let address = if bytes == 0 {
            // The driver refuses an allocation of nothing.
            0
        } else if !is_there {
            IMAGINED
        } else {
            // SAFETY: the context is current; freed once, in `drop`.
            match unsafe { result::malloc_sync(bytes) } {
                Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                    let (free, total) = result::mem_get_info().or_fail("cuMemGetInfo")?;
                    let what = what.to_owned();
                    return Err(DeviceError::OutOfMemory { what, bytes, free, total });
                }
                other => other.or_fail("cuMemAlloc")?,
            }
        };
        Ok(Self { context: Arc::clone(context), address, bytes })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it.
    pub fn all(&self) -> Slice<'_> {
        Slice { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }

    /// A range of bytes.
    pub fn slice(&self, range: Range<usize>) -> Slice<'_> {
        self.all().slice(range)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes == 0 || matches!(self.context.bind(), Ok(false)) {
            return;
        }
        // A lost device cannot be waited for; whoever used it has been told.
        let _ = self.context.synchronise();
        // SAFETY: allocated in `new`, freed once, and nothing on the device uses it any more.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

impl Slice<'_> {
    pub fn bytes(self) -> usize {
        self.bytes
    }

    pub fn address(self) -> Address {
        Address(self.address)
    }

    /// A range of its bytes.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.bytes,
            "slice: bytes {range:?} of {}",
            self.bytes
        );
        let address = self.address + range.start as u64;
        Slice { address, bytes: range.len(), buffer: PhantomData }
    }

    /// Whether a kernel may read it `bytes` at a time.
    pub fn is_aligned(self, bytes: u64) -> bool {
        self.address.is_multiple_of(bytes)
    }

    /// Whether two slices share a byte.
    pub fn overlaps(self, other: Slice<'_>) -> bool {
        let end = |slice: Slice<'_>| slice.address + slice.bytes as u64;
        self.address < end(other) && other.address < end(self)
    }
}
