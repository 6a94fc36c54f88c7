//! Causal attention inside each sequence: `o = softmax(scale q k^T) v`, softmax in FP32.
//!
//! Rows are tokens, all sequences one after the other, S sequences of `tokens` each; H heads.
//! Query blocks meet only the keys that they may see, so about half of the square is computed.
//! Probabilities are kept as one log-sum-exp per row and head and recomputed in backward
//! (Dao et al. 2022, arXiv:2205.14135).

use std::ops::Range;

use crate::exp::exp;
use crate::gemm::{View, product};
use crate::lanes;
use crate::scratch::Scratch;
use crate::simd::vectorised;
use crate::spread;
use crate::tensor::Tensor;

/// Queries that one product takes: enough rows to keep a product busy, few enough to skip most of
/// the masked half.
const QUERIES: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    pub sequences: usize,
    /// Tokens of one sequence.
    pub tokens: usize,
    pub heads: usize,
    pub qk_dim: usize,
    pub v_dim: usize,
    pub scale: f32,
}

impl AttentionShape {
    fn rows(&self) -> usize {
        self.sequences * self.tokens
    }

    /// Tasks are (head, sequence) pairs, head first, as the log-sum-exps lie in memory.
    fn tasks(&self) -> usize {
        self.heads * self.sequences
    }

    fn assert_inputs(&self, q: &Tensor, k: &Tensor, v: &Tensor) {
        let wide = (self.rows(), self.heads * self.qk_dim);
        assert_eq!((q.rows(), q.cols()), wide, "attention: shape of q");
        assert_eq!((k.rows(), k.cols()), wide, "attention: shape of k");
        let narrow = (self.rows(), self.heads * self.v_dim);
        assert_eq!((v.rows(), v.cols()), narrow, "attention: shape of v");
    }

    /// One head of one sequence in FP32, `(tokens, dim)`.
    fn head(&self, x: &Tensor, task: usize, dim: usize) -> Scratch {
        let (head, sequence) = (task / self.sequences, task % self.sequences);
        let mut out = Scratch::new(self.tokens * dim);
        for (token, out) in out.chunks_exact_mut(dim.max(1)).enumerate() {
            let start = ((sequence * self.tokens + token) * self.heads + head) * dim;
            x.read(start..start + dim, out);
        }
        out
    }

    /// Writes the heads of all tasks, `(tokens, dim)` each, next to each other.
    fn join(&self, heads: &[f32], dim: usize, like: &Tensor) -> Tensor {
        let mut out = Tensor::zeros(like.dtype(), &[self.rows(), self.heads * dim]);
        if self.tokens == 0 || dim == 0 {
            return out;
        }
        let of_task = self.tokens * dim;
        let sequences = out.row_chunks_mut(self.tokens).into_iter().enumerate();
        spread::each(sequences, |(sequence, out)| {
            out.fill(|out| {
                for (at, out) in out.chunks_exact_mut(dim).enumerate() {
                    let (token, head) = (at / self.heads, at % self.heads);
                    let start = (head * self.sequences + sequence) * of_task + token * dim;
                    out.copy_from_slice(&heads[start..start + dim]);
                }
            });
        });
        out
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let tokens = self.tokens;
        (0..tokens).step_by(QUERIES).map(move |start| start..(start + QUERIES).min(tokens))
    }
}

/// Returns `o`, `(T, H v_dim)` in the dtype of `q`, and the log-sum-exp of each row, `(H, T)`.
///
/// - `q`, `k`: `(T, H qk_dim)`; `v`: `(T, H v_dim)`.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, s: &AttentionShape) -> (Tensor, Vec<f32>) {
    s.assert_inputs(q, k, v);
    let mut heads = Scratch::new(s.tasks() * s.tokens * s.v_dim);
    let mut lse = vec![0.0; s.tasks() * s.tokens];
    let outputs =
        heads.chunks_mut((s.tokens * s.v_dim).max(1)).zip(lse.chunks_mut(s.tokens.max(1)));
    spread::each(outputs.enumerate(), |(task, (o, lse))| {
        let q = s.head(q, task, s.qk_dim);
        let k = s.head(k, task, s.qk_dim);
        let v = s.head(v, task, s.v_dim);
        forward_head([&q, &k, &v], s, o, lse);
    });
    (s.join(&heads, s.v_dim, q), lse)
}

fn forward_head([q, k, v]: [&[f32]; 3], s: &AttentionShape, o: &mut [f32], lse: &mut [f32]) {
    let mut weights = Scratch::new(QUERIES.min(s.tokens) * s.tokens);
    for queries in s.blocks() {
        let seen = queries.end;
        let weights = &mut weights[..queries.len() * seen];
        scores(weights, [q, k], &queries, s);
        vectorised(
            #[inline(always)]
            || {
                let rows = weights.chunks_exact_mut(seen).zip(&mut lse[queries.clone()]);
                for (i, (row, lse)) in rows.enumerate() {
                    let (row, masked) = row.split_at_mut(queries.start + i + 1);
                    masked.fill(0.0);
                    *lse = softmax(row, s.scale);
                }
            },
        );
        let o = &mut o[queries.start * s.v_dim..queries.end * s.v_dim];
        let weights = View::new(weights, queries.len(), seen);
        product(o, weights, View::new(&v[..seen * s.v_dim], seen, s.v_dim), false);
    }
}

/// `q k^T` of some queries and all keys up to the last of them.
fn scores(out: &mut [f32], [q, k]: [&[f32]; 2], queries: &Range<usize>, s: &AttentionShape) {
    let d = s.qk_dim;
    let q = View::new(&q[queries.start * d..queries.end * d], queries.len(), d);
    let k = View::new(&k[..queries.end * d], queries.end, d);
    product(out, q, k.transposed(), false);
}

/// Replaces a row by `softmax(scale * row)` and returns `ln sum exp(scale * row)`.
#[inline(always)]
fn softmax(row: &mut [f32], scale: f32) -> f32 {
    let max = lanes::max(row) * scale;
    for x in row.iter_mut() {
        *x = exp(*x * scale - max);
    }
    let sum = lanes::sum(row);
    let inverse = 1.0 / sum;
    for x in row.iter_mut() {
        *x *= inverse;
    }
    max + sum.ln()
}

/// Returns the gradients of `q`, `k` and `v`, in the dtype of `q`.
///
/// - `q`, `k`: `(T, H qk_dim)`; `v`, `o`, `d_o`: `(T, H v_dim)`; `lse`: `(H, T)`, from `forward`.
#[expect(clippy::too_many_arguments, reason = "the formula has these six tensors")]
pub fn backward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    o: &Tensor,
    lse: &[f32],
    d_o: &Tensor,
    s: &AttentionShape,
) -> (Tensor, Tensor, Tensor) {
    s.assert_inputs(q, k, v);
    assert_eq!((o.rows(), o.cols()), (v.rows(), v.cols()), "attention: shape of o");
    assert_eq!((d_o.rows(), d_o.cols()), (v.rows(), v.cols()), "attention: shape of d_o");
    assert_eq!(lse.len(), s.tasks() * s.tokens, "attention: one lse per row and head");
    let (wide, narrow) = (s.tokens * s.qk_dim, s.tokens * s.v_dim);
    let mut dq = Scratch::new(s.tasks() * wide);
    let mut dk = Scratch::new(s.tasks() * wide);
    let mut dv = Scratch::new(s.tasks() * narrow);
    let keys = dk.chunks_mut(wide.max(1)).zip(dv.chunks_mut(narrow.max(1)));
    let outputs = dq.chunks_mut(wide.max(1)).zip(keys).zip(lse.chunks(s.tokens.max(1)));
    spread::each(outputs.enumerate(), |(task, ((dq, (dk, dv)), lse))| {
        let head = Head {
            q: s.head(q, task, s.qk_dim),
            k: s.head(k, task, s.qk_dim),
            v: s.head(v, task, s.v_dim),
            o: s.head(o, task, s.v_dim),
            d_o: s.head(d_o, task, s.v_dim),
        };
        backward_head(&head, lse, s, [dq, dk, dv]);
    });
    (s.join(&dq, s.qk_dim, q), s.join(&dk, s.qk_dim, q), s.join(&dv, s.v_dim, q))
}

/// One head of one sequence, `(tokens, dim)` each.
struct Head {
    q: Scratch,
    k: Scratch,
    v: Scratch,
    o: Scratch,
    d_o: Scratch,
}

/// With `w` the weights and `d_w = d_o v^T`: `d_s = scale w (d_w - sum(d_o o))`, `dq = d_s k`,
/// `dk = d_s^T q`, `dv = w^T d_o`.
fn backward_head(head: &Head, lse: &[f32], s: &AttentionShape, out: [&mut [f32]; 3]) {
    let [dq, dk, dv] = out;
    let (qk, vd) = (s.qk_dim, s.v_dim);
    dk.fill(0.0);
    dv.fill(0.0);
    let square = QUERIES.min(s.tokens) * s.tokens;
    let (mut weights, mut d_scores) = (Scratch::new(square), Scratch::new(square));
    for queries in s.blocks() {
        let (m, seen) = (queries.len(), queries.end);
        let (weights, d_scores) = (&mut weights[..m * seen], &mut d_scores[..m * seen]);
        let d_o = &head.d_o[queries.start * vd..queries.end * vd];
        let o = &head.o[queries.start * vd..queries.end * vd];
        scores(weights, [&head.q, &head.k], &queries, s);
        let v_turned = View::new(&head.v[..seen * vd], seen, vd).transposed();
        product(d_scores, View::new(d_o, m, vd), v_turned, false);
        vectorised(
            #[inline(always)]
            || {
                let rows = weights.chunks_exact_mut(seen).zip(d_scores.chunks_exact_mut(seen));
                for (i, (weights, d_scores)) in rows.enumerate() {
                    let row = i * vd..(i + 1) * vd;
                    let along = lanes::dot(&d_o[row.clone()], &o[row]);
                    let visible = queries.start + i + 1;
                    weights[visible..].fill(0.0);
                    d_scores[visible..].fill(0.0);
                    let lse = lse[queries.start + i];
                    let visible = weights[..visible].iter_mut().zip(&mut d_scores[..visible]);
                    for (w, d) in visible {
                        *w = exp(*w * s.scale - lse);
                        *d = *w * (*d - along) * s.scale;
                    }
                }
            },
        );
        let d_scores = View::new(d_scores, m, seen);
        let q = &head.q[queries.start * qk..queries.end * qk];
        let dq = &mut dq[queries.start * qk..queries.end * qk];
        product(dq, d_scores, View::new(&head.k[..seen * qk], seen, qk), false);
        product(&mut dk[..seen * qk], d_scores.transposed(), View::new(q, m, qk), true);
        let weights = View::new(weights, m, seen).transposed();
        product(&mut dv[..seen * vd], weights, View::new(d_o, m, vd), true);
    }
}

#[cfg(test)]
#[path = "attention/tests.rs"]
mod tests;
