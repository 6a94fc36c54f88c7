//! Streams, events, functions of the host, and several cards.
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUresult;

use super::calls::{call_host, download, download_in, free, malloc};
use super::{Card, N, assert_all, assert_fails, fill, scale};

/// One stream makes numbers, another uses them.
pub(super) fn two_streams(waits: bool) {
    let card = Card::open(0);
    let bytes = N * 4;
    let maker = card.context.new_stream().unwrap();
    let user = card.context.new_stream().unwrap();
    let made = card.context.new_event(None).unwrap();
    let (a, b) = (malloc(bytes).unwrap(), malloc(bytes).unwrap());
    fill(&card, maker.cu_stream(), a, 3.0).unwrap();
    made.record(&maker).unwrap();
    if waits {
        user.wait(&made).unwrap();
    }
    scale(&card, user.cu_stream(), (b, a), 2.0).unwrap();
    let out = download_in(user.cu_stream(), b, N);
    user.synchronize().unwrap();
    maker.synchronize().unwrap();
    free(a).unwrap();
    free(b).unwrap();
    assert_all(&out, 6.0);
}

pub(super) fn two_cards() {
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let (first, second) = (Card::open(0), Card::open(1));
    assert_ne!(first.context.name().unwrap(), second.context.name().unwrap());
    let (on_first, on_second) =
        (first.context.new_stream().unwrap(), second.context.new_stream().unwrap());
    let a = on_first.clone_htod(&vec![5.0f32; N]).unwrap();
    // Across cards, through an event of the first.
    let b = on_second.clone_dtod(&a).unwrap();
    assert_all(&on_second.clone_dtoh(&b).unwrap(), 5.0);
}

pub(super) fn memory_of_the_other_card() {
    let (first, second) = (Card::open(0), Card::open(1));
    first.context.bind_to_thread().unwrap();
    let of_first = malloc(N * 4).unwrap();
    second.context.bind_to_thread().unwrap();
    fill(&second, ptr::null_mut(), of_first, 1.0).unwrap();
    assert_fails(second.context.synchronize(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    first.context.bind_to_thread().unwrap();
    free(of_first).expect("the first card is as it was");
}

static CALLED: AtomicU32 = AtomicU32::new(0);

pub(super) fn host_function() {
    let card = Card::open(0);
    let stream = card.context.new_stream().unwrap();
    let other = card.context.new_stream().unwrap();
    let memory = malloc(N * 4).unwrap();
    let release = call_host(stream.cu_stream(), || {
        CALLED.fetch_add(1, Ordering::SeqCst);
    });
    fill(&card, stream.cu_stream(), memory, 9.0).unwrap();
    let event = stream.record_event(None).unwrap();
    // However often one asks, nothing behind the function runs; other streams go on.
    for _ in 0..20 {
        assert_eq!(event.try_is_complete(), Ok(false));
    }
    other.synchronize().unwrap();
    assert_eq!(CALLED.load(Ordering::SeqCst), 0);
    release.send(()).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(CALLED.load(Ordering::SeqCst), 1);
    assert_eq!(event.try_is_complete(), Ok(true));
    assert_all(&download(memory, N), 9.0);
    free(memory).unwrap();
}
