//! The PTX in this binary: which text serves which card, and what its kernels take.
//!
//! Written by `.ci/ptx` with the oldest compiler that knows each architecture, so that a driver that is
//! not the newest accepts it too. Kept compressed (zstd).

use std::fmt;

use super::error::{DeviceError, Version};

/// What PTX is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Compute capability 8.0 to 8.7 (RTX 30): E4M3 in memory, widened to FP16 (exact) for the tensor cores.
    Sm80,
    /// 8.9 (RTX 40): E4M3 tensor cores. Serves every newer card that has no image of its own: correct
    /// there, without what is new in it.
    Sm89,
    /// 9.0 to 11 (H100, B200): E4M3 is converted to FP16, once. `mma.sync` takes E4M3 there, but the driver
    /// makes of it a conversion for each product, into more registers than there are.
    Sm90,
    /// Exactly 12.0 (RTX 50): block-scaled E4M3 tensor cores.
    Sm120a,
}

impl Arch {
    pub const ALL: [Self; 4] = [Self::Sm80, Self::Sm89, Self::Sm90, Self::Sm120a];

    /// The image for a card, if there is one.
    pub fn serving((major, minor): (u32, u32)) -> Option<Self> {
        match (major, minor) {
            (12, 0) => Some(Self::Sm120a),
            (9..=11, _) => Some(Self::Sm90),
            (12.., _) | (8, 9..) => Some(Self::Sm89),
            (8, _) => Some(Self::Sm80),
            _ => None,
        }
    }

    /// The CUDA whose compiler wrote the PTX: a driver must support at least that.
    pub fn cuda_min(self) -> Version {
        match self {
            Self::Sm80 => Version { major: 11, minor: 7 },
            Self::Sm89 | Self::Sm90 => Version { major: 12, minor: 4 },
            Self::Sm120a => Version { major: 12, minor: 8 },
        }
    }

    /// The first release branch of the driver that supports it (CUDA's release notes, table of toolkit
    /// driver versions).
    pub fn driver_min(self) -> u32 {
        match self {
            Self::Sm80 => 515,
            Self::Sm89 | Self::Sm90 => 550,
            Self::Sm120a => 570,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sm80 => "sm_80",
            Self::Sm89 => "sm_89",
            Self::Sm90 => "sm_90",
            Self::Sm120a => "sm_120a",
        })
    }
}

/// One `.cu` file, compiled for every [`Arch`].
#[derive(Clone, Copy, Debug)]
pub struct Program {
    name: &'static str,
    /// In the order of `Arch::ALL`.
    images: [&'static [u8]; 4],
}

macro_rules! program {
    ($name:literal) => {
        Program {
            name: $name,
            images: [
                include_bytes!(concat!("../../ptx/", $name, ".sm_80.ptx.zst")),
                include_bytes!(concat!("../../ptx/", $name, ".sm_89.ptx.zst")),
                include_bytes!(concat!("../../ptx/", $name, ".sm_90.ptx.zst")),
                include_bytes!(concat!("../../ptx/", $name, ".sm_120a.ptx.zst")),
            ],
        }
    };
}

/// `adamw.cu`.
pub const ADAMW: Program = program!("adamw");

/// `attention.cu`.
pub const ATTENTION: Program = program!("attention");

/// `cross_entropy.cu`.
pub const CROSS_ENTROPY: Program = program!("cross_entropy");

/// `dispatch.cu`.
pub const DISPATCH: Program = program!("dispatch");

/// `elementwise.cu`.
pub const ELEMENTWISE: Program = program!("elementwise");

/// `embedding.cu`.
pub const EMBEDDING: Program = program!("embedding");

/// `gemm_bf16.cu`.
pub const GEMM_BF16: Program = program!("gemm_bf16");

/// `gemm_fp8.cu`.
pub const GEMM_FP8: Program = program!("gemm_fp8");

/// `quantise.cu`.
pub const QUANTISE: Program = program!("quantise");

/// `reduce.cu`.
pub const REDUCE: Program = program!("reduce");

/// `rmsnorm.cu`.
pub const RMSNORM: Program = program!("rmsnorm");

/// `rope.cu`.
pub const ROPE: Program = program!("rope");

/// `router.cu`.
pub const ROUTER: Program = program!("router");

/// `swiglu.cu`.
pub const SWIGLU: Program = program!("swiglu");

/// `window.cu`.
pub const WINDOW: Program = program!("window");

/// Everything that ships.
pub const PROGRAMS: &[Program] = &[
    ADAMW,
    ATTENTION,
    CROSS_ENTROPY,
    DISPATCH,
    ELEMENTWISE,
    EMBEDDING,
    GEMM_BF16,
    GEMM_FP8,
    QUANTISE,
    REDUCE,
    RMSNORM,
    ROPE,
    ROUTER,
    SWIGLU,
    WINDOW,
];

impl Program {
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The text for an architecture.
    ///
    /// # Errors
    /// When this binary was built from a damaged image.
    pub fn ptx(&self, arch: Arch) -> Result<String, DeviceError> {
        let image = match arch {
            Arch::Sm80 => self.images[0],
            Arch::Sm89 => self.images[1],
            Arch::Sm90 => self.images[2],
            Arch::Sm120a => self.images[3],
        };
        let damaged = |problem: String| DeviceError::Image {
            image: format!("{} for {arch}", self.name),
            problem,
        };
        let text = zstd::decode_all(image).map_err(|error| damaged(error.to_string()))?;
        String::from_utf8(text).map_err(|error| damaged(error.to_string()))
    }
}

/// The names of all kernels of a PTX text.
pub fn kernels(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.split(".entry").skip(1).filter_map(|rest| rest.split(['(', '\n']).next()).map(str::trim)
}

/// The types of what a kernel takes, in order (`u64`, `f32`; `b8[24]` for a struct), or `None` if there is
/// no kernel of that name. PTX ISA 9.7, `.entry` and `.param`.
pub(super) fn parameters(ptx: &str, kernel: &str) -> Option<Vec<String>> {
    let list = ptx.split(".entry").skip(1).find_map(|rest| {
        let (name, rest) = rest.split_once('(')?;
        (name.trim() == kernel).then(|| rest.split_once(')')).flatten()
    })?;
    let declarations = list.0.split(',').filter(|declaration| declaration.contains(".param"));
    Some(declarations.map(parameter).collect())
}

/// The type of one declaration: `.param .u64 .ptr .align 1 name`, `.param .align 8 .b8 name[24]`.
fn parameter(declaration: &str) -> String {
    let mut words = declaration.split_whitespace();
    let mut found = String::new();
    while let Some(word) = words.next() {
        match word {
            ".param" | ".ptr" | ".global" => {}
            ".align" => drop(words.next()),
            word if found.is_empty() => word.trim_start_matches('.').clone_into(&mut found),
            word => {
                if let Some(at) = word.find('[') {
                    found.push_str(&word[at..]);
                }
            }
        }
    }
    found
}

#[cfg(test)]
#[path = "image/tests.rs"]
mod tests;
