//! Streams, and functions of the host in them.
#![expect(unsafe_code, reason = "an exported name is looked up by C")]

use std::ffi::{c_int, c_uint};

use crate::status::Status;

use super::call;
use super::pointers::{Address, Handle, HostFunction, Out, StreamCallback};

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: Out<Handle>, flags: c_uint) -> c_int {
    call("cuStreamCreate", |held, context| {
        stream.put(held.driver().create_stream(context, flags)? as Handle)
    })
}

/// A priority outside of the range, which is 0 to 0, is taken for the nearest inside.
#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(
    stream: Out<Handle>,
    flags: c_uint,
    _priority: c_int,
) -> c_int {
    call("cuStreamCreateWithPriority", |held, context| {
        stream.put(held.driver().create_stream(context, flags)? as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: Handle) -> c_int {
    call("cuStreamDestroy_v2", |held, context| held.driver().destroy_stream(context, stream as u64))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: Handle) -> c_int {
    call("cuStreamSynchronize", |held, context| {
        let goals = held.driver().stream_goals(context, stream as u64)?;
        held.wait(&goals)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: Handle) -> c_int {
    call("cuStreamQuery", |held, context| {
        let goals = held.driver().stream_goals(context, stream as u64)?;
        held.driver().poll(&goals)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) -> c_int {
    call("cuStreamWaitEvent", |held, context| match flags {
        0 => held.driver().wait_event(context, stream as u64, event as u64),
        _ => Err(Status::InvalidValue),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(stream: Handle, function: HostFunction, argument: Address) -> c_int {
    call("cuLaunchHostFunc", |held, context| {
        held.driver().call_host(context, stream as u64, function.call(argument)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamAddCallback(
    stream: Handle,
    function: StreamCallback,
    argument: Address,
    flags: c_uint,
) -> c_int {
    call("cuStreamAddCallback", |held, context| {
        if flags != 0 {
            return Err(Status::InvalidValue);
        }
        held.driver().call_host(context, stream as u64, function.call(stream, argument)?)
    })
}

/// Nothing is ever captured into a graph here: `CU_STREAM_CAPTURE_STATUS_NONE`.
#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: Handle, status: Out<c_int>) -> c_int {
    call("cuStreamIsCapturing", |held, context| {
        held.driver().stream_goals(context, stream as u64)?;
        status.put(0)
    })
}
