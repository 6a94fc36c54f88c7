//! Tests of the whole network: gradients against differences, grids against the uncut model,
//! unequal parts, learning, what each precision changes, and everything that can go wrong between cells.

mod faults;
mod gradients;
mod harness;
mod identity;
mod learning;
mod precisions;
mod uneven;
