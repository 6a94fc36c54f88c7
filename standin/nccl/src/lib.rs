//! A `libnccl` made of loopback sockets: NCCL's C interface between processes and threads of one machine, over the memory of
//! the stand-in for the CUDA driver (`standin/driver`), or of a real one.
//!
//! Found as `libnccl.so.2` through the loader's search path, it needs no word of it in the product. It calls the `libcuda` that
//! the process has loaded and no other: bytes leave device memory in the order of the caller's stream, a function of the host in
//! that stream hands them on and waits for those of the peers, and they go up behind it. So work that is queued before or
//! after a transfer is ordered with it, and only that work.
//!
//! What does not belong together is an error with a name where NCCL would hang or move the wrong bytes: another
//! operation, number or type than the peer's, a message that nobody took, a peer that never comes ([`settings::Settings`] says
//! when). An abort ends every wait. Sums are taken in the order of ranks.
//!
//! It is not: fast, a model of speed or of topology, or stricter than this about sends: one is over when its bytes are on
//! their way, where NCCL's may wait for the receiver.
//!
//! [`settings`] lists the environment variables.

mod abi;
pub mod comm;
mod cuda;
pub mod data;
pub mod link;
pub mod settings;
