//! Device memory: allocation, copies on the card, fills, pools.
#![expect(unsafe_code, reason = "an exported name is looked up by C")]

use std::ffi::{c_int, c_uchar, c_uint, c_ushort};

use crate::driver::{Driver, Pattern};
use crate::shared::Held;
use crate::status::Status;

use super::call;
use super::pointers::{Address, Handle, Out, word_at};

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> c_int {
    call("cuMemGetInfo_v2", |held, context| {
        let (room, all) = held.driver().memory_info(context)?;
        free.put(room)?;
        total.put(all)
    })
}

/// Queued frees make room before an allocation fails.
fn allocate(
    held: &mut Held<'_>,
    context: u64,
    bytes: usize,
    allocate: impl FnOnce(&mut Driver) -> Result<u64, Status>,
) -> Result<u64, Status> {
    if !held.driver().fits(context, bytes)? {
        held.wait_until(|driver| driver.reclaim(context))?;
    }
    allocate(held.driver())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(out: Out<u64>, bytes: usize) -> c_int {
    call("cuMemAlloc_v2", |held, context| {
        out.put(allocate(held, context, bytes, |driver| driver.allocate(context, bytes))?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(out: Out<u64>, bytes: usize, stream: Handle) -> c_int {
    call("cuMemAllocAsync", |held, context| {
        let base = allocate(held, context, bytes, |driver| {
            driver.allocate_in(context, stream as u64, bytes)
        });
        out.put(base?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocFromPoolAsync(
    out: Out<u64>,
    bytes: usize,
    pool: Handle,
    stream: Handle,
) -> c_int {
    call("cuMemAllocFromPoolAsync", |held, context| {
        let card = held.driver().card_of_pool(pool as u64)?;
        if held.driver().card_of(context)? != card {
            return Err(Status::InvalidValue);
        }
        let base = allocate(held, context, bytes, |driver| {
            driver.allocate_in(context, stream as u64, bytes)
        });
        out.put(base?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(base: u64) -> c_int {
    call("cuMemFree_v2", |held, context| held.driver().free(context, base))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(base: u64, stream: Handle) -> c_int {
    call("cuMemFreeAsync", |held, context| held.driver().free_in(context, stream as u64, base))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) -> c_int {
    call("cuMemGetAddressRange_v2", |held, context| {
        let (start, size) = held.driver().address_range(context, address)?;
        base.put_if_wanted(start);
        bytes.put_if_wanted(size);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) -> c_int {
    call("cuMemcpyDtoDAsync_v2", |held, context| {
        held.driver().copy(context, stream as u64, to, from, bytes)
    })
}

/// Goes through the default stream; the host does not wait, as the reference says.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> c_int {
    call("cuMemcpyDtoD_v2", |held, context| held.driver().copy(context, 0, to, from, bytes))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    to_context: Handle,
    from: u64,
    from_context: Handle,
    bytes: usize,
    stream: Handle,
) -> c_int {
    call("cuMemcpyPeerAsync", |held, context| {
        held.driver().context(to_context as u64)?;
        held.driver().context(from_context as u64)?;
        held.driver().copy(context, stream as u64, to, from, bytes)
    })
}

fn fill(function: &str, stream: Handle, to: u64, pattern: Pattern, count: usize) -> c_int {
    call(function, |held, context| held.driver().fill(context, stream as u64, to, pattern, count))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: u64, value: c_uchar, count: usize) -> c_int {
    fill("cuMemsetD8_v2", 0, to, Pattern::Byte(value), count)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: c_uchar, count: usize, stream: Handle) -> c_int {
    fill("cuMemsetD8Async", stream, to, Pattern::Byte(value), count)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16Async(to: u64, value: c_ushort, count: usize, stream: Handle) -> c_int {
    fill("cuMemsetD16Async", stream, to, Pattern::Half(value), count)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: Handle) -> c_int {
    fill("cuMemsetD32Async", stream, to, Pattern::Word(value), count)
}

/// Attributes 1 to 3 are of 32 bits, the others of 64.
const WORD_ATTRIBUTES: std::ops::RangeInclusive<c_int> = 1..=3;

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolGetAttribute(pool: Handle, attribute: c_int, out: Address) -> c_int {
    call("cuMemPoolGetAttribute", |held, _| {
        let value = held.driver().pool_attribute(pool as u64, attribute)?;
        if WORD_ATTRIBUTES.contains(&attribute) {
            Out::<u32>::from(out).put(value as u32)
        } else {
            Out::<u64>::from(out).put(value)
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolSetAttribute(pool: Handle, attribute: c_int, from: Address) -> c_int {
    call("cuMemPoolSetAttribute", |held, _| {
        let value = if WORD_ATTRIBUTES.contains(&attribute) {
            word_at::<4>(from)?
        } else {
            word_at::<8>(from)?
        };
        held.driver().set_pool_attribute(pool as u64, attribute, value)
    })
}

/// This pool keeps nothing back.
#[unsafe(no_mangle)]
extern "C" fn cuMemPoolTrimTo(pool: Handle, _keep: usize) -> c_int {
    call("cuMemPoolTrimTo", |held, _| held.driver().card_of_pool(pool as u64).map(|_| ()))
}
