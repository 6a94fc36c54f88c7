//! Where a head's rows come from and where its gradients go.

use super::AttentionShape;
use crate::bf16::bf16_to_f32;
use crate::gemm::prefetch;
use crate::tensor::{DType, Tensor};

pub(crate) use super::panel::Panel;

/// Tokens between a row that is read and the one that is asked for.
pub(crate) const AHEAD: usize = 8;

/// One head of one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) head: usize,
    pub(crate) sequence: usize,
}

/// Rows of a head, one token at a time, in FP32.
pub(crate) trait Heads: Sync {
    fn query(&self, task: Task, token: usize, out: &mut [f32]);
    fn key(&self, task: Task, token: usize, out: &mut [f32]);
    fn value(&self, task: Task, token: usize, out: &mut [f32]);
}

/// Takes the gradients of one task, each token once.
pub(crate) trait Gradients: Send {
    /// `dq` may be used up.
    fn query(&mut self, token: usize, dq: &mut [f32]);
    fn key_value(&mut self, token: usize, dk: &[f32], dv: &[f32]);
}

/// The elements of a tensor, widened as they are read.
#[derive(Clone, Copy)]
pub(crate) enum Read<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

impl<'a> Read<'a> {
    pub(crate) fn new(x: &'a Tensor) -> Self {
        match x.dtype() {
            DType::F32 => Self::F32(x.f32s()),
            DType::Bf16 => Self::Bf16(x.bf16s()),
        }
    }

    /// Elements from `first` on; those of a row `ahead` elements later are asked for: the rows of a head
    /// are short and far apart.
    #[inline(always)]
    pub(crate) fn row_of_many(self, first: usize, ahead: usize, out: &mut [f32]) {
        let later = first + ahead..first + ahead + out.len();
        match self {
            Self::F32(x) => prefetch(x.get(later).unwrap_or_default()),
            Self::Bf16(x) => prefetch(x.get(later).unwrap_or_default()),
        }
        self.row(first, out);
    }

    /// Elements from `first` on.
    #[inline(always)]
    pub(crate) fn row(self, first: usize, out: &mut [f32]) {
        match self {
            Self::F32(x) => out.copy_from_slice(&x[first..][..out.len()]),
            Self::Bf16(x) => {
                let x = &x[first..][..out.len()];
                for (out, x) in out.iter_mut().zip(x) {
                    *out = bf16_to_f32(*x);
                }
            }
        }
    }
}

/// Queries, keys and values that are ready to be multiplied.
pub(super) struct Ready<'a> {
    pub(super) q: Read<'a>,
    pub(super) k: Read<'a>,
    pub(super) v: Read<'a>,
    pub(super) s: &'a AttentionShape,
}

impl Heads for Ready<'_> {
    #[inline(always)]
    fn query(&self, task: Task, token: usize, out: &mut [f32]) {
        self.q.row(self.s.place(task, token) * self.s.qk_dim, out);
    }

    #[inline(always)]
    fn key(&self, task: Task, token: usize, out: &mut [f32]) {
        self.k.row(self.s.place(task, token) * self.s.qk_dim, out);
    }

    #[inline(always)]
    fn value(&self, task: Task, token: usize, out: &mut [f32]) {
        self.v.row(self.s.place(task, token) * self.s.v_dim, out);
    }
}

/// Three gradients side by side.
pub(super) struct Separate<'a> {
    pub(super) dq: Panel<'a>,
    pub(super) dk: Panel<'a>,
    pub(super) dv: Panel<'a>,
}

impl Gradients for Separate<'_> {
    #[inline(always)]
    fn query(&mut self, token: usize, dq: &mut [f32]) {
        self.dq.write(token, 0, dq);
    }

    #[inline(always)]
    fn key_value(&mut self, token: usize, dk: &[f32], dv: &[f32]) {
        self.dk.write(token, 0, dk);
        self.dv.write(token, 0, dv);
    }
}
