//! Interleaved 1F1B. Narayanan et al. 2021, arXiv:2104.04473, section 2.2.
//!
//! Each stage has `v` chunks, so a microbatch goes round the stages `v` times, a smaller part of
//! its work at a time: stages wait `v` times shorter for the first one and for the last one.

use std::ops::Range;

use super::{Slot, Work, backward_input, forward};

/// The interleaved schedule of one stage.
///
/// Microbatches go in groups: a group passes the first chunk, then the second, and so on, and back
/// in the opposite order. The paper asks for groups of exactly `n_stages`. Here they share a
/// remainder evenly, and fewer microbatches than stages are one small group: a group at the end that
/// is smaller than `n_stages` would make stages wait for it to come round, or block each other.
///
/// Each stage goes forward so often before its first backward that the last one has just finished
/// the largest group's last chunk; so it holds at most `2 (n_stages - 1 - stage) + (v - 1) g + 1`
/// chunks' activations for a largest group of `g`. The bubble is `(p - 1)(F + B)` in times of a *chunk*, if
/// there are at least `p` microbatches: a `v`th of 1F1B's.
pub fn interleaved(stage: u32, n_stages: u32, n_chunks: u32, n_micro: u32) -> Vec<Slot> {
    assert!(stage < n_stages, "stage {stage} of {n_stages}");
    let at = |work: Work| (work.chunk * n_stages + stage, n_stages * n_chunks);
    let (forwards, backwards) = orders(n_stages, n_chunks, n_micro);
    let forward = |work: &Work| forward(at(*work), *work).collect::<Vec<Slot>>();
    let backward = |work: &Work| {
        let weight = [Slot::BackwardWeight(*work)];
        backward_input(at(*work), *work).chain(weight).collect::<Vec<Slot>>()
    };
    let n_warmup = 2 * (n_stages - 1 - stage) + (n_chunks - 1) * largest_group(n_stages, n_micro);
    let n_warmup = (n_warmup as usize).min(forwards.len());
    let warmup = forwards[..n_warmup].iter().flat_map(forward);
    let steady = forwards[n_warmup..].iter().zip(&backwards);
    let steady = steady.flat_map(|(f, b)| forward(f).into_iter().chain(backward(b)));
    let drain = backwards[forwards.len() - n_warmup..].iter().flat_map(backward);
    warmup.chain(steady).chain(drain).collect()
}

/// Microbatches that pass a chunk together: `n_stages` or a few more, larger groups first.
fn groups(n_stages: u32, n_micro: u32) -> impl Iterator<Item = Range<u32>> {
    let n_groups = (n_micro / n_stages).max(1);
    let (each, larger) = (n_micro / n_groups, n_micro % n_groups);
    let start = move |group: u32| group * each + group.min(larger);
    (0..n_groups).map(move |group| start(group)..start(group + 1))
}

/// Microbatches of the first group.
fn largest_group(n_stages: u32, n_micro: u32) -> u32 {
    n_micro.div_ceil((n_micro / n_stages).max(1))
}

/// All forwards, and all backwards, in the order of every stage.
fn orders(n_stages: u32, n_chunks: u32, n_micro: u32) -> (Vec<Work>, Vec<Work>) {
    let (mut forwards, mut backwards) = (vec![], vec![]);
    for group in groups(n_stages, n_micro) {
        let of = |chunk| group.clone().map(move |microbatch| Work { chunk, microbatch });
        forwards.extend((0..n_chunks).flat_map(of));
        backwards.extend((0..n_chunks).rev().flat_map(of));
    }
    (forwards, backwards)
}

#[cfg(test)]
mod tests {
    use super::super::tests::text;
    use super::super::{Pipeline, Schedule, one_f_one_b, simulate};
    use super::*;

    #[test]
    fn two_stages_of_two_chunks_take_turns() {
        let compute = |slot: &Slot| matches!(slot, Slot::Forward(_) | Slot::BackwardInput(_));
        let of = |stage| text(interleaved(stage, 2, 2, 4).into_iter().filter(compute));
        assert_eq!(of(0), "F0 F1 F0.1 F1.1 F2 B0.1 F3 B1.1 F2.1 B0 F3.1 B1 B2.1 B3.1 B2 B3");
        assert_eq!(of(1), "F0 F1 F0.1 B0.1 F1.1 B1.1 F2 B0 F3 B1 F2.1 B2.1 F3.1 B3.1 B2 B3");
    }

    #[test]
    fn hidden_states_go_round_from_the_last_stage_to_the_first() {
        let first = text(interleaved(0, 2, 2, 1));
        assert_eq!(first, "F0 f>0 <f0.1 F0.1 f>0.1 <b0.1 B0.1 b>0.1 W0.1 <b0 B0 W0");
        let last = text(interleaved(1, 2, 2, 1));
        assert_eq!(last, "<f0 F0 f>0 <f0.1 F0.1 B0.1 b>0.1 W0.1 <b0 B0 b>0 W0");
    }

    #[test]
    fn one_chunk_on_the_last_stage_is_1f1b() {
        for n_micro in 0..9 {
            assert_eq!(interleaved(3, 4, 1, n_micro), one_f_one_b(3, 4, n_micro));
        }
    }

    #[test]
    fn every_size_runs_to_the_end_and_holds_no_more_than_its_bound() {
        for (stages, chunks) in (2..=7).flat_map(|p| (2..=4).map(move |v| (p, v))) {
            let pipeline = Pipeline { schedule: Schedule::Interleaved, stages, chunks };
            for n_micro in 0..=3 * stages + 3 {
                let held = simulate(&pipeline.all_slots(n_micro), chunks, n_micro).unwrap();
                for (stage, held) in (0..stages).zip(held) {
                    let group = (n_micro / stages).max(1);
                    let warmup = 2 * (stages - 1 - stage) + (chunks - 1) * n_micro.div_ceil(group);
                    let wanted = (warmup + 1).min(n_micro * chunks);
                    assert_eq!(held.before_input_half, wanted, "{pipeline:?} {stage} {n_micro}");
                    assert!(held.before_weight_half <= 1 && held.in_all <= wanted);
                }
            }
        }
    }
}
