//! The optimizer's pass over memory on the device. The judges are [`crate::adamw`], [`crate::Quantized`] and
//! [`crate::router::step_bias`]: all results are the same bytes.
//!
//! n parameters: masters, gradients and their average FP32, moments BF16 or FP32, all of one length.
//! - [`Kernels::step`]  masters, moments and average move by one step, gradients become zero, and the compute weight is
//!   made of the new masters: a BF16 copy, E4M3 codes with a scale for each 128 x 128 block of a matrix `(N, K)`, or
//!   none. Bytes moved for each parameter: 24 with BF16 moments, 32 with FP32 ones; 8 for an average; 2 for a copy or 1
//!   for codes.
//! - A checksum (one u64), if wanted: += the masters' [`crate::checksum`] from position 0 on.
//!   Twins that hold the same masters hold the same sum; an element changed or moved changes it. No bytes moved.
//! - [`Kernels::step_bias`]  router biases FP32 `(E)` from counts u64 `(E)`.
//!
//! Any sizes. Deterministic: the only atomic adds integers. Source: `DeepSeek`-V3 report 2.1.2, 3.2 and 4.2.
#![expect(unsafe_code, reason = "launches kernels")]

use crate::adamw::{AdamStep, Rates};
use crate::fp8::{BLOCK, ScaleFormat, Tiling};
use crate::tensor::DType;

use super::check::{Check, address};
use super::image::ADAMW;
use super::quantise::{QuantizedSlices, Shape};
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// As in `adamw.cu`: threads and elements of a thread, and threads of a tile.
const THREADS: usize = 256;
const CHUNK: usize = 8;
const TILE_THREADS: u32 = 512;

const CHECK: Check = Check("adamw");

/// Masters, moments, gradients, average, copy, checksum; length; step size, correction of v, keep, beta1, beta2,
/// epsilon, scale of gradients, decay.
type Flat = Function<(
    Address,
    Address,
    Address,
    Address,
    Address,
    Address,
    Address,
    u64,
    f32,
    f32,
    f32,
    f32,
    f32,
    f32,
    f32,
    f32,
)>;
/// The same with codes and scales, and rows and columns.
type Blocks = Function<(
    Address,
    Address,
    Address,
    Address,
    Address,
    Address,
    Address,
    Address,
    u32,
    u32,
    f32,
    f32,
    f32,
    f32,
    f32,
    f32,
    f32,
    f32,
)>;
/// Biases, counts; experts, speed.
type StepBias = Function<(Address, Address, u32, f32)>;

/// The kernels of `adamw.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    bf16: OfMoments,
    f32: OfMoments,
    step_bias: StepBias,
}

#[derive(Debug)]
struct OfMoments {
    flat: Flat,
    pow2: Blocks,
    fp32: Blocks,
}

/// What one parameter has.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    pub masters: Slice<'a>,
    /// First and second, in `moments`.
    pub first: Slice<'a>,
    pub second: Slice<'a>,
    pub moments: DType,
    pub gradients: Slice<'a>,
    pub average: Option<Average<'a>>,
    /// Added to.
    pub checksum: Option<Slice<'a>>,
}

/// `values = decay * values + (1 - decay) * master`, after the step.
#[derive(Clone, Copy, Debug)]
pub struct Average<'a> {
    pub values: Slice<'a>,
    pub decay: f32,
}

/// What compute reads instead of masters.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// Masters themselves, so many of them.
    Master(usize),
    /// A copy of so many.
    Bf16(Slice<'a>, usize),
    /// A matrix in 128 x 128 blocks.
    Fp8(QuantizedSlices<'a>, Shape),
}

impl Weight<'_> {
    fn parameters(&self) -> usize {
        match self {
            Self::Master(n) | Self::Bf16(_, n) => *n,
            Self::Fp8(_, shape) => shape.rows * shape.cols,
        }
    }
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&ADAMW)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        let of_moments = |moments: &str| {
            Ok(OfMoments {
                flat: module.function(&format!("adamw_flat_{moments}"), 0)?,
                pow2: module.function(&format!("adamw_blocks_{moments}_pow2"), 0)?,
                fp32: module.function(&format!("adamw_blocks_{moments}_fp32"), 0)?,
            })
        };
        Ok(Self {
            bf16: of_moments("bf16")?,
            f32: of_moments("f32")?,
            step_bias: module.function("router_bias", 0)?,
        })
    }

    /// See the head of this file.
    ///
    /// # Errors
    /// Step 0, sizes that do not fit the weight, slices that overlap; what the driver says.
    pub fn step(
        &self,
        stream: &Stream,
        state: State<'_>,
        weight: Weight<'_>,
        adam: &AdamStep,
    ) -> Result<(), DeviceError> {
        if adam.step == 0 {
            return CHECK.wrong("steps count from 1, or the bias correction divides by 0".into());
        }
        check(&state, &weight)?;
        let kernels = match state.moments {
            DType::Bf16 => &self.bf16,
            DType::F32 => &self.f32,
        };
        match weight {
            Weight::Master(n) => kernels.flat(stream, &state, (None, n), adam),
            Weight::Bf16(copy, n) => kernels.flat(stream, &state, (Some(copy), n), adam),
            Weight::Fp8(tiles, shape) => kernels.blocks(stream, &state, (tiles, shape), adam),
        }
    }

    /// See the head of this file.
    ///
    /// # Errors
    /// Another number of biases than of counts; what the driver says.
    pub fn step_bias(
        &self,
        stream: &Stream,
        bias: Slice<'_>,
        counts: Slice<'_>,
        (experts, speed): (usize, f32),
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("router bias");
        CHECK.bytes("bias", bias, 4 * experts)?;
        CHECK.bytes("counts", counts, 8 * experts)?;
        CHECK.apart(&[("bias", bias)], &[("counts", counts)])?;
        let arguments =
            (bias.address(), counts.address(), CHECK.number("experts", experts)?, speed);
        let grid = Grid::line(u32::from(experts > 0), THREADS as u32);
        // SAFETY: the kernel stays inside vectors of this length, whose sizes were checked above.
        unsafe { self.step_bias.launch(stream, grid, arguments) }
    }
}

impl OfMoments {
    /// For sizes that were checked.
    fn flat(
        &self,
        stream: &Stream,
        state: &State<'_>,
        (copy, n): (Option<Slice<'_>>, usize),
        adam: &AdamStep,
    ) -> Result<(), DeviceError> {
        let Rates { step_size, v_correction, keep } = Rates::of(adam);
        let blocks = CHECK.number("blocks", n.div_ceil(THREADS * CHUNK))?;
        let arguments = (
            state.masters.address(),
            state.first.address(),
            state.second.address(),
            state.gradients.address(),
            address(state.average.map(|average| average.values)),
            address(copy),
            address(state.checksum),
            n as u64,
            step_size,
            v_correction,
            keep,
            adam.beta1,
            adam.beta2,
            adam.epsilon,
            adam.grad_scale,
            state.average.map_or(0.0, |average| average.decay),
        );
        let grid = Grid::line(blocks, THREADS as u32);
        // SAFETY: the kernel stays inside vectors of this length, whose sizes `step` checked.
        unsafe { self.flat.launch(stream, grid, arguments) }
    }

    /// For sizes that were checked.
    fn blocks(
        &self,
        stream: &Stream,
        state: &State<'_>,
        (tiles, shape): (QuantizedSlices<'_>, Shape),
        adam: &AdamStep,
    ) -> Result<(), DeviceError> {
        let Rates { step_size, v_correction, keep } = Rates::of(adam);
        let n_tiles = shape.rows.div_ceil(BLOCK) * shape.cols.div_ceil(BLOCK);
        let arguments = (
            state.masters.address(),
            state.first.address(),
            state.second.address(),
            state.gradients.address(),
            address(state.average.map(|average| average.values)),
            tiles.codes.address(),
            tiles.scales.address(),
            address(state.checksum),
            CHECK.number("rows", shape.rows)?,
            CHECK.number("columns", shape.cols)?,
            step_size,
            v_correction,
            keep,
            adam.beta1,
            adam.beta2,
            adam.epsilon,
            adam.grad_scale,
            state.average.map_or(0.0, |average| average.decay),
        );
        let function = match tiles.format {
            ScaleFormat::Pow2 => &self.pow2,
            ScaleFormat::Fp32 => &self.fp32,
        };
        let grid = Grid::line(CHECK.number("tiles", n_tiles)?, TILE_THREADS);
        // SAFETY: the kernel stays inside matrices of this shape, whose sizes `step` checked.
        unsafe { function.launch(stream, grid, arguments) }
    }
}

/// Sizes, and that no two slices share a byte.
fn check(state: &State<'_>, weight: &Weight<'_>) -> Result<(), DeviceError> {
    let n = weight.parameters();
    let moment = state.moments.size();
    let mut all = vec![
        ("masters", state.masters, 4),
        ("first moments", state.first, moment),
        ("second moments", state.second, moment),
        ("gradients", state.gradients, 4),
    ];
    if let Some(average) = state.average {
        all.push(("average", average.values, 4));
    }
    // As much of a row as is moved at a time: a matrix behind another of its shape begins there by itself.
    let mut columns = None;
    match *weight {
        Weight::Master(_) => {}
        Weight::Bf16(copy, _) => all.push(("copy", copy, 2)),
        Weight::Fp8(tiles, shape) => {
            columns = Some(shape.cols);
            all.push(("codes", tiles.codes, 1));
            let bytes = shape.scale_bytes(Tiling::Block, tiles.format);
            CHECK.bytes_from("scales", tiles.scales, (bytes, tiles.format.bytes() as u64))?;
        }
    }
    for (what, slice, size) in &all {
        let step = columns.map_or(16, |columns| 1 << (columns * size).trailing_zeros().min(4));
        CHECK.bytes_from(what, *slice, (size * n, step))?;
    }
    let mut written: Vec<_> = all.iter().map(|(what, slice, _)| (*what, *slice)).collect();
    if let Weight::Fp8(tiles, _) = *weight {
        written.push(("scales", tiles.scales));
    }
    if let Some(checksum) = state.checksum {
        if checksum.bytes() != 8 || !checksum.is_aligned(8) {
            return CHECK.wrong(format!(
                "the checksum has {} bytes, 8 from a multiple of 8 on are wanted",
                checksum.bytes()
            ));
        }
        written.push(("checksum", checksum));
    }
    CHECK.apart(&written, &[])
}
