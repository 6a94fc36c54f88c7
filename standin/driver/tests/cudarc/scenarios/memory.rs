//! Memory of the card and pinned memory, used too early, too late or not given back.
#![expect(unsafe_code, reason = "cudarc's `result` layer is unsafe")]

use cudarc::driver::result;
use cudarc::driver::sys::CUresult;

use super::{Card, N, assert_all, assert_fails, fill};

pub(super) fn use_after_free() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let memory = unsafe { result::malloc_sync(N * 4) }.unwrap();
    unsafe { result::free_sync(memory) }.unwrap();
    fill(&card, stream.cu_stream(), memory, 1.0).unwrap();
    assert_fails(stream.synchronize(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

pub(super) fn freed_while_queued() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let memory = unsafe { result::malloc_sync(N * 4) }.unwrap();
    fill(&card, stream.cu_stream(), memory, 1.0).unwrap();
    unsafe { result::free_sync(memory) }.unwrap();
    assert_fails(stream.synchronize(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

pub(super) fn freed_twice() {
    let card = Card::open(0);
    let memory = unsafe { result::malloc_sync(64) }.unwrap();
    unsafe { result::free_sync(memory) }.unwrap();
    assert_fails(unsafe { result::free_sync(memory) }, CUresult::CUDA_ERROR_INVALID_VALUE);
    drop(card);
}

/// Pinned memory of `N` floats.
fn pinned(value: f32) -> &'static mut [f32] {
    let memory = unsafe { result::malloc_host(N * 4, 0) }.unwrap();
    let slice = unsafe { std::slice::from_raw_parts_mut(memory.cast::<f32>(), N) };
    slice.fill(value);
    slice
}

fn free_pinned(memory: &'static mut [f32]) {
    unsafe { result::free_host(memory.as_mut_ptr().cast()) }.unwrap();
}

pub(super) fn pinned_source_reused() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let device = unsafe { result::malloc_sync(N * 4) }.unwrap();
    let staging = pinned(1.0);
    unsafe { result::memcpy_htod_async(device, staging, stream.cu_stream()) }.unwrap();
    // Too early: the copy has not read it.
    staging.fill(2.0);
    stream.synchronize().unwrap();
    let mut out = vec![0.0f32; N];
    unsafe { result::memcpy_dtoh_sync(&mut out, device) }.unwrap();
    assert_all(&out, 2.0);
    unsafe { result::free_sync(device) }.unwrap();
    free_pinned(staging);
}

pub(super) fn pinned_target_read_early() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let device = unsafe { result::malloc_sync(N * 4) }.unwrap();
    fill(&card, stream.cu_stream(), device, 7.0).unwrap();
    let staging = pinned(0.0);
    unsafe { result::memcpy_dtoh_async(staging, device, stream.cu_stream()) }.unwrap();
    // Too early: nothing has arrived, and what is there is no number.
    assert!(staging.iter().all(|value| value.is_nan()));
    // Worse: it is used for something else.
    staging[3] = 1.0;
    stream.synchronize().unwrap();
    assert_all(staging, 7.0);
    unsafe { result::free_sync(device) }.unwrap();
    free_pinned(staging);
}

pub(super) fn pinned_freed_while_queued() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let device = unsafe { result::malloc_sync(N * 4) }.unwrap();
    let staging = pinned(1.0);
    unsafe { result::memcpy_htod_async(device, staging, stream.cu_stream()) }.unwrap();
    free_pinned(staging);
    stream.synchronize().unwrap();
    unsafe { result::free_sync(device) }.unwrap();
}

pub(super) fn pinned_with_waits() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let mut staging = unsafe { card.context.alloc_pinned::<f32>(N) }.unwrap();
    staging.as_mut_slice().unwrap().fill(4.0);
    let device = stream.clone_htod(&staging).unwrap();
    staging.as_mut_slice().unwrap().fill(0.0);
    stream.memcpy_dtoh(&device, &mut staging).unwrap();
    assert_all(staging.as_slice().unwrap(), 4.0);
    // There and back in one stream without the host in between is in order.
    let back = stream.clone_htod(&staging).unwrap();
    stream.memcpy_dtoh(&back, &mut staging).unwrap();
    assert_all(staging.as_slice().unwrap(), 4.0);
}

pub(super) fn leak() {
    let card = Card::open(0);
    std::mem::forget(card.context.new_stream().unwrap());
    std::mem::forget(card.context.new_event(None).unwrap());
    unsafe {
        result::malloc_sync(4096).unwrap();
        result::malloc_host(64, 0).unwrap();
    }
    std::mem::forget(card);
}
