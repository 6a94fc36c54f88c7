//! Which source each sequence of a run comes from, and which window of it: a pure function of the
//! seed and the weights.
//!
//! Every block of 1024 sequences holds each source's exact share (largest remainder), in an order
//! drawn for that block by the same permutation that orders windows. Each source then goes through
//! its own windows in its own epochs. With one source this is that source's `SampleOrder`.

use std::ops::Range;

use super::{SampleOrder, mix};

/// Sequences over which the shares are exact.
pub const BLOCK: u64 = 1024;

/// Keeps the order of the sources apart from the order of the windows: "mixture" in ASCII.
const OF_SOURCES: u64 = 0x006D_6978_7475_7265;

/// The order of all sequences over all sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Sequences of each source in a block; their sum is `BLOCK`.
    shares: Vec<u64>,
    orders: Vec<SampleOrder>,
    /// The places of a block in their order.
    order: SampleOrder,
}

/// Where a sequence comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub source: usize,
    /// Counts the sequences of this source from the beginning of the run.
    pub number: u64,
    /// The window of the source.
    pub window: u64,
    /// How often the source was seen in full before.
    pub epoch: u64,
}

impl Mixture {
    /// The order over sources given as (weight, windows). Panics without sources, with more than
    /// a block has places, with a weight that is not above 0, or with a source without windows:
    /// the text was checked before.
    pub fn new(seed: u64, sources: &[(f32, u64)]) -> Self {
        let order_of = |(source, (_, windows)): (usize, &(f32, u64))| {
            // The first source has the order that a single one has.
            let own = if source == 0 { seed } else { mix(seed ^ mix(source as u64)) };
            SampleOrder::new(own, *windows)
        };
        let weights: Vec<f64> = sources.iter().map(|(weight, _)| f64::from(*weight)).collect();
        Self {
            shares: shares(&weights),
            orders: sources.iter().enumerate().map(order_of).collect(),
            order: SampleOrder::new(mix(seed ^ OF_SOURCES), BLOCK),
        }
    }

    /// Where sequences come from. Indices count the sequences of the whole run, as in
    /// `SampleOrder::window`. Neighbours cost little; each block begun costs 1024 permutations.
    pub fn places(&self, indices: Range<u64>) -> Vec<Place> {
        if self.shares.len() == 1 {
            return indices.map(|index| self.place_in(0, index)).collect();
        }
        let mut places = Vec::with_capacity((indices.end - indices.start) as usize);
        let mut next = indices.start;
        while next < indices.end {
            let block = next / BLOCK;
            let mut numbers: Vec<u64> = self.shares.iter().map(|share| block * share).collect();
            for index in block * BLOCK..indices.end.min((block + 1) * BLOCK) {
                let source = self.source(index);
                if index >= next {
                    places.push(self.place_in(source, numbers[source]));
                }
                numbers[source] += 1;
            }
            next = (block + 1) * BLOCK;
        }
        places
    }

    /// Sequences of each source among the first `n` of a run.
    pub fn sequences(&self, n: u64) -> Vec<u64> {
        let mut sequences: Vec<u64> = self.shares.iter().map(|share| n / BLOCK * share).collect();
        for index in n / BLOCK * BLOCK..n {
            sequences[self.source(index)] += 1;
        }
        sequences
    }

    /// Which sources begin to be seen once more among these sequences: (source, epoch), epochs
    /// counted from 0, so never 0 here.
    pub fn epochs_begun(&self, indices: Range<u64>) -> Vec<(usize, u64)> {
        let begins = |place: &Place| {
            place.epoch > 0 && place.number.is_multiple_of(self.orders[place.source].windows)
        };
        let places = self.places(indices).into_iter().filter(begins);
        places.map(|place| (place.source, place.epoch)).collect()
    }

    /// Sequences of each source in every block of `BLOCK`.
    pub fn shares(&self) -> &[u64] {
        &self.shares
    }

    fn source(&self, index: u64) -> usize {
        let mut place = self.order.window(index);
        let holds = |share: &u64| {
            let holds = place < *share;
            place = place.saturating_sub(*share);
            holds
        };
        self.shares.iter().position(holds).expect("the shares fill the block")
    }

    fn place_in(&self, source: usize, number: u64) -> Place {
        let order = &self.orders[source];
        Place { source, number, window: order.window(number), epoch: order.epoch(number) }
    }
}

/// Whole numbers with the sum `BLOCK` in proportion to the weights: rounded down, and what is left
/// goes to the largest remainders, first come first (Hamilton's method). None is 0: a source with
/// less than its place takes one from the largest.
fn shares(weights: &[f64]) -> Vec<u64> {
    let n = weights.len();
    assert!((1..=BLOCK as usize).contains(&n), "{n} sources, want 1 to {BLOCK}");
    assert!(weights.iter().all(|weight| *weight > 0.0 && weight.is_finite()), "{weights:?}");
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| weight / sum * BLOCK as f64).collect();
    let mut shares: Vec<u64> = exact.iter().map(|share| share.floor() as u64).collect();
    let mut by_remainder: Vec<usize> = (0..n).collect();
    by_remainder.sort_by(|a, b| {
        let remainder = |source: usize| exact[source] - exact[source].floor();
        remainder(*b).total_cmp(&remainder(*a)).then(a.cmp(b))
    });
    let left = BLOCK.saturating_sub(shares.iter().sum());
    for source in by_remainder.into_iter().cycle().take(left as usize) {
        shares[source] += 1;
    }
    while let Some(none) = shares.iter().position(|share| *share == 0) {
        let largest = (0..n).max_by_key(|source| (shares[*source], n - source));
        shares[largest.expect("there is a source")] -= 1;
        shares[none] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_is_read_in_its_own_order() {
        let (mixture, order) = (Mixture::new(7, &[(0.3, 1000)]), SampleOrder::new(7, 1000));
        for (index, place) in (500..3500).zip(mixture.places(500..3500)) {
            let (window, epoch) = (order.window(index), order.epoch(index));
            assert_eq!(place, Place { source: 0, number: index, window, epoch });
        }
    }

    #[test]
    fn every_block_holds_the_exact_shares_in_its_own_order() {
        let mixture = Mixture::new(3, &[(5.0, 100), (2.0, 100), (1.0, 100)]);
        assert_eq!(mixture.shares(), [640, 256, 128]);
        let block = |block: u64| -> Vec<usize> {
            let places = mixture.places(block * BLOCK..(block + 1) * BLOCK);
            places.iter().map(|place| place.source).collect()
        };
        for at in 0..5 {
            let sources = block(at);
            let count = |of: usize| sources.iter().filter(|source| **source == of).count();
            assert_eq!([count(0), count(1), count(2)], [640, 256, 128]);
            // Spread out: no eighth of the block is without any source.
            assert!(
                sources.chunks_exact(128).all(|part| (0..3).all(|source| part.contains(&source)))
            );
        }
        assert_ne!(block(0), block(1));
        assert_ne!(
            Mixture::new(4, &[(5.0, 100), (2.0, 100), (1.0, 100)]).places(0..BLOCK),
            mixture.places(0..BLOCK)
        );
    }

    #[test]
    fn every_source_counts_its_own_sequences_without_gap() {
        let mixture = Mixture::new(1, &[(1.0, 70), (0.25, 11), (3.0, 1 << 20)]);
        let mut next = [0; 3];
        for place in mixture.places(0..5000) {
            assert_eq!(place.number, next[place.source]);
            next[place.source] += 1;
        }
        assert_eq!(mixture.sequences(5000), next);
        // Whatever is asked for at a time.
        let all = mixture.places(0..5000);
        for (first, n) in [(0, 1), (1000, 50), (1023, 2), (1024, 1024), (4990, 10)] {
            assert_eq!(mixture.places(first..first + n), all[first as usize..][..n as usize]);
        }
        assert_eq!(mixture.places(9..9), []);
    }

    #[test]
    fn the_beginning_of_an_epoch_is_told_once() {
        let mixture = Mixture::new(1, &[(1.0, 300), (1.0, 700)]);
        let begun: Vec<_> =
            (0..50).flat_map(|step| mixture.epochs_begun(step * 32..(step + 1) * 32)).collect();
        assert_eq!(begun, [(0, 1), (0, 2), (1, 1)]);
    }

    #[test]
    fn shares_are_whole_fair_and_never_nothing() {
        let check = |weights: &[f64], want: &[u64]| assert_eq!(shares(weights), want);
        check(&[1.0], &[1024]);
        check(&[1.0, 1.0, 1.0], &[342, 341, 341]);
        check(&[0.7, 0.2, 0.1], &[717, 205, 102]);
        check(&[1e6, 1.0, 1.0], &[1022, 1, 1]);
        check(&[f64::from(f32::MAX), f64::from(f32::MIN_POSITIVE)], &[1023, 1]);
        check(&vec![1.0; 1024], &[1; 1024]);
    }

    #[test]
    fn the_mixture_never_changes_between_versions() {
        // A run that resumes under a newer build must go on where it was.
        let mixture = Mixture::new(1, &[(3.0, 1000), (1.0, 50)]);
        let first: Vec<_> = mixture.places(0..8).iter().map(|at| (at.source, at.window)).collect();
        let want = [(0, 568), (0, 4), (0, 304), (0, 422), (0, 174), (0, 199), (0, 757), (1, 12)];
        assert_eq!(first, want);
    }
}
