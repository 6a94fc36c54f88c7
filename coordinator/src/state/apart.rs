//! Workers between which no packet comes through, though both reach the coordinator. No plan may have
//! both of such a pair: one of them hosts nothing for a while, stays a member, and its memory stays of
//! use to all others. Then the two are tried together again, each time later.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_plan::plan::WorkerId;

/// The first time apart; each further one is twice as long, up to the longest.
pub(super) const APART_MS: u64 = 20_000;
const DOUBLINGS_MAX: u32 = 5;

/// A pair that got along for so long begins anew.
const FORGIVEN_MS: u64 = 600_000;

/// One entry a pair.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Apart {
    pairs: Vec<Pair>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pair {
    /// The lower id first.
    ends: (WorkerId, WorkerId),
    until_ms: u64,
    /// How often they were set apart.
    times: u32,
    /// Those of the two that the other one missed.
    missed: BTreeSet<WorkerId>,
}

impl Apart {
    /// `by` could exchange no byte with `of`. How many seconds they are kept apart, if they were not
    /// before.
    pub(super) fn report(&mut self, by: WorkerId, of: WorkerId, now_ms: u64) -> Option<u64> {
        let ends = (by.min(of), by.max(of));
        let at = self.pairs.iter().position(|pair| pair.ends == ends).unwrap_or_else(|| {
            self.pairs.push(Pair { ends, until_ms: 0, times: 0, missed: BTreeSet::new() });
            self.pairs.len() - 1
        });
        let pair = &mut self.pairs[at];
        if now_ms < pair.until_ms {
            pair.missed.insert(of);
            return None;
        }
        if now_ms >= pair.until_ms + FORGIVEN_MS {
            pair.times = 0;
        }
        let long_ms = APART_MS << pair.times.min(DOUBLINGS_MAX);
        pair.times += 1;
        pair.until_ms = now_ms + long_ms;
        pair.missed = BTreeSet::from([of]);
        Some(long_ms / 1_000)
    }

    /// The two come together in another way than before.
    pub(super) fn forget(&mut self, (a, b): (WorkerId, WorkerId)) {
        let ends = (a.min(b), a.max(b));
        self.pairs.retain(|pair| pair.ends != ends);
    }

    /// Whether no packet comes through between the two.
    pub(super) fn are(&self, a: WorkerId, b: WorkerId, now_ms: u64) -> bool {
        let ends = (a.min(b), a.max(b));
        self.pairs.iter().any(|pair| pair.ends == ends && now_ms < pair.until_ms)
    }

    /// Those of `workers`, each with the number of cells it hosts, that can be in one plan. Who stands
    /// apart from the most goes first; of equals whom the others miss, and not the other way round;
    /// then who hosts fewer cells, so that little is moved and whoever is out stays out.
    pub(super) fn together(&self, workers: &[(WorkerId, usize)], now_ms: u64) -> Vec<WorkerId> {
        let mut here: BTreeMap<WorkerId, usize> = workers.iter().copied().collect();
        loop {
            let live = self.pairs.iter().filter(|pair| {
                let (a, b) = pair.ends;
                now_ms < pair.until_ms && here.contains_key(&a) && here.contains_key(&b)
            });
            let mut against: BTreeMap<WorkerId, (usize, usize)> = BTreeMap::new();
            for pair in live {
                for worker in <[WorkerId; 2]>::from(pair.ends) {
                    let (pairs, missed) = against.entry(worker).or_default();
                    *pairs += 1;
                    *missed += usize::from(pair.missed.contains(&worker));
                }
            }
            let worst = against
                .into_iter()
                .max_by_key(|(worker, count)| (*count, Reverse(here[worker]), *worker));
            let Some((worst, _)) = worst else { break };
            here.remove(&worst);
        }
        // In the order they came.
        workers.iter().map(|(worker, _)| *worker).filter(|w| here.contains_key(w)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: [WorkerId; 4] = [WorkerId(0), WorkerId(1), WorkerId(2), WorkerId(3)];

    fn apart(reports: &[(usize, usize)]) -> Apart {
        let mut apart = Apart::default();
        for (by, of) in reports {
            apart.report(W[*by], W[*of], 0);
        }
        apart
    }

    #[track_caller]
    fn check(reports: &[(usize, usize)], cells: [usize; 4], together: &[usize]) {
        let workers: Vec<_> = W.into_iter().zip(cells).collect();
        let want: Vec<WorkerId> = together.iter().map(|worker| W[*worker]).collect();
        assert_eq!(apart(reports).together(&workers, 1), want, "{reports:?}");
    }

    #[test]
    fn one_of_a_pair_goes_and_the_fewer_cells_the_sooner() {
        check(&[], [1; 4], &[0, 1, 2, 3]);
        check(&[(1, 2), (2, 1)], [1, 1, 1, 1], &[0, 1, 3]);
        check(&[(1, 2), (2, 1)], [1, 1, 2, 0], &[0, 2, 3]);
        // Only one of them misses the other: that one is silent, or its packets are lost.
        check(&[(2, 1)], [1, 2, 1, 0], &[0, 2, 3]);
        // Whoever is out stays out.
        check(&[(2, 1)], [2, 0, 2, 0], &[0, 2, 3]);
    }

    #[test]
    fn whoever_reaches_nobody_goes_alone() {
        check(&[(1, 0), (1, 2), (1, 3)], [1; 4], &[0, 2, 3]);
        check(&[(0, 1), (2, 1), (3, 1)], [1, 4, 1, 1], &[0, 2, 3]);
        // Two pairs without a worker in common.
        check(&[(0, 1), (1, 0), (2, 3), (3, 2)], [2, 1, 1, 2], &[0, 3]);
        // Nobody reaches anybody: one is left.
        let all = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];
        check(&all, [1; 4], &[0]);
    }

    #[test]
    fn they_are_tried_together_again_each_time_later() {
        let mut apart = Apart::default();
        let (a, b) = (W[2], W[0]);
        assert_eq!(apart.report(a, b, 100), Some(20));
        assert_eq!(apart.report(b, a, 200), None, "the other end says the same");
        assert!(apart.are(b, a, 100 + APART_MS - 1) && !apart.are(a, b, 100 + APART_MS));
        assert!(!apart.are(a, W[1], 200));
        let both = [(a, 1), (b, 1)];
        assert_eq!(apart.together(&both, 100 + APART_MS), [a, b]);
        assert_eq!(apart.report(b, a, 100 + APART_MS), Some(40));
        let mut told = apart.clone();
        told.forget((a, b));
        assert!(!told.are(a, b, 100 + APART_MS), "they meet in another way now");
        let later_ms = 100 + 3 * APART_MS + FORGIVEN_MS;
        assert_eq!(apart.report(b, a, later_ms), Some(20));
        for _ in 0..20 {
            let until_ms = apart.pairs[0].until_ms;
            apart.report(a, b, until_ms);
        }
        let pair = &apart.pairs[0];
        assert!(apart.are(a, b, pair.until_ms - 1));
        assert_eq!(apart.report(a, b, pair.until_ms), Some(640));
    }
}
