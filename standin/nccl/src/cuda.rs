//! The few functions of the driver that are called, of the `libcuda` that the process has.
#![expect(unsafe_code, reason = "calls the driver")]

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

use libloading::Library;

use crate::data::{Code, Fault};

/// The driver's library.
#[derive(Debug)]
pub(crate) struct Cuda(Library);

/// Pinned memory of the host, and the stream of a context in which it is used.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) start: *mut u8,
    pub(crate) bytes: usize,
    pub(crate) stream: u64,
}

// SAFETY: it is plain memory, whose use is ordered by its stream.
unsafe impl Send for Pinned {}

pub(crate) type HostFunction = unsafe extern "C" fn(*mut c_void);

impl Cuda {
    pub(crate) fn open() -> Result<Self, Fault> {
        // SAFETY: the driver's initialisers have run: whoever calls has made a context with it.
        let library = unsafe { Library::new("libcuda.so.1") };
        library.map(Self).map_err(|error| Fault::new(Code::UnhandledCudaError, error.to_string()))
    }

    fn function<T: Copy>(&self, name: &str) -> Result<T, Fault> {
        // SAFETY: every caller names the type that `cuda.h` has for the function.
        let found = unsafe { self.0.get::<T>(name.as_bytes()) };
        found
            .map(|symbol| *symbol)
            .map_err(|error| Fault::new(Code::UnhandledCudaError, format!("{name}: {error}")))
    }

    /// The context that is current in this thread.
    pub(crate) fn context(&self) -> Result<u64, Fault> {
        const NAME: &str = "cuCtxGetCurrent";
        let call: unsafe extern "C" fn(*mut u64) -> c_int = self.function(NAME)?;
        let mut context = 0;
        // SAFETY: the result has the size of a handle.
        check(NAME, unsafe { call(&raw mut context) })?;
        if context == 0 {
            return Err(Fault::new(Code::InvalidUsage, "no context is current in this thread"));
        }
        Ok(context)
    }

    pub(crate) fn set_context(&self, context: u64) -> Result<(), Fault> {
        const NAME: &str = "cuCtxSetCurrent";
        let call: unsafe extern "C" fn(u64) -> c_int = self.function(NAME)?;
        // SAFETY: the driver looks whether it is one.
        check(NAME, unsafe { call(context) })
    }

    /// The ordinal of the current context's device.
    pub(crate) fn device(&self) -> Result<c_int, Fault> {
        const NAME: &str = "cuCtxGetDevice";
        let call: unsafe extern "C" fn(*mut c_int) -> c_int = self.function(NAME)?;
        let mut device = 0;
        // SAFETY: the result is an int.
        check(NAME, unsafe { call(&raw mut device) })?;
        Ok(device)
    }

    pub(crate) fn pinned(&self, bytes: usize, stream: u64) -> Result<Pinned, Fault> {
        const NAME: &str = "cuMemHostAlloc";
        let call: unsafe extern "C" fn(*mut *mut u8, usize, c_uint) -> c_int =
            self.function(NAME)?;
        let mut start = ptr::null_mut();
        // SAFETY: the result is a pointer; it is freed once, in `free`.
        check(NAME, unsafe { call(&raw mut start, bytes, 0) })?;
        // SAFETY: so many bytes are there, and nobody else has them.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { start, bytes, stream })
    }

    /// Waits for all that uses it, and gives it back.
    pub(crate) fn free(&self, pinned: Pinned) -> Result<(), Fault> {
        const NAME: &str = "cuMemFreeHost";
        self.synchronise(pinned.stream)?;
        let call: unsafe extern "C" fn(*mut u8) -> c_int = self.function(NAME)?;
        // SAFETY: allocated in `pinned`, and freed once, since it is moved here.
        check(NAME, unsafe { call(pinned.start) })
    }

    pub(crate) fn synchronise(&self, stream: u64) -> Result<(), Fault> {
        const NAME: &str = "cuStreamSynchronize";
        let call: unsafe extern "C" fn(u64) -> c_int = self.function(NAME)?;
        // SAFETY: the driver looks whether it is a stream.
        check(NAME, unsafe { call(stream) })
    }

    /// Queues a copy from the device to `pinned`, from byte `at` on.
    pub(crate) fn down(
        &self,
        pinned: &Pinned,
        at: usize,
        from: u64,
        bytes: usize,
    ) -> Result<(), Fault> {
        const NAME: &str = "cuMemcpyDtoHAsync_v2";
        assert!(at + bytes <= pinned.bytes, "down: bytes");
        let call: unsafe extern "C" fn(*mut u8, u64, usize, u64) -> c_int = self.function(NAME)?;
        // SAFETY: it is inside, as was checked.
        let to = unsafe { pinned.start.add(at) };
        // SAFETY: so many bytes are there; the driver knows what is at `from`.
        check(NAME, unsafe { call(to, from, bytes, pinned.stream) })
    }

    /// And back.
    pub(crate) fn up(
        &self,
        pinned: &Pinned,
        at: usize,
        to: u64,
        bytes: usize,
    ) -> Result<(), Fault> {
        const NAME: &str = "cuMemcpyHtoDAsync_v2";
        assert!(at + bytes <= pinned.bytes, "up: bytes");
        let call: unsafe extern "C" fn(u64, *const u8, usize, u64) -> c_int =
            self.function(NAME)?;
        // SAFETY: it is inside, as was checked.
        let from = unsafe { pinned.start.add(at) };
        // SAFETY: so many bytes are there; the driver knows what is at `to`.
        check(NAME, unsafe { call(to, from, bytes, pinned.stream) })
    }

    /// Queues a function of the host.
    pub(crate) fn call_host(
        &self,
        stream: u64,
        function: HostFunction,
        argument: *mut c_void,
    ) -> Result<(), Fault> {
        const NAME: &str = "cuLaunchHostFunc";
        let call: unsafe extern "C" fn(u64, HostFunction, *mut c_void) -> c_int =
            self.function(NAME)?;
        // SAFETY: the function takes this argument, as its caller says.
        check(NAME, unsafe { call(stream, function, argument) })
    }
}

fn check(name: &str, status: c_int) -> Result<(), Fault> {
    if status == 0 {
        return Ok(());
    }
    Err(Fault::new(Code::UnhandledCudaError, format!("{name}: error {status} of the driver")))
}
