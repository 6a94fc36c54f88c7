//! One GPU of this machine, opened.
#![expect(unsafe_code, reason = "calls the driver")]

use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::driver::{self, OrFail};
use super::error::{DeviceError, Version};
use super::image::{Arch, Program};
use super::memory::Buffer;
use super::module::Module;
use super::stream::{Event, Stream};

/// What a card says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    pub name: String,
    /// Major, minor.
    pub compute_capability: (u32, u32),
    pub memory_bytes: usize,
    pub multiprocessors: u32,
    /// Most dynamic shared memory that one block may have, once opted in.
    pub shared_bytes_max: u32,
    /// What CUDA the driver supports.
    pub driver: Version,
}

/// An open GPU. A clone is the same device; the last one closes it.
#[derive(Clone, Debug)]
pub struct Device(Arc<Context>);

/// The device's primary context, shared with whatever else this process does on it.
#[derive(Debug)]
pub(super) struct Context {
    ordinal: usize,
    device: sys::CUdevice,
    /// None of a device that is imagined.
    raw: Option<sys::CUcontext>,
    arch: Arch,
    properties: Properties,
}

// SAFETY: a context may be used from any thread that has made it current, and every call of ours does.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what its threads share.
unsafe impl Sync for Context {}

impl Device {
    /// How many GPUs there are.
    ///
    /// # Errors
    /// Without a driver, or with one that does not start.
    pub fn count() -> Result<usize, DeviceError> {
        match driver::ready() {
            Ok(()) => {
                result::device::get_count().or_fail("cuDeviceGetCount").map(|count| count as usize)
            }
            Err(DeviceError::NoSuchGpu { .. }) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Opens a GPU, counted from 0 in the driver's order.
    ///
    /// # Errors
    /// No driver; a driver too old for the PTX in this binary; no such GPU; one that is older than compute
    /// capability 8.0; one that another process has for itself.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(DeviceError::NoSuchGpu { ordinal, count });
        }
        let device = result::device::get(ordinal as i32).or_fail("cuDeviceGet")?;
        let properties = properties(device)?;
        let capability = properties.compute_capability;
        let Some(arch) = Arch::serving(capability) else {
            return Err(DeviceError::CardTooOld { ordinal, name: properties.name, capability });
        };
        if properties.driver < arch.cuda_min() {
            return Err(DeviceError::DriverTooOld {
                has: properties.driver,
                needs: arch.cuda_min(),
                release: arch.driver_min(),
                name: properties.name,
                capability,
            });
        }
        let raw = Some(retain(ordinal, device, &properties)?);
        let opened = Self(Arc::new(Context { ordinal, device, raw, arch, properties }));
        opened.0.bind()?;
        Ok(opened)
    }

    /// A device that is none, for whoever wants to know what work would take before there is any. Every call succeeds at
    /// once and does nothing: memory has addresses and no bytes, what is copied to the host stays as it was there, and
    /// nothing runs.
    pub fn imagined() -> Self {
        let version = Version::from_driver(0);
        let properties = Properties {
            name: "an imagined device".to_owned(),
            compute_capability: (8, 9),
            memory_bytes: usize::MAX,
            multiprocessors: 1,
            shared_bytes_max: u32::MAX,
            driver: version,
        };
        let (arch, raw) = (Arch::Sm89, None);
        Self(Arc::new(Context { ordinal: 0, device: 0, raw, arch, properties }))
    }

    pub(super) fn is_imagined(&self) -> bool {
        self.0.raw.is_none()
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.0
    }

    /// The device of something that was made on it.
    pub(super) fn of(context: &Arc<Context>) -> Self {
        Self(Arc::clone(context))
    }

    pub fn ordinal(&self) -> usize {
        self.0.ordinal
    }

    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    /// Which of the shipped images this device runs.
    pub fn arch(&self) -> Arch {
        self.0.arch
    }

    /// Free and total bytes of its memory, other processes' included.
    pub fn memory(&self) -> Result<(usize, usize), DeviceError> {
        if !self.0.bind()? {
            return Ok((usize::MAX, usize::MAX));
        }
        result::mem_get_info().or_fail("cuMemGetInfo")
    }

    /// `bytes` of memory whose content is undefined, aligned to 256. `what` is named when there is no room.
    pub fn buffer(&self, what: &str, bytes: usize) -> Result<Buffer, DeviceError> {
        Buffer::new(&self.0, what, bytes)
    }

    /// A queue of work, ordered with nothing but itself.
    pub fn stream(&self) -> Result<Stream, DeviceError> {
        Stream::new(&self.0)
    }

    /// A mark in a stream that other streams and the host can wait for.
    pub fn event(&self) -> Result<Event, DeviceError> {
        Event::new(&self.0, false)
    }

    /// An event that keeps the time at which it was reached.
    pub fn timing_event(&self) -> Result<Event, DeviceError> {
        Event::new(&self.0, true)
    }

    /// Loads the kernels of one `.cu` file.
    pub fn load(&self, program: &Program) -> Result<Module, DeviceError> {
        let name = format!("{} for {}", program.name(), self.0.arch);
        // Nobody compiles an imagined device's, and it would take most of a plan's time to unpack.
        let ptx = if self.0.raw.is_some() { program.ptx(self.0.arch)? } else { String::new() };
        Module::new(&self.0, &name, &ptx)
    }

    /// Loads PTX from elsewhere: a test's variant of a kernel.
    pub fn load_ptx(&self, name: &str, ptx: &str) -> Result<Module, DeviceError> {
        Module::new(&self.0, name, ptx)
    }

    /// Waits for everything on this device.
    pub fn synchronise(&self) -> Result<(), DeviceError> {
        self.0.synchronise()
    }
}

impl Context {
    /// Makes this context the calling thread's. False of a device that is imagined: there is nothing to call.
    pub(super) fn bind(&self) -> Result<bool, DeviceError> {
        let Some(raw) = self.raw else { return Ok(false) };
        // SAFETY: the context is retained until `self` is dropped.
        unsafe { result::ctx::set_current(raw) }.or_fail("cuCtxSetCurrent")?;
        Ok(true)
    }

    pub(super) fn synchronise(&self) -> Result<(), DeviceError> {
        if !self.bind()? {
            return Ok(());
        }
        result::ctx::synchronize().or_fail("cuCtxSynchronize")
    }

    pub(super) fn properties(&self) -> &Properties {
        &self.properties
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.raw.is_none() {
            return;
        }
        // SAFETY: retained once in `open`, released once here; everything made in it holds an `Arc` of it.
        // A device that is lost cannot be closed either, and whoever used it has been told.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<i32, DeviceError> {
    // SAFETY: the device came from `cuDeviceGet`.
    unsafe { result::device::get_attribute(device, attribute) }.or_fail("cuDeviceGetAttribute")
}

fn properties(device: sys::CUdevice) -> Result<Properties, DeviceError> {
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let shared = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    // SAFETY: the device came from `cuDeviceGet`.
    let memory_bytes = unsafe { result::device::total_mem(device) }.or_fail("cuDeviceTotalMem")?;
    Ok(Properties {
        name: result::device::get_name(device).or_fail("cuDeviceGetName")?,
        compute_capability: (major as u32, minor as u32),
        memory_bytes,
        multiprocessors: multiprocessors as u32,
        shared_bytes_max: attribute(device, shared)? as u32,
        driver: driver::version()?,
    })
}

/// Takes the primary context.
fn retain(
    ordinal: usize,
    device: sys::CUdevice,
    properties: &Properties,
) -> Result<sys::CUcontext, DeviceError> {
    let mode = match attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE)? {
        2 => Some("prohibited"),
        3 => Some("exclusive process"),
        _ => None,
    };
    // SAFETY: the device came from `cuDeviceGet`; released when the context is dropped.
    let retained = unsafe { result::primary_ctx::retain(device) };
    let in_use = |mode| DeviceError::InUse { ordinal, name: properties.name.clone(), mode };
    match (retained, mode) {
        (Err(DriverError(CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE)), mode) => {
            Err(in_use(mode.unwrap_or("default")))
        }
        // How drivers before CUDA 12 say the same.
        (Err(DriverError(CUresult::CUDA_ERROR_INVALID_DEVICE)), Some(mode)) => Err(in_use(mode)),
        (Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)), _) => {
            let total = properties.memory_bytes;
            let what = "the driver's own context".to_owned();
            Err(DeviceError::OutOfMemory { what, bytes: 0, free: 0, total })
        }
        (retained, _) => retained.or_fail("cuDevicePrimaryCtxRetain"),
    }
}
