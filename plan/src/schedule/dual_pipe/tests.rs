//! What holds for both schedules: they run, even where sends wait; every slot is there once; memory and bubble are as published.

use std::collections::BTreeMap;

use super::super::simulate::{Held, simulate_along};
use super::super::tests::text;
use super::*;

/// All stages of all small sizes: the route, microbatches in each chunk, and the lists.
fn all() -> impl Iterator<Item = (Route, u32, Vec<Vec<Slot>>)> {
    let folded = (1..=6).flat_map(|n| {
        (2 * n..=2 * n + 9).map(move |micro| {
            let lists = (0..n).map(|stage| dual_pipe_v(stage, n, micro).unwrap()).collect();
            (Route::ThereAndBack, micro, lists)
        })
    });
    let both = (1..=5).map(|half| 2 * half).flat_map(|n| {
        (n..=n + 5).map(move |each| {
            let lists = (0..n).map(|stage| dual_pipe(stage, n, 2 * each).unwrap()).collect();
            (Route::BothWays, each, lists)
        })
    });
    folded.chain(both)
}

/// `simulate_along` finds every slot missing, double or too early; microbatches of a chunk ascend by their own test.
#[test]
fn every_size_runs_to_the_end_even_where_sends_wait_and_keeps_its_memory() {
    for (route, micro, lists) in all() {
        for room in [None, Some(1)] {
            let held = simulate_along(route, &lists, (2, micro), room).unwrap();
            let n = lists.len() as u32;
            let limit = if route == Route::BothWays { n + 1 } else { 2 * n + 1 };
            for Held { in_all, .. } in held {
                assert!(in_all <= limit, "{route:?} {n} x {micro}: {in_all}");
            }
        }
    }
}

#[test]
fn every_chunk_takes_the_microbatches_in_ascending_order() {
    for (route, micro, lists) in all() {
        for slots in lists {
            for chunk in 0..2 {
                for wanted in [Slot::Forward, Slot::BackwardInput, Slot::BackwardWeight] {
                    let own = slots
                        .iter()
                        .filter(|slot| slot.work().chunk == chunk && **slot == wanted(slot.work()));
                    let own: Vec<u32> = own.map(|slot| slot.work().microbatch).collect();
                    assert_eq!(own, (0..micro).collect::<Vec<u32>>(), "{route:?}");
                }
            }
        }
    }
}

#[test]
fn without_a_steady_state_there_is_no_schedule() {
    assert_eq!(dual_pipe_v(0, 3, 5), None);
    assert_eq!(dual_pipe(0, 4, 6), None);
    assert_eq!(dual_pipe(0, 3, 12), None);
    assert_eq!(dual_pipe(0, 4, 9), None);
}

#[test]
fn the_smallest_ones_by_hand() {
    let compute = |slot: &Slot| {
        matches!(slot, Slot::Forward(_) | Slot::BackwardInput(_) | Slot::BackwardWeight(_))
    };
    let alone = text(dual_pipe_v(0, 1, 2).unwrap().into_iter().filter(compute));
    assert_eq!(alone, "F0 F0.1 F1 B0.1 W0.1 F1.1 B0 W0 B1.1 W1.1 B1 W1");
    let last = text(dual_pipe_v(1, 2, 4).unwrap().into_iter().take(6));
    assert_eq!(last, "<f0 F0 f>0 <f0.1 F0.1 f>0.1");
}

/// Lengths of a forward, an input half and a weight half; a pair takes as long as its parts.
type Lengths = [u64; 3];

/// How long each stage waits in a step, if what goes together is one piece, which is when its results leave.
fn bubbles(n: u32, micro: u32, [f, b, w]: Lengths) -> Vec<u64> {
    let lists: Vec<Vec<Piece>> = (0..n).map(|at| pieces(at, n, micro).unwrap()).collect();
    let way = Pipeline { schedule: Schedule::Interleaved, stages: n, chunks: 2 };
    let route = Route::ThereAndBack;
    // When each forward and each backward has ended.
    let mut ended: BTreeMap<(bool, u32, Work), u64> = BTreeMap::new();
    let (mut at, mut now) = (vec![0; n as usize], vec![0; n as usize]);
    let mut moved = true;
    while std::mem::take(&mut moved) {
        for stage in 0..n {
            let own = stage as usize;
            while let Some(piece) = lists[own].get(at[own]).copied() {
                let (works, length) = match piece {
                    Piece::Forward(work) => (vec![(true, work)], f),
                    Piece::Backward { work, deferred: true } => (vec![(false, work)], b),
                    Piece::Backward { work, deferred: false } => (vec![(false, work)], b + w),
                    Piece::Weight(_) => (vec![], w),
                    Piece::Both(first, second) => (vec![(true, first), (false, second)], f + b + w),
                };
                let needs = |(forward, work): (bool, Work)| {
                    let from = if forward {
                        way.before_along(route, stage, work)
                    } else {
                        way.after_along(route, stage, work)
                    };
                    // A backward at the network's end follows its own forward.
                    from.map(|(stage, work)| (forward, stage, work))
                        .or((!forward).then_some((true, stage, work)))
                };
                let needed: Vec<_> = works.iter().copied().filter_map(needs).collect();
                if needed.iter().any(|key| !ended.contains_key(key)) {
                    break;
                }
                let start = needed.iter().map(|key| ended[key]).fold(now[own], u64::max);
                now[own] = start + length;
                ended.extend(works.into_iter().map(|(way, work)| ((way, stage, work), now[own])));
                at[own] += 1;
                moved = true;
            }
        }
    }
    assert!(at.iter().zip(&lists).all(|(at, list)| *at == list.len()), "{n} x {micro}");
    let work = u64::from(2 * micro) * (f + b + w);
    now.into_iter().map(|end| end - work).collect()
}

/// `(p - 1)(F&B + B - 3 W)`, for forwards and input halves of one length, as in the figure of the report.
#[test]
fn the_bubble_is_the_published_one() {
    for (lengths, n) in
        [[1, 1, 1], [2, 2, 1], [6, 6, 3]].into_iter().flat_map(|l| (1..=6).map(move |n| (l, n)))
    {
        let [f, b, w] = lengths;
        let published = u64::from(n - 1) * ((f + b + w) + (b + w) - 3 * w);
        for micro in 2 * n..=2 * n + 4 {
            let longest = bubbles(n, micro, lengths).into_iter().max();
            assert_eq!(longest, Some(published), "{lengths:?}, {n} x {micro}");
        }
    }
}

/// Where a gradient leaves before its weight half.
#[test]
fn the_slots_wait_no_longer_than_published_and_half_as_long_where_all_are_alike() {
    for (route, micro, lists) in all() {
        let behind = if route == Route::BothWays { lists.len() / 2 } else { lists.len() } - 1;
        for [f, b, w] in [[1, 1, 1], [2, 2, 1], [18, 22, 9], [2, 3, 2]] {
            let end = end(route, &lists, [f, b, w]);
            let bubble = end - u64::from(2 * micro) * (f + b + w);
            let published = behind as u64 * (f + 2 * b - w);
            assert!(bubble <= published, "{route:?} {} x {micro}: {bubble}", lists.len());
            if [f, b, w] == [1, 1, 1] {
                assert_eq!(2 * bubble, published);
            }
        }
    }
}

/// When the last slot of all has ended. Messages take no time.
fn end(route: Route, lists: &[Vec<Slot>], [f, b, w]: Lengths) -> u64 {
    let way = Pipeline { schedule: Schedule::Interleaved, stages: lists.len() as u32, chunks: 2 };
    let (mut at, mut now) = (vec![0; lists.len()], vec![0; lists.len()]);
    let mut sent: BTreeMap<(u32, Slot), u64> = BTreeMap::new();
    let mut moved = true;
    while std::mem::take(&mut moved) {
        for stage in 0..lists.len() {
            while let Some(slot) = lists[stage].get(at[stage]).copied() {
                let place = stage as u32;
                match slot {
                    Slot::Forward(_) => now[stage] += f,
                    Slot::BackwardInput(_) => now[stage] += b,
                    Slot::BackwardWeight(_) => now[stage] += w,
                    Slot::SendForward(work) => {
                        let (to, theirs) = way.after_along(route, place, work).unwrap();
                        sent.insert((to, Slot::RecvForward(theirs)), now[stage]);
                    }
                    Slot::SendBackward(work) => {
                        let (to, theirs) = way.before_along(route, place, work).unwrap();
                        sent.insert((to, Slot::RecvBackward(theirs)), now[stage]);
                    }
                    Slot::RecvForward(_) | Slot::RecvBackward(_) => {
                        let Some(sent) = sent.get(&(place, slot)) else { break };
                        now[stage] = now[stage].max(*sent);
                    }
                }
                at[stage] += 1;
                moved = true;
            }
        }
    }
    now.into_iter().max().unwrap()
}
