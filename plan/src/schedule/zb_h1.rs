//! Zero bubble within the memory of 1F1B. Qi et al. 2023, arXiv:2401.10241, section 2.1 (ZB-H1).

use super::{Slot, Work, backward_input, forward};

/// The ZB-H1 schedule of one stage.
///
/// Forwards and input halves are in 1F1B's order. Stage `s` lets the input half run `s`
/// microbatches ahead of the weight half: later stages reach their last input half sooner, and
/// what they deferred fills their drain. The bubble is `(p - 1)(F + B - W)` for `p` stages if
/// there are at least `p` microbatches and `W <= F`.
///
/// A stage holds at most `n_stages - stage` microbatches before their input half, as 1F1B does,
/// and `stage` more between the halves: `n_stages` in all, 1F1B's number on its first stage. That
/// is 1F1B's peak memory where a microbatch takes no more between the halves than before them;
/// `memory::cell_bytes` counts both.
pub fn zb_h1(stage: u32, n_stages: u32, n_micro: u32) -> Vec<Slot> {
    assert!(stage < n_stages, "stage {stage} of {n_stages}");
    let n_warmup = (n_stages - 1 - stage).min(n_micro);
    let n_deferred = stage.min(n_micro);
    let weight = |i: u32| Slot::BackwardWeight(Work::of(i));
    let at = (stage, n_stages);
    let forward = |i: u32| forward(at, Work::of(i));
    let backward = |i: u32| {
        let weight = i.checked_sub(n_deferred).map(weight);
        backward_input(at, Work::of(i)).chain(weight)
    };
    let warmup = (0..n_warmup).flat_map(forward);
    let steady = (n_warmup..n_micro).flat_map(|i| forward(i).chain(backward(i - n_warmup)));
    let drain = (n_micro - n_warmup..n_micro).flat_map(backward);
    let deferred = (n_micro - n_deferred..n_micro).map(weight);
    warmup.chain(steady).chain(drain).chain(deferred).collect()
}

#[cfg(test)]
mod tests {
    use super::super::one_f_one_b;
    use super::super::tests::text;
    use super::*;

    /// Compares the computing slots only.
    fn check(stage: u32, n_stages: u32, n_micro: u32, wanted: &str) {
        let compute = |slot: &Slot| {
            matches!(slot, Slot::Forward(_) | Slot::BackwardInput(_) | Slot::BackwardWeight(_))
        };
        assert_eq!(text(zb_h1(stage, n_stages, n_micro).into_iter().filter(compute)), wanted);
    }

    #[test]
    fn three_stages_four_microbatches() {
        check(0, 3, 4, "F0 F1 F2 B0 W0 F3 B1 W1 B2 W2 B3 W3");
        check(1, 3, 4, "F0 F1 B0 F2 B1 W0 F3 B2 W1 B3 W2 W3");
        check(2, 3, 4, "F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3");
    }

    #[test]
    fn fewer_microbatches_than_stages_leave_every_weight_half_to_the_end() {
        check(0, 4, 2, "F0 F1 B0 W0 B1 W1");
        check(3, 4, 2, "F0 B0 F1 B1 W0 W1");
    }

    #[test]
    fn the_first_stage_defers_nothing() {
        for n_stages in 1..6 {
            assert_eq!(zb_h1(0, n_stages, 8), one_f_one_b(0, n_stages, 8));
        }
    }

    #[test]
    fn only_the_weight_halves_have_another_place_than_in_1f1b() {
        let others = |slots: Vec<Slot>| -> Vec<Slot> {
            slots.into_iter().filter(|slot| !matches!(slot, Slot::BackwardWeight(_))).collect()
        };
        for (n_stages, n_micro) in (1..=6).flat_map(|p| (0..=12).map(move |m| (p, m))) {
            for stage in 0..n_stages {
                let plain = one_f_one_b(stage, n_stages, n_micro);
                assert_eq!(others(zb_h1(stage, n_stages, n_micro)), others(plain));
            }
        }
    }
}
