//! What can go wrong between us and a GPU, as values. Nothing here panics.

use std::fmt;

/// A version of CUDA: what a driver supports, or what PTX needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// From the driver's form, 1000 x major + 10 x minor.
    pub(super) fn from_driver(version: i32) -> Self {
        let version = version.max(0) as u32;
        Self { major: version / 1000, minor: version % 1000 / 10 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why a device could not be opened, or did not do what it was told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "no driver: libcuda.so is not among the libraries of this machine; install NVIDIA's driver, \
         or use the device cpu"
    )]
    NoDriver,

    #[error(
        "driver too old: its libcuda has no {symbol}; install one for CUDA {needs} or newer \
         (release {release})"
    )]
    SymbolMissing { symbol: &'static str, needs: Version, release: u32 },

    #[error(
        "driver too old for this PTX: has CUDA {has}, needs {needs} (driver release {release}) for \
         {name} of compute capability {}.{}", capability.0, capability.1
    )]
    DriverTooOld {
        has: Version,
        needs: Version,
        release: u32,
        name: String,
        capability: (u32, u32),
    },

    #[error("no such GPU: asked for {ordinal}, this machine has {count}")]
    NoSuchGpu { ordinal: usize, count: usize },

    #[error(
        "GPU {ordinal} ({name}) has compute capability {}.{}, at least 8.0 is wanted \
         (GeForce RTX 30 or newer)", capability.0, capability.1
    )]
    CardTooOld { ordinal: usize, name: String, capability: (u32, u32) },

    #[error(
        "GPU {ordinal} ({name}) is not free: its compute mode is {mode} and another process may hold \
         it; end that process or set the mode with nvidia-smi -c 0"
    )]
    InUse { ordinal: usize, name: String, mode: &'static str },

    #[error(
        "out of memory on the GPU: {what} wants {bytes} bytes, {free} of {total} are free; \
         use smaller microbatches or a grid with more cells"
    )]
    OutOfMemory { what: String, bytes: usize, free: usize, total: usize },

    #[error(
        "out of memory on the GPU: {what} wants {bytes} bytes; of the {total} bytes of this cell {free} are free, \
         {largest} of them in one piece; use smaller microbatches or a grid with more cells"
    )]
    ArenaFull { what: &'static str, bytes: usize, free: usize, largest: usize, total: usize },

    #[error("kernel {kernel} takes ({}), launched with ({})", got.join(", "), want.join(", "))]
    Signature { kernel: String, want: Vec<String>, got: Vec<String> },

    #[error(
        "kernel {kernel} wants {bytes} bytes of shared memory in a block, the card has {limit}; \
         this build chose a tile for another card"
    )]
    SharedMemory { kernel: String, bytes: u32, limit: u32 },

    #[error("the PTX of {image} is refused: {problem}")]
    Image { image: String, problem: String },

    #[error("{operation}: {problem}")]
    Sizes { operation: &'static str, problem: String },

    #[error("{call}: {code} ({text})")]
    Driver { call: &'static str, code: String, text: String },
}
