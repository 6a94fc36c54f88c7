//! Names and texts of statuses. They need no driver.
#![expect(unsafe_code, reason = "an exported name is looked up by C")]

use std::ffi::{c_char, c_int};

use crate::status::{Status, name_and_text};

use super::pointers::Out;

fn put(number: c_int, out: Out<*const c_char>, is_name: bool) -> c_int {
    let (text, result) = match name_and_text(number) {
        Some((name, text)) => (if is_name { name } else { text }.as_ptr(), Ok(())),
        None => (std::ptr::null(), Err(Status::InvalidValue)),
    };
    out.put(text).and(result).map_or_else(Status::number, |()| 0)
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(error: c_int, out: Out<*const c_char>) -> c_int {
    put(error, out, true)
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(error: c_int, out: Out<*const c_char>) -> c_int {
    put(error, out, false)
}
