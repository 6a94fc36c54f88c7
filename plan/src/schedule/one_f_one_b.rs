//! One forward, one backward. Narayanan et al. 2021, arXiv:2104.04473, section 2.2.

use super::{Slot, Work, backward_input, forward};

/// The 1F1B schedule of one stage.
///
/// A stage holds the activations of at most `n_stages - stage` microbatches. The gradient is sent
/// before the weight half starts, so the bubble is `(p - 1)(F + B)` for `p` stages, where a
/// backward in one piece makes it `(p - 1)(F + B + W)`.
pub fn one_f_one_b(stage: u32, n_stages: u32, n_micro: u32) -> Vec<Slot> {
    assert!(stage < n_stages, "stage {stage} of {n_stages}");
    let at = (stage, n_stages);
    let forward = |i: u32| forward(at, Work::of(i));
    let backward =
        |i: u32| backward_input(at, Work::of(i)).chain([Slot::BackwardWeight(Work::of(i))]);
    let n_warmup = (n_stages - 1 - stage).min(n_micro);
    let warmup = (0..n_warmup).flat_map(forward);
    let steady = (n_warmup..n_micro).flat_map(|i| forward(i).chain(backward(i - n_warmup)));
    let drain = (n_micro - n_warmup..n_micro).flat_map(backward);
    warmup.chain(steady).chain(drain).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::text;
    use super::*;

    /// Compares the computing slots only.
    fn check(stage: u32, n_stages: u32, n_micro: u32, wanted: &str) {
        let compute = |slot: &Slot| matches!(slot, Slot::Forward(_) | Slot::BackwardInput(_));
        assert_eq!(text(one_f_one_b(stage, n_stages, n_micro).into_iter().filter(compute)), wanted);
    }

    #[test]
    fn three_stages_four_microbatches() {
        check(0, 3, 4, "F0 F1 F2 B0 F3 B1 B2 B3");
        check(1, 3, 4, "F0 F1 B0 F2 B1 F3 B2 B3");
        check(2, 3, 4, "F0 B0 F1 B1 F2 B2 F3 B3");
    }

    #[test]
    fn fewer_microbatches_than_stages_only_fill_and_drain() {
        check(0, 4, 2, "F0 F1 B0 B1");
        check(3, 4, 2, "F0 B0 F1 B1");
    }

    #[test]
    fn the_gradient_leaves_before_the_weight_half_starts() {
        assert_eq!(text(one_f_one_b(0, 2, 2)), "F0 f>0 F1 f>1 <b0 B0 W0 <b1 B1 W1");
        assert_eq!(text(one_f_one_b(1, 2, 2)), "<f0 F0 B0 b>0 W0 <f1 F1 B1 b>1 W1");
        assert_eq!(text(one_f_one_b(0, 1, 2)), "F0 B0 W0 F1 B1 W1");
    }
}
