//! The collectives, from sends and receives alone. Every sum is taken in group order.

use std::ops::Range;

use bytemuck::Pod;
use shoal_plan::grid::CellId;

use super::frame::Operation;
use super::mesh::Endpoint;
use super::{Comm, CommError, Sum};

// Numbers travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "the wire is little-endian");

impl Comm for Endpoint {
    fn cell(&self) -> CellId {
        self.id()
    }

    fn send(&mut self, to: CellId, bytes: Vec<u8>) -> Result<(), CommError> {
        self.post(Operation::Send, to, bytes)
    }

    fn recv(&mut self, from: CellId) -> Result<Vec<u8>, CommError> {
        self.take(Operation::Send, from)
    }

    fn all_to_all(
        &mut self,
        group: &[CellId],
        outgoing: Vec<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, CommError> {
        exchange(self, Operation::AllToAll, group, outgoing)
    }

    fn all_reduce(&mut self, group: &[CellId], data: Sum<'_>) -> Result<(), CommError> {
        match data {
            Sum::F32(data) => all_reduce(self, group, data),
            Sum::F64(data) => all_reduce(self, group, data),
            Sum::U64(data) => all_reduce(self, group, data),
        }
    }

    fn reduce_scatter(
        &mut self,
        group: &[CellId],
        data: Sum<'_>,
    ) -> Result<Range<usize>, CommError> {
        match data {
            Sum::F32(data) => sum_own_range(self, Operation::ReduceScatter, group, data),
            Sum::F64(data) => sum_own_range(self, Operation::ReduceScatter, group, data),
            Sum::U64(data) => sum_own_range(self, Operation::ReduceScatter, group, data),
        }
    }

    fn all_gather(&mut self, group: &[CellId], mine: Vec<u8>) -> Result<Vec<Vec<u8>>, CommError> {
        exchange(self, Operation::AllGather, group, vec![mine; group.len()])
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
        for member in group.iter().filter(|member| **member != root) {
            self.post(Operation::Broadcast, *member, bytes.clone())?;
        }
        Ok(bytes)
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

fn exchange(
    endpoint: &mut Endpoint,
    operation: Operation,
    group: &[CellId],
    outgoing: Vec<Vec<u8>>,
) -> Result<Vec<Vec<u8>>, CommError> {
    let me = place(endpoint.id(), group);
    assert_eq!(outgoing.len(), group.len(), "{operation}: one part for each member");
    let mut mine = Vec::new();
    for (k, part) in outgoing.into_iter().enumerate() {
        if k == me {
            mine = part;
        } else {
            endpoint.post(operation, group[k], part)?;
        }
    }
    let mut incoming = Vec::with_capacity(group.len());
    for (k, member) in group.iter().enumerate() {
        let part =
            if k == me { std::mem::take(&mut mine) } else { endpoint.take(operation, *member)? };
        incoming.push(part);
    }
    Ok(incoming)
}

fn all_reduce<T: Element>(
    endpoint: &mut Endpoint,
    group: &[CellId],
    data: &mut [T],
) -> Result<(), CommError> {
    let operation = Operation::AllReduce;
    let mine = sum_own_range(endpoint, operation, group, data)?;
    let others = || group.iter().enumerate();
    let cell = endpoint.id();
    for (_, member) in others().filter(|(_, member)| **member != cell) {
        endpoint.post(operation, *member, bytemuck::cast_slice(&data[mine.clone()]).to_vec())?;
    }
    for (k, member) in others().filter(|(_, member)| **member != cell) {
        let range = share(data.len(), group.len(), k);
        let bytes = take_exactly(endpoint, operation, *member, size_of_val(&data[range.clone()]))?;
        bytemuck::cast_slice_mut(&mut data[range]).copy_from_slice(&bytes);
    }
    Ok(())
}

/// Every member sums its own range over the group; returns which that is.
fn sum_own_range<T: Element>(
    endpoint: &mut Endpoint,
    operation: Operation,
    group: &[CellId],
    data: &mut [T],
) -> Result<Range<usize>, CommError> {
    let me = place(endpoint.id(), group);
    let range = |k| share(data.len(), group.len(), k);
    for (k, member) in group.iter().enumerate().filter(|(k, _)| *k != me) {
        endpoint.post(operation, *member, bytemuck::cast_slice(&data[range(k)]).to_vec())?;
    }
    let mine = range(me);
    let mut sum: Vec<T> = Vec::new();
    for (k, member) in group.iter().enumerate() {
        if k == me {
            add(&mut sum, data[mine.clone()].iter().copied(), k);
        } else {
            let bytes = take_exactly(endpoint, operation, *member, mine.len() * size_of::<T>())?;
            let part = bytes.chunks_exact(size_of::<T>());
            add(&mut sum, part.map(bytemuck::pod_read_unaligned), k);
        }
    }
    data[mine.clone()].copy_from_slice(&sum);
    Ok(mine)
}

/// Adds member `k`'s part; the first one's is where the sum starts.
fn add<T: Element>(sum: &mut Vec<T>, part: impl Iterator<Item = T>, k: usize) {
    if k == 0 {
        sum.extend(part);
    } else {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum = sum.plus(part));
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
