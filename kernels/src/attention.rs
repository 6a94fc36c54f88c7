//! Causal attention inside each sequence: `o = softmax(scale q k^T) v`, softmax in FP32.
//!
//! Rows are tokens, all sequences one after the other, S sequences of `tokens` each; H heads. Blocks
//! of queries meet only the keys that they may see, so about half of the square is computed, and no
//! square is ever in memory. One log-sum-exp per row and head is kept, and probabilities are computed
//! again in backward (Dao et al. 2022, arXiv:2205.14135).
//!
//! Where the CPU multiplies BF16, the products of a BF16 model read BF16: queries, keys, values and
//! gradients as they are, weights and gradients of scores rounded. Sums are FP32. Elsewhere, and in
//! FP32, products are FP32.

mod backward;
mod forward;
mod heads;
mod panel;
mod tile;

use self::backward::Backward;
use self::forward::Forward;
use self::heads::{Ready, Separate};
use crate::gemm::Isa;
use crate::spread;
use crate::tensor::Tensor;
use crate::vector;

pub(crate) use self::heads::{AHEAD, Gradients, Heads, Panel, Read, Task};

/// Keys that a block of queries meets before it goes on: weights and gradients of scores of a block
/// stay in the first-level cache.
const KEYS: usize = 64;

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
    fn n_tasks(&self) -> usize {
        self.heads * self.sequences
    }

    fn task(&self, at: usize) -> Task {
        Task { head: at / self.sequences, sequence: at % self.sequences }
    }

    /// Where a token's row of this head begins, in rows of one head.
    fn place(&self, task: Task, token: usize) -> usize {
        (task.sequence * self.tokens + token) * self.heads + task.head
    }

    fn assert_inputs(&self, q: &Tensor, k: &Tensor, v: &Tensor) {
        assert!(0 < self.qk_dim && 0 < self.v_dim, "attention: heads have columns");
        let wide = (self.rows(), self.heads * self.qk_dim);
        assert_eq!((q.rows(), q.cols()), wide, "attention: shape of q");
        assert_eq!((k.rows(), k.cols()), wide, "attention: shape of k");
        let narrow = (self.rows(), self.heads * self.v_dim);
        assert_eq!((v.rows(), v.cols()), narrow, "attention: shape of v");
        assert_eq!((k.dtype(), v.dtype()), (q.dtype(), q.dtype()), "attention: one dtype");
    }
}

/// Returns `o`, `(T, H v_dim)` in the dtype of `q`, and the log-sum-exp of each row, `(H, T)`.
///
/// - `q`, `k`: `(T, H qk_dim)`; `v`: `(T, H v_dim)`; of one dtype.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, s: &AttentionShape) -> (Tensor, Vec<f32>) {
    forward_on(Isa::current(), [q, k, v], s)
}

fn forward_on(isa: Isa, [q, k, v]: [&Tensor; 3], s: &AttentionShape) -> (Tensor, Vec<f32>) {
    s.assert_inputs(q, k, v);
    let mut o = Tensor::zeros(q.dtype(), &[s.rows(), s.heads * s.v_dim]);
    let [q, k, v] = [q, k, v].map(Read::new);
    let lse = forward_heads(isa, &Ready { q, k, v, s }, s, &mut o);
    (o, lse)
}

/// Writes `o` and returns the log-sum-exps.
pub(crate) fn forward_heads(
    isa: Isa,
    heads: &impl Heads,
    s: &AttentionShape,
    o: &mut Tensor,
) -> Vec<f32> {
    let mut lse = vec![0.0; s.n_tasks() * s.tokens];
    let dtype = o.dtype();
    let outputs = Panel::cut(o, s.tokens, s.v_dim).into_iter();
    let outputs = outputs.zip(lse.chunks_mut(s.tokens.max(1)));
    spread::each(outputs.enumerate(), |(at, (o, lse))| {
        vector::run(isa, dtype, Forward { heads, task: s.task(at), s, o, lse });
    });
    lse
}

/// Returns the gradients of `q`, `k` and `v`, in the dtype of `q`.
///
/// - `q`, `k`: `(T, H qk_dim)`; `v`, `o`, `d_o`: `(T, H v_dim)`; of one dtype. `lse`: `(H, T)`, from
///   `forward`.
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
    backward_on(Isa::current(), [q, k, v], (o, lse, d_o), s)
}

fn backward_on(
    isa: Isa,
    [q, k, v]: [&Tensor; 3],
    outputs: (&Tensor, &[f32], &Tensor),
    s: &AttentionShape,
) -> (Tensor, Tensor, Tensor) {
    s.assert_inputs(q, k, v);
    let [mut dq, mut dk, mut dv] =
        [q, k, v].map(|x| Tensor::zeros(q.dtype(), &[x.rows(), x.cols()]));
    let keys = Panel::cut(&mut dk, s.tokens, s.qk_dim);
    let values = Panel::cut(&mut dv, s.tokens, s.v_dim);
    let panels = Panel::cut(&mut dq, s.tokens, s.qk_dim).into_iter().zip(keys).zip(values);
    let gradients = panels.map(|((dq, dk), dv)| Separate { dq, dk, dv });
    let [q, k, v] = [q, k, v].map(Read::new);
    backward_heads(isa, &Ready { q, k, v, s }, outputs, s, gradients);
    (dq, dk, dv)
}

/// Gives every task's gradients to its taker.
pub(crate) fn backward_heads<G: Gradients>(
    isa: Isa,
    heads: &impl Heads,
    (o, lse, d_o): (&Tensor, &[f32], &Tensor),
    s: &AttentionShape,
    gradients: impl Iterator<Item = G>,
) {
    let narrow = (s.rows(), s.heads * s.v_dim);
    assert_eq!((o.rows(), o.cols()), narrow, "attention: shape of o");
    assert_eq!((d_o.rows(), d_o.cols()), narrow, "attention: shape of d_o");
    assert_eq!(lse.len(), s.n_tasks() * s.tokens, "attention: one lse per row and head");
    let dtype = o.dtype();
    let (o, d_o) = (Read::new(o), Read::new(d_o));
    let tasks = lse.chunks(s.tokens.max(1)).zip(gradients).enumerate();
    spread::each(tasks, |(at, (lse, gradients))| {
        vector::run(isa, dtype, Backward { heads, task: s.task(at), s, o, d_o, lse, gradients });
    });
}

#[cfg(test)]
#[path = "attention/tests.rs"]
mod tests;
