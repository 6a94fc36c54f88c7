//! The router of a mixture of experts, in FP32 from end to end. T tokens, E experts, K choices.
//!
//! DeepSeek-V3 report 2.1.2, numerics.md 1.3. Scores are `s = sigmoid(x w^T)`; experts are chosen
//! by `s + bias` inside the best groups; gates are the chosen `s` without the bias, normalised and
//! scaled. The balance loss of one sequence is `sum_i f_i P_i` with `f_i = E / (K T) * (tokens whose
//! K largest unbiased scores have i)`, a constant, and `P_i` the mean of `s_i / sum_j s_j` (Eq. 17
//! to 20).

use crate::exp::sigmoid;
use crate::gemm::{Left, Out, Right, View, multiply};
use crate::scratch::Scratch;
use crate::simd::vectorised;
use crate::spread::{self, ELEMENTS};
use crate::tensor::{DType, Tensor};

/// Tokens that one task routes.
const ROWS: usize = 128;

/// Keeps a sum of scores that all underflowed from dividing by zero, as the reference code does.
const GATE_FLOOR: f32 = 1e-20;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterShape {
    pub experts: usize,
    pub top_k: usize,
    /// Divides `experts`.
    pub groups: usize,
    pub groups_kept: usize,
    /// Divide the gates of a token by their sum.
    pub normalise: bool,
    /// Multiplies every gate: `routed_scaling_factor`.
    pub scaling: f32,
    /// Divides the tokens of every call.
    pub tokens_per_sequence: usize,
}

impl RouterShape {
    fn assert_valid(&self) {
        assert!(
            self.groups > 0 && self.experts.is_multiple_of(self.groups),
            "router: {} groups must divide {} experts",
            self.groups,
            self.experts
        );
        let open = self.groups_kept * (self.experts / self.groups);
        assert!(
            self.groups_kept <= self.groups && self.top_k <= open && self.top_k > 0,
            "router: cannot choose {} of {open} experts",
            self.top_k
        );
        assert!(self.tokens_per_sequence > 0, "router: a sequence has tokens");
    }
}

/// What `forward` decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// `(T, E)`: the sigmoids, without bias.
    pub scores: Vec<f32>,
    /// `(T, K)`: experts by descending biased score; of equals the lower index first.
    pub chosen: Vec<u32>,
    /// `(T, K)`: the weight of each choice.
    pub gates: Vec<f32>,
    /// `(E)`: tokens that chose each expert.
    pub counts: Vec<u64>,
    /// The balance loss, summed over the sequences, not yet weighted.
    pub balance: f64,
}

/// What comes back to the router.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// `(T, K)`: gradients of the gates.
    pub d_gates: &'a [f32],
    /// The factor of `Routing::balance` in the loss.
    pub balance_weight: f32,
}

/// Adds `speed` to the bias of an expert with fewer tokens than the mean, subtracts it from that of one with more
/// (DeepSeek-V3 report 2.1.2). `counts` are over the whole batch.
pub fn step_bias(bias: &mut [f32], counts: &[u64], speed: f32) {
    assert_eq!(bias.len(), counts.len(), "one count per expert");
    let (n, total) = (counts.len() as u64, counts.iter().sum::<u64>());
    for (bias, count) in bias.iter_mut().zip(counts) {
        match (count * n).cmp(&total) {
            std::cmp::Ordering::Less => *bias += speed,
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => *bias -= speed,
        }
    }
}

/// - `x`: `(T, D)`; `w`: `(E, D)`; `bias`: `(E)`, used to choose only.
pub fn forward(x: &Tensor, w: &[f32], bias: &[f32], s: &RouterShape) -> Routing {
    s.assert_valid();
    let (t, d, e, k) = (x.rows(), x.cols(), s.experts, s.top_k);
    assert_eq!((w.len(), bias.len()), (e * d, e), "router: shapes of w and bias");
    assert!(t.is_multiple_of(s.tokens_per_sequence), "router: whole sequences only");
    let mut scores = vec![0.0; t * e];
    let mut chosen = vec![0; t * k];
    let mut gates = vec![0.0; t * k];
    let choices = chosen.chunks_mut(ROWS * k).zip(gates.chunks_mut(ROWS * k));
    let outputs = scores.chunks_mut(ROWS * e).zip(choices);
    let right = Right::singles(View::new(w, e, d).transposed());
    spread::each(outputs.enumerate(), |(i, (scores, (chosen, gates)))| {
        let rows = i * ROWS..((i + 1) * ROWS).min(t);
        let mut scratch = None;
        let x = View::new(x.rows_f32(rows.clone(), &mut scratch), rows.len(), d);
        multiply(Left::singles(x), &right, Out::Set(scores));
        vectorised(
            #[inline(always)]
            || {
                for score in scores.iter_mut() {
                    *score = sigmoid(*score);
                }
            },
        );
        let mut room = Room::new(s);
        let outputs = chosen.chunks_exact_mut(k).zip(gates.chunks_exact_mut(k));
        for (scores, (chosen, gates)) in scores.chunks_exact(e).zip(outputs) {
            choose(scores, bias, s, &mut room, chosen);
            weigh(scores, chosen, s, gates);
        }
    });
    let mut counts = vec![0; e];
    for expert in &chosen {
        counts[*expert as usize] += 1;
    }
    let sequences = scores.chunks_exact(s.tokens_per_sequence * e);
    let balance = spread::map(sequences, |scores| sequence_balance(scores, s)).into_iter().sum();
    Routing { scores, chosen, gates, counts, balance }
}

/// What `forward` decides for rows whose products `x w^T`, `(T, E)`, were computed elsewhere: experts
/// and gates, both `(T, K)`. For decoding, where a row's bits must not depend on the rows beside it.
pub fn decide(mut logits: Vec<f32>, bias: &[f32], s: &RouterShape) -> (Vec<u32>, Vec<f32>) {
    s.assert_valid();
    assert_eq!(bias.len(), s.experts, "router: shape of bias");
    for score in &mut logits {
        *score = sigmoid(*score);
    }
    let n = logits.len() / s.experts * s.top_k;
    let (mut chosen, mut gates, mut room) = (vec![0; n], vec![0.0; n], Room::new(s));
    let outputs = chosen.chunks_exact_mut(s.top_k).zip(gates.chunks_exact_mut(s.top_k));
    for (scores, (chosen, gates)) in logits.chunks_exact(s.experts).zip(outputs) {
        choose(scores, bias, s, &mut room, chosen);
        weigh(scores, chosen, s, gates);
    }
    (chosen, gates)
}

/// Writes the indices of the largest `values`, largest first, of equals the lower index first.
///
/// A NaN is never larger: with nothing comparable left the lowest index is taken, so a poisoned
/// token still gets distinct experts, and its loss shows the NaN.
fn top_k(values: &[f32], chosen: &mut [u32]) {
    for at in 0..chosen.len() {
        let (before, rest) = chosen.split_at_mut(at);
        let mut best: Option<usize> = None;
        for (i, value) in values.iter().enumerate() {
            let better = best.is_none_or(|best| *value > values[best]);
            if better && !before.contains(&(i as u32)) {
                best = Some(i);
            }
        }
        rest[0] = best.expect("there are at least K experts") as u32;
    }
}

/// Working memory of one token's choice, used again for the next token.
struct Room {
    biased: Scratch,
    group_scores: Scratch,
    /// Indices of groups.
    kept: Scratch,
}

impl Room {
    fn new(s: &RouterShape) -> Self {
        Self {
            biased: Scratch::new(s.experts),
            group_scores: Scratch::new(s.groups),
            kept: Scratch::new(s.groups_kept),
        }
    }
}

/// Chooses the experts of one token.
fn choose(scores: &[f32], bias: &[f32], s: &RouterShape, room: &mut Room, chosen: &mut [u32]) {
    let Room { biased, group_scores, kept } = room;
    for ((biased, score), bias) in biased.iter_mut().zip(scores).zip(bias) {
        *biased = score + bias;
    }
    if s.groups_kept < s.groups {
        let size = s.experts / s.groups;
        for (score, group) in group_scores.iter_mut().zip(biased.chunks_exact(size)) {
            *score = group_score(group);
        }
        let kept: &mut [u32] = bytemuck::cast_slice_mut(kept);
        top_k(group_scores, kept);
        for (group, biased) in biased.chunks_exact_mut(size).enumerate() {
            if !kept.contains(&(group as u32)) {
                // Not 0: a biased score may be negative (numerics.md 7).
                biased.fill(f32::NEG_INFINITY);
            }
        }
    }
    top_k(biased, chosen);
}

/// The sum of the two largest biased scores; of a group of one, that one.
fn group_score(biased: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &score in biased {
        if score > first {
            (first, second) = (score, first);
        } else if score > second {
            second = score;
        }
    }
    if biased.len() == 1 { first } else { first + second }
}

/// The gates of one token.
fn weigh(scores: &[f32], chosen: &[u32], s: &RouterShape, gates: &mut [f32]) {
    for (gate, expert) in gates.iter_mut().zip(chosen) {
        *gate = scores[*expert as usize];
    }
    let factor = s.scaling / gate_sum(gates, s);
    for gate in gates.iter_mut() {
        *gate *= factor;
    }
}

/// What the chosen scores are divided by.
fn gate_sum(chosen_scores: &[f32], s: &RouterShape) -> f32 {
    if s.normalise { chosen_scores.iter().sum::<f32>() + GATE_FLOOR } else { 1.0 }
}

/// `f` of one sequence, `(E)`, Eq. 18: how often each expert is among the K largest unbiased scores.
fn load(scores: &[f32], s: &RouterShape) -> Vec<f32> {
    let mut counts = vec![0_u32; s.experts];
    let mut chosen = vec![0; s.top_k];
    for scores in scores.chunks_exact(s.experts) {
        top_k(scores, &mut chosen);
        for expert in &chosen {
            counts[*expert as usize] += 1;
        }
    }
    let factor = s.experts as f32 / (s.top_k * s.tokens_per_sequence) as f32;
    counts.into_iter().map(|count| count as f32 * factor).collect()
}

/// `sum_i f_i P_i` of one sequence.
fn sequence_balance(scores: &[f32], s: &RouterShape) -> f64 {
    let f = load(scores, s);
    let token = |scores: &[f32]| {
        let sum: f64 = scores.iter().map(|score| f64::from(*score)).sum();
        let weighted = scores.iter().zip(&f).map(|(score, f)| f64::from(*score) * f64::from(*f));
        weighted.sum::<f64>() / sum
    };
    scores.chunks_exact(s.experts).map(token).sum::<f64>() / s.tokens_per_sequence as f64
}

/// Returns `dx`, `(T, D)` in FP32, as the router is FP32 from end to end.
///
/// - `x`: `(T, D)`; `w`: `(E, D)`; `d_w`: `(E, D)`, accumulated. The choice itself and `f` are
///   constants; the bias has no gradient.
pub fn backward(
    x: &Tensor,
    w: &[f32],
    routing: &Routing,
    back: Backward<'_>,
    s: &RouterShape,
    d_w: &mut [f32],
) -> Tensor {
    s.assert_valid();
    let (t, d, e) = (x.rows(), x.cols(), s.experts);
    assert_eq!((w.len(), d_w.len()), (e * d, e * d), "router: shapes of w and d_w");
    assert_eq!(routing.scores.len(), t * e, "router: the routing is of these tokens");
    assert_eq!(back.d_gates.len(), routing.gates.len(), "router: one gradient per gate");
    let mut d_logits = Scratch::new(t * e);
    let of_sequence = s.tokens_per_sequence * e;
    spread::each(d_logits.chunks_mut(of_sequence).enumerate(), |(sequence, d_logits)| {
        sequence_gradient(sequence, routing, back, s, d_logits);
    });
    let mut dx = Tensor::unwritten(DType::F32, &[t, d]);
    // Experts are few and contracted over all tokens: every chunk of tokens has a sum of its own.
    let mut partials = Scratch::new(t.div_ceil(ROWS) * e * d);
    let right = Right::singles(View::new(w, e, d));
    let outputs = dx.row_chunks_mut(ROWS).zip(partials.chunks_mut((e * d).max(1)));
    spread::each(outputs.enumerate(), |(i, (dx, partial))| {
        let rows = i * ROWS..((i + 1) * ROWS).min(t);
        let d_logits = View::new(&d_logits[rows.start * e..rows.end * e], rows.len(), e);
        dx.fill(|dx| multiply(Left::singles(d_logits), &right, Out::Set(dx)));
        let mut scratch = None;
        let x = View::new(x.rows_f32(rows.clone(), &mut scratch), rows.len(), d);
        multiply(Left::singles(d_logits.transposed()), &Right::singles(x), Out::Set(partial));
    });
    let parts = partials.len() / (e * d).max(1);
    let sums = d_w.chunks_mut(ELEMENTS).enumerate();
    spread::each(sums, |(i, sums)| {
        for part in 0..parts {
            let partial = &partials[part * e * d + i * ELEMENTS..][..sums.len()];
            for (sum, partial) in sums.iter_mut().zip(partial) {
                *sum += partial;
            }
        }
    });
    dx
}

/// The gradients of the logits of one sequence, overwritten.
fn sequence_gradient(
    sequence: usize,
    routing: &Routing,
    back: Backward<'_>,
    s: &RouterShape,
    d_logits: &mut [f32],
) {
    let (e, k) = (s.experts, s.top_k);
    let first = sequence * s.tokens_per_sequence;
    let scores = &routing.scores[first * e..][..d_logits.len()];
    let weight = back.balance_weight / s.tokens_per_sequence as f32;
    let f = if weight == 0.0 { vec![0.0; e] } else { load(scores, s) };
    let mut chosen_scores = Vec::with_capacity(k);
    for (token, (scores, d)) in scores.chunks_exact(e).zip(d_logits.chunks_exact_mut(e)).enumerate()
    {
        // P_i = s_i / sum s, so d(sum f P)/ds_i = (f_i - sum f P) / sum s.
        let sum: f32 = scores.iter().sum();
        let mean = scores.iter().zip(&f).map(|(score, f)| score * f).sum::<f32>() / sum;
        for (d, f) in d.iter_mut().zip(&f) {
            *d = if weight == 0.0 { 0.0 } else { weight * (f - mean) / sum };
        }
        let choices = (first + token) * k..(first + token + 1) * k;
        let (chosen, d_gates) = (&routing.chosen[choices.clone()], &back.d_gates[choices]);
        chosen_scores.clear();
        chosen_scores.extend(chosen.iter().map(|i| scores[*i as usize]));
        let gate_sum = gate_sum(&chosen_scores, s);
        let along = if s.normalise {
            let terms = chosen_scores.iter().zip(d_gates);
            terms.map(|(score, d_gate)| score * d_gate).sum::<f32>() / gate_sum
        } else {
            0.0
        };
        for (expert, d_gate) in chosen.iter().zip(d_gates) {
            d[*expert as usize] += s.scaling * (d_gate - along) / gate_sum;
        }
        for (d, score) in d.iter_mut().zip(scores) {
            *d *= score * (1.0 - score);
        }
    }
}

#[cfg(test)]
#[path = "router/tests.rs"]
mod tests;
