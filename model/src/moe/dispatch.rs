//! Rows on the wire, both ends. Whatever comes from a peer is checked: a bad byte is an error text.
//!
//! A dispatch message: u32 rows and u32 pairs of a row and an expert; then plane after plane, so that a device packs and
//! reads it in whole copies. The rows' values (FP8: all codes, then all scales, for each row and 128 columns one byte or FP32;
//! BF16: two bytes each; FP32: four); of each pair u32 row, counted from the message's first; u32 expert, counted from the
//! shard's first, in a row ascending; f32 gate. Backward sends only the values, in the same row order; its reply is the rows
//! and then one f32 per pair. Little endian.

use std::ops::Range;
use std::sync::Arc;

use shoal_kernels::fp8::Quantized;
use shoal_kernels::linear::{Math, Operand};
use shoal_kernels::spread;
use shoal_kernels::tensor::{DType, Tensor};

use super::messages;

/// Rows that one task copies.
const ROWS: usize = 128;

/// Of a pair: row, expert, gate.
const PAIR_BYTES: usize = 4 + 4 + 4;

/// How a row of a Linear's input is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowForm {
    pub(crate) cols: usize,
    pub(crate) math: Math,
    /// Experts of the receiving shard.
    pub(crate) n_experts: usize,
}

/// How much one cell sends to one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) rows: usize,
    pub(crate) pairs: usize,
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
        let (rows, pairs) = (self.n_rows(), self.slots.len());
        let values = rows * operand_row_bytes(n);
        let mut message = messages::take(Counts::BYTES + values + pairs * PAIR_BYTES);
        let (counts, rest) = message.split_at_mut(Counts::BYTES);
        Counts { rows, pairs }.write(counts);
        let (out, rest) = rest.split_at_mut(values);
        self.write_rows(n, out);
        let (rows_out, rest) = rest.as_chunks_mut().0.split_at_mut(pairs);
        let (experts, gates_out) = rest.split_at_mut(pairs);
        for (row, bounds) in self.first.windows(2).enumerate() {
            rows_out[bounds[0] as usize..bounds[1] as usize].fill((row as u32).to_le_bytes());
        }
        for (out, expert) in experts.iter_mut().zip(&self.experts) {
            *out = u32::from(*expert).to_le_bytes();
        }
        for (out, slot) in gates_out.iter_mut().zip(&self.slots) {
            *out = gates[*slot as usize].to_le_bytes();
        }
        message
    }

    /// The backward message: values only, the receiver knows the rest.
    pub(crate) fn rows_message(&self, d_y: &Operand) -> Vec<u8> {
        let mut message = messages::take(self.n_rows() * operand_row_bytes(d_y));
        self.write_rows(d_y, &mut message);
        message
    }

    fn write_rows(&self, x: &Operand, out: &mut [u8]) {
        let x = match x {
            Operand::Fp8(x) => return x.write_wire(&self.tokens, out),
            Operand::F32(x) | Operand::Bf16(x) => x,
        };
        let bytes = x.cols() * x.dtype().size();
        let chunks = out.chunks_mut((ROWS * bytes).max(1));
        spread::each(chunks.zip(self.tokens.chunks(ROWS)), |(out, tokens)| {
            for (out, token) in out.chunks_exact_mut(bytes.max(1)).zip(tokens) {
                out.copy_from_slice(&x.bytes()[*token as usize * bytes..][..bytes]);
            }
        });
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

impl Counts {
    /// At the head of a dispatch message.
    pub(crate) const BYTES: usize = 4 + 4;

    pub(crate) fn write(self, out: &mut [u8]) {
        let (rows, pairs) = out.split_at_mut(4);
        rows.copy_from_slice(&(self.rows as u32).to_le_bytes());
        pairs.copy_from_slice(&(self.pairs as u32).to_le_bytes());
    }

    /// The counts of a dispatch message, and what is behind them, which has the length that they say.
    pub(crate) fn read<'a>(message: &'a [u8], form: &RowForm) -> Result<(Self, &'a [u8]), String> {
        let Some((head, rest)) = message.split_at_checked(Self::BYTES) else {
            let want = Self::BYTES;
            return Err(format!("{} bytes, want at least {want}", message.len()));
        };
        let words: Vec<u32> = words(head).collect();
        let (rows, pairs) = (words[0] as usize, words[1] as usize);
        // In 64 bits: whatever a peer says, neither product runs over.
        let want = rows as u64 * row_bytes(form) as u64 + pairs as u64 * PAIR_BYTES as u64;
        if rest.len() as u64 != want {
            let want = want + Self::BYTES as u64;
            let got = message.len();
            return Err(format!("{got} bytes for {rows} rows and {pairs} pairs, want {want}"));
        }
        Ok((Self { rows, pairs }, rest))
    }
}

/// What is behind the counts of a dispatch message: the values of rows, and of each pair its row, its expert and its gate.
pub(crate) fn lists_of_pairs(body: &[u8], pairs: usize) -> (&[u8], [&[u8]; 3]) {
    let (values, lists) = body.split_at(body.len() - pairs * PAIR_BYTES);
    let (rows, rest) = lists.split_at(4 * pairs);
    let (experts, gates) = rest.split_at(4 * pairs);
    (values, [rows, experts, gates])
}

/// Looks at the pairs of so many rows as they came.
pub(crate) fn check_pairs(
    rows: usize,
    (row_of_pair, expert_of_pair): (&[u8], &[u8]),
    n_experts: usize,
) -> Result<(), String> {
    let (mut row, mut next) = (0, 0);
    for (pair, (its_row, expert)) in words(row_of_pair).zip(words(expert_of_pair)).enumerate() {
        let (its_row, expert) = (its_row as usize, expert as usize);
        if its_row == row + 1 && 0 < pair {
            (row, next) = (its_row, 0);
        }
        if its_row != row {
            return Err(format!("pair {pair} of row {its_row}, want {row} or the one behind it"));
        }
        if expert < next || n_experts <= expert {
            return Err(format!(
                "row {row} for expert {expert}, want {next}..{n_experts} (ascending)"
            ));
        }
        next = expert + 1;
    }
    let seen = if row_of_pair.is_empty() { 0 } else { row + 1 };
    if seen == rows { Ok(()) } else { Err(format!("pairs of {seen} rows, want {rows}")) }
}

fn words(bytes: &[u8]) -> impl DoubleEndedIterator<Item = u32> + ExactSizeIterator {
    bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
}

impl Received {
    /// Reads what every cell of the group sent. The error names the sender.
    pub(crate) fn read(messages: &[Vec<u8>], form: &RowForm) -> Result<Self, (usize, String)> {
        let mut parts = Vec::with_capacity(messages.len());
        let mut received = Self {
            rows: Arc::new(operand(&[], form)?),
            rows_from: Vec::with_capacity(messages.len()),
            first: vec![0],
            experts: Vec::new(),
            gates: Vec::new(),
        };
        for (shard, message) in messages.iter().enumerate() {
            let values =
                received.read_message(message, form).map_err(|problem| (shard, problem))?;
            parts.push(values);
        }
        received.rows = Arc::new(operand(&parts, form)?);
        Ok(received)
    }

    /// Returns the values of its rows.
    fn read_message<'a>(&mut self, message: &'a [u8], form: &RowForm) -> Result<&'a [u8], String> {
        let (Counts { rows, pairs }, rest) = Counts::read(message, form)?;
        let (values, [row_of_pair, expert_of_pair, gates]) = lists_of_pairs(rest, pairs);
        check_pairs(rows, (row_of_pair, expert_of_pair), form.n_experts)?;
        self.rows_from.push(rows);
        let (before, first) = (self.experts.len(), self.first.len() - 1);
        self.first.resize(first + rows + 1, before + pairs);
        for (pair, row) in words(row_of_pair).enumerate().rev() {
            self.first[first + row as usize] = before + pair;
        }
        self.experts.extend(words(expert_of_pair).map(|expert| expert as u16));
        self.gates.extend(words(gates).map(f32::from_bits));
        Ok(values)
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
    for (shard, (message, n_rows)) in messages.iter().zip(rows_from).enumerate() {
        check_length(message.len(), n_rows * bytes).map_err(|problem| (shard, problem))?;
    }
    operand(&messages.iter().map(Vec::as_slice).collect::<Vec<_>>(), form)
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

/// Rows of checked length as an operand. The error names the sender.
fn operand(parts: &[&[u8]], form: &RowForm) -> Result<Operand, (usize, String)> {
    let plain = |dtype| Tensor::from_parts(dtype, form.cols, parts);
    Ok(match form.math {
        Math::Fp8(format) => Operand::Fp8(Quantized::from_wire(form.cols, format, parts)?),
        Math::Bf16 => Operand::Bf16(plain(DType::Bf16)),
        Math::F32 => Operand::F32(plain(DType::F32)),
    })
}

pub(crate) fn check_length(got: usize, want: usize) -> Result<(), String> {
    if got == want { Ok(()) } else { Err(format!("{got} bytes, want {want}")) }
}

#[cfg(test)]
#[path = "dispatch/tests.rs"]
mod tests;
