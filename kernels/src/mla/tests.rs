//! Cutting and rotating against the formula, and backward as its transpose.

use super::*;
use crate::compare::{
    Random, Tolerance, assert_close, pick, reference_gradient, with_one_and_three_threads,
};
use crate::tensor::DType;

const SIZES: [(usize, HeadShape); 7] = [
    (1, shape(1, 0, 2, 1, 1)),
    (0, shape(2, 4, 2, 3, 5)),
    (127, shape(3, 1, 6, 5, 127)),
    (129, shape(4, 32, 16, 32, 43)),
    (258, shape(2, 3, 4, 129, 129)),
    (150, HeadShape { yarn: Some(YARN), ..shape(2, 3, 16, 5, 150) }),
    // No magnitude, and an original length that turns no pair as often as `beta_fast` says.
    (40, HeadShape { yarn: Some(SHORT), ..shape(1, 2, 8, 3, 20) }),
];

const YARN: Yarn = Yarn {
    factor: 4.0,
    beta_fast: 8.0,
    beta_slow: 0.5,
    original_positions: 300.0,
    magnitude: 1.25,
};
const SHORT: Yarn = Yarn { original_positions: 9.0, magnitude: 1.0, ..YARN };

const fn shape(
    heads: usize,
    nope: usize,
    rope: usize,
    value: usize,
    tokens_per_sequence: usize,
) -> HeadShape {
    HeadShape { heads, nope, rope, value, tokens_per_sequence, rope_theta: 10_000.0, yarn: None }
}

/// How often pair `i` turns within the original length decides where between the two frequencies it
/// lies: the paper's formula in pairs, with the ends of the line rounded outwards.
fn plain_frequency(i: usize, s: &HeadShape) -> f64 {
    let theta = f64::from(s.rope_theta);
    let plain = theta.powf(-2.0 * i as f64 / s.rope as f64);
    let Some(yarn) = s.yarn else { return plain };
    // Pair p turns `original / (2 pi theta^(2p / rope))` times.
    let pair_of = |turns: f64| {
        let wavelength = yarn.original_positions / turns;
        (wavelength / std::f64::consts::TAU).log(theta) * s.rope as f64 / 2.0
    };
    let first = pair_of(yarn.beta_fast).floor().max(0.0);
    let last = pair_of(yarn.beta_slow).ceil().min(s.rope as f64 - 1.0);
    let kept = if (i as f64) <= first {
        1.0
    } else if last <= i as f64 {
        0.0
    } else {
        (last - i as f64) / (last - first)
    };
    plain * kept + plain / yarn.factor * (1.0 - kept)
}

/// `x` turned by its position, from the definition.
fn plain_rotate(x: &[f64], position: usize, s: &HeadShape) -> Vec<f64> {
    let length = s.yarn.map_or(1.0, |yarn| yarn.magnitude);
    let pair = |i: usize| {
        let (a, b, angle) = (x[2 * i], x[2 * i + 1], position as f64 * plain_frequency(i, s));
        let (cos, sin) = (length * angle.cos(), length * angle.sin());
        [a * cos - b * sin, a * sin + b * cos]
    };
    (0..x.len() / 2).flat_map(pair).collect()
}

/// The three outputs, one after the other.
fn plain(q: &[f64], kv: &[f64], k_rope: &[f64], s: &HeadShape) -> Vec<f64> {
    let rows = k_rope.len() / s.rope;
    let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..rows * s.heads {
        let (row, position) = (at / s.heads, at / s.heads % s.tokens_per_sequence);
        let turned = |x: &[f64]| plain_rotate(x, position, s);
        let q = &q[at * s.qk()..][..s.qk()];
        let kv = &kv[at * (s.nope + s.value)..][..s.nope + s.value];
        queries.extend([&q[..s.nope], &turned(&q[s.nope..])].concat());
        let shared = turned(&k_rope[row * s.rope..][..s.rope]);
        keys.extend([&kv[..s.nope], &shared].concat());
        values.extend_from_slice(&kv[s.nope..]);
    }
    [queries, keys, values].concat()
}

fn inputs(t: usize, s: &HeadShape) -> [(usize, Vec<f32>); 3] {
    let mut random = Random::new(20);
    let mut draw = |cols| (cols, random.normal(t * cols));
    [draw(s.heads * s.qk()), draw(s.heads * (s.nope + s.value)), draw(s.rope)]
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

#[test]
fn forward_agrees_with_the_formula_in_both_dtypes() {
    for (t, s) in SIZES {
        for (dtype, tolerance) in [(DType::F32, Tolerance::F32), (DType::Bf16, Tolerance::BF16)] {
            let [q, kv, k_rope] =
                inputs(t, &s).map(|(cols, x)| Tensor::from_f32(dtype, &[t, cols], &x));
            let (queries, keys, values) = split_forward(&q, &kv, &k_rope, &s);
            let [q, kv, k_rope] = [q, kv, k_rope].map(|x| wide(&x.to_f32()));
            let want: Vec<f32> = plain(&q, &kv, &k_rope, &s).iter().map(|x| *x as f32).collect();
            let got = [queries.to_f32(), keys.to_f32(), values.to_f32()].concat();
            assert_close("q, k, v", &got, &want, tolerance);
        }
    }
}

#[test]
fn backward_agrees_with_finite_differences() {
    for (t, s) in SIZES {
        let [(q_cols, q), (kv_cols, kv), (rope_cols, k_rope)] = inputs(t, &s);
        let mut random = Random::new(21);
        let v_cols = s.heads * s.value;
        let d_out = [q_cols, q_cols, v_cols].map(|cols| random.normal(t * cols));
        let all = wide(&d_out.concat());
        let loss = |q: &[f64], kv: &[f64], k_rope: &[f64]| -> f64 {
            plain(q, kv, k_rope, &s).iter().zip(&all).map(|(x, d)| x * d).sum()
        };
        let [dq, dk, dv] = &d_out;
        let tensor = |cols: usize, x: &[f32]| Tensor::from_f32(DType::F32, &[t, cols], x);
        let (d_q, d_kv, d_k_rope) =
            split_backward(&tensor(q_cols, dq), &tensor(q_cols, dk), &tensor(v_cols, dv), &s);
        let mut check =
            |name: &str, got: &Tensor, cols: usize, want: &dyn Fn(&[usize]) -> Vec<f32>| {
                assert_eq!(got.shape(), [t, cols]);
                let picks = random.picks(t * cols, 6);
                let got = pick(got.f32s(), &picks);
                assert_close(name, &got, &want(&picks), Tolerance::F32.times(2.0));
            };
        let (q_w, kv_w, rope_w) = (wide(&q), wide(&kv), wide(&k_rope));
        check("d_q", &d_q, q_cols, &|picks| {
            reference_gradient(&q, picks, |q| loss(q, &kv_w, &rope_w))
        });
        check("d_kv", &d_kv, kv_cols, &|picks| {
            reference_gradient(&kv, picks, |kv| loss(&q_w, kv, &rope_w))
        });
        check("d_k_rope", &d_k_rope, rope_cols, &|picks| {
            reference_gradient(&k_rope, picks, |k_rope| loss(&q_w, &kv_w, k_rope))
        });
    }
}

#[test]
fn far_positions_are_turned_as_exactly_as_near_ones() {
    let s = shape(1, 0, 64, 1, 4096);
    let rotation = Rotation::new(&s, 4096);
    for position in [63, 64, 127, 4095] {
        for (i, (cos, sin)) in rotation.at(position).iter().enumerate() {
            let angle = position as f64 * 10_000_f64.powf(-(i as f64) / 32.0);
            let want = [angle.cos() as f32, angle.sin() as f32];
            assert_close("cos, sin", &[*cos, *sin], &want, Tolerance { abs: 1e-7, rel: 0.0 });
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let s = shape(4, 32, 16, 32, 100);
    let [q, kv, k_rope] =
        inputs(300, &s).map(|(cols, x)| Tensor::from_f32(DType::Bf16, &[300, cols], &x));
    let (one, three) = with_one_and_three_threads(|| {
        let (q, k, v) = split_forward(&q, &kv, &k_rope, &s);
        (split_backward(&q, &k, &v, &s), q, k, v)
    });
    assert_eq!(one, three);
}

/// One pass gives what cutting, attention and putting together give one after the other.
#[test]
fn attention_on_the_projections_agrees_with_the_separate_steps() {
    use crate::attention::{self, AttentionShape};
    for (rows, s) in SIZES.into_iter().filter(|(rows, s)| rows % s.tokens_per_sequence == 0) {
        for dtype in [DType::F32, DType::Bf16] {
            let mut random = Random::new(31);
            let mut tensor =
                |cols| Tensor::from_f32(dtype, &[rows, cols], &random.normal(rows * cols));
            let (q, kv) = (tensor(s.heads * s.qk()), tensor(s.heads * (s.nope + s.value)));
            let (k_rope, d_o) = (tensor(s.rope), tensor(s.heads * s.value));
            let (tokens, scale) = (s.tokens_per_sequence, 0.3);
            let shape = AttentionShape {
                sequences: rows / tokens,
                tokens,
                heads: s.heads,
                qk_dim: s.qk(),
                v_dim: s.value,
                scale,
            };
            let (q_split, k_split, v_split) = split_forward(&q, &kv, &k_rope, &s);
            let (o, lse) = attention::forward(&q_split, &k_split, &v_split, &shape);
            let got = attend(&q, &kv, &k_rope, &s, scale);
            assert_eq!(got, (o.clone(), lse.clone()), "the same roundings in the same order");

            let (dq, dk, dv) =
                attention::backward(&q_split, &k_split, &v_split, &o, &lse, &d_o, &shape);
            let (d_q, d_kv, d_k_rope) = split_backward(&dq, &dk, &dv, &s);
            let got = attend_backward((&q, &kv, &k_rope), (&o, &lse, &d_o), &s, scale);
            // The separate steps round before they turn back and before they sum over the heads.
            let tolerance = match dtype {
                DType::F32 => Tolerance::F32.times(2.0),
                DType::Bf16 => Tolerance { abs: 0.05, rel: 1.0 / 32.0 },
            };
            assert_close("d_q", &got.0.to_f32(), &d_q.to_f32(), tolerance);
            assert_eq!(got.1, d_kv, "what is not turned is moved only");
            assert_close("d_k_rope", &got.2.to_f32(), &d_k_rope.to_f32(), tolerance);
            let (one, three) = with_one_and_three_threads(|| {
                attend_backward((&q, &kv, &k_rope), (&o, &lse, &d_o), &s, scale)
            });
            assert_eq!(one, three);
        }
    }
}
