//! Attention on the projections themselves: heads are cut out and rotated as they are read, and their
//! gradients are turned back and put together as they are written.

use super::{HeadShape, Rotation, add_rotated_back, rotate};
use crate::attention::{
    AHEAD, AttentionShape, Gradients, Heads, Panel, Read, Task, backward_heads, forward_heads,
};
use crate::bf16;
use crate::gemm::Isa;
use crate::scratch::Scratch;
use crate::simd::vectorised;
use crate::spread::{self, ROWS};
use crate::tensor::{DType, Tensor};

/// What one call reads.
struct Projections<'a> {
    q: Read<'a>,
    kv: Read<'a>,
    /// Rotated, `(T, rope)`.
    k_rope: Scratch,
    rotation: Rotation,
    heads: &'a HeadShape,
    /// What is rotated is rounded, as everything between operations of a BF16 model: products that do not
    /// read BF16 themselves must see the same numbers.
    round: bool,
}

impl<'a> Projections<'a> {
    fn new(q: &'a Tensor, kv: &'a Tensor, k_rope: &Tensor, s: &'a HeadShape) -> Self {
        let (t, rotation) = (q.rows(), Rotation::new(s, q.rows()));
        assert_eq!(q.cols(), s.heads * s.qk(), "mla: columns of q");
        assert_eq!((kv.rows(), kv.cols()), (t, s.heads * (s.nope + s.value)), "mla: shape of kv");
        assert_eq!((k_rope.rows(), k_rope.cols()), (t, s.rope), "mla: shape of k_rope");
        let round = q.dtype() == DType::Bf16;
        let mut turned = Scratch::new(t * s.rope);
        let mut scratch = None;
        let k_rope = k_rope.rows_f32(0..t, &mut scratch).chunks_exact(s.rope.max(1));
        vectorised(
            #[inline(always)]
            || {
                let turned = turned.chunks_exact_mut(s.rope.max(1));
                for (token, (k_rope, turned)) in k_rope.zip(turned).enumerate() {
                    rotate(k_rope, rotation.at(token % s.tokens_per_sequence), turned);
                }
            },
        );
        if round {
            bf16::round(&mut turned);
        }
        Self { q: Read::new(q), kv: Read::new(kv), k_rope: turned, rotation, heads: s, round }
    }

    fn row(&self, task: Task, token: usize) -> usize {
        task.sequence * self.heads.tokens_per_sequence + token
    }

    fn kv(&self, task: Task, token: usize) -> usize {
        let s = self.heads;
        (self.row(task, token) * s.heads + task.head) * (s.nope + s.value)
    }

    /// Elements of `kv` between a row and the one that is asked for.
    fn ahead(&self) -> usize {
        AHEAD * self.heads.heads * (self.heads.nope + self.heads.value)
    }
}

impl Heads for Projections<'_> {
    #[inline(always)]
    fn query(&self, task: Task, token: usize, out: &mut [f32]) {
        let s = self.heads;
        let first = (self.row(task, token) * s.heads + task.head) * s.qk();
        self.q.row_of_many(first, AHEAD * s.heads * s.qk(), out);
        turn(&mut out[s.nope..], self.rotation.at(token), 1.0);
        if self.round {
            bf16::round_inlined(&mut out[s.nope..]);
        }
    }

    #[inline(always)]
    fn key(&self, task: Task, token: usize, out: &mut [f32]) {
        let s = self.heads;
        let (nope, rope) = out.split_at_mut(s.nope);
        self.kv.row_of_many(self.kv(task, token), self.ahead(), nope);
        rope.copy_from_slice(&self.k_rope[self.row(task, token) * s.rope..][..s.rope]);
    }

    #[inline(always)]
    fn value(&self, task: Task, token: usize, out: &mut [f32]) {
        self.kv.row_of_many(self.kv(task, token) + self.heads.nope, self.ahead(), out);
    }
}

/// Gradients of one head of one sequence.
struct Joined<'a> {
    d_q: Panel<'a>,
    d_kv: Panel<'a>,
    /// Still turned, `(tokens, rope)`.
    d_k_rope: &'a mut [f32],
    rotation: &'a Rotation,
    heads: &'a HeadShape,
}

impl Gradients for Joined<'_> {
    #[inline(always)]
    fn query(&mut self, token: usize, dq: &mut [f32]) {
        turn(&mut dq[self.heads.nope..], self.rotation.at(token), BACK);
        self.d_q.write(token, 0, dq);
    }

    #[inline(always)]
    fn key_value(&mut self, token: usize, dk: &[f32], dv: &[f32]) {
        let s = self.heads;
        let (nope, rope) = dk.split_at(s.nope);
        self.d_kv.write(token, 0, nope);
        self.d_kv.write(token, s.nope, dv);
        self.d_k_rope[token * s.rope..][..s.rope].copy_from_slice(rope);
    }
}

/// The direction of the transpose of a rotation.
const BACK: f32 = -1.0;

/// Turns pairs where they lie, as `rotate` does; `BACK` undoes it, to the bit as if it were written out.
#[inline(always)]
fn turn(x: &mut [f32], turn: &[(f32, f32)], direction: f32) {
    for (pair, (cos, sin)) in x.as_chunks_mut::<2>().0.iter_mut().zip(turn) {
        let ([a, b], sin) = (*pair, direction * sin);
        *pair = [a * cos - b * sin, a * sin + b * cos];
    }
}

fn attention_shape(s: &HeadShape, rows: usize, scale: f32) -> AttentionShape {
    let tokens = s.tokens_per_sequence;
    assert!(rows.is_multiple_of(tokens), "mla: whole sequences only");
    let (qk_dim, v_dim) = (s.qk(), s.value);
    AttentionShape { sequences: rows / tokens, tokens, heads: s.heads, qk_dim, v_dim, scale }
}

/// `split_forward`, then causal attention: returns `o`, `(T, H value)`, and the log-sum-exp of each
/// row, `(H, T)`.
///
/// - `q`: `(T, H (nope + rope))`; `kv`: `(T, H (nope + value))`; `k_rope`: `(T, rope)`, not rotated.
pub fn attend(
    q: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    s: &HeadShape,
    scale: f32,
) -> (Tensor, Vec<f32>) {
    let shape = attention_shape(s, q.rows(), scale);
    let mut o = Tensor::zeros(q.dtype(), &[q.rows(), s.heads * s.value]);
    let lse = forward_heads(Isa::current(), &Projections::new(q, kv, k_rope, s), &shape, &mut o);
    (o, lse)
}

/// Returns the gradients of `q`, `kv` and `k_rope`, the last summed over the heads in order; each is
/// rounded once.
///
/// - `q`, `kv`, `k_rope` as for `attend`, which returned `o` and `lse`; `d_o`: `(T, H value)`.
pub fn attend_backward(
    (q, kv, k_rope): (&Tensor, &Tensor, &Tensor),
    (o, lse, d_o): (&Tensor, &[f32], &Tensor),
    s: &HeadShape,
    scale: f32,
) -> (Tensor, Tensor, Tensor) {
    let (t, shape) = (q.rows(), attention_shape(s, q.rows(), scale));
    let mut d_q = Tensor::zeros(q.dtype(), &[t, q.cols()]);
    let mut d_kv = Tensor::zeros(q.dtype(), &[t, kv.cols()]);
    let mut of_heads = Scratch::new(s.heads * t * s.rope);
    let projections = Projections::new(q, kv, k_rope, s);
    let rotation = &projections.rotation;
    let panels = Panel::cut(&mut d_q, shape.tokens, s.qk()).into_iter();
    let panels = panels.zip(Panel::cut(&mut d_kv, shape.tokens, s.nope + s.value));
    // Without rotated columns every task still gets its empty piece.
    let mut rest = &mut of_heads[..];
    let gradients = panels.map(|(d_q, d_kv)| {
        let (d_k_rope, after) = std::mem::take(&mut rest).split_at_mut(shape.tokens * s.rope);
        rest = after;
        Joined { d_q, d_kv, d_k_rope, rotation, heads: s }
    });
    backward_heads(Isa::current(), &projections, (o, lse, d_o), &shape, gradients);
    let d_k_rope = summed_over_heads(&of_heads, rotation, s, (t, k_rope));
    (d_q, d_kv, d_k_rope)
}

/// `(H, T, rope)` summed over the heads and turned back.
fn summed_over_heads(
    of_heads: &[f32],
    rotation: &Rotation,
    s: &HeadShape,
    (t, like): (usize, &Tensor),
) -> Tensor {
    let mut d_k_rope = Tensor::zeros(like.dtype(), &[t, s.rope]);
    let chunks = d_k_rope.row_chunks_mut(ROWS).enumerate();
    spread::each(chunks, |(i, out)| {
        let first = i * ROWS;
        out.fill(|out| {
            let mut sum = Scratch::new(out.len());
            sum.fill(0.0);
            vectorised(
                #[inline(always)]
                || {
                    for head in 0..s.heads {
                        let part = &of_heads[(head * t + first) * s.rope..][..sum.len()];
                        for (sum, part) in sum.iter_mut().zip(part) {
                            *sum += part;
                        }
                    }
                    out.fill(0.0);
                    let rows = sum.chunks_exact(s.rope.max(1));
                    let rows = rows.zip(out.chunks_exact_mut(s.rope.max(1))).enumerate();
                    for (at, (sum, out)) in rows {
                        let position = (first + at) % s.tokens_per_sequence;
                        add_rotated_back(sum, rotation.at(position), out);
                    }
                },
            );
        });
    });
    d_k_rope
}
