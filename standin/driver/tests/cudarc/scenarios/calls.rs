//! cudarc's `result` layer as calls without `unsafe`. Sound here and only here: these run on the
//! stand-in, which answers any address of a card and any handle with a status and follows neither.
#![expect(unsafe_code, reason = "cudarc's `result` layer is unsafe")]

use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::mpsc::{Sender, channel};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, DeviceRepr, PinnedHostSlice};

pub(super) fn malloc(bytes: usize) -> Result<u64, DriverError> {
    // SAFETY: nobody reads what is in it before something was written.
    unsafe { result::malloc_sync(bytes) }
}

pub(super) fn malloc_in(stream: sys::CUstream, bytes: usize) -> Result<u64, DriverError> {
    // SAFETY: as above.
    unsafe { result::malloc_async(stream, bytes) }
}

pub(super) fn free(memory: u64) -> Result<(), DriverError> {
    // SAFETY: an address that is no allocation is an error of the stand-in's.
    unsafe { result::free_sync(memory) }
}

pub(super) fn free_in(stream: sys::CUstream, memory: u64) -> Result<(), DriverError> {
    // SAFETY: as above.
    unsafe { result::free_async(memory, stream) }
}

/// Through the default stream, and waits.
pub(super) fn download<T: Default + Clone>(from: u64, count: usize) -> Vec<T> {
    let mut to = vec![T::default(); count];
    // SAFETY: `to` is ours until the call returns, and the call waits.
    unsafe { result::memcpy_dtoh_sync(&mut to, from) }.unwrap();
    to
}

/// Through a stream, and waits, since the memory is pageable.
pub(super) fn download_in(stream: sys::CUstream, from: u64, count: usize) -> Vec<f32> {
    let mut to = vec![0.0; count];
    // SAFETY: as above; into pageable memory this call waits, too.
    unsafe { result::memcpy_dtoh_async(&mut to, from, stream) }.unwrap();
    to
}

pub(super) fn load(ptx: &str) -> Result<sys::CUmodule, DriverError> {
    let text = CString::new(ptx).unwrap();
    // SAFETY: the text ends with a zero and lives until the call returns.
    unsafe { result::module::load_data(text.as_ptr().cast()) }
}

/// With the log of the compiler.
pub(super) fn load_with_log(ptx: &str) -> (CUresult, String) {
    let text = CString::new(ptx).unwrap();
    let mut log = [0u8; 256];
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(log.len())];
    let mut module = ptr::null_mut();
    let (image, options) = (text.as_ptr().cast(), options.as_mut_ptr());
    // SAFETY: text, options, values and log live until the call returns; there are two of each.
    let code =
        unsafe { sys::cuModuleLoadDataEx(&raw mut module, image, 2, options, values.as_mut_ptr()) };
    let written = values[1].addr();
    assert!((1..log.len()).contains(&written), "{written}");
    assert_eq!(log[written], 0);
    (code, String::from_utf8(log[..written].to_vec()).unwrap())
}

pub(super) fn unload(module: sys::CUmodule) -> Result<(), DriverError> {
    // SAFETY: a handle that is no module is an error of the stand-in's.
    unsafe { result::module::unload(module) }
}

pub(super) fn function(module: sys::CUmodule, name: &str) -> Result<sys::CUfunction, DriverError> {
    // SAFETY: as above.
    unsafe { result::module::get_function(module, CString::new(name).unwrap()) }
}

pub(super) fn opt_in(function: sys::CUfunction, bytes: c_int) -> Result<(), DriverError> {
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: as above.
    unsafe { result::function::set_function_attribute(function, attribute, bytes) }
}

/// `shape` is blocks, threads of each and bytes of dynamic shared memory of each.
pub(super) fn launch(
    function: sys::CUfunction,
    (blocks, threads, shared): (u32, u32, u32),
    stream: sys::CUstream,
    args: &mut [*mut c_void],
) -> Result<(), DriverError> {
    // SAFETY: the stand-in reads arguments in a way that fails where one is not there.
    unsafe {
        result::launch_kernel(function, (blocks, 1, 1), (threads, 1, 1), shared, stream, args)
    }
}

/// Pinned memory of floats. Not a slice: the driver reads and writes it at times of its own.
#[derive(Clone, Copy)]
pub(super) struct Pinned {
    start: *mut f32,
    count: usize,
}

impl Pinned {
    pub(super) fn new(count: usize, value: f32) -> Self {
        // SAFETY: `set` below fills what is in it before anybody reads it.
        let start = unsafe { result::malloc_host(count * 4, 0) }.unwrap().cast();
        let pinned = Self { start, count };
        pinned.fill(value);
        pinned
    }

    pub(super) fn set(self, index: usize, value: f32) {
        assert!(index < self.count);
        let place = self.start.wrapping_add(index);
        // SAFETY: inside the allocation; only this thread and the driver, in its calls, touch it.
        unsafe { place.write_volatile(value) }
    }

    pub(super) fn fill(self, value: f32) {
        (0..self.count).for_each(|index| self.set(index, value));
    }

    pub(super) fn get(self) -> Vec<f32> {
        let at = |index| {
            let place = self.start.wrapping_add(index);
            // SAFETY: as for `set`.
            unsafe { place.read_volatile() }
        };
        (0..self.count).map(at).collect()
    }

    /// Queues a copy to the card.
    pub(super) fn upload(self, stream: sys::CUstream, to: u64) {
        let from = self.start.cast_const().cast();
        // SAFETY: releasing pinned memory waits for the copies that use it.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, self.count * 4, stream) }.result().unwrap();
    }

    /// Queues a copy from the card.
    pub(super) fn download(self, stream: sys::CUstream, from: u64) {
        let to = self.start.cast();
        // SAFETY: as above.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, self.count * 4, stream) }.result().unwrap();
    }

    pub(super) fn free(self) -> Result<(), DriverError> {
        // SAFETY: memory that is not pinned any more is an error of the stand-in's; nothing reads
        // it after this.
        unsafe { result::free_host(self.start.cast()) }
    }
}

/// cudarc's own pinned memory.
pub(super) fn pinned_slice<T: DeviceRepr>(
    context: &std::sync::Arc<CudaContext>,
    count: usize,
) -> PinnedHostSlice<T> {
    // SAFETY: whoever calls this fills it before reading it.
    unsafe { context.alloc_pinned(count) }.unwrap()
}

type Returns = Box<dyn FnOnce() + Send>;

unsafe extern "C" fn run(argument: *mut c_void) {
    // SAFETY: `call_host` made the argument with `into_raw`, and the driver calls this once.
    let function = unsafe { Box::from_raw(argument.cast::<Returns>()) };
    function();
}

/// Queues a function of the host that ends when the sender says so, and then calls `done`.
pub(super) fn call_host(stream: sys::CUstream, done: impl FnOnce() + Send + 'static) -> Sender<()> {
    let (release, released) = channel();
    let function: Returns = Box::new(move || {
        released.recv().unwrap();
        done();
    });
    let argument = Box::into_raw(Box::new(function)).cast();
    // SAFETY: `run` takes the argument once, on whatever thread; it is `Send`.
    unsafe { result::stream::launch_host_function(stream, run, argument) }.unwrap();
    release
}

/// Whether the loaded driver has a function.
pub(super) fn has(name: &str) -> bool {
    // SAFETY: the stand-in was found, or the scenario would have ended before.
    let library = unsafe { sys::culib() };
    // SAFETY: the address is looked up and not used.
    unsafe { library.get::<*const ()>(name.as_bytes()) }.is_ok()
}

pub(super) fn function_attribute(
    function: sys::CUfunction,
    attribute: sys::CUfunction_attribute,
) -> Result<i32, DriverError> {
    // SAFETY: the callers' functions are of a module that is loaded.
    unsafe { result::function::get_function_attribute(function, attribute) }
}
