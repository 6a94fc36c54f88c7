//! Kernels on a device. What a kernel takes is checked once, when it is looked up, against the list of
//! parameters in its PTX; a launch then has the right types because the compiler saw to it.
#![expect(unsafe_code, reason = "calls the driver, and launches kernels")]

use std::ffi::{CString, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUjit_option as Jit};

use super::device::Context;
use super::driver::OrFail;
use super::error::DeviceError;
use super::image::parameters;
use super::memory::Address;
use super::stream::Stream;

/// Dynamic shared memory that a block may have without asking.
const SHARED_BYTES_FREE: u32 = 48 * 1024;

/// The kernels of one PTX text, compiled by the driver for its card.
#[derive(Clone, Debug)]
pub struct Module(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    context: Arc<Context>,
    raw: sys::CUmodule,
    name: String,
    ptx: String,
}

// SAFETY: a module may be used from any thread whose current context is its own, and every call sees to that.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

/// A kernel that takes `A`.
pub struct Function<A> {
    module: Module,
    raw: sys::CUfunction,
    shared_bytes: u32,
    takes: PhantomData<fn(A)>,
}

// SAFETY: a handle into its module, which it keeps alive; used as the module is.
unsafe impl<A> Send for Function<A> {}
// SAFETY: as above.
unsafe impl<A> Sync for Function<A> {}

/// How many blocks, of how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub blocks: [u32; 3],
    pub threads: u32,
}

impl Grid {
    /// Blocks in one dimension.
    pub fn line(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads }
    }
}

/// A value that a kernel can be given.
pub trait Argument: Copy {
    /// Its type in a list of PTX parameters.
    const PTX: &'static str;
    /// Its bits, from the lowest byte on.
    fn slot(self) -> u64;
}

impl Argument for u32 {
    const PTX: &'static str = "u32";
    fn slot(self) -> u64 {
        u64::from(self)
    }
}

impl Argument for u64 {
    const PTX: &'static str = "u64";
    fn slot(self) -> u64 {
        self
    }
}

impl Argument for f32 {
    const PTX: &'static str = "f32";
    fn slot(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Argument for Address {
    const PTX: &'static str = "u64";
    fn slot(self) -> u64 {
        self.0
    }
}

/// All that a kernel takes, in order: a tuple of [`Argument`]s.
pub trait Arguments {
    const PTX: &'static [&'static str];
    /// Calls `launch` with a pointer to each value.
    fn with<R>(self, launch: impl FnOnce(&mut [*mut c_void]) -> R) -> R;
}

macro_rules! arguments {
    ($($name:ident)+) => {
        impl<$($name: Argument),+> Arguments for ($($name,)+) {
            const PTX: &'static [&'static str] = &[$($name::PTX),+];

            fn with<R>(self, launch: impl FnOnce(&mut [*mut c_void]) -> R) -> R {
                #[expect(non_snake_case, reason = "values are called as their types")]
                let ($($name,)+) = self;
                let mut slots = [$($name.slot()),+];
                let mut pointers = slots.each_mut().map(|slot| ptr::from_mut(slot).cast());
                launch(&mut pointers)
            }
        }
    };
}

arguments!(A);
arguments!(A B);
arguments!(A B C);
arguments!(A B C D);
arguments!(A B C D E);
arguments!(A B C D E F);
arguments!(A B C D E F G);
arguments!(A B C D E F G H);
arguments!(A B C D E F G H I);
arguments!(A B C D E F G H I J);
arguments!(A B C D E F G H I J K);
arguments!(A B C D E F G H I J K L);
arguments!(A B C D E F G H I J K L M);
arguments!(A B C D E F G H I J K L M N);
arguments!(A B C D E F G H I J K L M N O);
arguments!(A B C D E F G H I J K L M N O P);
arguments!(A B C D E F G H I J K L M N O P Q);
arguments!(A B C D E F G H I J K L M N O P Q S);

impl Module {
    pub(super) fn new(context: &Arc<Context>, name: &str, ptx: &str) -> Result<Self, DeviceError> {
        if !context.bind()? {
            let (context, name, ptx) = (Arc::clone(context), name.to_owned(), String::new());
            return Ok(Self(Arc::new(Loaded { context, raw: ptr::null_mut(), name, ptx })));
        }
        let refused = |problem: String| DeviceError::Image { image: name.to_owned(), problem };
        let text = CString::new(ptx)
            .map_err(|error| refused(format!("a zero byte at {}", error.nul_position())))?;
        let mut log = vec![0_u8; 8192];
        let mut options = [Jit::CU_JIT_ERROR_LOG_BUFFER, Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The second value is no pointer: the driver reads the size out of the pointer's own bits.
        let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(log.len())];
        let mut raw = ptr::null_mut();
        let n_options = options.len() as c_uint;
        // SAFETY: the text ends in a zero byte; options and values are as many as said; the log outlives
        // the call.
        let code = unsafe {
            sys::cuModuleLoadDataEx(
                &raw mut raw,
                text.as_ptr().cast(),
                n_options,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        code.result().or_fail("cuModuleLoadDataEx").map_err(|error| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]);
            refused(format!("{error}; {}", log.trim()))
        })?;
        let (context, name) = (Arc::clone(context), name.to_owned());
        Ok(Self(Arc::new(Loaded { context, raw, name, ptx: ptx.to_owned() })))
    }

    /// The kernel `name`, to be launched with `shared_bytes` of dynamic shared memory in every block.
    ///
    /// # Errors
    /// When there is none, when it takes something else than `A`, or when the card has less shared memory.
    pub fn function<A: Arguments>(
        &self,
        name: &str,
        shared_bytes: u32,
    ) -> Result<Function<A>, DeviceError> {
        let loaded = &*self.0;
        if !loaded.context.bind()? {
            let (module, raw) = (self.clone(), ptr::null_mut());
            return Ok(Function { module, raw, shared_bytes, takes: PhantomData });
        }
        let refused = |problem| DeviceError::Image { image: loaded.name.clone(), problem };
        let got = parameters(&loaded.ptx, name)
            .ok_or_else(|| refused(format!("it has no kernel {name}")))?;
        if got != A::PTX {
            let want = A::PTX.iter().map(|&name| name.to_owned()).collect();
            return Err(DeviceError::Signature { kernel: name.to_owned(), want, got });
        }
        let symbol = CString::new(name).map_err(|_| refused("a name with a zero byte".into()))?;
        // SAFETY: the module is loaded until `self.0` is dropped.
        let raw = unsafe { result::module::get_function(loaded.raw, symbol) }
            .or_fail("cuModuleGetFunction")?;
        if shared_bytes > SHARED_BYTES_FREE {
            let limit = loaded.context.properties().shared_bytes_max;
            if shared_bytes > limit {
                let kernel = name.to_owned();
                return Err(DeviceError::SharedMemory { kernel, bytes: shared_bytes, limit });
            }
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe {
                result::function::set_function_attribute(raw, attribute, shared_bytes as i32)
            }
            .or_fail("cuFuncSetAttribute")?;
        }
        Ok(Function { module: self.clone(), raw, shared_bytes, takes: PhantomData })
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if matches!(self.context.bind(), Ok(false)) {
            return;
        }
        // A kernel may still run. A lost device cannot be waited for; whoever used it has been told.
        let _ = self.context.synchronise();
        // SAFETY: loaded in `new`, unloaded once; functions keep it alive.
        let _ = unsafe { result::module::unload(self.raw) };
    }
}

impl<A: Arguments> Function<A> {
    /// Queues the kernel. Returns at once; a grid without blocks is nothing to do.
    ///
    /// # Safety
    /// The kernel, with these arguments and this grid, stays inside the memory that its addresses point to,
    /// and that memory lives until the stream has run it.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        grid: Grid,
        arguments: A,
    ) -> Result<(), DeviceError> {
        let context = &self.module.0.context;
        assert!(Arc::ptr_eq(context, stream.context()), "launch: a stream of another device");
        if grid.blocks.contains(&0) || !context.bind()? {
            return Ok(());
        }
        let ([x, y, z], threads) = (grid.blocks, (grid.threads, 1, 1));
        let (raw, shared, queue) = (self.raw, self.shared_bytes, stream.raw());
        let launched = arguments.with(|pointers| {
            // SAFETY: the function is loaded, takes what `pointers` point to (compared in `function`), and
            // the rest is the caller's promise.
            unsafe { result::launch_kernel(raw, (x, y, z), threads, shared, queue, pointers) }
        });
        launched.or_fail("cuLaunchKernel")
    }
}

impl<A> std::fmt::Debug for Function<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Function").field("shared_bytes", &self.shared_bytes).finish_non_exhaustive()
    }
}
