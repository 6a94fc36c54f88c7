//! The network on a GPU: what `crate::stage` says of a cell's part, by the kernels of `shoal_kernels::cuda`.
//!
//! It is the network of the host once more, layer by layer in files of the same names, because on a device nothing may be
//! allocated, awaited or looked at in between: memory comes from one arena, everything is queued on one stream, findings
//! and losses are read at the end of a step, and all experts of a layer run in one grouped product. The host's stage judges
//! it: the same batch gives the same losses, gradients and parameters within what BF16 and the order of sums allow
//! (`tests/cuda.rs`). Precision f32 is the host's alone.
//!
//! What a cell needs there is known beforehand: `need` goes through its steps on a device that is none, in the same code,
//! and counts.
//!
//! Names, shapes and snapshots are the host's `Parameters`, which stay the other end of every copy: gradients come back to
//! them to be summed over cells, and masters and moments to be written down.

mod experts;
mod ffn;
mod findings;
mod gpu;
mod halves;
mod layer;
mod layout;
mod legs;
mod matrix;
mod mla;
mod moe;
mod mtp;
mod need;
mod network;
mod parameters;
mod room;
mod rows;
mod run;
mod sent;
mod tail;
mod transfers;

pub use self::gpu::{Gpu, Kernels};
pub use self::need::Need;
pub(crate) use self::network::Network;
pub use self::room::Room;
