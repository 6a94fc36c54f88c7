//! The numbers: tensors, number formats and operations, on the CPU, and what runs of them on a GPU.
//!
//! Every operation is a flat module with `forward` and `backward`, states its contract, and has a
//! plain slow reference in its tests. Letters of the shapes: T tokens (rows), D model width, N
//! outputs and K inputs of a linear layer, E experts, H heads, F hidden width, V vocabulary.
//!
//! Three rules hold everywhere:
//! - Arithmetic inside an operation is FP32; results are rounded once to the dtype of the output.
//! - Work is cut into chunks whose size follows from shapes alone, and partial sums are added in
//!   chunk order, so the bits of a result do not depend on the number of threads.
//! - Hot loops are compiled for several instruction sets and chosen at run time; sums run over a
//!   fixed number of lanes and nothing contracts to FMA, so they do not depend on the width either.
//!   Matrix products are the exception: their bits belong to one kind of CPU.
//!
//! *Add an operation*: a module with the contract at its head, the plain reference in its tests,
//! sizes 1, 127, 129 and no rows, and a comparison of one thread with three.
#![expect(
    clippy::inline_always,
    reason = "a loop body must be inlined into the function compiled for the wide instruction set"
)]

const _: () = assert!(cfg!(target_endian = "little"), "tensors are little endian in memory");

mod error;
mod exp;
mod lanes;
mod scratch;
mod simd;
pub mod spread;
pub mod storage;
mod vector;

pub mod bf16;
pub mod checksum;
pub mod compare;
pub mod e4m3;
pub mod fp8;
pub mod tensor;

mod gemm;
pub mod linear;
pub mod rowwise;

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod embedding;
pub mod latent;
pub mod mla;
pub mod rmsnorm;
pub mod router;
pub mod row_sums;
pub mod swiglu;

pub mod cuda;

pub use bf16::{bf16_to_f32, f32_to_bf16};
pub use error::Error;
pub use fp8::{Quantized, ScaleFormat, Scales, Tiling};
pub use gemm::Isa;
pub use linear::{Math, Operand, Weight};
pub use tensor::{DType, Tensor};
