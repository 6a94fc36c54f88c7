//! Modules, functions and their attributes, occupancy.
#![expect(unsafe_code, reason = "an exported name is looked up by C")]

use std::ffi::{c_int, c_uint};

use crate::driver::Refused;
use crate::shared::Held;
use crate::status::Status;

use super::call;
use super::pointers::{BlockToShared, Handle, JitOptions, JitValues, Out, Text};

/// How binaries for cards and fat binaries begin; PTX is text.
const BINARIES: [&[u8]; 2] = [b"\x7fELF", b"\x50\xed\x55\xba"];

fn load(held: &mut Held<'_>, context: u64, image: &Text) -> Result<u64, Refused> {
    for magic in BINARIES {
        if image.starts_with(magic).map_err(Refused::silent)? {
            return Err(held.driver().refuse_binary(context));
        }
    }
    let text = image.text().map_err(|_| Refused::silent(Status::InvalidImage))?;
    held.driver().load_module(context, text)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: Out<Handle>, image: Text) -> c_int {
    call("cuModuleLoadData", |held, context| {
        module.put(load(held, context, &image).map_err(|refused| refused.status)? as Handle)
    })
}

/// Of the options, the two of the log of errors are followed and the two of the other log find it
/// empty; the rest is for a compiler that is not there.
#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(
    module: Out<Handle>,
    image: Text,
    count: c_uint,
    options: JitOptions,
    values: JitValues,
) -> c_int {
    call("cuModuleLoadDataEx", |held, context| {
        let loaded = load(held, context, &image);
        let log = loaded.as_ref().map_or_else(|refused| refused.log.as_str(), |_| "");
        values.log(&options.read(count)?, log)?;
        module.put(loaded.map_err(|refused| refused.status)? as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: Handle) -> c_int {
    call("cuModuleUnload", |held, context| held.driver().unload_module(context, module as u64))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(out: Out<Handle>, module: Handle, name: Text) -> c_int {
    call("cuModuleGetFunction", |held, context| {
        out.put(held.driver().function(context, module as u64, name.text()?)? as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(value: Out<c_int>, attribute: c_int, function: Handle) -> c_int {
    call("cuFuncGetAttribute", |held, _| {
        value.put(held.driver().function_attribute(attribute, function as u64)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: Handle, attribute: c_int, value: c_int) -> c_int {
    call("cuFuncSetAttribute", |held, _| {
        held.driver().set_function_attribute(function as u64, attribute, value)
    })
}

/// A preference, and this machine has none: `CU_FUNC_CACHE_PREFER_*`, 0 to 3.
#[unsafe(no_mangle)]
extern "C" fn cuFuncSetCacheConfig(function: Handle, config: c_int) -> c_int {
    call("cuFuncSetCacheConfig", |held, _| {
        held.driver().parameters(function as u64)?;
        (0..=3).contains(&config).then_some(()).ok_or(Status::InvalidValue)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetParamInfo(
    function: Handle,
    index: usize,
    offset: Out<usize>,
    size: Out<usize>,
) -> c_int {
    call("cuFuncGetParamInfo", |held, _| {
        let params = held.driver().parameters(function as u64)?;
        let (start, bytes) = *params.get(index).ok_or(Status::InvalidValue)?;
        offset.put(start)?;
        size.put_if_wanted(bytes);
        Ok(())
    })
}

fn blocks(
    name: &str,
    out: Out<c_int>,
    function: Handle,
    threads: c_int,
    dynamic_shared: usize,
) -> c_int {
    call(name, |held, _| {
        let threads = usize::try_from(threads).map_err(|_| Status::InvalidValue)?;
        out.put(held.driver().occupancy(function as u64, threads, dynamic_shared)? as c_int)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    out: Out<c_int>,
    function: Handle,
    threads: c_int,
    dynamic_shared: usize,
) -> c_int {
    blocks("cuOccupancyMaxActiveBlocksPerMultiprocessor", out, function, threads, dynamic_shared)
}

/// The flags (0, or 1 to pass over a cache's carveout) change nothing here.
#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    out: Out<c_int>,
    function: Handle,
    threads: c_int,
    dynamic_shared: usize,
    flags: c_uint,
) -> c_int {
    if flags > 1 {
        return Status::InvalidValue.number();
    }
    blocks(
        "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
        out,
        function,
        threads,
        dynamic_shared,
    )
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: Out<usize>,
    function: Handle,
    blocks: c_int,
    threads: c_int,
) -> c_int {
    call("cuOccupancyAvailableDynamicSMemPerBlock", |held, _| {
        let blocks = usize::try_from(blocks).map_err(|_| Status::InvalidValue)?;
        let threads = usize::try_from(threads).map_err(|_| Status::InvalidValue)?;
        bytes.put(held.driver().shared_room(function as u64, blocks, threads)?)
    })
}

fn best(
    name: &str,
    (grid, block): (Out<c_int>, Out<c_int>),
    function: Handle,
    (shared, dynamic_shared): (BlockToShared, usize),
    limit: c_int,
) -> c_int {
    call(name, |held, _| {
        let limit = usize::try_from(limit).map_err(|_| Status::InvalidValue)?;
        let bytes = |threads| shared.bytes(threads, dynamic_shared);
        let (blocks, threads) = held.driver().best_block(function as u64, bytes, limit)?;
        grid.put(blocks as c_int)?;
        block.put(threads as c_int)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: Out<c_int>,
    block: Out<c_int>,
    function: Handle,
    shared: BlockToShared,
    dynamic_shared: usize,
    limit: c_int,
) -> c_int {
    let name = "cuOccupancyMaxPotentialBlockSize";
    best(name, (grid, block), function, (shared, dynamic_shared), limit)
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: Out<c_int>,
    block: Out<c_int>,
    function: Handle,
    shared: BlockToShared,
    dynamic_shared: usize,
    limit: c_int,
    flags: c_uint,
) -> c_int {
    if flags > 1 {
        return Status::InvalidValue.number();
    }
    let name = "cuOccupancyMaxPotentialBlockSizeWithFlags";
    best(name, (grid, block), function, (shared, dynamic_shared), limit)
}
