//! Attention against three plain loops in f64, and backward against their finite differences.

use super::*;
use crate::compare::{
    Random, Tolerance, assert_close, pick, reference_gradient, with_one_and_three_threads,
};
use crate::tensor::DType;

const SIZES: [AttentionShape; 7] = [
    shape(1, 1, 1, 1, 1),
    shape(0, 4, 2, 3, 3),
    shape(3, 1, 2, 5, 4),
    shape(2, 63, 2, 48, 32),
    shape(1, 64, 1, 3, 129),
    shape(2, 129, 2, 6, 1),
    shape(1, 127, 3, 48, 32),
];

const fn shape(
    sequences: usize,
    tokens: usize,
    heads: usize,
    qk_dim: usize,
    v_dim: usize,
) -> AttentionShape {
    AttentionShape { sequences, tokens, heads, qk_dim, v_dim, scale: 0.3 }
}

/// Returns `o` and the log-sum-exps.
fn plain(q: &[f64], k: &[f64], v: &[f64], s: &AttentionShape) -> (Vec<f64>, Vec<f64>) {
    let (h, rows) = (s.heads, s.rows());
    let mut o = vec![0.0; rows * h * s.v_dim];
    let mut lse = vec![0.0; h * rows];
    for row in 0..rows {
        let first = row / s.tokens * s.tokens;
        for head in 0..h {
            let at = |x: usize, dim: usize| (x * h + head) * dim;
            let score = |key: usize| -> f64 {
                let q = &q[at(row, s.qk_dim)..][..s.qk_dim];
                let k = &k[at(key, s.qk_dim)..][..s.qk_dim];
                q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * f64::from(s.scale)
            };
            let sum: f64 = (first..=row).map(|key| score(key).exp()).sum();
            lse[head * rows + row] = sum.ln();
            for key in first..=row {
                let weight = score(key).exp() / sum;
                for i in 0..s.v_dim {
                    o[at(row, s.v_dim) + i] += weight * v[at(key, s.v_dim) + i];
                }
            }
        }
    }
    (o, lse)
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

/// `q`, `k`, `v` and `d_o`.
fn inputs(s: &AttentionShape, dtype: DType) -> [Tensor; 4] {
    let mut random = Random::new(22);
    [s.qk_dim, s.qk_dim, s.v_dim, s.v_dim].map(|dim| {
        let cols = s.heads * dim;
        Tensor::from_f32(dtype, &[s.rows(), cols], &random.normal(s.rows() * cols))
    })
}

/// The instruction sets of this CPU.
fn sets() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

#[test]
fn forward_agrees_with_plain_loops_in_both_dtypes() {
    for s in SIZES {
        for dtype in [DType::F32, DType::Bf16] {
            let [q, k, v, _] = inputs(&s, dtype);
            let [q_w, k_w, v_w] = [&q, &k, &v].map(|x| wide(&x.to_f32()));
            let (want_o, want_lse) = plain(&q_w, &k_w, &v_w, &s);
            for isa in sets() {
                let (o, lse) = forward_on(isa, [&q, &k, &v], &s);
                match dtype {
                    DType::F32 => assert_close("o", &o.to_f32(), &narrow(&want_o), Tolerance::F32),
                    DType::Bf16 => assert_weighted(&o.to_f32(), &want_o, &[&q_w, &k_w, &v_w], &s),
                }
                assert_close("lse", &lse, &narrow(&want_lse), Tolerance::F32);
            }
        }
    }
}

/// BF16 rounds the weights and the result, each within 2^-8: of all terms, and of their sum.
fn assert_weighted(o: &[f32], want: &[f64], [q, k, v]: &[&[f64]; 3], s: &AttentionShape) {
    let magnitudes: Vec<f64> = v.iter().map(|v| v.abs()).collect();
    let (room, _) = plain(q, k, &magnitudes, s);
    for ((o, want), room) in o.iter().zip(want).zip(room) {
        let error = (f64::from(*o) - want).abs();
        assert!(error <= room / 128.0 + 1e-5, "{o}, want {want} within {}", room / 128.0);
    }
}

#[test]
fn backward_agrees_with_finite_differences() {
    for (s, isa) in SIZES.into_iter().flat_map(|s| sets().map(move |isa| (s, isa))) {
        let [q, k, v, d_o] = inputs(&s, DType::F32);
        let (o, lse) = forward_on(isa, [&q, &k, &v], &s);
        let (dq, dk, dv) = backward_on(isa, [&q, &k, &v], (&o, &lse, &d_o), &s);
        let d_o = wide(d_o.f32s());
        let (q, k, v) = (q.f32s(), k.f32s(), v.f32s());
        let (q_w, k_w, v_w) = (wide(q), wide(k), wide(v));
        let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
            plain(q, k, v, &s).0.iter().zip(&d_o).map(|(o, d)| o * d).sum()
        };
        let tolerance = Tolerance::F32.times(2.0);
        let mut random = Random::new(23);
        let picks = random.picks(q.len(), 6);
        let want = reference_gradient(q, &picks, |q| loss(q, &k_w, &v_w));
        assert_close("dq", &pick(dq.f32s(), &picks), &want, tolerance);
        let want = reference_gradient(k, &picks, |k| loss(&q_w, k, &v_w));
        assert_close("dk", &pick(dk.f32s(), &picks), &want, tolerance);
        let picks = random.picks(v.len(), 6);
        let want = reference_gradient(v, &picks, |v| loss(&q_w, &k_w, v));
        assert_close("dv", &pick(dv.f32s(), &picks), &want, tolerance);
    }
}

/// The gradients of a BF16 model, against those of the same numbers in FP32.
#[test]
fn backward_in_bf16_agrees_with_fp32() {
    for (s, isa) in SIZES.into_iter().flat_map(|s| sets().map(move |isa| (s, isa))) {
        let given = inputs(&s, DType::Bf16);
        let gradients = |[q, k, v, d_o]: [Tensor; 4]| {
            let (o, lse) = forward_on(isa, [&q, &k, &v], &s);
            let (dq, dk, dv) = backward_on(isa, [&q, &k, &v], (&o, &lse, &d_o), &s);
            [dq, dk, dv].map(|x| x.to_f32())
        };
        let wide = given.clone().map(|x| Tensor::from_f32(DType::F32, x.shape(), &x.to_f32()));
        let (got, want) = (gradients(given), gradients(wide));
        for ((name, got), want) in ["dq", "dk", "dv"].into_iter().zip(got).zip(want) {
            // Output, weights and gradients of scores are rounded within 2^-8 before they are
            // multiplied by up to sqrt(dim) and summed over keys whose weights sum to 1; sums over
            // queries of one key reach a few times that.
            let largest = want.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let tolerance = Tolerance { abs: largest / 64.0 + 1e-3, rel: 1.0 / 64.0 };
            assert_close(name, &got, &want, tolerance);
        }
    }
}

#[test]
fn later_tokens_and_other_sequences_change_nothing() {
    let s = shape(2, 70, 2, 8, 8);
    let [q, mut k, mut v, _] = inputs(&s, DType::F32);
    let (before, _) = forward(&q, &k, &v, &s);
    let last = [f32::NAN; 16];
    k.write_rows(69, &last);
    v.write_rows(69, &last);
    let (after, _) = forward(&q, &k, &v, &s);
    assert!(after.f32s()[69 * 16..70 * 16].iter().all(|o| o.is_nan()), "the last token sees it");
    assert_eq!(before.f32s()[70 * 16..], after.f32s()[70 * 16..], "the next sequence does not");
}

#[test]
fn large_scores_do_not_overflow() {
    let s = AttentionShape { scale: 1000.0, ..shape(1, 65, 1, 4, 4) };
    let [q, k, v, d_o] = inputs(&s, DType::F32);
    let (o, lse) = forward(&q, &k, &v, &s);
    let (dq, dk, dv) = backward(&q, &k, &v, &o, &lse, &d_o, &s);
    assert!([o, dq, dk, dv].iter().all(Tensor::all_finite));
}

#[test]
fn threads_do_not_change_a_bit() {
    let s = shape(3, 130, 4, 48, 32);
    let [q, k, v, d_o] = inputs(&s, DType::Bf16);
    let (one, three) = with_one_and_three_threads(|| {
        let (o, lse) = forward(&q, &k, &v, &s);
        (backward(&q, &k, &v, &o, &lse, &d_o, &s), o, lse)
    });
    assert_eq!(one, three);
}
