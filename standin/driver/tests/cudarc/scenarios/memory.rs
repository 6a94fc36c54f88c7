//! Memory of the card and pinned memory, used too early, too late or not given back.
use cudarc::driver::sys::CUresult;

use super::calls::{Pinned, download, free, malloc, pinned_slice};
use super::{Card, N, assert_all, assert_fails, fill};

pub(super) fn use_after_free() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let memory = malloc(N * 4).unwrap();
    free(memory).unwrap();
    fill(&card, stream.cu_stream(), memory, 1.0).unwrap();
    assert_fails(stream.synchronize(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

pub(super) fn freed_while_queued() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let memory = malloc(N * 4).unwrap();
    fill(&card, stream.cu_stream(), memory, 1.0).unwrap();
    free(memory).unwrap();
    assert_fails(stream.synchronize(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

pub(super) fn freed_twice() {
    let card = Card::open(0);
    let memory = malloc(64).unwrap();
    free(memory).unwrap();
    assert_fails(free(memory), CUresult::CUDA_ERROR_INVALID_VALUE);
    drop(card);
}

pub(super) fn pinned_source_reused() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let device = malloc(N * 4).unwrap();
    let staging = Pinned::new(N, 1.0);
    staging.upload(stream.cu_stream(), device);
    // Too early: the copy has not read it.
    staging.fill(2.0);
    stream.synchronize().unwrap();
    assert_all(&download(device, N), 2.0);
    free(device).unwrap();
    staging.free().unwrap();
}

pub(super) fn pinned_target_read_early() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let device = malloc(N * 4).unwrap();
    fill(&card, stream.cu_stream(), device, 7.0).unwrap();
    let staging = Pinned::new(N, 0.0);
    staging.download(stream.cu_stream(), device);
    // Too early: nothing has arrived, and what is there is no number.
    assert!(staging.get().iter().all(|value| value.is_nan()));
    // Worse: it is used for something else.
    staging.set(3, 1.0);
    stream.synchronize().unwrap();
    assert_all(&staging.get(), 7.0);
    free(device).unwrap();
    staging.free().unwrap();
}

pub(super) fn pinned_freed_while_queued() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let device = malloc(N * 4).unwrap();
    let staging = Pinned::new(N, 1.0);
    staging.upload(stream.cu_stream(), device);
    staging.free().unwrap();
    stream.synchronize().unwrap();
    free(device).unwrap();
}

pub(super) fn pinned_with_waits() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let mut staging = pinned_slice::<f32>(&card.context, N);
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
    malloc(4096).unwrap();
    Pinned::new(16, 0.0);
    std::mem::forget(card);
}
