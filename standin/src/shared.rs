//! A block's shared memory, and who may touch it when.
//!
//! Beside the bytes there is a shadow: for every granule the last writer and when, and who read
//! since. A granule is the smallest access that the kernel's text makes, so that two threads that
//! share a granule share bytes. Time is counted in barriers completed anywhere in the block; each
//! warp knows up to which time it has seen each other warp (a vector clock with one entry a warp),
//! which is what named barriers and barriers of a part of the block need.

use crate::error::{FaultKind, Trap};

const LANES: usize = 32;
/// Threads a block has at most.
const THREAD_BITS: u32 = 10;
/// The last time that fits between the flag and the thread.
const TIME_MAX: u32 = (1 << (31 - THREAD_BITS)) - 1;
const IN_FLIGHT: u32 = 1 << 31;
/// Of readers: more than one thread of a warp, or more than one warp.
const SEVERAL: u32 = 1 << 31;

/// Who and when, in one word: bit 31 a flag, then the time, then the thread.
#[derive(Debug, Clone, Copy)]
struct Stamp(u32);

impl Stamp {
    fn new(thread: usize, time: u32) -> Stamp {
        Stamp(time << THREAD_BITS | thread as u32)
    }
    fn thread(self) -> usize {
        (self.0 & ((1 << THREAD_BITS) - 1)) as usize
    }
    fn time(self) -> u32 {
        (self.0 & !(1 << 31)) >> THREAD_BITS
    }
    fn flag(self) -> bool {
        self.0 >> 31 == 1
    }
}

#[derive(Debug, Clone, Copy)]
struct Granule {
    write: Stamp,
    read: Stamp,
    /// One bit for each warp that read since the last write.
    readers: u32,
}

/// Nothing happened yet: time 0 is before every access.
const UNTOUCHED: Granule = Granule { write: Stamp(0), read: Stamp(0), readers: 0 };

/// The clocks of a block's warps.
#[derive(Debug)]
struct Clocks {
    /// Accesses are stamped with this; it grows with each completed barrier.
    now: u32,
    /// `seen[a][b]`: what warp b did up to this time happened before what warp a does now.
    seen: Vec<[u32; LANES]>,
}

impl Clocks {
    fn new(warps: usize) -> Clocks {
        Clocks { now: 1, seen: vec![[0; LANES]; warps] }
    }

    /// A barrier: what `before` did so far happens before what `after` will do. (For `bar.sync` both
    /// are the same warps; `bar.arrive` is in `before` only.)
    fn join(&mut self, before: u32, after: u32) {
        let mut joined = [0; LANES];
        for warp in ones(before) {
            for (joined, seen) in joined.iter_mut().zip(self.seen[warp]) {
                *joined = seen.max(*joined);
            }
            joined[warp] = self.now;
        }
        for warp in ones(after) {
            for (seen, joined) in self.seen[warp].iter_mut().zip(joined) {
                *seen = joined.max(*seen);
            }
        }
        self.now += 1;
    }
}

/// Indices of the bits that are set.
pub(crate) fn ones(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let index = mask.trailing_zeros() as usize;
        (mask != 0).then(|| {
            mask &= mask - 1;
            index
        })
    })
}

/// Shared memory of one block.
#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    shadow: Vec<Granule>,
    granule: usize,
    clocks: Clocks,
    /// Granules that were read before anything was written there.
    pub(crate) reads_unwritten: u64,
}

impl Shared {
    /// `granule`: 0 for no race checks, else the smallest access in bytes.
    pub(crate) fn new(bytes: usize, granule: usize, warps: usize) -> Shared {
        let granules = if granule == 0 { 0 } else { bytes.div_ceil(granule) };
        Shared {
            bytes: vec![0xFF; bytes],
            shadow: vec![UNTOUCHED; granules],
            granule,
            clocks: Clocks::new(warps),
            reads_unwritten: 0,
        }
    }

    /// As it is at the start of a block.
    pub(crate) fn reset(&mut self) {
        self.bytes.fill(0xFF);
        self.shadow.fill(UNTOUCHED);
        let warps = self.clocks.seen.len();
        self.clocks = Clocks::new(warps);
    }

    /// Checks an address and makes it an offset.
    #[inline]
    pub(crate) fn offset(&self, address: u64, bytes: usize) -> Result<usize, Trap> {
        let size = self.bytes.len() as u64;
        if address < size && bytes as u64 <= size - address {
            if address.is_multiple_of(bytes as u64) {
                return Ok(address as usize);
            }
            let what =
                format!("{bytes} bytes at shared offset {address}: not a multiple of {bytes}");
            return Err(Trap::new(FaultKind::Misaligned, what));
        }
        let address = address as i64;
        let what = format!("{bytes} bytes at shared offset {address}, the block has {size} bytes");
        Err(Trap::new(FaultKind::Overrun, what))
    }

    /// A barrier, see [`Clocks::join`].
    pub(crate) fn join(&mut self, before: u32, after: u32) {
        if self.clocks.now == TIME_MAX {
            // After two million barriers the clocks start again; what came before is forgotten.
            self.shadow.fill(UNTOUCHED);
            self.clocks = Clocks::new(self.clocks.seen.len());
        }
        self.clocks.join(before, after);
    }

    /// The bytes at a checked offset.
    #[inline]
    pub(crate) fn at(&self, offset: usize, bytes: usize) -> &[u8] {
        &self.bytes[offset..offset + bytes]
    }

    /// The bytes at a checked offset, to be written.
    #[inline]
    pub(crate) fn at_mut(&mut self, offset: usize, bytes: usize) -> &mut [u8] {
        &mut self.bytes[offset..offset + bytes]
    }

    /// A thread reads.
    #[inline]
    pub(crate) fn note_read(
        &mut self,
        offset: usize,
        bytes: usize,
        thread: usize,
    ) -> Result<(), Trap> {
        if self.granule == 0 {
            return Ok(());
        }
        let warp = thread / LANES;
        let now = self.clocks.now;
        let seen = &self.clocks.seen[warp];
        let range = offset / self.granule..(offset + bytes).div_ceil(self.granule);
        for (i, shadow) in self.shadow[range.clone()].iter_mut().enumerate() {
            let write = shadow.write;
            if write.0 == 0 {
                self.reads_unwritten += 1;
            } else if write.flag()
                || write.thread() != thread && write.time() > seen[write.thread() / LANES]
            {
                return Err(conflict(
                    "reads",
                    thread,
                    (range.start + i) * self.granule,
                    write,
                    "wrote",
                ));
            }
            let read = shadow.read;
            let same = shadow.readers == 1 << warp && read.thread() == thread && !read.flag();
            if shadow.readers != 0 && !same {
                // Reads that are ordered before this one need not be remembered beside it.
                let is_open = |warp: &usize| read.time() > seen[*warp];
                let open = ones(shadow.readers).filter(is_open).fold(0, |open, w| open | 1 << w);
                shadow.readers = open;
            }
            let several = if same || shadow.readers == 0 { 0 } else { SEVERAL };
            shadow.read = Stamp(Stamp::new(thread, now).0 | several);
            shadow.readers |= 1 << warp;
        }
        Ok(())
    }

    /// A thread writes; with `in_flight` through an asynchronous copy that has not landed.
    #[inline]
    pub(crate) fn note_write(
        &mut self,
        offset: usize,
        bytes: usize,
        thread: usize,
        in_flight: bool,
    ) -> Result<(), Trap> {
        if self.granule == 0 {
            return Ok(());
        }
        let seen = &self.clocks.seen[thread / LANES];
        let mut stamp = Stamp::new(thread, self.clocks.now);
        if in_flight {
            stamp.0 |= IN_FLIGHT;
        }
        let range = offset / self.granule..(offset + bytes).div_ceil(self.granule);
        for (i, shadow) in self.shadow[range.clone()].iter_mut().enumerate() {
            let (write, read) = (shadow.write, shadow.read);
            let at = (range.start + i) * self.granule;
            if write.flag()
                || write.0 != 0
                    && write.thread() != thread
                    && write.time() > seen[write.thread() / LANES]
            {
                return Err(conflict("writes", thread, at, write, "wrote"));
            }
            if shadow.readers != 0 && (read.flag() || read.thread() != thread) {
                let is_after = |warp: usize| read.time() <= seen[warp];
                if !ones(shadow.readers).all(is_after) {
                    return Err(conflict("writes", thread, at, Stamp(read.0 & !SEVERAL), "read"));
                }
            }
            *shadow = Granule { write: stamp, read: Stamp(0), readers: 0 };
        }
        Ok(())
    }

    /// An asynchronous copy of `thread` landed.
    pub(crate) fn note_landed(&mut self, offset: usize, bytes: usize, thread: usize) {
        if self.granule == 0 {
            return;
        }
        let stamp = Stamp::new(thread, self.clocks.now);
        for shadow in
            &mut self.shadow[offset / self.granule..(offset + bytes).div_ceil(self.granule)]
        {
            shadow.write = stamp;
        }
    }

    /// An atomic: other atomics of any thread may go before and after it unordered, so it is only
    /// held against plain accesses, as a read.
    pub(crate) fn note_atomic(
        &mut self,
        offset: usize,
        bytes: usize,
        thread: usize,
    ) -> Result<(), Trap> {
        self.note_read(offset, bytes, thread)
    }
}

#[cold]
fn conflict(verb: &str, thread: usize, offset: usize, other: Stamp, other_verb: &str) -> Trap {
    let them = other.thread();
    if other.flag() {
        let what = format!(
            "thread {thread} {verb} shared byte {offset} while an asynchronous copy of thread {them} \
             there is in flight: no wait covered it"
        );
        return Trap::new(FaultKind::InFlight, what).at(thread % LANES);
    }
    let what = format!(
        "race: thread {thread} {verb} shared byte {offset}, which thread {them} {other_verb}, and no \
         barrier is between"
    );
    Trap::new(FaultKind::Race, what).at(thread % LANES)
}

/// How often the banks are passed through beyond the least for `bytes` bytes a lane: 32 banks of 4
/// bytes, one row each a pass; lanes are served in groups whose bytes fill one pass.
pub(crate) fn bank_conflicts(offsets: &[u64], bytes: usize) -> u64 {
    let group = (128 / bytes.max(4)).min(LANES);
    let mut extra = 0;
    for offsets in offsets.chunks(group) {
        let mut rows: [[u64; LANES]; LANES] = [[0; LANES]; LANES];
        let mut counts = [0usize; LANES];
        for offset in offsets {
            let first = offset / 4;
            for word in first..first + (bytes as u64).div_ceil(4) {
                let (bank, row) = ((word % 32) as usize, word / 32);
                let (rows, count) = (&mut rows[bank], &mut counts[bank]);
                if !rows[..*count].contains(&row) && *count < LANES {
                    rows[*count] = row;
                    *count += 1;
                }
            }
        }
        extra += counts.iter().max().map_or(0, |passes| passes.saturating_sub(1) as u64);
    }
    extra
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_orders_and_nothing_else_does() {
        let mut shared = Shared::new(64, 4, 3);
        shared.note_write(0, 4, 0, false).unwrap();
        shared.note_write(0, 4, 0, false).unwrap();
        assert_eq!(shared.note_read(0, 4, 33).unwrap_err().kind, FaultKind::Race);
        assert_eq!(shared.note_read(0, 4, 1).unwrap_err().kind, FaultKind::Race);
        // Only warps 0 and 1 meet: warp 2 still knows nothing.
        shared.join(0b011, 0b011);
        shared.note_read(0, 4, 33).unwrap();
        assert_eq!(shared.note_read(0, 4, 64).unwrap_err().kind, FaultKind::Race);
        // What warp 1 saw reaches warp 2 through warp 1.
        shared.join(0b110, 0b110);
        shared.note_read(0, 4, 64).unwrap();
        assert_eq!(shared.note_write(0, 4, 0, false).unwrap_err().kind, FaultKind::Race);
        shared.join(0b101, 0b101);
        // Warp 1 read too, but what it did came to warp 0 through warp 2.
        shared.note_write(0, 4, 0, false).unwrap();
    }

    #[test]
    fn every_reader_counts_not_only_the_last() {
        let mut shared = Shared::new(16, 16, 2);
        shared.note_read(0, 16, 0).unwrap();
        shared.note_read(0, 16, 32).unwrap();
        assert_eq!(shared.note_write(0, 16, 32, false).unwrap_err().kind, FaultKind::Race);
        assert_eq!(shared.reads_unwritten, 2);
    }

    #[test]
    fn arriving_is_not_waiting() {
        let mut shared = Shared::new(4, 4, 2);
        shared.note_write(0, 4, 0, false).unwrap();
        // Warp 0 arrives, warp 1 waits: warp 1 may read, warp 0 may not write again.
        shared.join(0b11, 0b10);
        shared.note_read(0, 4, 32).unwrap();
        assert_eq!(shared.note_write(0, 4, 0, false).unwrap_err().kind, FaultKind::Race);
    }

    #[test]
    fn a_copy_in_flight_belongs_to_nobody() {
        let mut shared = Shared::new(16, 16, 1);
        shared.note_write(0, 16, 3, true).unwrap();
        assert_eq!(shared.note_read(0, 16, 3).unwrap_err().kind, FaultKind::InFlight);
        shared.note_landed(0, 16, 3);
        shared.note_read(0, 16, 3).unwrap();
        assert_eq!(shared.note_read(0, 16, 4).unwrap_err().kind, FaultKind::Race);
    }

    #[test]
    fn conflicts_are_the_passes_beyond_the_least() {
        let strided = |stride: u64| (0..32).map(|lane| lane * stride).collect::<Vec<_>>();
        assert_eq!(bank_conflicts(&strided(4), 4), 0);
        assert_eq!(bank_conflicts(&strided(0), 4), 0, "one word is sent to all");
        assert_eq!(bank_conflicts(&strided(8), 4), 1);
        assert_eq!(bank_conflicts(&strided(128), 4), 31);
        assert_eq!(bank_conflicts(&strided(16), 16), 0);
        assert_eq!(bank_conflicts(&strided(128), 16), 28);
    }
}
