//! THE PLAYERS: what a worker process does. A session with the coordinator decides when, an engine
//! runs the cells, and collectives and checkpoints serve it.
//!
//! Reading order: `session` (the protocol, pure), `daemon` (its rim), `engine` (the cells),
//! `engine/step.rs` (one training step), `comm`; files of weights are in the crate `shoal-weights`.

pub mod comm;
pub mod daemon;
pub mod devices;
pub mod engine;
pub mod metrics;
pub mod session;
pub mod vault;

mod client;

pub use comm::Trust;
pub use shoal_proto::Secret;
