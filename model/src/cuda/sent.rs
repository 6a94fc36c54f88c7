//! What a cell sends to the experts' shards, as `dispatch` lists it on the device: `crate::moe::Outgoing`, which judges it. Of
//! all that only how much goes where comes to the host.

use shoal_kernels::DType;
use shoal_kernels::cuda::{Block, DeviceError, dispatch};

use super::gpu::Gpu;
use super::legs::Shares;
use super::matrix::{Matrix, Operand};
use super::room::Extent;
use crate::moe::dispatch::Counts;

/// Kept until the rows' gradients come back.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) shares: Shares,
    /// Of each row its token: u32, as all of them.
    token_of_row: Block,
    /// Of each token where its rows begin, and the rows that these are.
    first_of_token: Block,
    rows_of_token: Block,
    /// Of each choice its pair.
    pair_of_slot: Block,
    tokens: Extent,
    rows: Extent,
    pairs: Extent,
}

/// Of each pair its row in its message, its expert in its shard, and its gate.
#[derive(Debug)]
pub(super) struct Pairs {
    pub(super) rows: Block,
    pub(super) experts: Block,
    pub(super) gates: Block,
}

impl Pairs {
    /// Room for so many.
    pub(super) fn unwritten(gpu: &Gpu, pairs: Extent) -> Result<Self, DeviceError> {
        let list = |what| gpu.rows(what, pairs, 4);
        Ok(Self {
            rows: list("the rows of pairs")?,
            experts: list("the experts of pairs")?,
            gates: list("the gates of pairs")?,
        })
    }
}

/// What a router decided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decided<'a> {
    pub(super) chosen: &'a Block,
    pub(super) gates: &'a Matrix,
    pub(super) counts: &'a Block,
}

impl Sent {
    /// Lists what goes to the owners of experts, who begin at `bounds`. Also how many tokens chose each expert. Waits for the
    /// router, and for nothing that is queued later.
    pub(super) fn new(
        gpu: &Gpu,
        decided: Decided<'_>,
        (bounds, me): (&[u32], usize),
    ) -> Result<(Self, Pairs, Vec<u32>), DeviceError> {
        let Matrix { rows: t, cols: top_k, .. } = *decided.gates;
        let tokens = decided.gates.extent();
        let s = dispatch::Sending { t, top_k, shards: bounds.len() - 1 };
        let most = dispatch::Sending { t: tokens.room, ..s };
        let list = |what, rows, room| gpu.rows(what, Extent { rows, room }, 4);
        let ranks = gpu.rows("ranks of tokens", tokens, 8 * s.shards)?;
        let totals = gpu.block("how much goes where", 8 * s.shards)?;
        let pairs = Extent { rows: t * top_k, room: tokens.room * top_k };
        let out = Pairs::unwritten(gpu, pairs)?;
        let (rows, room) = (s.rows_max(), most.rows_max());
        let token_of_row = list("the tokens of rows", rows, room)?;
        let first_of_token = list("the rows of tokens", t + 1, tokens.room + 1)?;
        let rows_of_token = list("the rows of tokens", rows, room)?;
        let pair_of_slot = list("the pairs of choices", pairs.rows, pairs.room)?;
        let bounds = gpu.upload_bytes("the owners of experts", bytemuck::cast_slice(bounds))?;
        let choices = dispatch::Choices {
            chosen: decided.chosen.all(),
            gates: decided.gates.slice(),
            bounds: bounds.all(),
        };
        let lists = dispatch::Lists {
            ranks: ranks.all(),
            totals: totals.all(),
            token_of_row: token_of_row.all(),
            first_of_token: first_of_token.all(),
            rows_of_token: rows_of_token.all(),
            row_of_pair: out.rows.all(),
            expert_of_pair: out.experts.all(),
            gate_of_pair: out.gates.all(),
            pair_of_slot: pair_of_slot.all(),
        };
        gpu.kernels.dispatch.lists(&gpu.stream, choices, lists, s)?;
        let words = gpu.words(&[totals.all(), decided.counts.all()])?;
        let (totals, counts) = words.split_at(2 * s.shards);
        let totals = totals.as_chunks().0.iter();
        let shares =
            totals.map(|[rows, pairs]| Counts { rows: *rows as usize, pairs: *pairs as usize });
        let shares = Shares::new(me, shares);
        let rows = Extent { rows: shares.total().rows, room };
        let sent = Self {
            shares,
            token_of_row,
            first_of_token,
            rows_of_token,
            pair_of_slot,
            tokens,
            rows,
            pairs,
        };
        Ok((sent, out, counts.to_vec()))
    }

    /// What goes out, of numbers of tokens.
    pub(super) fn gather(&self, gpu: &Gpu, x: &Operand) -> Result<Operand, DeviceError> {
        let index = self.token_of_row.slice(0..4 * self.rows.rows);
        gpu.gather("rows on their way to experts", x, index, self.rows)
    }

    /// Room for what comes back.
    pub(super) fn returned(
        &self,
        gpu: &Gpu,
        (cols, dtype): (usize, DType),
    ) -> Result<Matrix, DeviceError> {
        gpu.matrix("rows returned by experts", dtype, (self.rows, cols))
    }

    /// And for the gradients of gates, by pair.
    pub(super) fn returned_gates(&self, gpu: &Gpu) -> Result<Block, DeviceError> {
        gpu.rows("gradients of gates", self.pairs, 4)
    }

    /// Adds up for each token what came back, shard by shard, and then `also`.
    pub(super) fn by_token(
        &self,
        gpu: &Gpu,
        returned: &Matrix,
        also: Option<&Matrix>,
        out: DType,
    ) -> Result<Matrix, DeviceError> {
        let terms = (self.first_of_token.all(), self.rows_of_token.all());
        gpu.sum_rows(returned, terms, self.tokens, also, out)
    }

    /// Gradients of gates [T, K], of those by pair.
    pub(super) fn by_choice(
        &self,
        gpu: &Gpu,
        pairs: &Block,
        to: &Block,
    ) -> Result<(), DeviceError> {
        gpu.gather_numbers(pairs.all(), self.pair_of_slot.all(), to.all())
    }
}
