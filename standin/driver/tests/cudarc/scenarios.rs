//! What the children do: host code over cudarc, as somebody would write it for a card, right or
//! with one mistake.
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};

mod calls;
mod launches;
mod memory;
mod mishaps;
mod order;

use calls::{launch, load};

const PTX: &str = include_str!("probe.ptx");

/// Elements of the usual buffer.
const N: usize = 1000;

/// Runs one scenario; a panic is a failure that the parent sees.
pub(crate) fn run(name: &str) {
    match name {
        "properties_and_scale" => properties_and_scale(),
        "two_streams_with_wait" => order::two_streams(true),
        "two_streams_without_wait" => order::two_streams(false),
        "two_cards" => order::two_cards(),
        "memory_of_the_other_card" => order::memory_of_the_other_card(),
        "store_past_the_end" => launches::store_past_the_end(),
        "store_misaligned" => launches::store_misaligned(),
        "trap" => launches::trap(),
        "too_many_threads" => launches::too_many_threads(),
        "no_shared_opt_in" => launches::shared(false),
        "shared_opt_in" => launches::shared(true),
        "unknown_kernel" => launches::unknown_kernel(),
        "arguments_swapped" => launches::arguments_swapped(),
        "argument_missing" => launches::argument_missing(),
        "use_after_free" => memory::use_after_free(),
        "freed_while_queued" => memory::freed_while_queued(),
        "freed_twice" => memory::freed_twice(),
        "pinned_source_reused" => memory::pinned_source_reused(),
        "pinned_target_read_early" => memory::pinned_target_read_early(),
        "pinned_freed_while_queued" => memory::pinned_freed_while_queued(),
        "pinned_with_waits" => memory::pinned_with_waits(),
        "leak" => memory::leak(),
        "second_allocation_fails" => mishaps::second_allocation_fails(),
        "allocation_too_large" => mishaps::allocation_too_large(),
        "second_launch_fails" => mishaps::second_launch_fails(),
        "launch_of_scale_fails" => mishaps::launch_of_scale_fails(),
        "card_is_lost" => mishaps::card_is_lost(CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE),
        "card_has_bad_memory" => mishaps::card_is_lost(CUresult::CUDA_ERROR_ECC_UNCORRECTABLE),
        "no_cards" => mishaps::no_cards(),
        "init_fails" => assert_eq!(result::init(), Err(DriverError(CUresult::CUDA_ERROR_UNKNOWN))),
        "retain_fails" => mishaps::retain_fails(),
        "driver_too_old_for_ptx" => {
            mishaps::ptx_refused(PTX, CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        }
        "card_too_old_for_ptx" => {
            let newer = PTX.replace(".target sm_80", ".target sm_89");
            mishaps::ptx_refused(&newer, CUresult::CUDA_ERROR_INVALID_PTX);
        }
        "not_ptx" => mishaps::ptx_refused("\u{7f}ELF", CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU),
        "host_function" => order::host_function(),
        "symbols" => mishaps::symbols(),
        _ => panic!("no scenario {name}"),
    }
}

/// An opened card with the kernels of `probe.ptx`.
struct Card {
    module: sys::CUmodule,
    context: Arc<CudaContext>,
}

impl Card {
    fn open(ordinal: usize) -> Self {
        let context = CudaContext::new(ordinal).unwrap();
        let module = load(PTX).unwrap();
        Self { module, context }
    }

    fn kernel(&self, name: &str) -> sys::CUfunction {
        self.try_kernel(name).unwrap()
    }

    fn try_kernel(&self, name: &str) -> Result<sys::CUfunction, DriverError> {
        calls::function(self.module, name)
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // A card that failed says so here, too.
        let _ = self.context.bind_to_thread();
        let _ = calls::unload(self.module);
    }
}

/// A value's address, as a launch wants it.
fn arg<T>(value: &T) -> *mut c_void {
    ptr::from_ref(value).cast_mut().cast()
}

/// `out = value`, `N` times.
fn fill(card: &Card, stream: sys::CUstream, out: u64, value: f32) -> Result<(), DriverError> {
    let n = N as u32;
    let args = &mut [arg(&out), arg(&value), arg(&n)];
    launch(card.kernel("fill"), (n.div_ceil(128), 128, 0), stream, args)
}

/// `out = input * factor`, `N` times.
fn scale(
    card: &Card,
    stream: sys::CUstream,
    (out, input): (u64, u64),
    factor: f32,
) -> Result<(), DriverError> {
    let n = N as u32;
    let args = &mut [arg(&out), arg(&input), arg(&factor), arg(&n)];
    launch(card.kernel("scale"), (n.div_ceil(128), 128, 0), stream, args)
}

#[track_caller]
fn assert_all(values: &[f32], want: f32) {
    let wrong = values.iter().filter(|value| value.to_bits() != want.to_bits()).count();
    assert_eq!(wrong, 0, "{wrong} of {} are not {want}: {:?}", values.len(), &values[..4]);
}

#[track_caller]
fn assert_fails<T>(result: Result<T, DriverError>, want: CUresult) {
    assert_eq!(result.err(), Some(DriverError(want)));
}

fn properties_and_scale() {
    let card = Card::open(0);
    let context = &card.context;
    let name = context.name().unwrap();
    let capability = context.compute_capability().unwrap();
    let known = [("3090", (8, 6)), ("4090", (8, 9)), ("5090", (12, 0)), ("H100", (9, 0))];
    assert!(
        known.iter().any(|(model, want)| name.contains(model) && *want == capability),
        "{name}"
    );
    let (free, total) = context.mem_get_info().unwrap();
    assert!(free < total && total == context.total_mem().unwrap());
    let warp = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE;
    assert_eq!(context.attribute(warp).unwrap(), 32);
    assert_ne!(context.uuid().unwrap().bytes, [0; 16]);

    let stream = context.new_stream().unwrap();
    let input = stream.clone_htod(&vec![3.0f32; N]).unwrap();
    let mut out = stream.alloc_zeros::<f32>(N).unwrap();
    assert!(context.mem_get_info().unwrap().0 < free);
    {
        let (input, _reads) = input.device_ptr(&stream);
        let (out, _writes) = out.device_ptr_mut(&stream);
        scale(&card, stream.cu_stream(), (out, input), 2.0).unwrap();
    }
    assert_all(&stream.clone_dtoh(&out).unwrap(), 6.0);
    drop((input, out));
    stream.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, free, "all is given back");
}
