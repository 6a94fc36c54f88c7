//! Data between registers, state spaces and addresses.

use std::sync::Arc;

use super::{Surface, addresses};
use crate::error::{FaultKind, Trap};
use crate::instruction::{Extend, Repack, Space, Transfer};
use crate::memory::WORDS_MAX;
use crate::shared::{bank_conflicts, ones};
use crate::warp::{Lanes64, Warp};

/// Windows of the generic address space; below and above them addresses are global.
const SHARED_WINDOW: u64 = 1 << 48;
const LOCAL_WINDOW: u64 = 2 << 48;
const PARAM_WINDOW: u64 = 3 << 48;
const WINDOW_BYTES: u64 = 1 << 32;

/// The first generic address of a space; global and constant addresses are generic as they are.
fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Const | Space::Generic => 0,
    }
}

/// Where a generic address points.
pub(super) fn resolve(address: u64) -> (Space, u64) {
    for space in [Space::Shared, Space::Local, Space::Param] {
        let offset = address.wrapping_sub(window(space));
        if offset < WINDOW_BYTES {
            return (space, offset);
        }
    }
    (Space::Global, address)
}

/// Distinct 32-byte sectors.
fn sectors(addresses: &Lanes64, bytes: usize, lanes: u32) -> u64 {
    let (mut list, mut count) = ([0u64; 64], 0);
    let mut is_sorted = true;
    for lane in ones(lanes) {
        for sector in addresses[lane] >> 5..=(addresses[lane] + bytes as u64 - 1) >> 5 {
            if count > 0 && list[count - 1] >= sector {
                if list[count - 1] == sector {
                    continue;
                }
                is_sorted = false;
            }
            list[count] = sector;
            count += 1;
        }
    }
    if is_sorted {
        return count as u64;
    }
    let list = &mut list[..count];
    list.sort_unstable();
    1 + list.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
}

/// Packs, unpacks and changes of address space.
pub(super) fn repack(warp: &mut Warp, op: &Repack, lanes: u32) {
    match op {
        Repack::Pack64 { d, low, high } => {
            let (low, high) = (warp.r32(*low), warp.r32(*high));
            let value = std::array::from_fn(|l| u64::from(high[l]) << 32 | u64::from(low[l]));
            warp.set64(*d, lanes, &value);
        }
        Repack::Unpack64 { low, high, a } => {
            let a = *warp.r64(*a);
            if let Some(low) = low {
                warp.set32(*low, lanes, &a.map(|a| a as u32));
            }
            if let Some(high) = high {
                warp.set32(*high, lanes, &a.map(|a| (a >> 32) as u32));
            }
        }
        Repack::Pack32 { d, parts } => {
            let bits = 32 / parts.len();
            let mut value = [0; 32];
            for (i, part) in parts.iter().enumerate() {
                let part = warp.r32(*part);
                for lane in 0..32 {
                    value[lane] |= (part[lane] & ((1 << bits) - 1)) << (bits * i);
                }
            }
            warp.set32(*d, lanes, &value);
        }
        Repack::Unpack32 { d, a } => {
            let (bits, a) = (32 / d.len(), *warp.r32(*a));
            for (i, d) in d.iter().enumerate() {
                if let Some(d) = d {
                    warp.set32(*d, lanes, &a.map(|a| a >> (bits * i) & ((1 << bits) - 1)));
                }
            }
        }
        Repack::ToGeneric { space, d, a } => {
            let value = warp.any(*a).map(|a| a.wrapping_add(window(*space)));
            warp.set_any(*d, lanes, &value);
        }
        Repack::FromGeneric { space, d, a } => {
            let value = warp.any(*a).map(|a| a.wrapping_sub(window(*space)));
            warp.set_any(*d, lanes, &value);
        }
    }
}

impl Surface<'_> {
    pub(super) fn load(&mut self, warp: &mut Warp, t: &Transfer, lanes: u32) -> Result<(), Trap> {
        let at = addresses(warp, t.address);
        let bytes = t.width as usize * t.registers.len();
        let mut data = [[0u32; WORDS_MAX]; 32];
        for lane in ones(lanes) {
            self.read(warp, (t.space, at[lane]), bytes, lane, &mut data[lane])
                .map_err(|trap| trap.at(lane))?;
        }
        self.count(t.space, &at, bytes, lanes, true);
        for (i, register) in t.registers.iter().enumerate() {
            let value: Lanes64 = std::array::from_fn(|l| element(&data[l], t.width, i, t.extend));
            warp.set_any(*register, lanes, &value);
        }
        Ok(())
    }

    pub(super) fn store(&mut self, warp: &mut Warp, t: &Transfer, lanes: u32) -> Result<(), Trap> {
        let at = addresses(warp, t.address);
        let width = t.width as usize;
        let bytes = width * t.registers.len();
        let mut data = [[0u32; WORDS_MAX]; 32];
        for (i, register) in t.registers.iter().enumerate() {
            let value = warp.any(*register);
            for lane in 0..32 {
                let shift = 8 * (width * i % 4);
                let word = width * i / 4;
                let low = if width < 4 {
                    value[lane] as u32 & ((1 << (8 * width)) - 1)
                } else {
                    value[lane] as u32
                };
                data[lane][word] |= low << shift;
                if width == 8 {
                    data[lane][word + 1] = (value[lane] >> 32) as u32;
                }
            }
        }
        for lane in ones(lanes) {
            self.write(warp, (t.space, at[lane]), bytes, lane, &data[lane])
                .map_err(|trap| trap.at(lane))?;
        }
        self.count(t.space, &at, bytes, lanes, false);
        Ok(())
    }

    /// Figures of a warp's access.
    pub(super) fn count(
        &mut self,
        space: Space,
        at: &Lanes64,
        bytes: usize,
        lanes: u32,
        is_read: bool,
    ) {
        let space = if space == Space::Generic {
            resolve(at[lanes.trailing_zeros() as usize]).0
        } else {
            space
        };
        let stats = &mut self.counts.stats;
        match space {
            Space::Global => {
                let all = bytes as u64 * u64::from(lanes.count_ones());
                let sectors = sectors(at, bytes, lanes);
                if is_read {
                    stats.global_bytes_read += all;
                    stats.global_sectors_read += sectors;
                } else {
                    stats.global_bytes_written += all;
                    stats.global_sectors_written += sectors;
                }
            }
            Space::Shared => {
                let mut offsets = [0; 32];
                let mut count = 0;
                for lane in ones(lanes) {
                    offsets[count] = at[lane] & (WINDOW_BYTES - 1);
                    count += 1;
                }
                stats.bank_conflicts += bank_conflicts(&offsets[..count], bytes);
            }
            Space::Local | Space::Const | Space::Param | Space::Generic => {}
        }
    }

    fn read(
        &mut self,
        warp: &Warp,
        (space, address): (Space, u64),
        bytes: usize,
        lane: usize,
        out: &mut [u32; WORDS_MAX],
    ) -> Result<(), Trap> {
        match space {
            Space::Global | Space::Const => {
                let (index, offset) = self.global(address, bytes)?;
                self.view.allocation(index).get(offset, bytes, out);
            }
            Space::Shared => {
                let offset = self.shared.offset(address, bytes)?;
                self.shared.note_read(offset, bytes, 32 * warp.index + lane)?;
                words(self.shared.at(offset, bytes), out);
            }
            Space::Local => {
                let offset = self.local(address, bytes, lane)?;
                words(&warp.local[offset..offset + bytes], out);
            }
            Space::Param => {
                let inside = self.params.get(address as usize..).and_then(|rest| rest.get(..bytes));
                let inside = inside.ok_or_else(|| {
                    let size = self.params.len();
                    let what =
                        format!("{bytes} bytes at offset {address} of {size} bytes of parameters");
                    Trap::new(FaultKind::Overrun, what)
                })?;
                words(inside, out);
            }
            Space::Generic => return self.read(warp, resolve(address), bytes, lane, out),
        }
        Ok(())
    }

    fn write(
        &mut self,
        warp: &mut Warp,
        (space, address): (Space, u64),
        bytes: usize,
        lane: usize,
        value: &[u32; WORDS_MAX],
    ) -> Result<(), Trap> {
        match space {
            Space::Global => {
                let (index, offset) = self.global(address, bytes)?;
                self.view.allocation(index).set(offset, bytes, value);
                self.note_block(index, offset, bytes)?;
            }
            Space::Shared => {
                let offset = self.shared.offset(address, bytes)?;
                self.shared.note_write(offset, bytes, 32 * warp.index + lane, false)?;
                put_words(self.shared.at_mut(offset, bytes), value);
            }
            Space::Local => {
                let offset = self.local(address, bytes, lane)?;
                put_words(&mut warp.local[offset..offset + bytes], value);
            }
            Space::Const | Space::Param => {
                let what = "a store to memory that cannot be written".to_owned();
                return Err(Trap::new(FaultKind::Operand, what));
            }
            Space::Generic => return self.write(warp, resolve(address), bytes, lane, value),
        }
        Ok(())
    }

    /// A global address as allocation and offset.
    #[inline]
    pub(super) fn global(&mut self, address: u64, bytes: usize) -> Result<(usize, usize), Trap> {
        if !address.is_multiple_of(bytes as u64) {
            let what = format!("{bytes} bytes at {address:#x}: not a multiple of {bytes}");
            return Err(Trap::new(FaultKind::Misaligned, what));
        }
        self.view.locate(address, bytes, &mut self.last)
    }

    /// Notes that this block wrote global bytes and blames it if another did before.
    fn note_block(&mut self, index: usize, offset: usize, bytes: usize) -> Result<(), Trap> {
        if !self.options.races {
            return Ok(());
        }
        let granule = self.kernel.body.granules[1];
        let allocation = self.view.allocation(index);
        let writers =
            self.writers[index].get_or_insert_with(|| allocation.writers(self.launch, granule));
        match Arc::as_ref(writers).note(offset, bytes, self.block) {
            None => Ok(()),
            Some(other) => {
                let what = format!(
                    "race: {bytes} bytes at offset {offset} of the allocation at {:#x} were written by \
                     block number {other} too",
                    allocation.base()
                );
                Err(Trap::new(FaultKind::BlockRace, what))
            }
        }
    }

    /// A local address as an index into the warp's local memory.
    fn local(&self, address: u64, bytes: usize, lane: usize) -> Result<usize, Trap> {
        let size = self.kernel.body.local;
        let fits = address < size as u64 && bytes as u64 <= size as u64 - address;
        if !fits {
            let what =
                format!("{bytes} bytes at local offset {}, a thread has {size}", address as i64);
            return Err(Trap::new(FaultKind::Overrun, what));
        }
        if !address.is_multiple_of(bytes as u64) {
            let what =
                format!("{bytes} bytes at local offset {address}: not a multiple of {bytes}");
            return Err(Trap::new(FaultKind::Misaligned, what));
        }
        Ok(lane * size + address as usize)
    }
}

/// Element `i` of loaded words.
#[inline]
fn element(data: &[u32; WORDS_MAX], width: u8, i: usize, extend: Extend) -> u64 {
    match width {
        8 => u64::from(data[2 * i + 1]) << 32 | u64::from(data[2 * i]),
        4 if extend == Extend::Sign => data[i] as i32 as i64 as u64,
        4 => u64::from(data[i]),
        _ => {
            let at = width as usize * i;
            let bits = 8 * u32::from(width);
            let value = data[at / 4] >> (8 * (at % 4)) & ((1 << bits) - 1);
            match extend {
                Extend::Zero => u64::from(value),
                Extend::Sign => (i64::from(value) << (64 - bits) >> (64 - bits)) as u64,
            }
        }
    }
}

/// Little-endian words of bytes; the last may be cut.
#[inline]
pub(super) fn words(bytes: &[u8], out: &mut [u32; WORDS_MAX]) {
    let (whole, rest) = bytes.as_chunks::<4>();
    for (word, bytes) in out.iter_mut().zip(whole) {
        *word = u32::from_le_bytes(*bytes);
    }
    if !rest.is_empty() {
        out[whole.len()] = rest.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
}

#[inline]
pub(super) fn put_words(bytes: &mut [u8], words: &[u32; WORDS_MAX]) {
    for (bytes, word) in bytes.chunks_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
}
