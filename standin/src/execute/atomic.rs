//! Atomics: one lane after the other, in ascending order.

use super::movement::{put_words, resolve, words};
use super::{Surface, addresses};
use crate::error::{FaultKind, Trap};
use crate::instruction::{Atomic, Space, Update};
use crate::memory::WORDS_MAX;
use crate::shared::ones;
use crate::warp::Warp;

impl Surface<'_> {
    /// Lanes take their turns in ascending order.
    pub(super) fn atomic(
        &mut self,
        warp: &mut Warp,
        update: Update,
        lanes: u32,
    ) -> Result<(), Trap> {
        let Update { f, is_64, space, address, d, a, b } = update;
        let at = addresses(warp, address);
        let (a, b) = (warp.any(a), b.map_or([0; 32], |b| warp.any(b)));
        let bytes = if is_64 { 8 } else { 4 };
        let mut old = [0; 32];
        for lane in ones(lanes) {
            let change = |old: u64| changed(f, is_64, old, a[lane], b[lane]);
            old[lane] = self
                .atomic_one(warp, (space, at[lane]), bytes, lane, &change)
                .map_err(|trap| trap.at(lane))?;
        }
        if f == Atomic::FloatAdd {
            self.counts.stats.float_atomics += 1;
        }
        self.count(space, &at, bytes, lanes, false);
        if let Some(d) = d {
            warp.set_any(d, lanes, &old);
        }
        Ok(())
    }

    fn atomic_one(
        &mut self,
        warp: &mut Warp,
        (space, address): (Space, u64),
        bytes: usize,
        lane: usize,
        change: &dyn Fn(u64) -> u64,
    ) -> Result<u64, Trap> {
        match space {
            Space::Global => {
                let (index, offset) = self.global(address, bytes)?;
                let allocation = self.view.allocation(index);
                Ok(if bytes == 8 {
                    allocation.update64(offset, change)
                } else {
                    u64::from(allocation.update32(offset, |old| change(u64::from(old)) as u32))
                })
            }
            Space::Shared => {
                let offset = self.shared.offset(address, bytes)?;
                self.shared.note_atomic(offset, bytes, 32 * warp.index + lane)?;
                let mut data = [0; WORDS_MAX];
                words(self.shared.at(offset, bytes), &mut data);
                let old = u64::from(data[1]) << 32 | u64::from(data[0]);
                let new = change(old);
                (data[0], data[1]) = (new as u32, (new >> 32) as u32);
                put_words(self.shared.at_mut(offset, bytes), &data);
                Ok(old)
            }
            Space::Generic => self.atomic_one(warp, resolve(address), bytes, lane, change),
            Space::Local | Space::Const | Space::Param => {
                let what = "an atomic on memory that threads do not share".to_owned();
                Err(Trap::new(FaultKind::Operand, what))
            }
        }
    }
}

/// What an atomic leaves behind.
fn changed(f: Atomic, is_64: bool, old: u64, a: u64, b: u64) -> u64 {
    let signed = |value: u64| if is_64 { value as i64 } else { i64::from(value as i32) };
    match f {
        Atomic::Add => old.wrapping_add(a),
        Atomic::FloatAdd => {
            let sum = f32::from_bits(old as u32) + f32::from_bits(a as u32);
            u64::from(sum.to_bits())
        }
        Atomic::And => old & a,
        Atomic::Or => old | a,
        Atomic::Xor => old ^ a,
        Atomic::Exchange => a,
        Atomic::CompareSwap => {
            if old == a {
                b
            } else {
                old
            }
        }
        Atomic::MinU => old.min(a),
        Atomic::MaxU => old.max(a),
        Atomic::MinS => {
            if signed(a) < signed(old) {
                a
            } else {
                old
            }
        }
        Atomic::MaxS => {
            if signed(a) > signed(old) {
                a
            } else {
                old
            }
        }
        Atomic::Increment => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        Atomic::Decrement => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
    }
}
