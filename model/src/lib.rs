//! The network: DeepSeek-V3 with explicit forward and backward, its optimizer and its Hugging Face
//! names. One `Stage` is the part of the model one cell owns; how cells talk is behind `Exchange`.
//!
//! Letters: T tokens of a microbatch, D model width, F feed-forward width, E experts, K choices of a
//! token, R rows received by an expert shard, V vocabulary. Everything is row-major.
//! Source: DeepSeek-V3 report, arXiv:2412.19437, sections 2 and 3.3.
//!
//! Reading order: `cut` (which part), `names` (its parameters), `halves` (what each half of backward
//! keeps), `layer`, `mla`, `moe`, `tail` (head and multi-token prediction), `stage` (the door to training), `decode` (the door to
//! writing).

pub mod batch;
pub mod cuda;
pub mod cut;
pub mod decode;
pub mod error;
pub mod exchange;
pub mod memory;
pub mod names;
pub mod optimizer;
pub mod options;
pub mod parameters;
pub mod stage;

mod arithmetic;
mod columns;
mod ffn;
mod findings;
mod halves;
mod initial;
mod layer;
mod mla;
mod moe;
mod mtp;
mod run;
mod tail;
#[cfg(test)]
mod whole_model;

pub use batch::{Batch, BatchTokens};
pub use cut::Cut;
pub use decode::{Cache, Decoder, Step};
pub use error::Error;
pub use exchange::{Alone, Exchange, ExchangeError};
pub use findings::{NonFinite, Pass};
pub use memory::Memory;
pub use mla::head_shape;
pub use moe::router_shape;
pub use optimizer::Update;
pub use options::StageOptions;
pub use parameters::{Class, Moments, Parameters};
pub use stage::{Evaluated, LossScale, Losses, Norms, Stage};
