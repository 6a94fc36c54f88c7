//! Asynchronous copies from global to shared memory.
//!
//! From its issue until a wait covers it, a copy owns the bytes it writes: a thread that touches them
//! in between, the issuing one included, is at fault whether or not the bytes have landed.

use super::movement::put_words;
use super::{Surface, addresses};
use crate::error::{FaultKind, Trap};
use crate::instruction::{Address, R32, Space};
use crate::launch::AsyncCopies;
use crate::memory::WORDS_MAX;
use crate::shared::ones;
use crate::warp::{Copy, Warp};

impl Surface<'_> {
    /// `cp.async`: (bytes, destination, source, bytes of the source).
    pub(super) fn copy_async(
        &mut self,
        warp: &mut Warp,
        (bytes, to, from, source_bytes): (u8, Address, Address, Option<R32>),
        lanes: u32,
    ) -> Result<(), Trap> {
        let (to, from) = (addresses(warp, to), addresses(warp, from));
        let source = source_bytes.map_or([u32::from(bytes); 32], |register| *warp.r32(register));
        let lands_now = self.lands_now();
        let mut reads = 0;
        for lane in ones(lanes) {
            let result = (|| {
                if source[lane] > u32::from(bytes) {
                    let what = format!("{} bytes of the source for {bytes}", source[lane]);
                    return Err(Trap::new(FaultKind::Operand, what));
                }
                let to = self.shared.offset(to[lane], bytes as usize)?;
                if source[lane] > 0 {
                    self.global(from[lane], bytes as usize)?;
                    reads |= 1 << lane;
                }
                self.shared.note_write(to, bytes as usize, 32 * warp.index + lane, true)?;
                let copy = Copy {
                    lane: lane as u8,
                    bytes,
                    source_bytes: source[lane] as u8,
                    has_landed: lands_now,
                    group: warp.committed[lane],
                    to,
                    from: from[lane],
                };
                if lands_now {
                    self.land(copy)?;
                }
                if !lands_now || self.options.races {
                    warp.copies.push(copy);
                }
                Ok(())
            })();
            result.map_err(|trap| trap.at(lane))?;
        }
        if reads != 0 {
            self.count(Space::Global, &from, bytes as usize, reads, true);
        }
        Ok(())
    }

    /// Moves the bytes of a copy.
    fn land(&mut self, copy: Copy) -> Result<(), Trap> {
        let bytes = copy.bytes as usize;
        let mut data = [0; WORDS_MAX];
        if copy.source_bytes > 0 {
            let (index, offset) = self.global(copy.from, bytes)?;
            self.view.allocation(index).get(offset, bytes, &mut data);
        }
        let target = self.shared.at_mut(copy.to, bytes);
        put_words(target, &data);
        target[copy.source_bytes as usize..].fill(0);
        Ok(())
    }

    pub(super) fn copy_commit(&mut self, warp: &mut Warp, lanes: u32) -> Result<(), Trap> {
        for lane in ones(lanes) {
            warp.committed[lane] += 1;
        }
        // At random some copies land early, as they may.
        if matches!(self.options.async_copies, AsyncCopies::Random(_)) {
            for i in 0..warp.copies.len() {
                if !warp.copies[i].has_landed && self.random.below(4) == 0 {
                    self.land(warp.copies[i])?;
                    warp.copies[i].has_landed = true;
                }
            }
        }
        Ok(())
    }

    /// Lands all but the newest `pending` groups of these lanes.
    pub(super) fn copy_wait(
        &mut self,
        warp: &mut Warp,
        pending: Option<u32>,
        lanes: u32,
    ) -> Result<(), Trap> {
        let copies = std::mem::take(&mut warp.copies);
        let mut left = Vec::with_capacity(copies.len());
        for copy in copies {
            let lane = copy.lane as usize;
            let is_due = match pending {
                None => true,
                Some(pending) => copy.group + pending < warp.committed[lane],
            };
            if lanes >> lane & 1 == 0 || !is_due {
                left.push(copy);
                continue;
            }
            if !copy.has_landed {
                self.land(copy).map_err(|trap| trap.at(lane))?;
            }
            self.shared.note_landed(copy.to, copy.bytes as usize, 32 * warp.index + lane);
        }
        warp.copies = left;
        Ok(())
    }
}
