//! Backward in two halves, and what is kept between them.
//!
//! | after | kept | in precision fp8 |
//! |---|---|---|
//! | forward | the input of every residual block, query and key-value latents before their norm, rotary key | BF16 |
//! | forward | the input of every Linear but `o_proj`, rows received by the experts included | FP8, 1x128 |
//! | forward | the attention output (`o_proj`'s input) | BF16, quantised when used |
//! | forward | each attention row's log-sum-exp; routing scores and gates | FP32 |
//! | forward | SwiGLU inputs g and u | FP8, 1x128 |
//! | forward | gradient of each head's input | BF16 |
//! | input half | for each Linear: its input, as above, and its output gradient | FP8, 1x128 |
//! | input half | for `eh_proj`: the same pair | BF16 |
//! | weight half | nothing | |
//!
//! The *input half* recomputes norm outputs, queries, keys, values and SwiGLU; it gives the gradient
//! of the stage's input, and accumulates the gradients that are too small to defer: norm gains,
//! routers, the embedding. It exchanges rows with the other shards. The *weight half* accumulates
//! `d_W += d_y^T x` for every Linear and talks to nobody. The head's weight gradient belongs to the
//! forward pass: it is taken there, chunk by chunk, so that logits are never all alive.
//! What `training.recompute` names is not kept after forward but computed again at the beginning of the block's input
//! half: of attention stays the block's input, of a feed-forward its input, the routing and the rows received.
//! In precision bf16 what is FP8 here is BF16; in f32 everything is FP32.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_kernels::linear::{Math, Operand, Rows, WeightGradients};
use shoal_kernels::spread;
use shoal_kernels::tensor::{DType, Tensor};

use crate::memory::Memory;
use crate::parameters::{Id, Parameters};

/// One side of a weight gradient.
#[derive(Clone, Debug)]
pub(crate) enum Cached {
    Whole(Arc<Operand>),
    /// Some rows of an operand that several experts share.
    Rows(Arc<Operand>, Arc<[u32]>),
    /// Activations that are quantised when they are used.
    Plain(Arc<Tensor>, Math),
}

/// One Linear's share of the weight half: `d_W += d_y^T x`.
#[derive(Clone, Debug)]
pub(crate) struct Deferred {
    pub(crate) parameter: Id,
    pub(crate) x: Cached,
    pub(crate) d_y: Cached,
}

/// Adds what the deferred weight halves of one microbatch hold. Experts share the rows that came
/// for them, and two Linears their input: each counts once.
pub(crate) fn add_to(deferred: &[Deferred], memory: &mut Memory) {
    let mut seen = BTreeSet::new();
    for side in deferred.iter().flat_map(|deferred| [&deferred.x, &deferred.d_y]) {
        let (address, bytes) = match side {
            Cached::Whole(operand) | Cached::Rows(operand, _) => {
                (Arc::as_ptr(operand).addr(), operand.bytes())
            }
            Cached::Plain(tensor, _) => (Arc::as_ptr(tensor).addr(), tensor.bytes().len()),
        };
        if seen.insert(address) {
            memory.deferred += bytes;
        }
    }
}

impl Cached {
    /// Whether both are the same rows of the same operand in memory.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(one), Self::Whole(other)) => Arc::ptr_eq(one, other),
            (Self::Rows(one, rows), Self::Rows(other, their_rows)) => {
                Arc::ptr_eq(one, other) && Arc::ptr_eq(rows, their_rows)
            }
            (Self::Plain(one, math), Self::Plain(other, their_math)) => {
                Arc::ptr_eq(one, other) && math == their_math
            }
            (Self::Whole(_) | Self::Rows(..) | Self::Plain(..), _) => false,
        }
    }

    /// Shows the rows to multiply.
    fn with_rows<R>(&self, read: impl FnOnce(Rows<'_>) -> R) -> R {
        match self {
            Self::Whole(operand) => read(operand.into()),
            Self::Rows(operand, rows) => read(Rows::gathered(operand, rows)),
            Self::Plain(tensor, Math::Bf16) if tensor.dtype() == DType::Bf16 => {
                read((&**tensor).into())
            }
            Self::Plain(tensor, Math::F32) if tensor.dtype() == DType::F32 => {
                read((&**tensor).into())
            }
            Self::Plain(tensor, math) => read((&Operand::prepare(tensor, *math)).into()),
        }
    }
}

/// The weight half of one microbatch. Each Linear occurs once, so all can run at the same time; those
/// that read one input are one task, which brings it into order once.
pub(crate) fn accumulate(parameters: &mut Parameters, deferred: Vec<Deferred>) {
    let wanted = deferred.into_iter().map(|deferred| (deferred.parameter, deferred)).collect();
    let mut tasks = parameters.gradients_of(wanted);
    let tasks = tasks.chunk_by_mut(|(one, _), (next, _)| one.x.is(&next.x));
    spread::each(tasks, |task| {
        let x = task[0].0.x.clone();
        x.with_rows(|x| {
            let mut gradients = WeightGradients::new(x);
            for (deferred, d_weight) in task {
                deferred.d_y.with_rows(|d_y| gradients.add(d_y, d_weight));
            }
        });
    });
}
