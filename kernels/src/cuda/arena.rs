//! One allocation of a device, divided by us: all that a cell holds while it trains.
//!
//! The driver's allocator waits for the device when memory is given back; a step takes and returns the same sizes
//! thousands of times. Here both are a change of a list. Ranges are found first fit, by address, and join their free
//! neighbours: the same takes and returns give the same addresses on every run.
//!
//! **What a cell needs is found by taking it.** An arena of an imagined device ([`Arena::imagined`]) has no end; whoever does
//! there what is going to be done elsewhere reads from its [`Usage`] how many bytes that wants, gaps included, to the byte.
//! For that a block may take more room than it has bytes: as much as it would have at most.
//!
//! **A range that was given back may be taken at once, on the host's clock.** Work of one stream runs in order, so what is
//! queued for its next owner runs after what is queued for the last. Whoever lets another stream read or write a block
//! makes the first stream wait for that ([`super::Stream::wait`]) before the block is dropped.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::memory::{Buffer, Slice};
use super::{Device, DeviceError};

/// Every block begins at a multiple of this, as the driver's own do.
const ALIGNMENT: usize = 256;

/// The memory of one cell. A clone is the same arena.
#[derive(Clone, Debug)]
pub struct Arena(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    buffer: Buffer,
    ranges: Arc<Mutex<Ranges>>,
}

/// Says how much of an arena was in use, also when its memory is given back.
#[derive(Clone, Debug)]
pub struct Meter {
    arena: Weak<Shared>,
    ranges: Arc<Mutex<Ranges>>,
}

/// Part of an arena; given back when it is dropped.
#[derive(Debug)]
pub struct Block {
    arena: Arc<Shared>,
    what: &'static str,
    start: usize,
    bytes: usize,
    room: usize,
}

/// How much of an arena is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub used: usize,
    /// Where the last byte that was ever in use ends: an arena of so many bytes is enough.
    pub high_water: usize,
    pub total: usize,
}

/// Bytes by what they are for.
pub type Kinds = BTreeMap<&'static str, usize>;

impl Arena {
    /// `bytes` of a device, rounded up to the alignment of blocks. `what` is named when there is no room.
    ///
    /// # Errors
    /// When the device has less.
    pub fn new(device: &Device, what: &str, bytes: usize) -> Result<Self, DeviceError> {
        let total = bytes.next_multiple_of(ALIGNMENT);
        let buffer = device.buffer(what, total)?;
        Ok(Self(Arc::new(Shared { buffer, ranges: Arc::new(Mutex::new(Ranges::new(total))) })))
    }

    /// One that never ends, of a device that is none.
    ///
    /// # Errors
    /// None: the signature is the other's.
    pub fn imagined(device: &Device) -> Result<Self, DeviceError> {
        Self::new(device, "an imagined arena", usize::MAX / 2)
    }

    /// `bytes` whose content is undefined, aligned to 256.
    ///
    /// # Errors
    /// When no free range is as long: names `what`, what it needs and what there is.
    pub fn take(&self, what: &'static str, bytes: usize) -> Result<Block, DeviceError> {
        self.take_room(what, bytes, bytes)
    }

    /// The same, of `bytes` that take the room of `room`: what is free afterwards does not hang on how many there are.
    ///
    /// # Errors
    /// As above.
    pub fn take_room(
        &self,
        what: &'static str,
        bytes: usize,
        room: usize,
    ) -> Result<Block, DeviceError> {
        assert!(bytes <= room, "{what} has {bytes} bytes and was to have {room} at most");
        let mut ranges = self.0.ranges();
        let Some(start) = ranges.take(what, room.next_multiple_of(ALIGNMENT)) else {
            let (free, largest) = ranges.free();
            let total = ranges.total;
            return Err(DeviceError::ArenaFull { what, bytes: room, free, largest, total });
        };
        Ok(Block { arena: Arc::clone(&self.0), what, start, bytes, room })
    }

    pub fn usage(&self) -> Usage {
        self.0.ranges().usage()
    }

    /// What was in use when most was.
    pub fn fullest(&self) -> Kinds {
        self.0.ranges().fullest.clone()
    }

    pub fn meter(&self) -> Meter {
        Meter { arena: Arc::downgrade(&self.0), ranges: Arc::clone(&self.0.ranges) }
    }
}

impl Meter {
    /// Whether the memory is still taken.
    pub fn is_live(&self) -> bool {
        self.arena.strong_count() > 0
    }

    pub fn usage(&self) -> Usage {
        locked(&self.ranges).usage()
    }
}

fn locked(ranges: &Mutex<Ranges>) -> MutexGuard<'_, Ranges> {
    // A list is changed in calls that do not panic between two changes.
    ranges.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        locked(&self.ranges)
    }
}

impl Block {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that it takes.
    pub fn room(&self) -> usize {
        self.room
    }

    /// All of it.
    pub fn all(&self) -> Slice<'_> {
        self.slice(0..self.bytes)
    }

    /// A range of its bytes.
    pub fn slice(&self, range: Range<usize>) -> Slice<'_> {
        let block = self.arena.buffer.slice(self.start..self.start + self.bytes);
        block.slice(range)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let room = self.room.next_multiple_of(ALIGNMENT);
        self.arena.ranges().give(self.what, self.start, room);
    }
}

/// Which bytes are free: starts with lengths, no two of them neighbours.
#[derive(Debug)]
struct Ranges {
    free: BTreeMap<usize, usize>,
    used: usize,
    high_water: usize,
    total: usize,
    kinds: Kinds,
    fullest: Kinds,
}

impl Ranges {
    fn new(total: usize) -> Self {
        let free = (total > 0).then_some((0, total)).into_iter().collect();
        let (kinds, fullest) = (Kinds::new(), Kinds::new());
        Self { free, used: 0, high_water: 0, total, kinds, fullest }
    }

    fn usage(&self) -> Usage {
        Usage { used: self.used, high_water: self.high_water, total: self.total }
    }

    /// The start of the first free range that is long enough.
    fn take(&mut self, what: &'static str, bytes: usize) -> Option<usize> {
        if bytes == 0 {
            return Some(0);
        }
        let (&start, &length) = self.free.iter().find(|(_, length)| bytes <= **length)?;
        self.free.remove(&start);
        if bytes < length {
            self.free.insert(start + bytes, length - bytes);
        }
        self.used += bytes;
        *self.kinds.entry(what).or_default() += bytes;
        if self.high_water < start + bytes {
            self.high_water = start + bytes;
            self.fullest.clone_from(&self.kinds);
        }
        Some(start)
    }

    fn give(&mut self, what: &'static str, start: usize, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.used -= bytes;
        *self.kinds.entry(what).or_default() -= bytes;
        let (mut start, mut length) = (start, bytes);
        if let Some((&before, &its_length)) = self.free.range(..start).next_back()
            && before + its_length == start
        {
            self.free.remove(&before);
            start = before;
            length += its_length;
        }
        if let Some(after) = self.free.remove(&(start + length)) {
            length += after;
        }
        self.free.insert(start, length);
    }

    /// Free bytes, and those of the longest range.
    fn free(&self) -> (usize, usize) {
        (self.total - self.used, self.free.values().copied().max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Random;

    #[test]
    fn ranges_are_taken_first_fit_and_join_when_they_come_back() {
        let mut ranges = Ranges::new(1024);
        assert_eq!(ranges.take("some", 256), Some(0));
        assert_eq!(ranges.take("some", 512), Some(256));
        assert_eq!(ranges.take("some", 0), Some(0), "nothing takes no room");
        assert_eq!(ranges.take("some", 512), None);
        assert_eq!(ranges.free(), (256, 256));
        ranges.give("some", 0, 256);
        assert_eq!(ranges.free(), (512, 256), "the free ones are no neighbours");
        ranges.give("some", 256, 512);
        assert_eq!((ranges.free(), ranges.free.len()), ((1024, 1024), 1));
        assert_eq!((ranges.used, ranges.high_water), (0, 768));
        assert_eq!(ranges.take("some", 1024), Some(0));
        assert_eq!(ranges.fullest, Kinds::from([("some", 1024)]));
        assert_eq!(Ranges::new(0).take("some", 256), None);
    }

    /// Against a plain table of who has which 256 bytes.
    #[test]
    fn no_two_owners_share_a_byte_and_nothing_is_lost() {
        const CELLS: usize = 64;
        let mut random = Random::new(7);
        let mut ranges = Ranges::new(CELLS * 256);
        let mut table = [None; CELLS];
        let mut owners: Vec<(usize, usize, usize)> = Vec::new();
        for owner in 0..4000 {
            if random.below(2) == 0 || owners.is_empty() {
                let cells = 1 + random.below(9) as usize;
                let fits =
                    table.windows(cells).position(|window| window.iter().all(Option::is_none));
                let start = ranges.take("some", cells * 256);
                assert_eq!(start, fits.map(|cell| cell * 256), "first fit by address");
                if let Some(start) = start {
                    table[start / 256..][..cells].fill(Some(owner));
                    owners.push((owner, start, cells));
                }
            } else {
                let (owner, start, cells) =
                    owners.swap_remove(random.below(owners.len() as u64) as usize);
                let mine = &mut table[start / 256..][..cells];
                assert!(mine.iter().all(|cell| *cell == Some(owner)));
                mine.fill(None);
                ranges.give("some", start, cells * 256);
            }
            let used = table.iter().flatten().count() * 256;
            assert_eq!((ranges.used, ranges.free().0), (used, CELLS * 256 - used));
        }
    }
}
