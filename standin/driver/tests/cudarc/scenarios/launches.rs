//! Launches that fail, at the call or on the card.
use std::ptr;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUresult;

use super::calls::{download, free, launch, malloc, opt_in};
use super::{Card, N, arg, assert_fails, fill};

/// Launches `fill` at an address, and checks that the card's failure sticks.
fn fails_and_sticks(address: impl Fn(u64) -> u64, elements: usize, want: CUresult) {
    let card = Card::open(0);
    let memory = malloc(elements * 4).unwrap();
    fill(&card, ptr::null_mut(), address(memory), 1.0).unwrap();
    assert_fails(card.context.synchronize(), want);
    // From now on everything says the same.
    assert_fails(malloc(64), want);
    assert_fails(result::mem_get_info(), want);
    assert_fails(card.context.new_stream().map(|_| ()), want);
    assert_fails(card.try_kernel("fill"), want);
    assert_fails(free(memory), want);
    let text = DriverError(want).error_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(text, format!("{want:?}"));
}

pub(super) fn store_past_the_end() {
    fails_and_sticks(|memory| memory, N - 1, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

pub(super) fn store_misaligned() {
    fails_and_sticks(|memory| memory + 2, N + 1, CUresult::CUDA_ERROR_MISALIGNED_ADDRESS);
}

pub(super) fn trap() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    launch(card.kernel("gives_up"), (1, 32, 0), stream.cu_stream(), &mut []).unwrap();
    assert_fails(stream.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
}

pub(super) fn too_many_threads() {
    let card = Card::open(0);
    let out = malloc(4096).unwrap();
    let null = ptr::null_mut();
    let refused = |kernel, threads| {
        let shape = (1, threads, 0);
        assert_fails(
            launch(card.kernel(kernel), shape, null, &mut [arg(&out)]),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        );
    };
    refused("bounded", 65);
    refused("through_shared", 1025);
    refused("through_shared", 0);
    launch(card.kernel("bounded"), (1, 64, 0), null, &mut [arg(&out)]).unwrap();
    card.context.synchronize().unwrap();
    free(out).unwrap();
}

pub(super) fn shared(opts_in: bool) {
    let card = Card::open(0);
    let out = malloc(4096).unwrap();
    let kernel = card.kernel("through_shared");
    let bytes = 64 * 1024;
    if opts_in {
        opt_in(kernel, bytes).unwrap();
    }
    let launched = launch(kernel, (1, 1024, bytes as u32), ptr::null_mut(), &mut [arg(&out)]);
    if opts_in {
        launched.unwrap();
        let values: Vec<u32> = download(out, 1024);
        assert!(values.iter().enumerate().all(|(i, value)| i as u32 == *value));
    } else {
        assert_fails(launched, CUresult::CUDA_ERROR_INVALID_VALUE);
        // Nothing sticks: the launch was refused at the call.
        card.context.synchronize().unwrap();
    }
    free(out).unwrap();
}

pub(super) fn unknown_kernel() {
    let card = Card::open(0);
    assert_fails(card.try_kernel("nothing"), CUresult::CUDA_ERROR_NOT_FOUND);
}

pub(super) fn arguments_swapped() {
    let card = Card::open(0);
    let memory = malloc(N * 4).unwrap();
    let (value, n) = (1.0f32, [N as u32, 0]);
    // `fill(n, value, out)` where `fill(out, value, n)` is meant.
    let args = &mut [arg(&n), arg(&value), arg(&memory)];
    launch(card.kernel("fill"), (8, 128, 0), ptr::null_mut(), args).unwrap();
    assert_fails(card.context.synchronize(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(free(memory).is_err());
}

pub(super) fn argument_missing() {
    let card = Card::open(0);
    let memory = malloc(N * 4).unwrap();
    let value = 1.0f32;
    // Behind the two arguments lies what happens to lie there; here, nothing.
    let args = &mut [arg(&memory), arg(&value), ptr::null_mut()];
    let launched = launch(card.kernel("fill"), (8, 128, 0), ptr::null_mut(), args);
    assert_fails(launched, CUresult::CUDA_ERROR_INVALID_VALUE);
    free(memory).unwrap();
}
