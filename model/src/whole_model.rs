//! Tests of the whole network: gradients against differences, grids against the uncut model,
//! unequal parts, learning, balance of the experts, what precision and options change, and everything that can go wrong
//! between cells.

mod balance;
mod faults;
mod gradients;
pub(crate) mod harness;
mod identity;
mod learning;
mod memory;
mod options;
mod precisions;
mod uneven;
