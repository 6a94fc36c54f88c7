//! Events.
#![expect(unsafe_code, reason = "an exported name is looked up by C")]

use std::ffi::{c_int, c_uint};

use super::call;
use super::pointers::{Handle, Out};

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: Out<Handle>, flags: c_uint) -> c_int {
    call("cuEventCreate", |held, context| {
        event.put(held.driver().create_event(context, flags)? as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Handle) -> c_int {
    call("cuEventDestroy_v2", |held, context| held.driver().destroy_event(context, event as u64))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> c_int {
    call("cuEventRecord", |held, context| {
        held.driver().record(context, event as u64, stream as u64)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Handle) -> c_int {
    call("cuEventSynchronize", |held, context| {
        let goals = held.driver().event_goals(context, event as u64)?;
        held.wait(&goals)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: Handle) -> c_int {
    call("cuEventQuery", |held, context| {
        let goals = held.driver().event_goals(context, event as u64)?;
        held.driver().poll(&goals)
    })
}

fn elapsed(function: &str, millis: Out<f32>, start: Handle, end: Handle) -> c_int {
    call(function, |held, context| {
        millis.put(held.driver().elapsed(context, start as u64, end as u64)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(millis: Out<f32>, start: Handle, end: Handle) -> c_int {
    elapsed("cuEventElapsedTime", millis, start, end)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime_v2(millis: Out<f32>, start: Handle, end: Handle) -> c_int {
    elapsed("cuEventElapsedTime_v2", millis, start, end)
}
