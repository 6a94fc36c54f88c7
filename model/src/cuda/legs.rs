//! The legs of an exchange of rows. On a device each leg is some planes, numbers of each row or of each pair, that lie in the
//! order of the cells that they go to, and come to lie in the order of the cells that they came from; the messages are
//! `crate::moe::dispatch`'s, which cells on a CPU write and read. What a cell has for itself stays on its device. The rest crosses
//! by way of pinned memory in one go each way, and the host looks at no row: only at what a peer may have made up, the pairs and
//! scales of rows.

use std::ops::Range;

use shoal_kernels::ScaleFormat;
use shoal_kernels::cuda::{DeviceError, Fetch, Slice};
use shoal_kernels::fp8::check_scales;

use super::gpu::Gpu;
use super::matrix::{Matrix, Operand};
use crate::moe::dispatch::{Counts, check_length};
use crate::moe::messages;

/// How much goes to each cell of the group, or came from it.
#[derive(Clone, Debug)]
pub(super) struct Shares {
    me: usize,
    /// Of the cells before; the last is of all.
    before: Vec<Counts>,
}

/// What a plane has so many bytes for.
#[derive(Clone, Copy, Debug)]
enum Each {
    Row(usize),
    Pair(usize),
}

/// One after the other, cell by cell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane<'a> {
    slice: Slice<'a>,
    each: Each,
    /// Scales of rows of so many columns, which are looked at.
    scales: Option<(usize, ScaleFormat)>,
}

/// Planes, and how much of them is whose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    pub(super) planes: &'a [Plane<'a>],
    pub(super) shares: &'a Shares,
}

impl Shares {
    pub(super) fn new(me: usize, counts: impl IntoIterator<Item = Counts>) -> Self {
        let mut before = vec![Counts::default()];
        let mut sum = Counts::default();
        for Counts { rows, pairs } in counts {
            sum = Counts { rows: sum.rows + rows, pairs: sum.pairs + pairs };
            before.push(sum);
        }
        Self { me, before }
    }

    /// This cell's place in the group.
    pub(super) fn me(&self) -> usize {
        self.me
    }

    pub(super) fn cells(&self) -> Range<usize> {
        0..self.before.len() - 1
    }

    pub(super) fn of(&self, cell: usize) -> Counts {
        let (from, to) = (self.before[cell], self.before[cell + 1]);
        Counts { rows: to.rows - from.rows, pairs: to.pairs - from.pairs }
    }

    /// Of the cells before, for each cell and then for all.
    pub(super) fn before(&self) -> &[Counts] {
        &self.before
    }

    pub(super) fn total(&self) -> Counts {
        self.before[self.before.len() - 1]
    }
}

impl Each {
    fn bytes(self, counts: Counts) -> usize {
        match self {
            Self::Row(bytes) => bytes * counts.rows,
            Self::Pair(bytes) => bytes * counts.pairs,
        }
    }
}

impl<'a> Plane<'a> {
    /// A word for each pair.
    pub(super) fn of_pairs(slice: Slice<'a>) -> Self {
        Self { slice, each: Each::Pair(4), scales: None }
    }

    pub(super) fn of_matrix(x: &'a Matrix) -> Self {
        Self { slice: x.slice(), each: Each::Row(x.cols * x.dtype.size()), scales: None }
    }

    /// In the order in which they travel.
    pub(super) fn of_operand(x: &'a Operand) -> Vec<Self> {
        match x {
            Operand::Bf16(x) => vec![Self::of_matrix(x)],
            Operand::Fp8(x) => {
                let bytes = x.cols.div_ceil(128) * x.format.bytes();
                let scales = Some((x.cols, x.format));
                vec![
                    Self { slice: x.codes.all(), each: Each::Row(x.cols), scales: None },
                    Self { slice: x.scales.all(), each: Each::Row(bytes), scales },
                ]
            }
        }
    }

    /// Whose bytes a cell's are.
    fn range(&self, shares: &Shares, cell: usize) -> Range<usize> {
        self.each.bytes(shares.before[cell])..self.each.bytes(shares.before[cell + 1])
    }

    fn own(&self, shares: &Shares) -> Slice<'a> {
        self.slice.slice(self.range(shares, shares.me))
    }

    /// What is others': the cells before this one and those behind.
    fn others(&self, shares: &Shares) -> [Slice<'a>; 2] {
        let own = self.range(shares, shares.me);
        let end = self.each.bytes(shares.total());
        [self.slice.slice(0..own.start), self.slice.slice(own.end..end)]
    }
}

impl<'a> Side<'a> {
    /// All that is others', plane after plane, in each cell after cell: as it crosses.
    fn others(&self) -> Vec<Slice<'a>> {
        self.planes.iter().flat_map(|plane| plane.others(self.shares)).collect()
    }

    /// Bytes of a cell.
    fn bytes(&self, cell: usize) -> usize {
        let counts = self.shares.of(cell);
        self.planes.iter().map(|plane| plane.each.bytes(counts)).sum()
    }

    /// Of each plane and each other cell how many bytes cross, in the order in which they do.
    fn crossing(&self) -> impl Iterator<Item = (usize, usize)> {
        let shares = self.shares;
        self.planes.iter().flat_map(move |plane| {
            let others = shares.cells().filter(move |cell| *cell != shares.me);
            others.map(|cell| (cell, plane.each.bytes(shares.of(cell))))
        })
    }

    /// Looks at what one cell sent.
    pub(super) fn check(&self, cell: usize, body: &[u8]) -> Result<(), String> {
        check_length(body.len(), self.bytes(cell))?;
        let mut rest = body;
        for plane in self.planes {
            let (mine, after) = rest.split_at(plane.each.bytes(self.shares.of(cell)));
            if let Some((cols, format)) = plane.scales {
                check_scales(cols, format, mine)?;
            }
            rest = after;
        }
        Ok(())
    }
}

impl Gpu {
    /// Begins to bring to the host what others get. Work that is queued from now on is not waited for.
    pub(super) fn leave<'a>(&self, from: Side<'a>) -> Result<Fetch<'a>, DeviceError> {
        self.staging.fetch(&self.stream, &from.others())
    }

    /// The messages to each cell, this one's empty; with their counts before, where the receiver does not know them.
    pub(super) fn messages(
        &self,
        fetch: Fetch<'_>,
        from: Side<'_>,
        with_counts: bool,
    ) -> Result<Vec<Vec<u8>>, DeviceError> {
        let shares = from.shares;
        let head = if with_counts { Counts::BYTES } else { 0 };
        self.staging.fetched(fetch, |bytes| {
            let mut ends = vec![head; shares.cells().len()];
            let message = |cell| {
                if cell == shares.me {
                    return Vec::new();
                }
                let mut message = messages::take(head + from.bytes(cell));
                if with_counts {
                    shares.of(cell).write(&mut message[..head]);
                }
                message
            };
            let mut messages: Vec<Vec<u8>> = shares.cells().map(message).collect();
            let mut rest = bytes;
            for (cell, length) in from.crossing() {
                let (part, after) = rest.split_at(length);
                messages[cell][ends[cell]..][..length].copy_from_slice(part);
                ends[cell] += length;
                rest = after;
            }
            messages
        })
    }

    /// Puts in place what came from each cell, whose length was checked, and from this one.
    pub(super) fn arrive(
        &self,
        bodies: &[&[u8]],
        from: Side<'_>,
        to: Side<'_>,
    ) -> Result<(), DeviceError> {
        self.staging.upload_parts(&self.stream, &to.others(), |out| {
            let mut bodies = bodies.to_vec();
            let mut rest = out;
            for (cell, length) in to.crossing() {
                let (part, after) = rest.split_at_mut(length);
                let (mine, body) = bodies[cell].split_at(length);
                part.copy_from_slice(mine);
                (bodies[cell], rest) = (body, after);
            }
        })?;
        for (from_plane, to_plane) in from.planes.iter().zip(to.planes) {
            let (from, to) = (from_plane.own(from.shares), to_plane.own(to.shares));
            self.stream.copy(to, from)?;
        }
        Ok(())
    }
}
