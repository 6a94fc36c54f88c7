//! What the driver answers to questions that do no harm, one line each. The stand-in's answers are
//! compared with `facts.txt`; on a machine with a card the same scenario prints the card's:
//!
//! `SHOAL_TEST_SCENARIO=facts cargo test -p shoal-standin-driver --test cudarc scenario -- --nocapture`
#![expect(clippy::print_stdout, reason = "whoever started the scenario reads it")]

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{
    CUdevice_attribute as Device, CUfunction_attribute as Function, CUstream,
};

use super::calls::{self, free, launch, load, load_with_log, malloc};
use super::raw::Raw;
use super::{Card, PTX, arg};

/// Says how a call came out.
fn say<T>(question: &str, outcome: Result<T, DriverError>) {
    let answer = outcome.map_or_else(|error| format!("{:?}", error.0), |_| "success".to_owned());
    println!("fact: {question}: {answer}");
}

pub(super) fn facts() {
    say("cuInit with a flag", Raw::init(1));
    say("cuMemAlloc before a context is current", {
        result::init().unwrap();
        malloc(64)
    });
    let count = result::device::get_count().unwrap();
    say("a device too many", result::device::get(count));
    let card = Card::open(0);
    devices(&card);
    memory(&card);
    pinned_memory();
    streams_and_events(&card);
    modules(&card);
    launches(&card);
}

fn devices(card: &Card) {
    say("attribute 9999", Raw::attribute(9999));
    for (name, attribute) in [
        ("warp size", Device::CU_DEVICE_ATTRIBUTE_WARP_SIZE),
        ("threads of a block", Device::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
        ("z of a block", Device::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z),
        ("y of a grid", Device::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y),
        ("shared memory of a block", Device::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK),
        ("registers of a block", Device::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK),
        ("one address space", Device::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING),
        ("memory pools", Device::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED),
        ("shared memory kept back", Device::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK),
    ] {
        println!("fact: {name}: {}", card.context.attribute(attribute).unwrap());
    }
}

fn memory(card: &Card) {
    say("cuMemAlloc of nothing", malloc(0));
    say("cuMemAlloc of more than there is", malloc(card.context.total_mem().unwrap() + 1));
    let memory = malloc(1000).unwrap();
    println!("fact: an allocation is aligned to 256: {}", memory.is_multiple_of(256));
    say("cuMemsetD32 at an odd address", Raw::fill_words(memory + 2, 1));
    say("cuMemset of nothing", Raw::fill_words(memory, 0));
    say("cuMemcpyDtoH from no allocation", Raw::download(64, 4));
    say("cuMemcpyHtoD to no allocation", Raw::upload(64, 4));
    say("cuMemcpyHtoD of nothing", Raw::upload(memory, 0));
    say("cuMemFree inside an allocation", free(memory + 256));
    say("cuMemFree", free(memory));
    say("cuMemFree again", free(memory));
}

fn pinned_memory() {
    let mut buffer = vec![0u8; 1 << 16];
    say("cuMemFreeHost of what is not pinned", Raw::free_host(&mut buffer));
    say("cuMemHostUnregister of what is not pinned", Raw::unregister(&mut buffer));
    say("cuMemHostRegister", Raw::register(&mut buffer));
    say("cuMemHostRegister again", Raw::register(&mut buffer));
    say("cuMemHostUnregister", Raw::unregister(&mut buffer));
}

fn streams_and_events(card: &Card) {
    say("cuStreamCreate with an unknown flag", Raw::create_stream(1 << 10));
    say("cuEventCreate with an unknown flag", Raw::create_event(1 << 10));
    let [start, end, untimed] = [0, 0, 2].map(|flags| Raw::create_event(flags).unwrap());
    say("cuEventQuery before a record", Raw::query(start));
    say("cuEventElapsedTime before a record", Raw::elapsed(start, end));
    let stream = card.context.new_stream().unwrap();
    for event in [start, untimed, end] {
        Raw::record(event, stream.cu_stream()).unwrap();
    }
    stream.synchronize().unwrap();
    say("cuEventElapsedTime", Raw::elapsed(start, end));
    say("cuEventElapsedTime of an event without time", Raw::elapsed(start, untimed));
    say("cuStreamQuery of a stream that is done", Raw::query_stream(stream.cu_stream()));
    for event in [start, end, untimed] {
        Raw::destroy_event(event).unwrap();
    }
}

fn modules(card: &Card) {
    say("cuModuleLoadData of no PTX", load("no PTX at all"));
    say("PTX of version 99.0", load(&PTX.replace(".version 7.8", ".version 99.0")));
    let newer = PTX.replace(".target sm_80", ".target sm_121");
    say("PTX for sm_121", load(&newer));
    let (_, log) = load_with_log(&newer);
    println!("fact: its log names the target: {}", log.contains("sm_121"));
    say("cuModuleGetFunction of a name that is not there", card.try_kernel("nothing"));
    let kernel = card.kernel("bounded");
    for (name, attribute) in [
        ("threads of `bounded`", Function::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
        ("static shared memory of `bounded`", Function::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES),
        ("PTX target of `bounded`", Function::CU_FUNC_ATTRIBUTE_PTX_VERSION),
        (
            "dynamic shared memory of `bounded`",
            Function::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        ),
        ("carveout of `bounded`", Function::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT),
    ] {
        println!("fact: {name}: {}", calls::function_attribute(kernel, attribute).unwrap());
    }
    say("opting in to a gibibyte", calls::opt_in(kernel, 1 << 30));
    say("opting in to less than nothing", calls::opt_in(kernel, -1));
    for index in 0..4 {
        let info = Raw::parameter(card.kernel("fill"), index);
        println!("fact: parameter {index} of `fill`: {info:?}");
    }
    say("occupancy of blocks of no threads", Raw::occupancy(kernel, 0));
}

fn launches(card: &Card) {
    let out = malloc(4096).unwrap();
    let stream: CUstream = ptr::null_mut();
    let args: &mut [*mut c_void] = &mut [arg(&out)];
    let mut attempt = |question: &str, kernel, shape| {
        say(question, launch(card.kernel(kernel), shape, stream, args));
    };
    attempt("a block of no threads", "through_shared", (1, 0, 0));
    attempt("a block of 1025 threads", "through_shared", (1, 1025, 0));
    attempt("a grid of no blocks", "through_shared", (0, 32, 128));
    attempt("65 threads where `.maxntid` is 64", "bounded", (1, 65, 0));
    attempt("64 KiB of shared memory without opting in", "through_shared", (1, 32, 64 << 10));
    attempt("48 KiB of shared memory without opting in", "through_shared", (1, 32, 48 << 10));
    card.context.synchronize().unwrap();
    free(out).unwrap();
    say("after all that", card.context.synchronize());
}
