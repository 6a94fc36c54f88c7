//! Calls for `facts`: sound on a card, too, since every handle is live and every address is either
//! ours or refused.
#![expect(unsafe_code, reason = "the driver's C interface")]

use std::ptr;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys;

/// The calls.
pub(super) struct Raw;

impl Raw {
    pub(super) fn init(flags: u32) -> Result<(), DriverError> {
        // SAFETY: takes a number.
        unsafe { sys::cuInit(flags) }.result()
    }

    /// By number, since cudarc's type has only the known ones.
    pub(super) fn attribute(number: i32) -> Result<i32, DriverError> {
        type Get = unsafe extern "C" fn(*mut i32, i32, i32) -> sys::CUresult;
        // SAFETY: a driver was found, or nothing would have worked so far.
        let library = unsafe { sys::culib() };
        // SAFETY: `Get` is the type of `cuDeviceGetAttribute` with its enumeration as a number.
        let get = unsafe { library.get::<Get>(b"cuDeviceGetAttribute") }.unwrap();
        let mut value = 0;
        // SAFETY: writes one number.
        unsafe { get(&raw mut value, number, 0) }.result().map(|()| value)
    }

    pub(super) fn fill_words(to: u64, count: usize) -> Result<(), DriverError> {
        // SAFETY: the callers' memory holds what they count.
        unsafe { sys::cuMemsetD32Async(to, 0, count, ptr::null_mut()) }.result()
    }

    pub(super) fn download(from: u64, bytes: usize) -> Result<(), DriverError> {
        let mut to = vec![0u8; bytes];
        // SAFETY: `to` is ours until the call returns, and the call waits.
        unsafe { sys::cuMemcpyDtoH_v2(to.as_mut_ptr().cast(), from, bytes) }.result()
    }

    pub(super) fn upload(to: u64, bytes: usize) -> Result<(), DriverError> {
        let from = vec![0u8; bytes];
        // SAFETY: pageable memory is read before the call returns.
        unsafe { sys::cuMemcpyHtoD_v2(to, from.as_ptr().cast(), bytes) }.result()
    }

    pub(super) fn free_host(buffer: &mut [u8]) -> Result<(), DriverError> {
        // SAFETY: what was not allocated by the driver is refused.
        unsafe { sys::cuMemFreeHost(buffer.as_mut_ptr().cast()) }.result()
    }

    pub(super) fn register(buffer: &mut [u8]) -> Result<(), DriverError> {
        let (start, bytes) = (buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: the caller keeps the buffer until it is unregistered.
        unsafe { sys::cuMemHostRegister_v2(start, bytes, 0) }.result()
    }

    pub(super) fn unregister(buffer: &mut [u8]) -> Result<(), DriverError> {
        // SAFETY: what is not registered is refused.
        unsafe { sys::cuMemHostUnregister(buffer.as_mut_ptr().cast()) }.result()
    }

    pub(super) fn create_stream(flags: u32) -> Result<sys::CUstream, DriverError> {
        let mut stream = ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuStreamCreate(&raw mut stream, flags) }.result().map(|()| stream)
    }

    pub(super) fn query_stream(stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: the callers' stream is live.
        unsafe { sys::cuStreamQuery(stream) }.result()
    }

    pub(super) fn create_event(flags: u32) -> Result<sys::CUevent, DriverError> {
        let mut event = ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuEventCreate(&raw mut event, flags) }.result().map(|()| event)
    }

    pub(super) fn destroy_event(event: sys::CUevent) -> Result<(), DriverError> {
        // SAFETY: the callers' event is live, and not used again.
        unsafe { sys::cuEventDestroy_v2(event) }.result()
    }

    pub(super) fn record(event: sys::CUevent, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: both are live.
        unsafe { sys::cuEventRecord(event, stream) }.result()
    }

    pub(super) fn query(event: sys::CUevent) -> Result<(), DriverError> {
        // SAFETY: the event is live.
        unsafe { sys::cuEventQuery(event) }.result()
    }

    pub(super) fn elapsed(start: sys::CUevent, end: sys::CUevent) -> Result<f32, DriverError> {
        let mut millis = 0.0;
        // SAFETY: both are live; writes one number.
        unsafe { sys::cuEventElapsedTime(&raw mut millis, start, end) }.result().map(|()| millis)
    }

    /// Offset and size.
    pub(super) fn parameter(
        function: sys::CUfunction,
        index: usize,
    ) -> Result<(usize, usize), DriverError> {
        type Get =
            unsafe extern "C" fn(sys::CUfunction, usize, *mut usize, *mut usize) -> sys::CUresult;
        let (mut offset, mut size) = (0, 0);
        // SAFETY: a driver was found, or nothing would have worked so far.
        let library = unsafe { sys::culib() };
        // SAFETY: `Get` is the type of `cuFuncGetParamInfo`, which came with CUDA 12.4.
        let get = unsafe { library.get::<Get>(b"cuFuncGetParamInfo") }.unwrap();
        // SAFETY: the function is of a loaded module; writes two numbers.
        let code = unsafe { get(function, index, &raw mut offset, &raw mut size) };
        code.result().map(|()| (offset, size))
    }

    pub(super) fn occupancy(function: sys::CUfunction, threads: i32) -> Result<i32, DriverError> {
        let mut blocks = 0;
        let out = &raw mut blocks;
        // SAFETY: the function is of a loaded module; writes one number.
        unsafe { sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(out, function, threads, 0) }
            .result()
            .map(|()| blocks)
    }
}
