//! The device's global memory: its own address space, so that a pointer of the host or of another
//! allocation is never taken for a good one.
//!
//! Every allocation sits alone in a window of 64 GiB. Its base is a multiple of 256 and of nothing
//! more, as the driver promises no more. Fresh bytes are 0xFF: a NaN in FP32, BF16, FP16 and E4M3.
//! Bytes are kept in atomic words, so that blocks on several threads may share them; a data race of
//! the kernel is then a wrong value or a fault, never undefined behaviour of this program.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{Fault, FaultKind, Trap};

/// The first window; below it nothing is valid.
const FIRST: u64 = 1 << 52;
/// Where variables of modules live.
const FIRST_OF_MODULES: u64 = 1 << 60;
const WINDOW_BITS: u32 = 36;
/// The driver's promise about the alignment of an allocation, in bytes.
const ALIGNMENT: u64 = 256;
/// The longest single access: a vector of 32 bytes.
pub(crate) const WORDS_MAX: usize = 8;

/// Bytes at an address.
#[derive(Debug)]
pub(crate) struct Allocation {
    base: u64,
    bytes: usize,
    words: Box<[AtomicU32]>,
    /// The block of the running launch that wrote a granule, plus one; made at the first write.
    writers: Mutex<Option<Arc<Writers>>>,
}

/// Who wrote what during one launch. Kept in pages that are made when they are needed: an arena is one
/// allocation, of which a launch writes little.
#[derive(Debug)]
pub(crate) struct Writers {
    launch: u64,
    granule: usize,
    pages: Box<[OnceLock<Box<[AtomicU32]>>]>,
}

/// Granules of a page.
const PAGE: usize = 4096;

impl Allocation {
    fn new(base: u64, bytes: usize) -> Allocation {
        let words = (0..bytes.div_ceil(4)).map(|_| AtomicU32::new(u32::MAX)).collect();
        Allocation { base, bytes, words, writers: Mutex::new(None) }
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Copies out. The range was checked.
    fn read(&self, offset: usize, out: &mut [u8]) {
        for (i, byte) in out.iter_mut().enumerate() {
            let at = offset + i;
            *byte = self.words[at / 4].load(Relaxed).to_le_bytes()[at % 4];
        }
    }

    /// Copies in. The range was checked.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let head = (offset.wrapping_neg() % 4).min(bytes.len());
        let (head, rest) = bytes.split_at(head);
        for (i, byte) in head.iter().enumerate() {
            self.put(offset + i, 1, u32::from(*byte));
        }
        let at = offset + head.len();
        let (words, tail) = rest.as_chunks::<4>();
        for (i, word) in words.iter().enumerate() {
            self.words[at / 4 + i].store(u32::from_le_bytes(*word), Relaxed);
        }
        for (i, byte) in tail.iter().enumerate() {
            self.put(at + 4 * words.len() + i, 1, u32::from(*byte));
        }
    }

    /// One or two bytes inside a word.
    fn put(&self, offset: usize, width: usize, value: u32) {
        let shift = 8 * (offset % 4);
        let mask = ((1u32 << (8 * width)) - 1) << shift;
        let set = |word| Some(word & !mask | value << shift & mask);
        let word = &self.words[offset / 4];
        // `set` always answers, so this cannot fail.
        let _ = word.fetch_update(Relaxed, Relaxed, set);
    }

    /// Reads `bytes` (1, 2 or a multiple of 4) at a checked, aligned offset.
    pub(crate) fn get(&self, offset: usize, bytes: usize, out: &mut [u32; WORDS_MAX]) {
        let first = offset / 4;
        if bytes < 4 {
            out[0] =
                self.words[first].load(Relaxed) >> (8 * (offset % 4)) & ((1 << (8 * bytes)) - 1);
            return;
        }
        for (out, word) in out.iter_mut().zip(&self.words[first..first + bytes / 4]) {
            *out = word.load(Relaxed);
        }
    }

    /// Writes `bytes` (1, 2 or a multiple of 4) at a checked, aligned offset.
    pub(crate) fn set(&self, offset: usize, bytes: usize, value: &[u32; WORDS_MAX]) {
        let first = offset / 4;
        if bytes < 4 {
            return self.put(offset, bytes, value[0]);
        }
        for (value, word) in value.iter().zip(&self.words[first..first + bytes / 4]) {
            word.store(*value, Relaxed);
        }
    }

    /// Replaces a word by `f` of it in one step and returns the old one.
    pub(crate) fn update32(&self, offset: usize, f: impl Fn(u32) -> u32) -> u32 {
        let word = &self.words[offset / 4];
        word.fetch_update(Relaxed, Relaxed, |old| Some(f(old))).unwrap_or_else(|old| old)
    }

    /// Replaces 8 bytes. One step with regard to other calls of this function only.
    pub(crate) fn update64(&self, offset: usize, f: impl Fn(u64) -> u64) -> u64 {
        let _one_at_a_time = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let [low, high] = [0, 1].map(|i| &self.words[offset / 4 + i]);
        let old = u64::from(low.load(Relaxed)) | u64::from(high.load(Relaxed)) << 32;
        let new = f(old);
        low.store(new as u32, Relaxed);
        high.store((new >> 32) as u32, Relaxed);
        old
    }

    /// The table of writers of launch number `launch`.
    pub(crate) fn writers(&self, launch: u64, granule: usize) -> Arc<Writers> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writers) = writers.as_ref().filter(|writers| writers.launch == launch) {
            return Arc::clone(writers);
        }
        let n_pages = self.bytes.div_ceil(granule).div_ceil(PAGE);
        let pages = (0..n_pages).map(|_| OnceLock::new()).collect();
        let fresh = Arc::new(Writers { launch, granule, pages });
        *writers = Some(Arc::clone(&fresh));
        fresh
    }

    /// Lets go of what a launch noted.
    pub(crate) fn forget_writers(&self) {
        *self.writers.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Writers {
    /// Notes that `block` wrote; another block that wrote there before, if one did.
    pub(crate) fn note(&self, offset: usize, bytes: usize, block: u32) -> Option<u32> {
        let last = offset + bytes.max(self.granule) - self.granule;
        let mut other = None;
        for at in offset / self.granule..=last / self.granule {
            let granule = &self.page(at / PAGE)[at % PAGE];
            // A plain load first: most granules are written once.
            let old = granule.load(Relaxed);
            if old == 0 {
                let old = granule.swap(block + 1, Relaxed);
                if old != 0 && old != block + 1 {
                    other = Some(old - 1);
                }
            } else if old != block + 1 {
                other = Some(old - 1);
            }
        }
        other
    }

    fn page(&self, index: usize) -> &[AtomicU32] {
        self.pages[index].get_or_init(|| (0..PAGE).map(|_| AtomicU32::new(0)).collect())
    }
}

/// What is and what was.
#[derive(Debug, Default)]
struct Places {
    live: BTreeMap<u64, Arc<Allocation>>,
    /// Sizes in bytes of allocations that were freed.
    freed: BTreeMap<u64, usize>,
    /// Windows that were given away.
    windows: u64,
}

/// The device's global memory. Shared between threads; launches read and write it through the
/// addresses that [`Memory::allocate`] gave.
#[derive(Debug, Default)]
pub struct Memory {
    places: RwLock<Places>,
}

impl Memory {
    /// Memory without an allocation.
    pub fn new() -> Memory {
        Memory::default()
    }

    fn places(&self) -> RwLockReadGuard<'_, Places> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn places_mut(&self) -> RwLockWriteGuard<'_, Places> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// `bytes` fresh bytes of 0xFF. No address is given twice.
    pub fn allocate(&self, bytes: usize) -> u64 {
        let mut places = self.places_mut();
        let base = FIRST + (places.windows << WINDOW_BITS) + ALIGNMENT;
        places.windows += windows(bytes);
        places.live.insert(base, Arc::new(Allocation::new(base, bytes)));
        base
    }

    /// Frees what [`Memory::allocate`] gave; the address stays known as freed.
    pub fn free(&self, address: u64) -> Result<(), Fault> {
        let mut places = self.places_mut();
        if let Some(allocation) = places.live.remove(&address) {
            places.freed.insert(address, allocation.bytes);
            return Ok(());
        }
        if places.freed.contains_key(&address) {
            let what = format!("free of {address:#x}, which was freed before");
            return Err(Fault::host(FaultKind::UseAfterFree, what));
        }
        let what = format!("free of {address:#x}, which is the base of no allocation");
        Err(Fault::host(FaultKind::WildAddress, what))
    }

    /// The size in bytes of the live allocation with exactly this base.
    pub fn size_of(&self, address: u64) -> Option<usize> {
        self.places().live.get(&address).map(|allocation| allocation.bytes)
    }

    /// Base and size in bytes of every live allocation, by ascending base.
    pub fn allocations(&self) -> Vec<(u64, usize)> {
        self.places().live.iter().map(|(base, allocation)| (*base, allocation.bytes)).collect()
    }

    fn host_range(&self, address: u64, bytes: usize) -> Result<(Arc<Allocation>, usize), Fault> {
        let view = self.view(&[]);
        let found = view.find(address, bytes, &mut 0);
        found.map_err(|trap| Fault::host(trap.kind, trap.what))
    }

    /// Copies to the host.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Fault> {
        if out.is_empty() {
            return Ok(());
        }
        let (allocation, offset) = self.host_range(address, out.len())?;
        allocation.read(offset, out);
        Ok(())
    }

    /// Copies from the host.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Ok(());
        }
        let (allocation, offset) = self.host_range(address, bytes.len())?;
        allocation.write(offset, bytes);
        Ok(())
    }

    /// Sets `bytes` bytes to `value`.
    pub fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<(), Fault> {
        if bytes == 0 {
            return Ok(());
        }
        let (allocation, offset) = self.host_range(address, bytes)?;
        allocation.write(offset, &vec![value; bytes]);
        Ok(())
    }

    /// What a launch sees: the allocations of now, and the variables of its module.
    pub(crate) fn view(&self, variables: &[Arc<Allocation>]) -> View<'_> {
        let places = self.places();
        let live = places.live.values().chain(variables).cloned().collect();
        View { live, memory: self }
    }
}

/// Windows that an allocation takes, the gap behind it included.
fn windows(bytes: usize) -> u64 {
    ((bytes as u64 + 2 * ALIGNMENT) >> WINDOW_BITS) + 1
}

/// The allocations of one moment, by ascending base.
#[derive(Debug)]
pub(crate) struct View<'a> {
    live: Vec<Arc<Allocation>>,
    memory: &'a Memory,
}

impl View<'_> {
    /// The allocation that `bytes` bytes at `address` lie in, by index, and the offset there.
    /// `last` is where the search starts and what it found.
    #[inline]
    pub(crate) fn locate(
        &self,
        address: u64,
        bytes: usize,
        last: &mut usize,
    ) -> Result<(usize, usize), Trap> {
        let fits = |allocation: &Allocation| {
            let offset = address.wrapping_sub(allocation.base);
            (offset < allocation.bytes as u64 && bytes as u64 <= allocation.bytes as u64 - offset)
                .then_some(offset as usize)
        };
        if let Some(offset) = self.live.get(*last).and_then(|allocation| fits(allocation)) {
            return Ok((*last, offset));
        }
        let after = self.live.partition_point(|allocation| allocation.base <= address);
        let found = after.checked_sub(1).and_then(|index| Some((index, fits(&self.live[index])?)));
        let (index, offset) = found.ok_or_else(|| self.blame(address, bytes))?;
        *last = index;
        Ok((index, offset))
    }

    pub(crate) fn allocation(&self, index: usize) -> &Allocation {
        &self.live[index]
    }

    pub(crate) fn all(&self) -> &[Arc<Allocation>] {
        &self.live
    }

    fn find(
        &self,
        address: u64,
        bytes: usize,
        last: &mut usize,
    ) -> Result<(Arc<Allocation>, usize), Trap> {
        let (index, offset) = self.locate(address, bytes, last)?;
        Ok((Arc::clone(&self.live[index]), offset))
    }

    /// Why there is nothing at an address.
    #[cold]
    fn blame(&self, address: u64, bytes: usize) -> Trap {
        // A whole window belongs to its allocation, so that small overruns are named well.
        let near = |base: u64| base >> WINDOW_BITS == address >> WINDOW_BITS;
        for allocation in &self.live {
            let (base, size) = (allocation.base, allocation.bytes);
            let offset = address.wrapping_sub(base) as i64;
            if near(base) || (0..size as i64).contains(&offset) {
                let what = format!(
                    "{bytes} bytes at offset {offset} of the allocation of {size} bytes at {base:#x}"
                );
                return Trap::new(FaultKind::OutOfBounds, what);
            }
        }
        for (&base, &size) in &self.memory.places().freed {
            let offset = address.wrapping_sub(base) as i64;
            if near(base) || (0..size as i64).contains(&offset) {
                let what = format!(
                    "use after free: {bytes} bytes at offset {offset} of the freed allocation of \
                     {size} bytes at {base:#x}"
                );
                return Trap::new(FaultKind::UseAfterFree, what);
            }
        }
        let what = format!("wild address: {bytes} bytes at {address:#x}, in no allocation");
        Trap::new(FaultKind::WildAddress, what)
    }
}

/// Storage for a variable of a module, at an address that no other has in this process.
pub(crate) fn module_variable(bytes: usize) -> Arc<Allocation> {
    static NEXT: Mutex<u64> = Mutex::new(FIRST_OF_MODULES);
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    let base = *next + ALIGNMENT;
    *next += windows(bytes) << WINDOW_BITS;
    let allocation = Allocation::new(base, bytes);
    // A variable without an initialiser is zero.
    allocation.write(0, &vec![0; bytes]);
    Arc::new(allocation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_bytes_are_nan_and_every_byte_can_be_written_alone() {
        let memory = Memory::new();
        let address = memory.allocate(11);
        let mut out = [0; 11];
        memory.read(address, &mut out).unwrap();
        assert_eq!(out, [0xFF; 11]);
        for start in 0..11 {
            for end in start..=11 {
                memory.fill(address, 0, 11).unwrap();
                let bytes: Vec<u8> = (start..end).map(|i| i as u8 + 1).collect();
                memory.write(address + start as u64, &bytes).unwrap();
                memory.read(address, &mut out).unwrap();
                let byte = |i| if (start..end).contains(&i) { i as u8 + 1 } else { 0 };
                let expected: [u8; 11] = std::array::from_fn(byte);
                assert_eq!(out, expected);
            }
        }
    }

    #[test]
    fn the_edge_the_freed_and_the_wild_are_told_apart() {
        let memory = Memory::new();
        let [a, b] = [100, 8].map(|bytes| memory.allocate(bytes));
        assert_eq!((a % 256, a % 512, memory.size_of(a)), (0, 256, Some(100)));
        let kind = |address, bytes| memory.write(address, &vec![0; bytes]).unwrap_err().kind;
        assert_eq!(kind(a + 96, 5), FaultKind::OutOfBounds);
        assert_eq!(kind(a - 1, 1), FaultKind::OutOfBounds);
        memory.free(b).unwrap();
        assert_eq!(kind(b, 1), FaultKind::UseAfterFree);
        assert_eq!(memory.free(b).unwrap_err().kind, FaultKind::UseAfterFree);
        assert_eq!(kind(0x7fff_1234, 4), FaultKind::WildAddress);
        assert_eq!(memory.free(a + 1).unwrap_err().kind, FaultKind::WildAddress);
        assert_eq!(memory.allocations(), [(a, 100)]);
        assert!(memory.allocate(1) > b, "an address is not given twice");
    }

    #[test]
    fn atomic_words_lose_no_update() {
        let allocation = Allocation::new(0, 16);
        allocation.write(0, &[0; 16]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        allocation.update32(4, |old| old + 1);
                        allocation.update64(8, |old| old + (1 << 31));
                    }
                });
            }
        });
        let mut out = [0; WORDS_MAX];
        allocation.get(0, 16, &mut out);
        assert_eq!(out[..4], [0, 4000, 0, 2000]);
    }
}
