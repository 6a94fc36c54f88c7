//! The launch of a kernel.
#![expect(unsafe_code, reason = "an exported name is looked up by C")]

use std::ffi::{c_int, c_uint};

use crate::driver::Shape;
use crate::report::Check;
use crate::status::Status;

use super::call;
use super::pointers::{Address, Arguments, Handle};

/// Arguments come as one pointer each; a packed buffer in `extra` is not taken.
#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic_shared: c_uint,
    stream: Handle,
    arguments: Arguments,
    extra: Address,
) -> c_int {
    call("cuLaunchKernel", |held, context| {
        let params = held.driver().parameters(function as u64)?;
        if !extra.is_null() {
            return Err(Status::InvalidValue);
        }
        let params = arguments.pack(&params).map_err(|error| {
            let message = format!("{error}: were as many passed as the PTX declares?");
            held.driver().fault(Check::Argument, message);
            Status::InvalidValue
        })?;
        let shape = Shape {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared: dynamic_shared as usize,
        };
        held.driver().launch(context, stream as u64, function as u64, shape, params)
    })
}
