//! The GPU: a device, its memory, streams, and kernels that launch with checked arguments.
//!
//! There is one binary everywhere. NVIDIA's driver is looked up when a device is opened; on a machine without
//! one, [`Device::open`] returns an error that says so. The kernels travel inside the binary as PTX
//! ([`image`]), one per kind of card; the driver compiles it for the card at hand.
//!
//! Waits are ours: nothing is ordered but by a [`Stream`] or an [`Event`], and no call waits for the device
//! unless its documentation says so.
//!
//! *Add a kernel*: `name.cu` beside `name.rs`. The Rust file states the contract, names the CPU function that
//! judges it, checks every size and launches; the `.cu` explains how the work is spread. Then `.ci/ptx`, and
//! cases in `tests/cuda/`.

mod arena;
mod check;
mod device;
mod driver;
mod error;
mod given;
pub mod image;
mod memory;
mod module;
mod staging;
mod stream;

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod dispatch;
pub mod elementwise;
pub mod embedding;
pub mod gemm;
pub mod quantise;
pub mod reduce;
pub mod rmsnorm;
pub mod rope;
pub mod router;
pub mod swiglu;
pub mod window;

pub use self::arena::{Arena, Block, Kinds, Meter, Usage};
pub use self::check::Rows;
pub use self::device::{Device, Properties};
pub use self::error::{DeviceError, Version};
pub use self::memory::{Address, Buffer, Slice};
pub use self::module::{Argument, Arguments, Function, Grid, Module};
pub use self::staging::{Fetch, Staging};
pub use self::stream::{Event, Stream};
