//! Order of work on a device, all of it explicit.
#![expect(unsafe_code, reason = "calls the driver")]

use std::ptr;
use std::sync::Arc;

use cudarc::driver::result::{self, stream::StreamKind};
use cudarc::driver::sys;

use super::Device;
use super::device::Context;
use super::driver::OrFail;
use super::error::DeviceError;
use super::memory::Slice;

/// A queue: its work runs in order, and in any order with that of another stream that no [`Event`] orders.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: a stream may be used from any thread whose current context is its own, and every call sees to that.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks its queue.
unsafe impl Sync for Stream {}

/// A mark in a stream. Reached when all that was queued before it has run.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: as for `Stream`.
unsafe impl Send for Event {}
// SAFETY: as for `Stream`.
unsafe impl Sync for Event {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let raw = if context.bind()? {
            result::stream::create(StreamKind::NonBlocking).or_fail("cuStreamCreate")?
        } else {
            ptr::null_mut()
        };
        Ok(Self { context: Arc::clone(context), raw })
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    pub(super) fn device(&self) -> Device {
        Device::of(&self.context)
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Copies to the device. The bytes have been read when this returns, but may not have arrived.
    pub fn upload(&self, to: Slice<'_>, bytes: &[u8]) -> Result<(), DeviceError> {
        assert_eq!(to.bytes(), bytes.len(), "upload: bytes");
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.context.bind()? {
            return Ok(());
        }
        // SAFETY: `to` is inside a live buffer. The source is pageable memory, which the driver has copied
        // away before it returns (API synchronisation behaviour, "Memcpy", asynchronous).
        unsafe { result::memcpy_htod_async(to.address().0, bytes, self.raw) }
            .or_fail("cuMemcpyHtoDAsync")
    }

    /// Copies from the device and waits for it.
    pub fn download(&self, from: Slice<'_>, bytes: &mut [u8]) -> Result<(), DeviceError> {
        assert_eq!(from.bytes(), bytes.len(), "download: bytes");
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.context.bind()? {
            return Ok(());
        }
        // SAFETY: `from` is inside a live buffer; `bytes` is borrowed until the wait below is over.
        unsafe { result::memcpy_dtoh_async(bytes, from.address().0, self.raw) }
            .or_fail("cuMemcpyDtoHAsync")?;
        self.synchronise()
    }

    /// Copies within the device. The two may not overlap.
    pub fn copy(&self, to: Slice<'_>, from: Slice<'_>) -> Result<(), DeviceError> {
        assert_eq!(to.bytes(), from.bytes(), "copy: bytes");
        assert!(!to.overlaps(from), "copy: the two overlap");
        if to.bytes() == 0 {
            return Ok(());
        }
        if !self.context.bind()? {
            return Ok(());
        }
        let (to, from, bytes) = (to.address().0, from.address().0, from.bytes());
        // SAFETY: both are inside live buffers.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.raw) }.or_fail("cuMemcpyDtoDAsync")
    }

    /// Sets every byte.
    pub fn fill(&self, to: Slice<'_>, byte: u8) -> Result<(), DeviceError> {
        if to.bytes() == 0 {
            return Ok(());
        }
        if !self.context.bind()? {
            return Ok(());
        }
        // SAFETY: `to` is inside a live buffer.
        unsafe { result::memset_d8_async(to.address().0, byte, to.bytes(), self.raw) }
            .or_fail("cuMemsetD8Async")
    }

    /// Marks this point of the stream; an earlier mark of the same event is forgotten.
    pub fn record(&self, event: &Event) -> Result<(), DeviceError> {
        if !self.context.bind()? {
            return Ok(());
        }
        // SAFETY: both are live and of this context.
        unsafe { result::event::record(event.raw, self.raw) }.or_fail("cuEventRecord")
    }

    /// Later work of this stream waits on the device until `event` is reached; the host does not wait.
    pub fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        if !self.context.bind()? {
            return Ok(());
        }
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are live; an event of another device may be waited for.
        unsafe { result::stream::wait_event(self.raw, event.raw, flags) }
            .or_fail("cuStreamWaitEvent")
    }

    /// Waits until all its work has run. What a kernel did wrong since the last wait is reported here.
    pub fn synchronise(&self) -> Result<(), DeviceError> {
        if !self.context.bind()? {
            return Ok(());
        }
        // SAFETY: the stream is live.
        unsafe { result::stream::synchronize(self.raw) }.or_fail("cuStreamSynchronize")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if matches!(self.context.bind(), Ok(false)) {
            return;
        }
        // SAFETY: created in `new`, destroyed once; the driver lets queued work finish.
        let _ = unsafe { result::stream::destroy(self.raw) };
    }
}

impl Event {
    pub(super) fn new(context: &Arc<Context>, timing: bool) -> Result<Self, DeviceError> {
        if !context.bind()? {
            return Ok(Self { context: Arc::clone(context), raw: ptr::null_mut() });
        }
        let flags = if timing {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let raw = result::event::create(flags).or_fail("cuEventCreate")?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// The host waits until it is reached.
    pub fn synchronise(&self) -> Result<(), DeviceError> {
        if !self.context.bind()? {
            return Ok(());
        }
        // SAFETY: the event is live.
        unsafe { result::event::synchronize(self.raw) }.or_fail("cuEventSynchronize")
    }

    /// Milliseconds of device time from `earlier` to this; both from `timing_event`, both reached.
    pub fn ms_since(&self, earlier: &Event) -> Result<f32, DeviceError> {
        if !self.context.bind()? {
            return Ok(0.0);
        }
        // SAFETY: both are live.
        unsafe { result::event::elapsed(earlier.raw, self.raw) }.or_fail("cuEventElapsedTime")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if matches!(self.context.bind(), Ok(false)) {
            return;
        }
        // SAFETY: created in `new`, destroyed once; a stream that waits for it still will.
        let _ = unsafe { result::event::destroy(self.raw) };
    }
}
