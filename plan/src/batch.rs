//! Which sequences of a run belong to which step, column and microbatch. Pure, so that any cell,
//! after any restart, finds its own without having kept anything.
//!
//! The rules, which hold for every grid:
//!
//! 1. **The batch is global.** Step `n` trains `batch_at(n)` sequences, whatever the grid. With a
//!    ramp it grows along a line from `batch_start` at step 1 to `batch` at step
//!    `batch_ramp_steps + 1`, in whole sequences (rounded down), and never falls.
//! 2. **Sequences are counted over the whole run.** Step `n` trains the ones after those of all
//!    steps before it: none is left out and none comes twice.
//! 3. **Columns divide a batch by their shares**, which are equal unless `shares` lists them: by
//!    largest remainder, so that the numbers add up to the batch. Each column has consecutive
//!    sequences, in column order. A column may have none; its cells work for the others' tokens.
//! 4. **`microbatch` is the most sequences a cell works on at a time.** All columns run the same
//!    number of microbatches, as their cells exchange tokens: the most that any column needs. A
//!    column spreads its sequences over them as evenly as it can, larger microbatches first; one
//!    may be empty.
//! 5. **Losses are divided by the real batch of their step**, so a remainder weighs what it has.
//!
//! Nothing must divide anything: a remainder is never an error.

use std::ops::Range;

use crate::job::{Job, Training};

impl Training {
    /// Sequences of a step (1-based) over all cells. Never zero.
    pub fn batch_at(&self, step: u64) -> u32 {
        let done = step.saturating_sub(1);
        if self.batch_start == 0 || done >= self.batch_ramp_steps {
            return self.batch;
        }
        let grown = u64::from(self.ramp_height()) * done / self.batch_ramp_steps;
        self.batch_start + grown as u32
    }

    /// Sequences of all steps before `step`: the number of its first one, counted from 0.
    pub fn sequences_before(&self, step: u64) -> u64 {
        let steps = step.saturating_sub(1);
        if self.batch_start == 0 {
            return steps * u64::from(self.batch);
        }
        let ramp = steps.min(self.batch_ramp_steps);
        let grown = floor_sum(ramp, self.ramp_height().into(), self.batch_ramp_steps.max(1));
        ramp * u64::from(self.batch_start) + grown + (steps - ramp) * u64::from(self.batch)
    }

    /// The manifest's rules keep `batch_start` at or below `batch`.
    fn ramp_height(&self) -> u32 {
        self.batch.saturating_sub(self.batch_start)
    }
}

impl Job {
    /// How the sequences of a step (1-based) are divided.
    pub fn division_at(&self, step: u64) -> BatchDivision {
        self.division_of(self.training.batch_at(step).into())
    }

    /// How the largest batch is divided: what memory must hold.
    pub fn largest_division(&self) -> BatchDivision {
        self.division_of(self.training.batch.into())
    }

    /// The most sequences that a cell of a column ever works on at a time, in training and in evaluations.
    pub fn sequences_at_most(&self, column: u32) -> u64 {
        let windows = self.evaluation.tokens_max / u64::from(self.training.sequence);
        let sequences = u128::from(windows.max(1).max(self.training.batch.into()));
        let shares = &self.division.shares;
        let (share, total) = match shares.get(column as usize) {
            Some(share) => (*share, shares.iter().copied().map(u128::from).sum()),
            None => (1, u128::from(self.grid.columns())),
        };
        // By largest remainder nobody has more than its quota, rounded up.
        let most = (sequences * u128::from(share)).div_ceil(total);
        most.min(self.training.microbatch.into()) as u64
    }

    /// How any number of sequences is divided over the columns: a step's, or the windows of an
    /// evaluation.
    pub fn division_of(&self, sequences: u64) -> BatchDivision {
        let equal = vec![1; self.grid.columns() as usize];
        let shares = &self.division.shares;
        let shares = if shares.is_empty() { &equal } else { shares };
        BatchDivision::new(sequences, shares, self.training.microbatch)
    }
}

/// Consecutive sequences, counted from 0, divided over columns and microbatches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchDivision {
    /// Where each column's sequences end; the first starts at 0.
    ends: Vec<u64>,
    rounds: u64,
}

impl BatchDivision {
    /// Divides `sequences` by `shares`, one for each column and not all 0, into microbatches of
    /// at most `microbatch`.
    pub fn new(sequences: u64, shares: &[u32], microbatch: u32) -> Self {
        let total: u128 = shares.iter().copied().map(u128::from).sum();
        assert!(total > 0 && microbatch > 0, "some column has a share, and a microbatch has room");
        let quota = |share: &u32| u128::from(sequences) * u128::from(*share);
        let mut counts: Vec<u64> =
            shares.iter().map(|share| (quota(share) / total) as u64).collect();
        let left = sequences - counts.iter().sum::<u64>();
        // The largest remainder first; of equals, the first column.
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by_key(|column| std::cmp::Reverse(quota(&shares[*column]) % total));
        for column in order.into_iter().take(left as usize) {
            counts[column] += 1;
        }
        let rounds = counts.iter().map(|count| count.div_ceil(microbatch.into())).max();
        let mut end = 0;
        let ends = counts.into_iter().map(|count| {
            end += count;
            end
        });
        Self { ends: ends.collect(), rounds: rounds.unwrap_or(0) }
    }

    /// Microbatches that every column works through, empty ones included. Only of no sequences at
    /// all are there none.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// `rounds` of a training step, as pipeline schedules count.
    pub fn n_microbatches(&self) -> u32 {
        u32::try_from(self.rounds).expect("a batch has fewer sequences than 32 bits count")
    }

    /// The sequences of one column.
    pub fn column(&self, column: u32) -> Range<u64> {
        let column = column as usize;
        let start = if column == 0 { 0 } else { self.ends[column - 1] };
        start..self.ends[column]
    }

    /// The sequences of one column in one microbatch (0-based).
    pub fn microbatch(&self, column: u32, microbatch: u64) -> Range<u64> {
        assert!(microbatch < self.rounds, "microbatch {microbatch} of {}", self.rounds);
        let Range { start, end } = self.column(column);
        let (each, larger) = ((end - start) / self.rounds, (end - start) % self.rounds);
        let at = |microbatch: u64| start + microbatch * each + microbatch.min(larger);
        at(microbatch)..at(microbatch + 1)
    }

    /// The most sequences a column works on at a time.
    pub fn largest_microbatch(&self, column: u32) -> u64 {
        let Range { start, end } = self.column(column);
        (end - start).div_ceil(self.rounds.max(1))
    }
}

/// The sum of `a * k / m`, each rounded down, over `k` in `0..n`, in as many rounds as Euclid's
/// algorithm takes on `a` and `m`. Graham, Knuth and Patashnik 1994, "Concrete Mathematics",
/// section 3.5: the sum counts lattice points below a line, and counting them along the other axis
/// swaps `a` and `m`.
fn floor_sum(n: u64, a: u64, m: u64) -> u64 {
    let (mut n, mut a, mut m, mut b) = (u128::from(n), u128::from(a), u128::from(m), 0_u128);
    let mut sum = 0;
    while n > 0 {
        // Whole steps of the line: a rectangle and a triangle.
        sum += n * (b / m) + n * (n - 1) / 2 * (a / m);
        (a, b) = (a % m, b % m);
        let top = a * n + b;
        (n, b, a, m) = (top / m, top % m, m, a);
    }
    u64::try_from(sum).expect("a run has fewer sequences than 64 bits count")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::Grid;

    /// Numbers without a pattern, below `n`.
    fn random(state: &mut u64, n: u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*state >> 33) % n
    }

    fn ramp(batch_start: u32, batch: u32, batch_ramp_steps: u64) -> Training {
        Training { batch, batch_start, batch_ramp_steps, ..Job::example().training }
    }

    #[test]
    fn no_step_and_no_evaluation_has_more_sequences_in_a_microbatch_than_said() {
        let mut state = 5;
        for _ in 0..200 {
            let mut job = Job::example();
            let mut draw = |n| random(&mut state, n) as u32;
            job.grid = Grid { stages: 1, expert_shards: 1 + draw(3), replicas: 1 + draw(3) };
            job.training.microbatch = 1 + draw(5);
            job.training.batch = 1 + draw(40);
            job.training.batch_start = draw(2) * (1 + draw(u64::from(job.training.batch)));
            job.training.batch_ramp_steps = 7;
            let columns = job.grid.columns();
            if draw(2) == 0 {
                job.division.shares = (0..columns).map(|_| 1 + draw(4)).collect();
            }
            let windows = u64::from(draw(30));
            job.evaluation.tokens_max = windows * u64::from(job.training.sequence);
            let steps = (1..9).map(|step| job.division_at(step));
            let sets = (1..=windows.max(1)).map(|windows| job.division_of(windows));
            for division in steps.chain(sets) {
                for column in 0..columns {
                    let most = job.sequences_at_most(column);
                    assert!(division.largest_microbatch(column) <= most, "{job:?}");
                }
            }
        }
        let mut job = Job::example();
        (job.training.batch, job.training.microbatch, job.evaluation.tokens_max) = (6, 9, 0);
        assert_eq!(job.sequences_at_most(0), 6, "no more than there are");
    }

    #[test]
    fn a_ramp_rises_along_a_line_in_whole_sequences() {
        let training = ramp(2, 8, 4);
        let sizes: Vec<u32> = (1..=7).map(|step| training.batch_at(step)).collect();
        assert_eq!(sizes, [2, 3, 5, 6, 8, 8, 8]);
        let before: Vec<u64> = (1..=7).map(|step| training.sequences_before(step)).collect();
        assert_eq!(before, [0, 2, 5, 10, 16, 24, 32]);
        assert_eq!(ramp(0, 8, 0).batch_at(1), 8);
        assert_eq!(ramp(8, 8, 3).batch_at(2), 8);
    }

    #[test]
    fn the_first_sequence_of_a_step_is_the_sum_of_the_batches_before() {
        let mut state = 3;
        for _ in 0..200 {
            let batch = 1 + random(&mut state, 300) as u32;
            let start = random(&mut state, u64::from(batch) + 1) as u32;
            let steps = if start == 0 { 0 } else { 1 + random(&mut state, 200) };
            let training = ramp(start, batch, steps);
            let (mut sum, mut last) = (0, 0);
            for step in 1..=steps + 3 {
                assert_eq!(training.sequences_before(step), sum, "{start} {batch} {steps} {step}");
                let size = training.batch_at(step);
                assert!(last <= size && size > 0 && size <= batch);
                (sum, last) = (sum + u64::from(size), size);
            }
            assert_eq!(last, batch, "the ramp has ended");
        }
    }

    #[test]
    fn the_longest_ramp_is_summed_without_walking_it() {
        let training = ramp(1, 131_072, 1_000_000_000);
        // The line's own sum, less half a sequence for each step rounded down.
        let line = 1e9 + 131_071.0 * (1e9 - 1.0) / 2.0 - 0.5 * 1e9;
        let got = training.sequences_before(1_000_000_001) as f64;
        assert!((got / line - 1.0).abs() < 1e-9, "{got} and {line}");
    }

    /// The whole of what this file promises.
    #[test]
    fn every_sequence_of_a_run_belongs_to_exactly_one_step_column_and_microbatch() {
        let mut state = 11;
        for _ in 0..100 {
            let mut job = Job::example();
            job.grid = Grid {
                stages: 1,
                expert_shards: 1 + random(&mut state, 5) as u32,
                replicas: 1 + random(&mut state, 3) as u32,
            };
            let batch = 1 + random(&mut state, 40) as u32;
            job.training = ramp(1 + random(&mut state, batch.into()) as u32, batch, 7);
            job.training.microbatch = 1 + random(&mut state, 6) as u32;
            let columns = job.grid.columns();
            if random(&mut state, 2) == 1 {
                job.division.shares = (0..columns).map(|_| random(&mut state, 4) as u32).collect();
                job.division.shares[0] += 1;
            }
            let mut next = 0;
            for step in 1..=9 {
                let (first, division) =
                    (job.training.sequences_before(step), job.division_at(step));
                for column in 0..columns {
                    let mut sizes = Vec::new();
                    for i in 0..division.rounds() {
                        let part = division.microbatch(column, i);
                        assert_eq!(first + part.start, next, "{job:?}");
                        next += part.end - part.start;
                        sizes.push(part.end - part.start);
                    }
                    let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
                    assert!(most - least <= 1, "{sizes:?}");
                    assert!(*most <= job.training.microbatch.into(), "{sizes:?}");
                    assert_eq!(*most, division.largest_microbatch(column));
                    if !job.division.shares.is_empty() && job.division.shares[column as usize] == 0
                    {
                        assert_eq!(*most, 0, "a column without a share trains nothing");
                    }
                }
            }
            assert_eq!(next, job.training.sequences_before(10));
        }
    }

    #[test]
    fn an_even_division_gives_each_column_whole_microbatches_in_order() {
        let division = BatchDivision::new(24, &[1; 3], 2);
        assert_eq!(division.n_microbatches(), 4);
        for column in 0..3 {
            for i in 0..4 {
                let start = u64::from(column) * 8 + i * 2;
                assert_eq!(division.microbatch(column, i), start..start + 2);
            }
        }
    }

    #[test]
    fn remainders_go_where_they_are_largest_and_then_to_the_first() {
        let sizes = |sequences, shares: &[u32]| -> Vec<u64> {
            let division = BatchDivision::new(sequences, shares, 2);
            let columns = (0..).take(shares.len()).map(|column| division.column(column));
            columns.map(|part| part.end - part.start).collect()
        };
        assert_eq!(sizes(7, &[1, 1]), [4, 3]);
        assert_eq!(sizes(7, &[3, 1]), [5, 2]);
        assert_eq!(sizes(7, &[0, 1]), [0, 7]);
        assert_eq!(sizes(1, &[1, 1, 1]), [1, 0, 0]);
        assert_eq!(sizes(10, &[5, 3, 1]), [6, 3, 1]);
        // Three rounds for the first column, so three for all.
        let division = BatchDivision::new(7, &[3, 1], 2);
        assert_eq!(division.rounds(), 3);
        let of = |column| (0..3).map(|i| division.microbatch(column, i)).collect::<Vec<_>>();
        assert_eq!(of(0), [0..2, 2..4, 4..5]);
        assert_eq!(of(1), [5..6, 6..7, 7..7]);
        assert_eq!(BatchDivision::new(0, &[1, 1], 2).rounds(), 0);
    }
}
