//! The memory of tensors: given back to a pool when a tensor is dropped, and taken from it again.
//!
//! A step makes tensors of the same sizes as the step before, so that after the first ones nothing is
//! asked of the system, whose fresh pages cost more than the arithmetic on them in small layers.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use crate::spread;

/// Blocks that nobody uses, by their length in cells of four bytes.
static POOL: Mutex<Blocks> = Mutex::new(BTreeMap::new());

/// Cells of a cache line: every slice starts on one.
const LINE: usize = 16;

/// `len` numbers of up to four bytes.
pub struct Storage<T> {
    /// As long as its class in the pool.
    block: Vec<u32>,
    /// The first cell on a cache line.
    start: usize,
    len: usize,
    number: PhantomData<T>,
}

/// Lengths come in eighths of powers of two, so that blocks fit again where sizes vary a little.
fn class(cells: usize) -> usize {
    let step = (cells.max(8 * LINE).ilog2() - 3).min(usize::BITS - 1);
    cells.max(8 * LINE).next_multiple_of(1 << step) + LINE
}

fn pool() -> MutexGuard<'static, Blocks> {
    // A panic elsewhere leaves whole blocks in it.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

type Blocks = BTreeMap<usize, Vec<Vec<u32>>>;

/// A block of this class, or of one that is at most a quarter longer: rows of experts vary from step to
/// step, and a longer block that is free costs less than one more.
fn take_near(pool: &mut Blocks, class: usize) -> Option<Vec<u32>> {
    pool.range_mut(class..=class + class / 4).find_map(|(_, blocks)| blocks.pop())
}

/// Gives the system about as much as a fresh block of this class will take from it, of shorter ones, the
/// longest first: else each class would keep what it needed in its own worst step.
fn make_room(pool: &mut Blocks, class: usize) {
    let mut freed = 0;
    for (len, blocks) in pool.range_mut(SMALL..class).rev() {
        while freed < class && blocks.pop().is_some() {
            freed += len;
        }
    }
}

/// Cells of blocks that are kept in any case.
const SMALL: usize = 16 * 1024;

impl<T: Pod + Send + Sync> Storage<T> {
    /// Contents are unspecified.
    pub(crate) fn new(len: usize) -> Self {
        Self::taken(len).0
    }

    pub(crate) fn zeros(len: usize) -> Self {
        let (mut storage, fresh) = Self::taken(len);
        if !fresh {
            storage.fill(T::zeroed());
        }
        storage
    }

    pub(crate) fn of(values: &[T]) -> Self {
        let mut storage = Self::new(values.len());
        let chunks = storage.chunks_mut(spread::ELEMENTS).zip(values.chunks(spread::ELEMENTS));
        spread::each(chunks, |(out, values)| out.copy_from_slice(values));
        storage
    }

    /// Second: whether it is fresh from the system, and zero.
    fn taken(len: usize) -> (Self, bool) {
        if len == 0 {
            return (Self { block: Vec::new(), start: 0, len, number: PhantomData }, true);
        }
        let class = class((len * size_of::<T>()).div_ceil(4));
        let kept = {
            let mut pool = pool();
            let kept = take_near(&mut pool, class);
            if kept.is_none() && SMALL < class {
                make_room(&mut pool, class);
            }
            kept
        };
        let fresh = kept.is_none();
        let block = kept.unwrap_or_else(|| vec![0; class]);
        let start = block.as_ptr().align_offset(LINE * 4).min(LINE - 1);
        (Self { block, start, len, number: PhantomData }, fresh)
    }
}

impl<T: Pod> Deref for Storage<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.block[self.start..])[..self.len]
    }
}

impl<T: Pod> DerefMut for Storage<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.block[self.start..])[..self.len]
    }
}

impl<T> Drop for Storage<T> {
    fn drop(&mut self) {
        if !self.block.is_empty() {
            let block = std::mem::take(&mut self.block);
            pool().entry(block.len()).or_default().push(block);
        }
    }
}

impl<T: Pod + Send + Sync> Clone for Storage<T> {
    fn clone(&self) -> Self {
        Self::of(self)
    }
}

impl<T: Pod + PartialEq> PartialEq for Storage<T> {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Storage<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self[..].fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_used_again_and_zeros_are_zero_all_the_same() {
        // A length that no other test asks for.
        let mut first = Storage::<f32>::new(1_234_567);
        first.fill(7.0);
        let address = first.as_ptr();
        drop(first);
        let second = Storage::<u16>::new(2 * 1_234_567);
        assert_eq!(second.as_ptr().addr(), address.addr());
        drop(second);
        let third = Storage::<f32>::zeros(1_234_500);
        assert_eq!(third.as_ptr().addr(), address.addr());
        assert!(third.iter().all(|x| x.to_bits() == 0));
    }

    #[test]
    fn every_length_starts_on_a_cache_line_and_holds_its_numbers() {
        for len in [0, 1, 3, 127, 129, 4097] {
            let values: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let storage = Storage::of(&values);
            assert_eq!(storage[..], values);
            assert!(len == 0 || storage.as_ptr().addr().is_multiple_of(64));
            assert_eq!(storage.clone(), storage);
        }
    }

    #[test]
    fn a_class_is_at_most_an_eighth_too_long() {
        for cells in (1..70_000).step_by(61) {
            let class = class(cells);
            assert!(cells + LINE <= class, "{cells} in {class}");
            assert!(class <= cells.max(128) * 9 / 8 + LINE, "{cells} in {class}");
        }
    }
}
