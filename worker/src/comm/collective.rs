//! The collectives, from sends and receives alone. Every sum is taken in group order.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use shoal_plan::grid::CellId;

use super::frame::{Operation, PIECE_BYTES};
use super::mesh::Endpoint;
use super::payload::Payload;
use super::{Comm, CommError, Sum};

// Numbers travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "the wire is little-endian");

impl Comm for Endpoint {
    fn cell(&self) -> CellId {
        self.id()
    }

    fn send(&mut self, to: CellId, bytes: Vec<u8>) -> Result<(), CommError> {
        self.post(Operation::Send, to, Payload::Own(bytes))
    }

    fn recv(&mut self, from: CellId) -> Result<Vec<u8>, CommError> {
        self.take(Operation::Send, from)
    }

    fn all_to_all(
        &mut self,
        group: &[CellId],
        mut outgoing: Vec<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, CommError> {
        let me = place(self.id(), group);
        assert_eq!(outgoing.len(), group.len(), "all-to-all: one part for each member");
        let mine = std::mem::take(&mut outgoing[me]);
        let outgoing = outgoing.into_iter().map(Payload::Own);
        let mut all = exchange(self, Operation::AllToAll, group, me, outgoing)?;
        all[me] = mine;
        Ok(all)
    }

    fn all_reduce(&mut self, group: &[CellId], data: Sum<'_>) -> Result<(), CommError> {
        match data {
            Sum::F32(data) => sum(self, Operation::AllReduce, group, data),
            Sum::F64(data) => sum(self, Operation::AllReduce, group, data),
            Sum::U64(data) => sum(self, Operation::AllReduce, group, data),
        }
        .map(|_| ())
    }

    fn reduce_scatter(
        &mut self,
        group: &[CellId],
        data: Sum<'_>,
    ) -> Result<Range<usize>, CommError> {
        match data {
            Sum::F32(data) => sum(self, Operation::ReduceScatter, group, data),
            Sum::F64(data) => sum(self, Operation::ReduceScatter, group, data),
            Sum::U64(data) => sum(self, Operation::ReduceScatter, group, data),
        }
    }

    fn all_gather(&mut self, group: &[CellId], mine: Vec<u8>) -> Result<Vec<Vec<u8>>, CommError> {
        let me = place(self.id(), group);
        let mine = Arc::new(mine);
        let outgoing = group.iter().map(|_| Payload::Shared(Arc::clone(&mine)));
        let mut all = exchange(self, Operation::AllGather, group, me, outgoing)?;
        // Whoever still writes it has the copy to itself.
        all[me] = Arc::unwrap_or_clone(mine);
        Ok(all)
    }

    fn broadcast(
        &mut self,
        group: &[CellId],
        root: CellId,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, CommError> {
        place(self.id(), group);
        assert!(group.contains(&root), "the root {root} is not in the group");
        if root != self.id() {
            return self.take(Operation::Broadcast, root);
        }
        let bytes = Arc::new(bytes);
        for member in group.iter().filter(|member| **member != root) {
            self.post(Operation::Broadcast, *member, Payload::Shared(Arc::clone(&bytes)))?;
        }
        Ok(Arc::unwrap_or_clone(bytes))
    }
}

/// A number that can be summed.
trait Element: Pod {
    fn plus(self, other: Self) -> Self;
}

impl Element for f32 {
    fn plus(self, other: Self) -> Self {
        self + other
    }
}

impl Element for f64 {
    fn plus(self, other: Self) -> Self {
        self + other
    }
}

impl Element for u64 {
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

/// This cell's place in the group.
fn place(cell: CellId, group: &[CellId]) -> usize {
    let mut places = group.iter().enumerate().filter(|(_, member)| **member == cell);
    let (at, _) = places.next().unwrap_or_else(|| panic!("{cell} is not in its group {group:?}"));
    assert!(places.next().is_none(), "{cell} is twice in its group {group:?}");
    at
}

/// Which of `n` elements member `k` of `size` sums.
fn share(n: usize, size: usize, k: usize) -> Range<usize> {
    n * k / size..n * (k + 1) / size
}

/// Sends part `k` to member `k` and returns what member `k` sent; this cell's own place stays empty.
fn exchange(
    endpoint: &mut Endpoint,
    operation: Operation,
    group: &[CellId],
    me: usize,
    outgoing: impl Iterator<Item = Payload>,
) -> Result<Vec<Vec<u8>>, CommError> {
    let others = || group.iter().enumerate().filter(|(k, _)| *k != me);
    for ((_, part), (_, member)) in outgoing.enumerate().filter(|(k, _)| *k != me).zip(others()) {
        endpoint.post(operation, *member, part)?;
    }
    let mut incoming = vec![Vec::new(); group.len()];
    for (k, member) in others() {
        incoming[k] = endpoint.take(operation, *member)?;
    }
    Ok(incoming)
}

/// So many pieces are sent before the first is waited for: one is summed while others are on their way.
const AHEAD: usize = 4;

/// Piece `at` of a range; empty past its end.
fn piece<T>(range: &Range<usize>, at: usize) -> Range<usize> {
    let elements = PIECE_BYTES / size_of::<T>();
    let from = |at: usize| (range.start + at * elements).min(range.end);
    from(at)..from(at + 1)
}

/// Every member sums its own range over the group, piece by piece, and in an all-reduce sends each sum to the
/// others; returns which range that is.
///
/// Round `i` of every member: send the others their pieces `i`; sum the own piece `i - AHEAD` and send it to the
/// others; take their sums `i - 2 AHEAD`. So each pair of members sends and takes in the same order.
fn sum<T: Element>(
    endpoint: &mut Endpoint,
    operation: Operation,
    group: &[CellId],
    data: &mut [T],
) -> Result<Range<usize>, CommError> {
    let me = place(endpoint.id(), group);
    let others = || group.iter().enumerate().filter(|(k, _)| *k != me);
    let n = data.len();
    let range = |k| share(n, group.len(), k);
    let mine = range(me);
    // The longest range has the most pieces; of the shortest the last one may be empty, and is not sent.
    let pieces = n.div_ceil(group.len()).div_ceil(PIECE_BYTES / size_of::<T>());
    let gathers = operation == Operation::AllReduce;
    let rounds = if group.len() == 1 { 0 } else { pieces + if gathers { 2 } else { 1 } * AHEAD };
    let mut total: Vec<T> = Vec::new();
    for round in 0..rounds {
        for (k, member) in others() {
            post_piece(endpoint, operation, *member, &data[piece::<T>(&range(k), round)])?;
        }
        let Some(at) = round.checked_sub(AHEAD) else { continue };
        let own = piece::<T>(&mine, at);
        if !own.is_empty() {
            sum_piece(endpoint, (operation, group, me), &mut data[own.clone()], &mut total)?;
        }
        if !gathers {
            continue;
        }
        for (_, member) in others() {
            post_piece(endpoint, operation, *member, &data[own.clone()])?;
        }
        let Some(at) = at.checked_sub(AHEAD) else { continue };
        for (k, member) in others() {
            let theirs = &mut data[piece::<T>(&range(k), at)];
            if !theirs.is_empty() {
                let bytes = take_exactly(endpoint, operation, *member, size_of_val(theirs))?;
                bytemuck::cast_slice_mut(theirs).copy_from_slice(&bytes);
                endpoint.spare().put(Payload::Own(bytes));
            }
        }
    }
    Ok(mine)
}

fn post_piece<T: Element>(
    endpoint: &mut Endpoint,
    operation: Operation,
    to: CellId,
    piece: &[T],
) -> Result<(), CommError> {
    if piece.is_empty() {
        return Ok(());
    }
    let bytes = endpoint.spare().copy(bytemuck::cast_slice(piece));
    endpoint.post(operation, to, Payload::Own(bytes))
}

/// Overwrites a piece of this cell's range with its sum over the group.
///
/// - `total`: memory for it.
fn sum_piece<T: Element>(
    endpoint: &mut Endpoint,
    (operation, group, me): (Operation, &[CellId], usize),
    own: &mut [T],
    total: &mut Vec<T>,
) -> Result<(), CommError> {
    total.clear();
    for (k, member) in group.iter().enumerate() {
        if k == me {
            add(total, own.iter().copied(), k);
        } else {
            let bytes = take_exactly(endpoint, operation, *member, size_of_val(own))?;
            if let Ok(part) = bytemuck::try_cast_slice(&bytes) {
                add(total, part.iter().copied(), k);
            } else {
                let part = bytes.chunks_exact(size_of::<T>());
                add(total, part.map(bytemuck::pod_read_unaligned), k);
            }
            endpoint.spare().put(Payload::Own(bytes));
        }
    }
    own.copy_from_slice(total);
    Ok(())
}

/// Adds member `k`'s part; the first one's is where the sum starts.
fn add<T: Element>(total: &mut Vec<T>, part: impl Iterator<Item = T>, k: usize) {
    if k == 0 {
        total.extend(part);
    } else {
        total.iter_mut().zip(part).for_each(|(total, part)| *total = total.plus(part));
    }
}

fn take_exactly(
    endpoint: &mut Endpoint,
    operation: Operation,
    from: CellId,
    want: usize,
) -> Result<Vec<u8>, CommError> {
    let bytes = endpoint.take(operation, from)?;
    if bytes.len() != want {
        let cause = format!("{from} sent {} bytes to {}, want {want}", bytes.len(), endpoint.id());
        return Err(endpoint.refuse(operation, from, cause));
    }
    Ok(bytes)
}
