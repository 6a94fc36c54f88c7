//! The driver's library: whether it is there, and what its answers mean.
//!
//! cudarc panics where the library or a function of it is missing, so both are looked up before the first
//! call. Its safe layer orders streams behind our back and is not used: here are `result` and `sys`.
#![expect(unsafe_code, reason = "asks the dynamic loader")]

use std::sync::OnceLock;

use cudarc::driver::{result, sys};

use super::error::{DeviceError, Version};
use super::image::Arch;

/// Every function of libcuda that is called, by the name cudarc looks up.
const SYMBOLS: [&str; 35] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
];

/// Ready to be called, from any thread, or the reason why not. Looked up once in a process.
pub(super) fn ready() -> Result<(), DeviceError> {
    static READY: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    READY.get_or_init(look_up).clone()
}

fn look_up() -> Result<(), DeviceError> {
    // SAFETY: loads libcuda if there is one; its initialisers are NVIDIA's to answer for.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    // SAFETY: as above; the library is there, so this does not panic.
    let library = unsafe { sys::culib() };
    for symbol in SYMBOLS {
        // SAFETY: the symbol is only looked for; as a plain pointer it is never called.
        let found = unsafe { library.get::<*const ()>(symbol.as_bytes()) };
        if found.is_err() {
            let (needs, release) = (Arch::Sm80.cuda_min(), Arch::Sm80.driver_min());
            return Err(DeviceError::SymbolMissing { symbol, needs, release });
        }
    }
    match result::init() {
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            Err(DeviceError::NoSuchGpu { ordinal: 0, count: 0 })
        }
        other => other.or_fail("cuInit"),
    }
}

/// What CUDA the driver supports. Only once [`ready`].
pub(super) fn version() -> Result<Version, DeviceError> {
    let mut version = 0;
    // SAFETY: writes one integer.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    code.result().or_fail("cuDriverGetVersion")?;
    Ok(Version::from_driver(version))
}

/// Names the call whose answer a result is.
pub(super) trait OrFail<T> {
    fn or_fail(self, call: &'static str) -> Result<T, DeviceError>;
}

impl<T> OrFail<T> for Result<T, result::DriverError> {
    fn or_fail(self, call: &'static str) -> Result<T, DeviceError> {
        self.map_err(|error| {
            let text = error.error_string().map_or_else(
                |_| "the driver has no text for it".to_owned(),
                |text| text.to_string_lossy().into_owned(),
            );
            DeviceError::Driver { call, code: format!("{:?}", error.0), text }
        })
    }
}
