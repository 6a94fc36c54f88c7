//! The fused head against a plain softmax in f64, and against finite differences of it.

use super::*;
use crate::compare::{
    Random, Tolerance, assert_close, pick, reference_gradient, with_one_and_three_threads,
};
use crate::linear::Math;

const SIZES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (0, 3, 5), (127, 5, 129), (129, 64, 7), (65, 1, 256), (3, 129, 300)];

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn plain(h: &[f64], w: &[f64], targets: &[u32], d: usize) -> f64 {
    let row = |(h, target): (&[f64], &u32)| {
        let logits: Vec<f64> =
            w.chunks(d).map(|w| h.iter().zip(w).map(|(h, w)| h * w).sum()).collect();
        let sum: f64 = logits.iter().map(|x: &f64| x.exp()).sum();
        if *target == IGNORE { 0.0 } else { sum.ln() - logits[*target as usize] }
    };
    h.chunks(d).zip(targets).map(row).sum()
}

struct Case {
    h: Tensor,
    w: Vec<f32>,
    targets: Vec<u32>,
}

/// Every fifth row has no target.
fn case((t, d, v): (usize, usize, usize)) -> Case {
    let mut random = Random::new(28);
    let h = Tensor::from_f32(DType::F32, &[t, d], &random.normal(t * d));
    let w = random.normal(v * d).iter().map(|w| w / (d as f32).sqrt()).collect();
    let mut target = |row| if row % 5 == 4 { IGNORE } else { random.below(v as u64) as u32 };
    Case { h, w, targets: (0..t).map(&mut target).collect() }
}

#[test]
fn loss_and_gradients_agree_with_a_plain_softmax() {
    for size in SIZES {
        let (t, d, v) = size;
        let Case { h, w, targets } = case(size);
        let operand = Operand::prepare(&h, Math::F32);
        let weight = Weight::prepare(&w, v, d, Math::F32);
        let mut dw = vec![1.0; v * d];
        let got = forward_backward(&operand, &weight, &targets, 0.25, DType::F32, &mut dw);
        for d in &mut dw {
            *d -= 1.0;
        }
        let (h, w_wide) = (h.f32s(), wide(&w));
        let want = plain(&wide(h), &w_wide, &targets, d);
        assert!((got.loss_sum - want).abs() <= 1e-5 * want.max(1.0), "{} {want}", got.loss_sum);
        assert_eq!(got.targets as usize, targets.iter().filter(|t| **t != IGNORE).count());
        let evaluated = evaluate(&operand, &weight, &targets);
        assert_eq!(evaluated.loss_sum.to_bits(), got.loss_sum.to_bits());
        assert!(evaluated.d_h.is_none());
        assert_eq!(logits(&operand, &weight).shape(), [t, v]);

        let mut random = Random::new(29);
        let picks = random.picks(t * d, 10);
        let want = reference_gradient(h, &picks, |h| 0.25 * plain(h, &w_wide, &targets, d));
        let d_h = got.d_h.unwrap();
        assert_close("d_h", &pick(d_h.f32s(), &picks), &want, Tolerance::F32);
        let picks = random.picks(v * d, 10);
        let want = reference_gradient(&w, &picks, |w| 0.25 * plain(&wide(h), w, &targets, d));
        assert_close("dw", &pick(&dw, &picks), &want, Tolerance::F32.times(4.0));
    }
}

#[test]
fn a_bf16_head_rounds_its_operands_only() {
    let size = (129, 64, 7);
    let Case { h, w, targets } = case(size);
    let bf16_values = |x: &[f32]| Tensor::from_f32(DType::Bf16, &[x.len()], x).to_f32();
    let (h_rounded, w_rounded) = (bf16_values(h.f32s()), bf16_values(&w));
    let operand = Operand::prepare(&h, Math::Bf16);
    let weight = Weight::prepare(&w, 7, 64, Math::Bf16);
    let mut dw = vec![0.0; 7 * 64];
    let got = forward_backward(&operand, &weight, &targets, 1.0, DType::Bf16, &mut dw);
    let want = plain(&wide(&h_rounded), &wide(&w_rounded), &targets, 64);
    assert!((got.loss_sum - want).abs() <= 1e-5 * want, "{} {want}", got.loss_sum);
    let picks: Vec<usize> = (0..20).map(|i| i * 400).collect();
    let w_wide = wide(&w_rounded);
    let want = reference_gradient(&h_rounded, &picks, |h| plain(h, &w_wide, &targets, 64));
    let d_h = got.d_h.unwrap();
    assert_eq!(d_h.dtype(), DType::Bf16);
    // Seven rounded gradients of logits, each within 2^-9, and one rounding of their sum.
    let tolerance = Tolerance { abs: 4e-3, rel: 1.0 / 128.0 };
    assert_close("d_h", &pick(&d_h.to_f32(), &picks), &want, tolerance);
}

/// Several strips of a BF16 head, the last one narrower, against the same numbers in FP32.
#[test]
fn strips_of_a_bf16_head_agree_with_fp32() {
    // The last one takes two rounds.
    for (t, d, v) in [(70, 32, 1000), (129, 64, 256), (1, 2, 130), (600, 4, 8192)] {
        let Case { h, w, targets } = case((t, d, v));
        let bf16 = |x: &[f32], shape: &[usize]| Tensor::from_f32(DType::Bf16, shape, x).to_f32();
        let (h, w) = (bf16(h.f32s(), &[t, d]), bf16(&w, &[v, d]));
        let run = |math: Math, out: DType| {
            let h = Operand::prepare(&Tensor::from_f32(DType::F32, &[t, d], &h), math);
            let mut dw = vec![0.5; v * d];
            let w = Weight::prepare(&w, v, d, math);
            (forward_backward(&h, &w, &targets, 0.5, out, &mut dw), dw)
        };
        let (got, got_dw) = run(Math::Bf16, DType::F32);
        let (want, want_dw) = run(Math::F32, DType::F32);
        assert!((got.loss_sum - want.loss_sum).abs() <= 1e-5 * want.loss_sum.max(1.0));
        // Gradients of logits are rounded within 2^-8; those of a row sum to twice its scale at most.
        let tolerance = Tolerance { abs: 1.0 / 64.0, rel: 1.0 / 128.0 };
        let (got_d_h, want_d_h) = (got.d_h.unwrap(), want.d_h.unwrap());
        assert_close("d_h", got_d_h.f32s(), want_d_h.f32s(), tolerance);
        assert_close("dw", &got_dw, &want_dw, tolerance);
    }
}

#[test]
fn rows_without_a_target_give_nothing_even_if_they_are_nan() {
    let Case { h, w, mut targets } = case((66, 4, 128));
    targets[65] = IGNORE;
    let mut values = h.to_f32();
    let run = |values: &[f32], math: Math| {
        let h = Operand::prepare(&Tensor::from_f32(DType::F32, &[66, 4], values), math);
        let mut dw = vec![0.0; 128 * 4];
        let w = Weight::prepare(&w, 128, 4, math);
        (forward_backward(&h, &w, &targets, 1.0, DType::F32, &mut dw).loss_sum, dw)
    };
    for math in [Math::F32, Math::Bf16] {
        let (loss, _) = run(&values, math);
        assert!(loss.is_finite());
    }
    values[65 * 4] = f32::INFINITY;
    for math in [Math::F32, Math::Bf16] {
        assert!(run(&values, math).0.is_finite(), "its loss is not counted");
    }
}

#[test]
fn chunks_of_a_large_vocabulary_add_up() {
    // 40,000 logits a row: 64 rows are alive at once, so three rounds.
    let (t, d, v) = (130, 2, 40_000);
    let Case { h, w, targets } = case((t, d, v));
    let operand = Operand::prepare(&h, Math::F32);
    let weight = Weight::prepare(&w, v, d, Math::F32);
    let mut dw = vec![0.0; v * d];
    let got = forward_backward(&operand, &weight, &targets, 1.0, DType::F32, &mut dw);
    let want = plain(&wide(h.f32s()), &wide(&w), &targets, d);
    assert!((got.loss_sum - want).abs() <= 1e-5 * want);
    // Softmax less onehot sums to zero over the vocabulary, so dw does over its rows.
    let sum: f64 = dw.iter().map(|d| f64::from(*d)).sum();
    assert!(sum.abs() < 1e-2, "{sum}");
    let picks = [targets[128] as usize * d, targets[0] as usize * d + 1];
    let want = reference_gradient(&w, &picks, |w| plain(&wide(h.f32s()), w, &targets, d));
    assert_close("dw", &pick(&dw, &picks), &want, Tolerance::F32.times(4.0));
}

#[test]
fn a_nan_row_makes_the_loss_nan() {
    let Case { h, w, targets } = case((3, 129, 300));
    let mut values = h.to_f32();
    values[130] = f32::NAN;
    let h = Operand::F32(Tensor::from_f32(DType::F32, &[3, 129], &values));
    let w = Weight::prepare(&w, 300, 129, Math::F32);
    assert!(evaluate(&h, &w, &targets).loss_sum.is_nan());
}

#[test]
fn threads_do_not_change_a_bit() {
    let Case { h, w, targets } = case((700, 96, 300));
    let h = Operand::prepare(&h, Math::Bf16);
    let w = Weight::prepare(&w, 300, 96, Math::Bf16);
    let (one, three) = with_one_and_three_threads(|| {
        let mut dw = vec![0.0; 300 * 96];
        (forward_backward(&h, &w, &targets, 0.1, DType::Bf16, &mut dw), dw)
    });
    assert_eq!(one, three);
}
