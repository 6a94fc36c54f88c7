//! The router against sorting in f64, its balance loss, and finite differences of both.

use super::*;
use crate::compare::{
    Random, Tolerance, assert_close, pick, reference_gradient, with_one_and_three_threads,
};

const TINY: RouterShape = RouterShape {
    experts: 16,
    top_k: 4,
    groups: 4,
    groups_kept: 2,
    normalise: true,
    scaling: 2.5,
    tokens_per_sequence: 43,
};

fn cases() -> [(usize, usize, RouterShape); 6] {
    [
        (129, 33, TINY),
        (1, 1, RouterShape { tokens_per_sequence: 1, ..TINY }),
        (0, 8, TINY),
        (
            127,
            5,
            RouterShape { tokens_per_sequence: 127, groups_kept: 4, normalise: false, ..TINY },
        ),
        // Groups of one: the group's score is its only expert's.
        (12, 7, RouterShape { groups: 16, groups_kept: 5, tokens_per_sequence: 6, ..TINY }),
        (
            6,
            9,
            RouterShape {
                experts: 3,
                top_k: 1,
                groups: 1,
                groups_kept: 1,
                tokens_per_sequence: 2,
                ..TINY
            },
        ),
    ]
}

struct Inputs {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
}

fn inputs(t: usize, d: usize, s: &RouterShape) -> Inputs {
    let mut random = Random::new(24);
    let x = random.normal(t * d);
    let w = random.normal(s.experts * d).iter().map(|w| w / (d as f32).sqrt()).collect();
    Inputs { x, w, bias: random.uniform(s.experts, -0.3, 0.1) }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn plain_scores(x: &[f64], w: &[f64], e: usize) -> Vec<f64> {
    let d = w.len() / e;
    let score = |i: usize| {
        let (x, w) = (&x[i / e * d..][..d], &w[i % e * d..][..d]);
        1.0 / (1.0 + (-x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()).exp())
    };
    (0..x.len() / d * e).map(score).collect()
}

/// Indices by descending value, the lower index first among equals.
fn sorted(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    order
}

/// The choice of one token, from the report's text.
fn plain_choice(scores: &[f64], bias: &[f32], s: &RouterShape) -> Vec<u32> {
    let biased: Vec<f64> = scores.iter().zip(bias).map(|(s, b)| s + f64::from(*b)).collect();
    let size = s.experts / s.groups;
    let group = |biased: &[f64]| sorted(biased).iter().take(2).map(|i| biased[*i]).sum::<f64>();
    let groups: Vec<f64> = biased.chunks(size).map(group).collect();
    let kept = &sorted(&groups)[..s.groups_kept];
    let order = sorted(&biased).into_iter().filter(|i| kept.contains(&(i / size)));
    order.take(s.top_k).map(|i| i as u32).collect()
}

fn plain_gates(scores: &[f64], chosen: &[u32], s: &RouterShape) -> Vec<f64> {
    let chosen_scores: Vec<f64> = chosen.iter().map(|i| scores[*i as usize]).collect();
    let sum = if s.normalise { chosen_scores.iter().sum() } else { 1.0 };
    chosen_scores.iter().map(|score| score / sum * f64::from(s.scaling)).collect()
}

/// `sum f P` over all sequences, with `f` from `constant` scores.
fn plain_balance(scores: &[f64], constant: &[f64], s: &RouterShape) -> f64 {
    let (e, tokens) = (s.experts, s.tokens_per_sequence);
    let sequence = |(scores, constant): (&[f64], &[f64])| -> f64 {
        let mut f = vec![0.0; e];
        for scores in constant.chunks(e) {
            for i in &sorted(scores)[..s.top_k] {
                f[*i] += e as f64 / (s.top_k * tokens) as f64;
            }
        }
        let p = |i: usize| -> f64 {
            let share = |scores: &[f64]| scores[i] / scores.iter().sum::<f64>();
            scores.chunks(e).map(share).sum::<f64>() / tokens as f64
        };
        (0..e).map(|i| f[i] * p(i)).sum()
    };
    scores.chunks(tokens * e).zip(constant.chunks(tokens * e)).map(sequence).sum()
}

#[test]
fn forward_agrees_with_sorting() {
    for (t, d, s) in cases() {
        let Inputs { x, w, bias } = inputs(t, d, &s);
        let tensor = Tensor::from_f32(DType::F32, &[t, d], &x);
        let got = forward(&tensor, &w, &bias, &s);
        let scores = plain_scores(&wide(&x), &wide(&w), s.experts);
        let narrow: Vec<f32> = scores.iter().map(|s| *s as f32).collect();
        assert_close("scores", &got.scores, &narrow, Tolerance::F32);
        let rows = || scores.chunks(s.experts);
        let chosen: Vec<u32> = rows().flat_map(|row| plain_choice(row, &bias, &s)).collect();
        assert_eq!(got.chosen, chosen);
        let choices = rows().zip(chosen.chunks(s.top_k));
        let gates: Vec<f32> = choices
            .flat_map(|(row, chosen)| plain_gates(row, chosen, &s))
            .map(|gate| gate as f32)
            .collect();
        assert_close("gates", &got.gates, &gates, Tolerance::F32);
        let mut counts = vec![0; s.experts];
        for i in &chosen {
            counts[*i as usize] += 1;
        }
        assert_eq!(got.counts, counts);
        let balance = plain_balance(&scores, &scores, &s);
        assert!((got.balance - balance).abs() < 1e-4 * balance.max(1.0), "{}", got.balance);
    }
}

#[test]
fn backward_agrees_with_finite_differences() {
    for (t, d, s) in cases() {
        let Inputs { x, w, bias } = inputs(t, d, &s);
        let tensor = Tensor::from_f32(DType::F32, &[t, d], &x);
        let routing = forward(&tensor, &w, &bias, &s);
        let d_gates = Random::new(25).normal(t * s.top_k);
        let back = Backward { d_gates: &d_gates, balance_weight: 0.7 };
        let mut d_w = vec![1.0; w.len()];
        let dx = backward(&tensor, &w, &routing, back, &s, &mut d_w);
        for d in &mut d_w {
            *d -= 1.0;
        }
        let constant = plain_scores(&wide(&x), &wide(&w), s.experts);
        let loss = |x: &[f64], w: &[f64]| -> f64 {
            let scores = plain_scores(x, w, s.experts);
            let choices = scores.chunks(s.experts).zip(routing.chosen.chunks(s.top_k));
            let gates = choices.flat_map(|(row, chosen)| plain_gates(row, chosen, &s));
            let main: f64 = gates.zip(&d_gates).map(|(gate, d)| gate * f64::from(*d)).sum();
            main + 0.7 * plain_balance(&scores, &constant, &s)
        };
        let mut random = Random::new(26);
        let picks = random.picks(x.len(), 10);
        let want = reference_gradient(&x, &picks, |x| loss(x, &wide(&w)));
        assert_close("dx", &pick(dx.f32s(), &picks), &want, Tolerance::F32.times(2.0));
        let picks = random.picks(w.len(), 10);
        let want = reference_gradient(&w, &picks, |w| loss(&wide(&x), w));
        assert_close("d_w", &pick(&d_w, &picks), &want, Tolerance::F32.times(4.0));
    }
}

#[test]
fn ties_go_to_the_lower_expert() {
    let s = RouterShape { groups: 1, groups_kept: 1, tokens_per_sequence: 1, ..TINY };
    let x = Tensor::zeros(DType::F32, &[1, 3]);
    let routing = forward(&x, &[0.5; 48], &[0.0; 16], &s);
    assert_eq!(routing.chosen, [0, 1, 2, 3]);
    assert_close("gates", &routing.gates, &[2.5 / 4.0; 4], Tolerance::F32);
}

#[test]
fn closed_groups_stay_closed_when_all_biased_scores_are_negative() {
    let s = RouterShape { tokens_per_sequence: 1, ..TINY };
    let mut bias = [-3.0; 16];
    bias[..8].fill(-2.0);
    let x = Tensor::zeros(DType::F32, &[1, 3]);
    let routing = forward(&x, &[0.5; 48], &bias, &s);
    assert_eq!(routing.chosen, [0, 1, 2, 3]);
    assert!(routing.gates.iter().all(|gate| *gate > 0.0), "gates come from unbiased scores");
}

#[test]
fn a_poisoned_token_still_gets_distinct_experts() {
    let s = RouterShape { tokens_per_sequence: 1, ..TINY };
    let x = Tensor::from_f32(DType::F32, &[1, 1], &[f32::NAN]);
    let routing = forward(&x, &[1.0; 16], &[0.0; 16], &s);
    let mut chosen = routing.chosen.clone();
    chosen.sort_unstable();
    chosen.dedup();
    assert_eq!(chosen.len(), 4);
    assert!(routing.gates.iter().all(|gate| gate.is_nan()));
}

#[test]
fn threads_do_not_change_a_bit() {
    let s = RouterShape { tokens_per_sequence: 100, ..TINY };
    let Inputs { x, w, bias } = inputs(700, 96, &s);
    let x = Tensor::from_f32(DType::Bf16, &[700, 96], &x);
    let d_gates = Random::new(27).normal(700 * 4);
    let (one, three) = with_one_and_three_threads(|| {
        let routing = forward(&x, &w, &bias, &s);
        let mut d_w = vec![0.0; w.len()];
        let back = Backward { d_gates: &d_gates, balance_weight: 1e-4 };
        (backward(&x, &w, &routing, back, &s, &mut d_w), d_w, routing)
    });
    assert_eq!(one, three);
}

#[test]
fn a_busy_experts_bias_falls_an_idle_ones_rises_and_the_mean_stays() {
    // Quarters: every sum is exact, so bits may be compared.
    let bits = |bias: [f32; 4]| bias.map(f32::to_bits);
    let mut bias = [0.0, 0.0, 0.0, 0.5];
    step_bias(&mut bias, &[9, 4, 0, 3], 0.25);
    assert_eq!(bits(bias), bits([-0.25, 0.0, 0.25, 0.75]));
    step_bias(&mut bias, &[0; 4], 0.25);
    assert_eq!(bits(bias), bits([-0.25, 0.0, 0.25, 0.75]));
}
