//! The C functions, thin: each turns what C gives into values, calls the core, and writes back.
//! Nothing here decides anything.
//!
//! A function that is absent does not exist on purpose: cudarc looks each one up when it is called
//! first, and its message names the one that is missing.

use std::cell::Cell;
use std::sync::OnceLock;

use crate::driver::Driver;
use crate::settings::Settings;
use crate::shared::{Held, Shared, say};
use crate::status::Status;

mod context;
mod device;
mod device_memory;
mod error;
mod event;
mod host_memory;
mod launch;
mod module;
mod pointers;
mod stream;

thread_local! {
    /// The context that is current in this thread; 0 is none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// The driver of this process, or why the environment makes none.
fn shared() -> Result<&'static Shared, &'static str> {
    static SHARED: OnceLock<Result<Shared, String>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        let settings = Settings::read(|name| std::env::var(name).ok());
        let settings = settings.inspect_err(|error| say(error))?;
        pointers::at_exit(write_report);
        Ok(Shared::new(Driver::new(settings, Box::new(pointers::Process))))
    });
    shared.as_ref().map_err(String::as_str)
}

extern "C" fn write_report() {
    if let Ok(shared) = shared() {
        shared.write_report();
    }
}

/// Makes a call with the context of this thread.
fn call(
    function: &str,
    body: impl FnOnce(&mut Held<'_>, u64) -> Result<(), Status>,
) -> std::ffi::c_int {
    let context = CURRENT.get();
    let result = match shared() {
        Ok(shared) => shared.call(function, |held| body(held, context)),
        Err(_) => Err(Status::Unknown),
    };
    result.map_or_else(Status::number, |()| 0)
}
