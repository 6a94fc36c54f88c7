//! Cutting a row of costs into consecutive parts, as evenly as possible. Exact, by dynamic
//! programming; used for layers over stages and for cells over workers.

use std::ops::Range;

/// Cuts `costs` into `n_parts` consecutive, non-empty ranges. The most expensive part is as cheap
/// as it can be; among such cuts, the sum of squares is the smallest (so that the others are even
/// as well); among those, earlier parts are longer. `last_extra` is added to the last part.
///
/// The cost is cubic: `n_parts * costs.len()^2` additions.
pub(crate) fn cut(costs: &[f64], n_parts: usize, last_extra: f64) -> Vec<Range<usize>> {
    let mut prefix = vec![0.0];
    for cost in costs {
        prefix.push(prefix[prefix.len() - 1] + cost);
    }
    let part = |part: usize, start: usize, end: usize| {
        let extra = if part + 1 == n_parts { last_extra } else { 0.0 };
        prefix[end] - prefix[start] + extra
    };
    cut_by(costs.len(), n_parts, part).expect("every part has a finite cost")
}

/// The same of `n` things, where a part's cost depends on which part it is: `cost(part, start, end)`,
/// infinite where that part cannot have them. `None`: no cut is possible.
pub(crate) fn cut_by(
    n: usize,
    n_parts: usize,
    cost: impl Fn(usize, usize, usize) -> f64,
) -> Option<Vec<Range<usize>>> {
    assert!(0 < n_parts && n_parts <= n, "{n_parts} parts of {n} costs");
    let row = Row { n, n_parts, cost };
    let largest = row.best(f64::INFINITY, f64::max)?.0;
    // Sums taken in another order differ in their last bits.
    let (_, ends) = row.best(largest * (1.0 + 1e-12), |sum, part| sum + part * part)?;
    let starts = [0].into_iter().chain(ends.iter().copied());
    Some(starts.zip(ends.iter().copied()).map(|(start, end)| start..end).collect())
}

/// The things and what parts of them cost.
struct Row<F> {
    n: usize,
    n_parts: usize,
    cost: F,
}

impl<F: Fn(usize, usize, usize) -> f64> Row<F> {
    /// The cut that minimises `combine` folded over its parts, none above `limit`: the value, and
    /// where each part ends.
    fn best(&self, limit: f64, combine: impl Fn(f64, f64) -> f64) -> Option<(f64, Vec<usize>)> {
        let n = self.n;
        // value[end] of the parts so far, and for each part where it starts.
        let mut value = vec![f64::INFINITY; n + 1];
        value[0] = 0.0;
        let mut starts = Vec::with_capacity(self.n_parts);
        for part in 0..self.n_parts {
            let mut next = vec![f64::INFINITY; n + 1];
            let mut start_of = vec![0; n + 1];
            for end in part + 1..=n - (self.n_parts - part - 1) {
                for (start, before) in value[..end].iter().enumerate().skip(part) {
                    if before.is_infinite() {
                        continue;
                    }
                    let cost = (self.cost)(part, start, end);
                    let total = combine(*before, cost);
                    // `<=`: of equals, the latest start, which leaves more to the earlier parts.
                    if cost <= limit && total <= next[end] {
                        next[end] = total;
                        start_of[end] = start;
                    }
                }
            }
            value = next;
            starts.push(start_of);
        }
        if value[n].is_infinite() {
            return None;
        }
        let mut ends = vec![n];
        for start_of in starts[1..].iter().rev() {
            ends.push(start_of[ends[ends.len() - 1]]);
        }
        ends.reverse();
        Some((value[n], ends))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(costs: &[f64], n_parts: usize, last_extra: f64, wanted: &[usize]) {
        let lengths: Vec<usize> =
            cut(costs, n_parts, last_extra).into_iter().map(|part| part.len()).collect();
        assert_eq!(lengths, wanted, "{costs:?} in {n_parts}, {last_extra} extra");
    }

    #[test]
    fn cuts_are_even() {
        check(&[1.0; 6], 3, 0.0, &[2, 2, 2]);
        check(&[1.0; 7], 3, 0.0, &[3, 2, 2]);
        check(&[1.0; 4], 2, 1.0, &[3, 1]);
        check(&[1.0; 4], 2, 100.0, &[3, 1]);
        check(&[5.0, 1.0, 1.0, 1.0], 2, 0.0, &[1, 3]);
        check(&[1.0, 1.0, 9.0, 1.0], 4, 0.0, &[1, 1, 1, 1]);
        // The last part is the largest whatever is done; the others are even all the same.
        check(&[1.0; 7], 4, 9.0, &[2, 2, 2, 1]);
    }

    #[test]
    fn no_other_cut_has_a_smaller_largest_part() {
        let mut state = 5_u64;
        for round in 0..200 {
            let n = 2 + round % 7;
            let costs: Vec<f64> = (0..n)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (1 + (state >> 33) % 20) as f64
                })
                .collect();
            for n_parts in 1..=n {
                let largest = |ends: &[usize]| {
                    let starts = [0].into_iter().chain(ends.iter().copied());
                    let sum = |(a, b): (usize, usize)| costs[a..b].iter().sum::<f64>();
                    starts.zip(ends.iter().copied().chain([n])).map(sum).fold(0.0, f64::max)
                };
                let parts = cut(&costs, n_parts, 0.0);
                let ends: Vec<usize> = parts[..n_parts - 1].iter().map(|part| part.end).collect();
                assert!(parts.iter().all(|part| !part.is_empty()));
                // Every choice of n_parts - 1 inner ends, as the bits of a number.
                for bits in 0_u32..1 << (n - 1) {
                    if bits.count_ones() as usize == n_parts - 1 {
                        let other: Vec<usize> =
                            (1..n).filter(|end| bits >> (end - 1) & 1 == 1).collect();
                        assert!(largest(&ends) <= largest(&other), "{costs:?}: {ends:?} {other:?}");
                    }
                }
            }
        }
    }
}
