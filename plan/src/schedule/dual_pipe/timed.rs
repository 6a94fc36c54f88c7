//! A step of `DualPipe` on paper, where what goes together is one piece: so long, and over at one moment.

use std::collections::BTreeMap;

use super::super::timeline::{Bar, Timeline};
use super::{Piece, all_pieces};
use crate::schedule::{Pipeline, Route, Schedule, Slot, Work};

/// Runs `DualPipe` over `n_stages`, with `n_micro` microbatches in all. `length` is of a stage's piece, in seconds, and
/// `wire` of a message between two stages. `None` where there is no such schedule.
pub(crate) fn run_dual_pipe(
    n_stages: u32,
    n_micro: u32,
    length: impl Fn(u32, Piece) -> f64,
    wire: impl Fn(u32, u32) -> f64,
) -> Option<Timeline> {
    let lists: Vec<Vec<Piece>> =
        (0..n_stages).map(|at| all_pieces(at, n_stages, n_micro)).collect::<Option<_>>()?;
    let way = Pipeline { schedule: Schedule::Interleaved, stages: n_stages, chunks: 2 };
    let route = Route::BothWays;
    // When each forward and each backward has ended, by stage.
    let mut ended: BTreeMap<(bool, u32, Work), f64> = BTreeMap::new();
    let mut at = vec![0; lists.len()];
    let mut now = vec![0.0_f64; lists.len()];
    let mut bars: Vec<Vec<Bar>> = vec![Vec::new(); lists.len()];
    let mut moved = true;
    while std::mem::take(&mut moved) {
        for stage in 0..n_stages {
            let own = stage as usize;
            while let Some(piece) = lists[own].get(at[own]).copied() {
                let needs = |(forward, work): (bool, Work)| {
                    let from = if forward {
                        way.before_along(route, stage, work)
                    } else {
                        way.after_along(route, stage, work)
                    };
                    // A backward at the network's end follows its own forward.
                    let from = from.map(|(stage, work)| (forward, stage, work));
                    from.or((!forward).then_some((true, stage, work)))
                };
                let (works, slots) = parts(piece);
                let mut start = Some(now[own]);
                for key in works.iter().copied().filter_map(needs) {
                    let there = ended
                        .get(&key)
                        .map(|end| end + if key.1 == stage { 0.0 } else { wire(key.1, stage) });
                    start = start.zip(there).map(|(start, there)| start.max(there));
                }
                let Some(start) = start else { break };
                let end = start + length(stage, piece);
                let part = (end - start) / slots.len() as f64;
                bars[own].extend(slots.into_iter().zip(0_u32..).map(|(slot, i)| Bar {
                    slot,
                    start: start + part * f64::from(i),
                    end: start + part * f64::from(i + 1),
                }));
                now[own] = end;
                ended.extend(works.into_iter().map(|(way, work)| ((way, stage, work), end)));
                at[own] += 1;
                moved = true;
            }
        }
    }
    assert!(
        at.iter().zip(&lists).all(|(at, list)| *at == list.len()),
        "the lists block each other"
    );
    Some(Timeline { bars, end: now.into_iter().fold(0.0, f64::max) })
}

/// What a piece computes: its forwards (`true`) and backwards, and its slots.
fn parts(piece: Piece) -> (Vec<(bool, Work)>, Vec<Slot>) {
    let back = |work| [Slot::BackwardInput(work), Slot::BackwardWeight(work)];
    match piece {
        Piece::Forward(work) => (vec![(true, work)], vec![Slot::Forward(work)]),
        Piece::Backward { work, deferred: true } => {
            (vec![(false, work)], vec![Slot::BackwardInput(work)])
        }
        Piece::Backward { work, deferred: false } => (vec![(false, work)], back(work).to_vec()),
        Piece::Weight(work) => (vec![], vec![Slot::BackwardWeight(work)]),
        Piece::Both(first, second) => {
            let slots = [Slot::Forward(first)].into_iter().chain(back(second)).collect();
            (vec![(true, first), (false, second)], slots)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(p / 2 - 1)(F&B + B - 3 W)`, for forwards and input halves of one length, as in the report's figure.
    #[test]
    fn even_stages_wait_as_long_as_published() {
        for [f, b, w] in [[1.0, 1.0, 1.0], [2.0, 2.0, 1.0]] {
            let length = |_: u32, piece: Piece| match piece {
                Piece::Forward(_) => f,
                Piece::Backward { deferred: true, .. } => b,
                Piece::Backward { .. } => b + w,
                Piece::Weight(_) => w,
                Piece::Both(..) => f + b + w,
            };
            for (half, n_micro) in
                (1..=6).flat_map(|half| [4 * half, 4 * half + 6].map(|n| (half, n)))
            {
                let step = run_dual_pipe(2 * half, n_micro, length, |_, _| 0.0).unwrap();
                let published = f64::from(half - 1) * (f + 2.0 * b - w);
                let work = f64::from(n_micro) * (f + b + w);
                assert!((step.end - work - published).abs() < 1e-9, "{half} x {n_micro}");
                assert!((step.busy(0) - work).abs() < 1e-9);
            }
        }
        assert_eq!(run_dual_pipe(3, 12, |_, _| 1.0, |_, _| 0.0), None);
    }
}
