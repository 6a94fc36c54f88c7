//! The shuffling inside multi-head latent attention: cut projections into heads and rotate.
//!
//! DeepSeek-V3 report 2.1.1. T rows, H heads; a head's query and key are `nope` plain and `rope`
//! rotated columns, its value `value` columns. Columns are those of the checkpoint: query per head
//! `[nope | rope]`, key and value per head `[nope | value]`, one rotated key for all heads. `RoPE`
//! turns the neighbouring pair (2i, 2i + 1) by `position * theta^(-2i / rope)`, more slowly and with
//! another length where `yarn` says so; the position is `row % tokens_per_sequence`.

mod attend;
mod yarn;

use crate::spread::{self, ROWS};
use crate::tensor::Tensor;

pub use self::attend::{attend, attend_backward};
pub use self::yarn::Yarn;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadShape {
    pub heads: usize,
    pub nope: usize,
    /// Even.
    pub rope: usize,
    pub value: usize,
    pub tokens_per_sequence: usize,
    pub rope_theta: f32,
    pub yarn: Option<Yarn>,
}

impl HeadShape {
    /// Columns of one head's query or key.
    fn qk(&self) -> usize {
        self.nope + self.rope
    }

    /// Cosine and sine of every pair at the positions `0..tokens` of a sequence, `(tokens, rope)`, the columns being
    /// pairs: what [`split_forward`] turns by.
    pub fn turns(&self, tokens: usize) -> Vec<f32> {
        let whole = Self { tokens_per_sequence: tokens.max(1), ..*self };
        let rotation = Rotation::new(&whole, tokens);
        rotation.cos_sin.iter().flat_map(|(cos, sin)| [*cos, *sin]).collect()
    }

    /// By how much pair `i` turns from one position to the next, in radians.
    fn frequency(&self, i: usize) -> f64 {
        let theta = f64::from(self.rope_theta);
        let plain = theta.powf(-2.0 * i as f64 / self.rope as f64);
        plain * self.yarn.map_or(1.0, |yarn| yarn.slowing(i, self.rope, theta))
    }
}

/// Cosines and sines of the positions of one sequence, `(tokens, rope / 2)`, times `Yarn::magnitude`.
struct Rotation {
    pairs: usize,
    cos_sin: Vec<(f32, f32)>,
}

/// Positions between two calls of the library's sine and cosine; between them the angle is added by
/// a complex product in f64, whose error stays below 1e-14.
const FRESH: usize = 64;

impl Rotation {
    fn new(s: &HeadShape, rows: usize) -> Self {
        assert!(s.rope.is_multiple_of(2), "mla: RoPE turns pairs");
        assert!(s.tokens_per_sequence > 0, "mla: a sequence has tokens");
        let (pairs, tokens) = (s.rope / 2, s.tokens_per_sequence.min(rows));
        let mut cos_sin = vec![(0.0, 0.0); tokens * pairs];
        let length = s.yarn.map_or(1.0, |yarn| yarn.magnitude);
        for i in 0..pairs {
            let frequency = s.frequency(i);
            let (step_sin, step_cos) = frequency.sin_cos();
            let (mut sin, mut cos) = (0.0, 1.0);
            for position in 0..tokens {
                if position.is_multiple_of(FRESH) {
                    (sin, cos) = (position as f64 * frequency).sin_cos();
                }
                cos_sin[position * pairs + i] = ((length * cos) as f32, (length * sin) as f32);
                (cos, sin) = (cos * step_cos - sin * step_sin, sin * step_cos + cos * step_sin);
            }
        }
        Self { pairs, cos_sin }
    }

    fn at(&self, position: usize) -> &[(f32, f32)] {
        &self.cos_sin[position * self.pairs..][..self.pairs]
    }
}

/// Turns the pairs of `x` into `out`.
#[inline(always)]
fn rotate(x: &[f32], turn: &[(f32, f32)], out: &mut [f32]) {
    let (pairs, _) = x.as_chunks::<2>();
    let (out, _) = out.as_chunks_mut::<2>();
    for ((out, [a, b]), (cos, sin)) in out.iter_mut().zip(pairs).zip(turn) {
        *out = [a * cos - b * sin, a * sin + b * cos];
    }
}

/// Adds the pairs of `x`, turned back (the transpose of `rotate`), to `out`.
#[inline(always)]
fn add_rotated_back(x: &[f32], turn: &[(f32, f32)], out: &mut [f32]) {
    let (pairs, _) = x.as_chunks::<2>();
    let (out, _) = out.as_chunks_mut::<2>();
    for (([out_a, out_b], [a, b]), (cos, sin)) in out.iter_mut().zip(pairs).zip(turn) {
        *out_a += a * cos + b * sin;
        *out_b += b * cos - a * sin;
    }
}

/// Returns the rotated queries and keys, `(T, H (nope + rope))`, and the values, `(T, H value)`.
///
/// - `q`: `(T, H (nope + rope))`; `kv`: `(T, H (nope + value))`; `k_rope`: `(T, rope)`.
pub fn split_forward(
    q: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    s: &HeadShape,
) -> (Tensor, Tensor, Tensor) {
    let (t, h, qk) = (q.rows(), s.heads, s.qk());
    assert_eq!(q.cols(), h * qk, "mla: columns of q");
    assert_eq!((kv.rows(), kv.cols()), (t, h * (s.nope + s.value)), "mla: shape of kv");
    assert_eq!((k_rope.rows(), k_rope.cols()), (t, s.rope), "mla: shape of k_rope");
    let rotation = Rotation::new(s, t);
    let mut q_out = Tensor::zeros(q.dtype(), &[t, h * qk]);
    let mut k_out = Tensor::zeros(q.dtype(), &[t, h * qk]);
    let mut v_out = Tensor::zeros(q.dtype(), &[t, h * s.value]);
    let outputs = q_out.row_chunks_mut(ROWS).zip(k_out.row_chunks_mut(ROWS));
    let outputs = outputs.zip(v_out.row_chunks_mut(ROWS));
    spread::each(outputs.enumerate(), |(i, ((q_out, k_out), v_out))| {
        let rows = i * ROWS..((i + 1) * ROWS).min(t);
        let (mut q_scratch, mut kv_scratch, mut k_scratch) = (None, None, None);
        let q = q.rows_f32(rows.clone(), &mut q_scratch);
        let kv = kv.rows_f32(rows.clone(), &mut kv_scratch);
        let k_rope = k_rope.rows_f32(rows.clone(), &mut k_scratch);
        let turn = |at: usize| rotation.at((rows.start + at / h) % s.tokens_per_sequence);
        // Seen head by head, every chunk is a matrix whose rows are (token, head).
        q_out.fill(|out| {
            for (at, (q, out)) in q.chunks_exact(qk).zip(out.chunks_exact_mut(qk)).enumerate() {
                out[..s.nope].copy_from_slice(&q[..s.nope]);
                rotate(&q[s.nope..], turn(at), &mut out[s.nope..]);
            }
        });
        let kv_heads = || kv.chunks_exact(s.nope + s.value);
        k_out.fill(|out| {
            for (at, (kv, out)) in kv_heads().zip(out.chunks_exact_mut(qk)).enumerate() {
                out[..s.nope].copy_from_slice(&kv[..s.nope]);
                rotate(&k_rope[at / h * s.rope..][..s.rope], turn(at), &mut out[s.nope..]);
            }
        });
        v_out.fill(|out| {
            for (kv, out) in kv_heads().zip(out.chunks_exact_mut(s.value)) {
                out.copy_from_slice(&kv[s.nope..]);
            }
        });
    });
    (q_out, k_out, v_out)
}

/// Returns the gradients of `q`, `kv` and `k_rope`, the last summed over the heads in order.
///
/// - `dq`, `dk`: `(T, H (nope + rope))`; `dv`: `(T, H value)`.
pub fn split_backward(
    dq: &Tensor,
    dk: &Tensor,
    dv: &Tensor,
    s: &HeadShape,
) -> (Tensor, Tensor, Tensor) {
    let (t, h, qk) = (dq.rows(), s.heads, s.qk());
    assert_eq!((dq.cols(), dk.rows(), dk.cols()), (h * qk, t, h * qk), "mla: shapes of dq, dk");
    assert_eq!((dv.rows(), dv.cols()), (t, h * s.value), "mla: shape of dv");
    let rotation = Rotation::new(s, t);
    let mut d_q = Tensor::zeros(dq.dtype(), &[t, h * qk]);
    let mut d_kv = Tensor::zeros(dq.dtype(), &[t, h * (s.nope + s.value)]);
    let mut d_k_rope = Tensor::zeros(dq.dtype(), &[t, s.rope]);
    let outputs = d_q.row_chunks_mut(ROWS).zip(d_kv.row_chunks_mut(ROWS));
    let mut rope_chunks = d_k_rope.row_chunks_mut(ROWS);
    let outputs = outputs.map(|pair| (pair, rope_chunks.next()));
    spread::each(outputs.enumerate(), |(i, ((d_q, d_kv), d_k_rope))| {
        let rows = i * ROWS..((i + 1) * ROWS).min(t);
        let (mut q_scratch, mut k_scratch, mut v_scratch) = (None, None, None);
        let dq = dq.rows_f32(rows.clone(), &mut q_scratch);
        let dk = dk.rows_f32(rows.clone(), &mut k_scratch);
        let dv = dv.rows_f32(rows.clone(), &mut v_scratch);
        let turn = |at: usize| rotation.at((rows.start + at / h) % s.tokens_per_sequence);
        d_q.fill(|out| {
            for (at, (dq, out)) in dq.chunks_exact(qk).zip(out.chunks_exact_mut(qk)).enumerate() {
                out[..s.nope].copy_from_slice(&dq[..s.nope]);
                out[s.nope..].fill(0.0);
                add_rotated_back(&dq[s.nope..], turn(at), &mut out[s.nope..]);
            }
        });
        d_kv.fill(|out| {
            let heads = dk.chunks_exact(qk).zip(dv.chunks_exact(s.value));
            for ((dk, dv), out) in heads.zip(out.chunks_exact_mut(s.nope + s.value)) {
                out[..s.nope].copy_from_slice(&dk[..s.nope]);
                out[s.nope..].copy_from_slice(dv);
            }
        });
        if let Some(d_k_rope) = d_k_rope {
            d_k_rope.fill(|out| {
                out.fill(0.0);
                for (at, dk) in dk.chunks_exact(qk).enumerate() {
                    let out = &mut out[at / h * s.rope..][..s.rope];
                    add_rotated_back(&dk[s.nope..], turn(at), out);
                }
            });
        }
    });
    (d_q, d_kv, d_k_rope)
}

#[cfg(test)]
#[path = "mla/tests.rs"]
mod tests;
