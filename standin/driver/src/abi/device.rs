//! The driver itself and its cards.
#![expect(unsafe_code, reason = "an exported name is looked up by C")]

use std::ffi::{c_int, c_uint};

use crate::cards::Card;
use crate::status::Status;

use super::call;
use super::pointers::{Handle, Out, OutText, Text};

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> c_int {
    call("cuInit", |held, _| match flags {
        0 => held.driver().init(),
        _ => Err(Status::InvalidValue),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: Out<c_int>) -> c_int {
    call("cuDriverGetVersion", |held, _| version.put(held.driver().version() as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: Out<c_int>) -> c_int {
    call("cuDeviceGetCount", |held, _| count.put(held.driver().device_count()? as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: Out<c_int>, ordinal: c_int) -> c_int {
    call("cuDeviceGet", |held, _| {
        held.driver().card(ordinal)?;
        device.put(ordinal)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: OutText, room: c_int, device: c_int) -> c_int {
    call("cuDeviceGetName", |held, _| name.put(held.driver().card(device)?.name, room))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) -> c_int {
    call("cuDeviceTotalMem_v2", |held, _| bytes.put(held.driver().card(device)?.memory))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: Out<c_int>, attribute: c_int, device: c_int) -> c_int {
    call("cuDeviceGetAttribute", |held, _| value.put(held.driver().attribute(attribute, device)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: c_int) -> c_int {
    call("cuDeviceGetUuid", |held, _| uuid.put(held.driver().card(device)?.uuid(device as usize)))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: c_int) -> c_int {
    call("cuDeviceGetUuid_v2", |held, _| {
        uuid.put(held.driver().card(device)?.uuid(device as usize))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetPCIBusId(id: OutText, room: c_int, device: c_int) -> c_int {
    call("cuDeviceGetPCIBusId", |held, _| {
        held.driver().card(device)?;
        id.put(&Card::pci(device as usize), room)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetByPCIBusId(device: Out<c_int>, id: Text) -> c_int {
    call("cuDeviceGetByPCIBusId", |held, _| {
        let (id, count) = (id.text()?, held.driver().device_count()?);
        let found = (0..count).find(|ordinal| Card::pci(*ordinal).eq_ignore_ascii_case(id));
        device.put(found.ok_or(Status::InvalidDevice)? as c_int)
    })
}

/// Cards of this kind do not reach each other's memory.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceCanAccessPeer(can: Out<c_int>, device: c_int, peer: c_int) -> c_int {
    call("cuDeviceCanAccessPeer", |held, _| {
        held.driver().card(device)?;
        held.driver().card(peer)?;
        can.put(0)
    })
}

/// `CU_DEVICE_P2P_ATTRIBUTE_*`, 1 to 4: there is no path between cards.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetP2PAttribute(
    value: Out<c_int>,
    attribute: c_int,
    from: c_int,
    to: c_int,
) -> c_int {
    call("cuDeviceGetP2PAttribute", |held, _| {
        held.driver().card(from)?;
        held.driver().card(to)?;
        match attribute {
            1..=4 if from != to => value.put(0),
            _ if from == to => Err(Status::InvalidDevice),
            _ => Err(Status::InvalidValue),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, device: c_int) -> c_int {
    call("cuDeviceGetDefaultMemPool", |held, _| pool.put(held.driver().pool(device)? as Handle))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetMemPool(pool: Out<Handle>, device: c_int) -> c_int {
    call("cuDeviceGetMemPool", |held, _| pool.put(held.driver().pool(device)? as Handle))
}
