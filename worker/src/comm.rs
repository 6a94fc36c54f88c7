//! What cells say to each other: messages, and collectives over groups of cells.
//!
//! **Order.** Messages of one (sender, receiver) pair arrive in the order they were sent; there is
//! no order between pairs. A send never waits for the peer, so any program whose sends and
//! receives match, pair by pair, ends. Each message carries the operation it belongs to, and a
//! receiver that meets another operation than its own fails instead of misreading bytes.
//!
//! **Numbers.** Sums are taken element by element in group order, whoever hosts the cells: the
//! same group gives the same bits on one worker or many.
//!
//! **Failure.** The first error of any kind poisons the whole mesh: every waiting and every later
//! call of every endpoint returns an error that names the worker at fault, and the peers are told.
//! A collective that was cut short may have changed its buffer: nothing of the step may be kept.
//!
//! **Strangers.** Members prove that they know the run's secret when they connect, and each frame is
//! checksummed against accidents. With a `Trust` all of that happens inside TLS, and both ends are whom
//! their certificates name; without one bytes travel in clear, on loopback only.

pub(crate) mod channel;
mod collective;
pub(crate) mod deadline;
mod frame;
pub(crate) mod handshake;
mod link;
pub(crate) mod mesh;
mod opening;
mod payload;
#[cfg(test)]
pub(crate) mod proof;
pub(crate) mod relayed;
mod threads;
pub(crate) mod trust;
pub(crate) mod way;

use std::ops::Range;
use std::time::Duration;

use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;

pub use frame::Operation;
pub use mesh::{Endpoint, Membership, Mesh, Timeouts};
pub use trust::Trust;
pub use way::Ways;

/// One cell's view of the others. A group is a list of distinct cells with this one among them, the
/// same list in the same order on every member; members call the same collectives in the same
/// order. A wrong group is a bug and panics; what a peer sends never does.
pub trait Comm: Send {
    /// Whose view this is.
    fn cell(&self) -> CellId;

    /// Queues a message; never waits for the peer.
    fn send(&mut self, to: CellId, bytes: Vec<u8>) -> Result<(), CommError>;

    /// Waits for the next message of `from`.
    fn recv(&mut self, from: CellId) -> Result<Vec<u8>, CommError>;

    /// Sends `outgoing[k]` to member `k` (its own part is moved) and returns, at `[k]`, what member
    /// `k` sent here. Parts may be empty.
    fn all_to_all(
        &mut self,
        group: &[CellId],
        outgoing: Vec<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, CommError>;

    /// Overwrites `data`, equally long on every member, with the sum over the group, taken in group
    /// order: the same bits on every member. A group of one moves nothing.
    fn all_reduce(&mut self, group: &[CellId], data: Sum<'_>) -> Result<(), CommError>;

    /// As `all_reduce`, but only the returned range of `data` holds the sum: member `k` of `g` gets
    /// elements `k*n/g .. (k+1)*n/g`. The rest of `data` is unchanged.
    fn reduce_scatter(
        &mut self,
        group: &[CellId],
        data: Sum<'_>,
    ) -> Result<Range<usize>, CommError>;

    /// Every member's `mine`, in group order, on every member.
    fn all_gather(&mut self, group: &[CellId], mine: Vec<u8>) -> Result<Vec<Vec<u8>>, CommError>;

    /// The root's `bytes` on every member; what the others pass is ignored.
    fn broadcast(
        &mut self,
        group: &[CellId],
        root: CellId,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, CommError>;
}

/// Numbers to be summed in place.
#[derive(Debug)]
pub enum Sum<'a> {
    F32(&'a mut [f32]),
    F64(&'a mut [f64]),
    /// Wraps around on overflow.
    U64(&'a mut [u64]),
}

impl Sum<'_> {
    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(*values),
            Self::F64(values) => size_of_val(*values),
            Self::U64(values) => size_of_val(*values),
        }
    }
}

/// What an endpoint moved so far, in payload bytes; a cell's part for itself is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// The share of the above that crossed to or from another worker.
    pub sent_remote_bytes: u64,
    pub received_remote_bytes: u64,
}

/// Why the data plane could not be opened or ended early. After any of these but the first three,
/// the mesh is poisoned: drop it and build another for the next generation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    #[error("data plane: the listener of {me} failed: {cause}")]
    Listener { me: WorkerId, cause: String },

    /// Each missing worker is named with the last thing heard from it or about it.
    #[error("data plane: {me} waited {} s for {missing}", waited.as_secs_f32())]
    Join {
        me: WorkerId,
        missing: String,
        waited: Duration,
        /// Those of them from which no byte came.
        silent: Vec<WorkerId>,
    },

    /// Its opener no longer wants it.
    #[error("data plane: {me} no longer waits for its peers")]
    CalledOff { me: WorkerId },

    #[error("{operation} of {cell}: {peer} was lost: {cause}")]
    Lost {
        operation: Operation,
        cell: CellId,
        peer: WorkerId,
        cause: String,
        /// No packet comes through between the two, as far as the system can tell; otherwise the
        /// connection ended in some way, or another peer says so.
        silent: bool,
    },

    #[error(
        "{operation} of {cell}: nothing came from {from} on {peer} for {} s",
        waited.as_secs_f32()
    )]
    Silent { operation: Operation, cell: CellId, from: CellId, peer: WorkerId, waited: Duration },

    /// This worker itself gave up, by `Mesh::poison` or by dropping the mesh.
    #[error("{operation} of {cell}: the data plane was stopped here: {cause}")]
    Stopped { operation: Operation, cell: CellId, cause: String },
}

impl CommError {
    /// The worker at fault, if it is one other than this.
    pub fn peer(&self) -> Option<WorkerId> {
        match self {
            Self::Lost { peer, .. } | Self::Silent { peer, .. } => Some(*peer),
            Self::Listener { .. }
            | Self::Join { .. }
            | Self::CalledOff { .. }
            | Self::Stopped { .. } => None,
        }
    }

    /// The workers with which no byte could be exchanged any more, at first hand.
    pub fn unreachable(&self) -> Vec<WorkerId> {
        match self {
            Self::Join { silent, .. } => silent.clone(),
            Self::Lost { peer, silent: true, .. } | Self::Silent { peer, .. } => vec![*peer],
            Self::Listener { .. }
            | Self::CalledOff { .. }
            | Self::Lost { .. }
            | Self::Stopped { .. } => Vec::new(),
        }
    }
}
