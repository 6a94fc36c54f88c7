//! THE PLAYERS: what a worker process does. A session with the coordinator decides when, an engine
//! runs the cells, and collectives, data and checkpoints serve it.
//!
//! Reading order: `session` (the protocol, pure), `daemon` (its rim), `engine` (the cells),
//! `engine/step.rs` (one training step), `comm`, `data`, `checkpoint`, `sample`.

pub mod checkpoint;
pub mod comm;
pub mod daemon;
pub mod data;
pub mod engine;
pub mod sample;
pub mod session;

mod client;
mod map;

pub use shoal_proto::Secret;
