//! A stand-in for the GPU: executes the PTX that shoal ships, warp by warp, on the CPU.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "families of instructions fall through to the function of the next family"
)]

mod block;
mod body;
mod decode;
mod error;
mod execute;
mod formats;
mod instruction;
mod launch;
mod memory;
mod module;
mod product;
mod random;
mod registers;
mod scan;
mod shared;
mod stats;
mod variable;
mod warp;

pub use error::{Fault, FaultKind, LoadError, Place};
pub use launch::{Accumulate, AsyncCopies, Launch, Options, Schedule, launch};
pub use memory::Memory;
pub use module::{Kernel, Module, Param};
pub use stats::Stats;
