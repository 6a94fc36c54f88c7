//! A `libcuda` made of CPU: the CUDA driver's C interface over the PTX machine of `shoal-standin`.
//!
//! It lets the product's own CUDA code, cudarc included, run in a process on a machine without a
//! card, down to the PTX that ships. Found as `libcuda.so` through the loader's search path, it
//! needs no word of it in the product. [`testing`] starts such a process.
//!
//! What it does as a card's driver does: contexts, streams, events, pinned memory, modules,
//! functions with their parameters, limits of launches, allocation and its accounting, errors and
//! which of them stick.
//!
//! What it does on purpose worse, so that a mistake shows: queued work runs late, early and in any
//! order that the rules allow, by a seed ([`order`]); fresh memory is NaN; freed memory never comes
//! back; pinned buffers are read and written at the last moment. And what it says besides: a
//! [`report::Report`] of named checks, leaks and counts.
//!
//! What it is not: fast, a model of speed (event times come from a virtual clock), or a proof for
//! what only a card shows (weak memory ordering, `ptxas`, real concurrency inside a launch). It has
//! no managed or mapped memory, no graphs, no cooperative launches, no textures, no contexts but
//! primary ones; functions for these do not exist, and attributes deny them. Binaries for a card do
//! not load.
//!
//! [`settings`] lists the environment variables.

mod abi;
pub mod cards;
pub mod driver;
pub mod order;
mod random;
pub mod report;
pub mod settings;
pub mod shared;
pub mod status;
pub mod testing;
