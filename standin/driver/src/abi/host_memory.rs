//! Pinned memory, and copies between host and card.
#![expect(unsafe_code, reason = "an exported name is looked up by C")]

use std::ffi::{c_int, c_uint};

use crate::driver::Goals;
use crate::shared::Held;
use crate::status::Status;

use super::call;
use super::pointers::{Address, Handle, Out};

/// `CU_MEMHOSTALLOC_PORTABLE`, `_DEVICEMAP` and `_WRITECOMBINED`.
const ALLOC_FLAGS: c_uint = 7;
/// `CU_MEMHOSTREGISTER_PORTABLE`, `_DEVICEMAP` and `_READ_ONLY`.
const REGISTER_FLAGS: c_uint = 0b1011;

fn allocate(function: &str, out: Out<Address>, bytes: usize, flags: c_uint) -> c_int {
    call(function, |held, context| {
        if flags & !ALLOC_FLAGS != 0 {
            return Err(Status::InvalidValue);
        }
        out.put(Address::at(held.driver().allocate_host(context, bytes)?))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(out: Out<Address>, bytes: usize, flags: c_uint) -> c_int {
    allocate("cuMemHostAlloc", out, bytes, flags)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocHost_v2(out: Out<Address>, bytes: usize) -> c_int {
    allocate("cuMemAllocHost_v2", out, bytes, 0)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: Address) -> c_int {
    call("cuMemFreeHost", |held, context| {
        let users = held.driver().free_host(context, address.get())?;
        let outcome = held.wait(&users);
        held.driver().drop_host(address.get());
        outcome
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(address: Address, bytes: usize, flags: c_uint) -> c_int {
    call("cuMemHostRegister_v2", |held, context| {
        if flags & !REGISTER_FLAGS != 0 {
            return Err(Status::InvalidValue);
        }
        held.driver().register_host(context, address.get(), bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(address: Address) -> c_int {
    call("cuMemHostUnregister", |held, context| {
        let users = held.driver().unregister_host(context, address.get())?;
        let outcome = held.wait(&users);
        held.driver().drop_host(address.get());
        outcome
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: Address, bytes: usize, stream: Handle) -> c_int {
    call("cuMemcpyHtoDAsync_v2", |held, context| {
        if from.is_null() && bytes > 0 {
            return Err(Status::InvalidValue);
        }
        held.driver().upload(context, stream as u64, to, from.get(), bytes).map(|_| ())
    })
}

/// From pageable memory it returns when the bytes are read, which may be before they arrive.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: Address, bytes: usize) -> c_int {
    call("cuMemcpyHtoD_v2", |held, context| {
        if from.is_null() && bytes > 0 {
            return Err(Status::InvalidValue);
        }
        let is_pinned = held.driver().is_pinned(from.get(), bytes);
        let work = held.driver().upload(context, 0, to, from.get(), bytes)?;
        if is_pinned { held.wait(&work) } else { Ok(()) }
    })
}

fn download(
    held: &mut Held<'_>,
    context: u64,
    stream: u64,
    to: Address,
    from: u64,
    bytes: usize,
) -> Result<Goals, Status> {
    if to.is_null() && bytes > 0 {
        return Err(Status::InvalidValue);
    }
    held.driver().download(context, stream, to.get(), from, bytes)
}

/// Into pageable memory it returns when the bytes are there.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: Address, from: u64, bytes: usize, stream: Handle) -> c_int {
    call("cuMemcpyDtoHAsync_v2", |held, context| {
        let is_pinned = held.driver().is_pinned(to.get(), bytes);
        let work = download(held, context, stream as u64, to, from, bytes)?;
        if is_pinned { Ok(()) } else { held.wait(&work) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: Address, from: u64, bytes: usize) -> c_int {
    call("cuMemcpyDtoH_v2", |held, context| {
        let work = download(held, context, 0, to, from, bytes)?;
        held.wait(&work)
    })
}
