//! What the environment asked for, as the program meets it.
#![expect(unsafe_code, reason = "cudarc's `result` layer is unsafe")]

use std::ffi::CString;
use std::ptr;

use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};

use super::{Card, N, assert_fails, fill, load, scale};

pub(super) fn second_allocation_fails() {
    let card = Card::open(0);
    let first = unsafe { result::malloc_sync(64) }.unwrap();
    assert_fails(unsafe { result::malloc_sync(64) }, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let third = unsafe { result::malloc_sync(64) }.unwrap();
    unsafe {
        result::free_sync(first).unwrap();
        result::free_sync(third).unwrap();
    }
    drop(card);
}

pub(super) fn allocation_too_large() {
    let card = Card::open(0);
    let (free, total) = result::mem_get_info().unwrap();
    assert_eq!(total, 300 << 20);
    assert_fails(unsafe { result::malloc_sync(free + 1) }, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    // Room that a queued free will make counts.
    let stream = card.context.new_stream().unwrap();
    let half = free / 2 + 4096;
    for _ in 0..3 {
        let memory = unsafe { result::malloc_async(stream.cu_stream(), half) }.unwrap();
        unsafe { result::free_async(memory, stream.cu_stream()) }.unwrap();
    }
}

pub(super) fn second_launch_fails() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let memory = unsafe { result::malloc_sync(N * 4) }.unwrap();
    fill(&card, stream.cu_stream(), memory, 1.0).unwrap();
    stream.synchronize().unwrap();
    fill(&card, stream.cu_stream(), memory, 1.0).unwrap();
    assert_fails(stream.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert!(unsafe { result::free_sync(memory) }.is_err());
}

pub(super) fn launch_of_scale_fails() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let memory = unsafe { result::malloc_sync(N * 4) }.unwrap();
    fill(&card, stream.cu_stream(), memory, 1.0).unwrap();
    stream.synchronize().unwrap();
    scale(&card, stream.cu_stream(), (memory, memory), 1.0).unwrap();
    assert_fails(stream.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert!(unsafe { result::free_sync(memory) }.is_err());
}

pub(super) fn card_is_lost(want: CUresult) {
    let card = Card::open(0);
    let failed = (0..100).find_map(|_| result::mem_get_info().err());
    assert_eq!(failed, Some(DriverError(want)));
    assert_fails(card.context.synchronize(), want);
}

pub(super) fn no_cards() {
    assert_fails(CudaContext::device_count(), CUresult::CUDA_ERROR_NO_DEVICE);
}

pub(super) fn retain_fails() {
    assert_fails(CudaContext::new(0).map(|_| ()), CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE);
}

/// The log of the compiler says why.
pub(super) fn ptx_refused(ptx: &str, want: CUresult) {
    let context = CudaContext::new(0).unwrap();
    assert_fails(load(ptx), want);
    let text = CString::new(ptx).unwrap();
    let mut log = [0u8; 256];
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [log.as_mut_ptr().cast(), ptr::without_provenance_mut(log.len())];
    let mut module = ptr::null_mut();
    let code = unsafe {
        sys::cuModuleLoadDataEx(
            &raw mut module,
            text.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    assert_eq!(code, want);
    let written = values[1].addr();
    assert!(written > 1 && written <= log.len(), "{written}");
    let log = std::str::from_utf8(&log[..written]).unwrap().trim_end_matches('\0');
    assert!(log.contains("PTX") || log.contains("sm_"), "{log}");
    drop(context);
}

/// What the crate documentation says does not exist does not.
pub(super) fn symbols() {
    let library = unsafe { sys::culib() };
    let has = |name: &str| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_ok();
    for name in ["cuInit", "cuLaunchKernel", "cuMemAllocAsync", "cuEventElapsedTime_v2"] {
        assert!(has(name), "{name}");
    }
    for name in
        ["cuMemAllocManaged", "cuGraphLaunch", "cuLaunchCooperativeKernel", "cuCtxCreate_v4"]
    {
        assert!(!has(name), "{name}");
    }
    result::init().unwrap();
}
