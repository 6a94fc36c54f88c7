//! Rows on the wire, both ends. Whatever comes from a peer is checked: a bad byte is an error text.
//!
//! A dispatch message: u32 rows; then per row its values (FP8: codes, then per 128 a scale, one byte
//! or FP32; BF16: two bytes each; FP32: four), u16 pairs, and per pair u16 expert (counted from the shard's
//! first, ascending) and f32 gate. Backward sends only the values, in the same row order; its reply
//! is the rows and then one f32 per pair. Little endian.

use std::ops::Range;
use std::sync::Arc;

use shoal_kernels::fp8::Quantized;
use shoal_kernels::linear::{Math, Operand};
use shoal_kernels::spread;
use shoal_kernels::tensor::{DType, Tensor};

use super::messages;

/// Rows that one task copies.
const ROWS: usize = 128;

/// Of the number of rows, of a row's number of pairs, and of a pair.
const COUNT_BYTES: usize = 4;
const PAIRS_BYTES: usize = 2;
const PAIR_BYTES: usize = 2 + 4;

/// How a row of a Linear's input is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowForm {
    pub(crate) cols: usize,
    pub(crate) math: Math,
    /// Experts of the receiving shard.
    pub(crate) n_experts: usize,
}

/// The rows one cell sends to one shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outgoing {
    /// Row r is this token.
    tokens: Vec<u32>,
    /// Row r's pairs are `first[r]..first[r + 1]`.
    first: Vec<u32>,
    /// Each pair's expert, counted from the shard's first.
    experts: Vec<u16>,
    /// Each pair's place in the gates [T, K].
    slots: Vec<u32>,
}

/// The rows an expert shard received, in order of source cell, then of row.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// [R, D].
    pub(crate) rows: Arc<Operand>,
    rows_from: Vec<usize>,
    first: Vec<usize>,
    experts: Vec<u16>,
    gates: Vec<f32>,
}

/// The rows of one expert.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// Ascending places among the received rows.
    pub(crate) rows: Arc<[u32]>,
    pub(crate) gates: Vec<f32>,
    /// Each row's pair, where its gate's gradient goes.
    pub(crate) pairs: Vec<usize>,
}

impl Outgoing {
    /// Sorts the choices [T, K] by the shards that own the experts.
    pub(crate) fn of(chosen: &[u32], top_k: usize, owners: &[Range<u32>]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::with_capacity(owners.len());
        all.resize_with(owners.len(), || {
            Self::with_room(chosen.len() / top_k.max(1), chosen.len())
        });
        let mut pairs = Vec::with_capacity(top_k);
        for (token, choices) in chosen.chunks_exact(top_k).enumerate() {
            pairs.clear();
            let slots = token * top_k..;
            pairs.extend(choices.iter().zip(slots).map(|(expert, slot)| (*expert, slot as u32)));
            pairs.sort_unstable();
            for (owner, outgoing) in owners.iter().zip(&mut all) {
                let mine = pairs.iter().filter(|(expert, _)| owner.contains(expert));
                let before = outgoing.slots.len();
                for (expert, slot) in mine {
                    outgoing.experts.push((expert - owner.start) as u16);
                    outgoing.slots.push(*slot);
                }
                if before < outgoing.slots.len() {
                    outgoing.tokens.push(token as u32);
                    outgoing.first.push(outgoing.slots.len() as u32);
                }
            }
        }
        all
    }

    /// Nothing yet, and room for a share of so many rows and pairs.
    fn with_room(rows: usize, pairs: usize) -> Self {
        let mut first = Vec::with_capacity(rows + 1);
        first.push(0);
        Self {
            tokens: Vec::with_capacity(rows),
            first,
            experts: Vec::with_capacity(pairs),
            slots: Vec::with_capacity(pairs),
        }
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.tokens.len()
    }

    /// The forward message.
    pub(crate) fn message(&self, n: &Operand, gates: &[f32]) -> Vec<u8> {
        let bytes = operand_row_bytes(n);
        let end = |row: usize| row * (bytes + PAIRS_BYTES) + self.first[row] as usize * PAIR_BYTES;
        let mut message = messages::take(COUNT_BYTES + end(self.n_rows()));
        let (count, mut rest) = message.split_at_mut(COUNT_BYTES);
        count.copy_from_slice(&(self.n_rows() as u32).to_le_bytes());
        let mut chunks = Vec::with_capacity(self.n_rows().div_ceil(ROWS));
        for first in (0..self.n_rows()).step_by(ROWS) {
            let rows = first..(first + ROWS).min(self.n_rows());
            let (chunk, after) = rest.split_at_mut(end(rows.end) - end(rows.start));
            chunks.push((rows, chunk));
            rest = after;
        }
        spread::each(chunks, |(rows, mut out)| {
            for row in rows {
                let pairs = self.first[row] as usize..self.first[row + 1] as usize;
                let length = bytes + PAIRS_BYTES + pairs.len() * PAIR_BYTES;
                let (mine, after) = std::mem::take(&mut out).split_at_mut(length);
                let (values, rest) = mine.split_at_mut(bytes);
                write_row(n, self.tokens[row] as usize, values);
                let (count, rest) = rest.split_at_mut(PAIRS_BYTES);
                count.copy_from_slice(&(pairs.len() as u16).to_le_bytes());
                for (pair, out) in pairs.zip(rest.chunks_exact_mut(PAIR_BYTES)) {
                    let (expert, gate) = out.split_at_mut(2);
                    expert.copy_from_slice(&self.experts[pair].to_le_bytes());
                    gate.copy_from_slice(&gates[self.slots[pair] as usize].to_le_bytes());
                }
                out = after;
            }
        });
        message
    }

    /// The backward message: values only, the receiver knows the rest.
    pub(crate) fn rows_message(&self, d_y: &Operand) -> Vec<u8> {
        let bytes = operand_row_bytes(d_y);
        let mut message = messages::take(self.n_rows() * bytes);
        let chunks = message.chunks_mut((ROWS * bytes).max(1));
        spread::each(chunks.zip(self.tokens.chunks(ROWS)), |(out, tokens)| {
            for (out, token) in out.chunks_exact_mut(bytes.max(1)).zip(tokens) {
                write_row(d_y, *token as usize, out);
            }
        });
        message
    }

    /// Puts returned gate gradients at their places in [T, K].
    pub(crate) fn place_gates(&self, pairs: &[f32], d_gates: &mut [f32]) {
        for (slot, value) in self.slots.iter().zip(pairs) {
            d_gates[*slot as usize] = *value;
        }
    }
}

/// For each of so many tokens the rows that came back for it, shard by shard: where each token's
/// begin, and each row's shard and place.
pub(crate) fn returned(sent: &[Outgoing], tokens: usize) -> (Vec<usize>, Vec<(u32, u32)>) {
    let mut next = vec![0; sent.len()];
    let mut first = Vec::with_capacity(tokens + 1);
    let mut places = Vec::with_capacity(sent.iter().map(Outgoing::n_rows).sum());
    first.push(0);
    for token in 0..tokens as u32 {
        for (shard, (rows, next)) in sent.iter().zip(&mut next).enumerate() {
            if rows.tokens.get(*next) == Some(&token) {
                places.push((shard as u32, *next as u32));
                *next += 1;
            }
        }
        first.push(places.len());
    }
    (first, places)
}

impl Received {
    /// Reads what every cell of the group sent. The error names the sender.
    pub(crate) fn read(messages: &[Vec<u8>], form: &RowForm) -> Result<Self, (usize, String)> {
        let mut rows = Vec::new();
        let mut received = Self {
            rows: Arc::new(operand(&[], &[], form)?),
            rows_from: Vec::with_capacity(messages.len()),
            first: vec![0],
            experts: Vec::new(),
            gates: Vec::new(),
        };
        for (shard, message) in messages.iter().enumerate() {
            let before = rows.len();
            received.read_message(message, form, &mut rows).map_err(|problem| (shard, problem))?;
            received.rows_from.push(rows.len() - before);
        }
        received.rows = Arc::new(operand(&rows, &received.rows_from, form)?);
        Ok(received)
    }

    fn read_message<'a>(
        &mut self,
        message: &'a [u8],
        form: &RowForm,
        rows: &mut Vec<&'a [u8]>,
    ) -> Result<(), String> {
        let mut reader = Reader { rest: message, length: message.len() };
        let n_rows = u32::from_le_bytes(reader.array()?);
        // No more than the message has room for, whatever it says.
        let room = (n_rows as usize).min(message.len() / row_bytes(form).max(1));
        rows.reserve(room);
        self.first.reserve(room);
        let pairs = message.len().saturating_sub(room * row_bytes(form)) / PAIR_BYTES;
        self.experts.reserve(pairs);
        self.gates.reserve(pairs);
        for row in 0..n_rows {
            rows.push(reader.take(row_bytes(form))?);
            let n_pairs = u16::from_le_bytes(reader.array()?);
            if n_pairs == 0 {
                return Err(format!("row {row} for no expert, want at least one"));
            }
            let mut next = 0;
            for _ in 0..n_pairs {
                let expert = u16::from_le_bytes(reader.array()?);
                let at = usize::from(expert);
                if at < next || form.n_experts <= at {
                    let n = form.n_experts;
                    return Err(format!("row {row} for expert {at}, want {next}..{n} (ascending)"));
                }
                next = at + 1;
                self.experts.push(expert);
                self.gates.push(f32::from_le_bytes(reader.array()?));
            }
            self.first.push(self.experts.len());
        }
        reader.end()
    }

    /// Each pair's local expert.
    pub(crate) fn experts(&self) -> &[u16] {
        &self.experts
    }

    /// Each pair's gate.
    pub(crate) fn gates(&self) -> &[f32] {
        &self.gates
    }

    /// Rows by source cell.
    pub(crate) fn rows_from(&self) -> &[usize] {
        &self.rows_from
    }

    /// Pairs by source cell.
    pub(crate) fn pairs_from(&self) -> Vec<usize> {
        let mut row = 0;
        let pairs = self.rows_from.iter().map(|n| {
            let (start, end) = (self.first[row], self.first[row + n]);
            row += n;
            end - start
        });
        pairs.collect()
    }

    /// Number of (row, expert) pairs.
    pub(crate) fn n_pairs(&self) -> usize {
        self.experts.len()
    }

    /// Row r's pairs are `first()[r]..first()[r + 1]`.
    pub(crate) fn first(&self) -> &[usize] {
        &self.first
    }

    /// Groups the rows by local expert: a stable sort, so row order stays inside each. Also each
    /// pair's expert and place among that expert's rows.
    pub(crate) fn segments(&self, n_experts: usize) -> (Vec<Segment>, Vec<(u32, u32)>) {
        let mut counts = vec![0; n_experts];
        for expert in &self.experts {
            counts[usize::from(*expert)] += 1;
        }
        let list = |n: usize| (Vec::with_capacity(n), Vec::with_capacity(n), Vec::with_capacity(n));
        let mut lists: Vec<_> = counts.into_iter().map(list).collect();
        let mut all = Vec::with_capacity(self.n_pairs());
        for (row, pairs) in self.first.windows(2).enumerate() {
            for pair in pairs[0]..pairs[1] {
                let expert = self.experts[pair];
                let (rows, gates, places) = &mut lists[usize::from(expert)];
                all.push((u32::from(expert), rows.len() as u32));
                rows.push(row as u32);
                gates.push(self.gates[pair]);
                places.push(pair);
            }
        }
        let segment =
            |(rows, gates, pairs): (Vec<u32>, _, _)| Segment { rows: rows.into(), gates, pairs };
        (lists.into_iter().map(segment).collect(), all)
    }
}

/// Reads rows of known number from every cell: output gradients.
pub(crate) fn read_operand(
    messages: &[Vec<u8>],
    rows_from: &[usize],
    form: &RowForm,
) -> Result<Operand, (usize, String)> {
    let bytes = row_bytes(form);
    let mut rows = Vec::with_capacity(rows_from.iter().sum());
    for (shard, (message, n_rows)) in messages.iter().zip(rows_from).enumerate() {
        check_length(message.len(), n_rows * bytes).map_err(|problem| (shard, problem))?;
        rows.extend(message.chunks_exact(bytes));
    }
    operand(&rows, rows_from, form)
}

/// Divides rows [R, D] among the cells they came from, with room for so many floats behind each
/// one's rows.
pub(crate) fn split_rows(values: &Tensor, rows_from: &[usize], floats: &[usize]) -> Vec<Vec<u8>> {
    let row = values.cols() * values.dtype().size();
    let mut rest = values.bytes();
    let mut replies = Vec::with_capacity(rows_from.len());
    for (n_rows, floats) in rows_from.iter().zip(floats) {
        let (mine, after) = rest.split_at(n_rows * row);
        let mut reply = messages::take(mine.len() + floats * 4);
        let chunks = reply.chunks_mut((ROWS * row).max(1)).zip(mine.chunks((ROWS * row).max(1)));
        spread::each(chunks, |(out, rows)| out[..rows.len()].copy_from_slice(rows));
        replies.push(reply);
        rest = after;
    }
    replies
}

/// Puts each source's gate gradients at the end of its reply.
pub(crate) fn place_gate_gradients(replies: &mut [Vec<u8>], d_pairs: &[f32], pairs_from: &[usize]) {
    let mut rest = d_pairs;
    for (reply, n_pairs) in replies.iter_mut().zip(pairs_from) {
        let (mine, after) = rest.split_at(*n_pairs);
        let start = reply.len() - n_pairs * 4;
        reply[start..].copy_from_slice(bytemuck::cast_slice(mine));
        rest = after;
    }
}

/// Reads `n_rows` returned rows.
pub(crate) fn read_rows(
    bytes: &[u8],
    n_rows: usize,
    (d, dtype): (usize, DType),
) -> Result<Tensor, String> {
    check_length(bytes.len(), n_rows * d * dtype.size())?;
    Tensor::from_bytes(dtype, &[n_rows, d], bytes).map_err(|error| error.to_string())
}

/// Reads returned rows and the gradients of their gates.
pub(crate) fn read_rows_and_gates(
    bytes: &[u8],
    sent: &Outgoing,
    shape: (usize, DType),
) -> Result<(Tensor, Vec<f32>), String> {
    let rows_bytes = sent.n_rows() * shape.0 * shape.1.size();
    check_length(bytes.len(), rows_bytes + sent.slots.len() * 4)?;
    let (rows, gates) = bytes.split_at(rows_bytes);
    let gates = gates.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Ok((read_rows(rows, sent.n_rows(), shape)?, gates))
}

/// Bytes of a row's values.
fn row_bytes(form: &RowForm) -> usize {
    match form.math {
        Math::Fp8(format) => Quantized::row_wire_bytes(form.cols, format),
        Math::Bf16 => form.cols * DType::Bf16.size(),
        Math::F32 => form.cols * DType::F32.size(),
    }
}

/// The same of an operand that is about to go out.
fn operand_row_bytes(x: &Operand) -> usize {
    match x {
        Operand::Fp8(x) => Quantized::row_wire_bytes(x.cols(), x.scales().format()),
        Operand::F32(x) | Operand::Bf16(x) => x.cols() * x.dtype().size(),
    }
}

fn write_row(x: &Operand, row: usize, out: &mut [u8]) {
    match x {
        Operand::Fp8(quantized) => quantized.write_row_wire(row, out),
        Operand::F32(tensor) | Operand::Bf16(tensor) => {
            out.copy_from_slice(&tensor.bytes()[row * out.len()..][..out.len()]);
        }
    }
}

/// Rows of checked length as an operand. The error names the sender.
fn operand(
    rows: &[&[u8]],
    rows_from: &[usize],
    form: &RowForm,
) -> Result<Operand, (usize, String)> {
    let plain = |dtype| Tensor::from_row_bytes(dtype, form.cols, rows);
    Ok(match form.math {
        Math::Fp8(format) => {
            let read = Quantized::from_row_wire(form.cols, format, rows.iter().copied());
            Operand::Fp8(read.map_err(|(row, problem)| of_sender(row, problem, rows_from))?)
        }
        Math::Bf16 => Operand::Bf16(plain(DType::Bf16)),
        Math::F32 => Operand::F32(plain(DType::F32)),
    })
}

/// Who sent row `row` of all, and what is wrong with it, counted as the sender does.
fn of_sender(mut row: usize, problem: String, rows_from: &[usize]) -> (usize, String) {
    let mut shard = 0;
    while rows_from[shard] <= row {
        row -= rows_from[shard];
        shard += 1;
    }
    (shard, format!("row {row} with {problem}"))
}

fn check_length(got: usize, want: usize) -> Result<(), String> {
    if got == want { Ok(()) } else { Err(format!("{got} bytes, want {want}")) }
}

/// Takes bytes from the front of a message.
struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or_else(|| format!("{} bytes, which end in the middle of a row", self.length))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn end(&self) -> Result<(), String> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(format!("{} bytes, {} of them after the last row", self.length, self.rest.len()))
    }
}

#[cfg(test)]
#[path = "dispatch/tests.rs"]
mod tests;
