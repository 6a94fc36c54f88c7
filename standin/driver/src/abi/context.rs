//! Contexts. Only primary ones exist.
#![expect(unsafe_code, reason = "an exported name is looked up by C")]

use std::ffi::{c_int, c_uint};

use crate::status::Status;

use super::pointers::{Handle, Out};
use super::{CURRENT, call};

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: c_int) -> c_int {
    call("cuDevicePrimaryCtxRetain", |held, _| context.put(held.driver().retain(device)? as Handle))
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> c_int {
    call("cuDevicePrimaryCtxRelease_v2", |held, _| held.wait_until(|driver| driver.release(device)))
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxGetState(
    device: c_int,
    flags: Out<c_uint>,
    active: Out<c_int>,
) -> c_int {
    call("cuDevicePrimaryCtxGetState", |held, _| {
        let is_active = held.driver().is_active(device)?;
        flags.put_if_wanted(0);
        active.put(c_int::from(is_active))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: Handle) -> c_int {
    call("cuCtxSetCurrent", |held, _| {
        if context != 0 {
            held.driver().card_of(context as u64)?;
        }
        CURRENT.set(context as u64);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(out: Out<Handle>) -> c_int {
    call("cuCtxGetCurrent", |held, context| {
        held.driver().is_ready()?;
        out.put(context as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: Out<c_int>) -> c_int {
    call("cuCtxGetDevice", |held, context| device.put(held.driver().card_of(context)? as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> c_int {
    call("cuCtxSynchronize", |held, context| {
        let goals = held.driver().context_goals(context)?;
        held.wait(&goals)
    })
}

/// How the host waits makes no difference here.
#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(flags: c_uint) -> c_int {
    call("cuCtxSetFlags", |held, context| {
        held.driver().context(context)?;
        // Scheduling (three bits, of which one at most), mapping, local memory, core dumps, memops.
        let is_known = flags & !0xff == 0 && matches!(flags & 7, 0 | 1 | 2 | 4);
        is_known.then_some(()).ok_or(Status::InvalidValue)
    })
}

/// One level: streams have no priorities here, and the attribute says so.
#[unsafe(no_mangle)]
extern "C" fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) -> c_int {
    call("cuCtxGetStreamPriorityRange", |held, context| {
        held.driver().context(context)?;
        least.put_if_wanted(0);
        greatest.put_if_wanted(0);
        Ok(())
    })
}
