//! What the environment asked for, as the program meets it.
use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUresult;

use super::calls::{free, free_in, has, load, load_with_log, malloc, malloc_in};
use super::{Card, N, assert_fails, fill, scale};

pub(super) fn second_allocation_fails() {
    let card = Card::open(0);
    let first = malloc(64).unwrap();
    assert_fails(malloc(64), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let third = malloc(64).unwrap();
    free(first).unwrap();
    free(third).unwrap();
    drop(card);
}

pub(super) fn allocation_too_large() {
    let card = Card::open(0);
    let (free, total) = result::mem_get_info().unwrap();
    assert_eq!(total, 300 << 20);
    assert_fails(malloc(free + 1), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    // Room that a queued free will make counts.
    let stream = card.context.new_stream().unwrap();
    let half = free / 2 + 4096;
    for _ in 0..3 {
        let memory = malloc_in(stream.cu_stream(), half).unwrap();
        free_in(stream.cu_stream(), memory).unwrap();
    }
}

pub(super) fn second_launch_fails() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let memory = malloc(N * 4).unwrap();
    fill(&card, stream.cu_stream(), memory, 1.0).unwrap();
    stream.synchronize().unwrap();
    fill(&card, stream.cu_stream(), memory, 1.0).unwrap();
    assert_fails(stream.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert!(free(memory).is_err());
}

pub(super) fn launch_of_scale_fails() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let memory = malloc(N * 4).unwrap();
    fill(&card, stream.cu_stream(), memory, 1.0).unwrap();
    stream.synchronize().unwrap();
    scale(&card, stream.cu_stream(), (memory, memory), 1.0).unwrap();
    assert_fails(stream.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert!(free(memory).is_err());
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
    let (code, log) = load_with_log(ptx);
    assert_eq!(code, want);
    assert!(log.contains("PTX") || log.contains("sm_"), "{log}");
    drop(context);
}

/// What the crate documentation says does not exist does not.
pub(super) fn symbols() {
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
