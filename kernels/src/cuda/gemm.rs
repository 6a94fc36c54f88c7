//! Matrix products of linear layers on the device, FP8 and BF16. The judge is [`crate::linear`].
//!
//! T tokens, K inputs, N outputs; everything row-major without gaps, nothing is ever transposed in memory:
//! - [`Kernels::forward`]      y `(T, N)` = x `(T, K)` w `(N, K)`^T
//! - [`Kernels::input_grad`]   dx `(T, K)` = dy `(T, N)` w `(N, K)`
//! - [`Kernels::weight_grad`]  dw `(N, K)` = dy `(T, N)`^T x `(T, K)`
//!
//! The result is BF16 (rounded to the nearest even) or FP32, over what is there or added to it.
//!
//! *FP8.* Codes are E4M3. For forward and input gradient x and dy are in 1 x 128 tiles and w in 128 x 128 blocks
//! (one copy serves both); for the weight gradient dy and x are in 128 x 1 tiles. Scales of both operands are in one
//! format. The products of 128 are summed in the tensor core, scaled, and added up in FP32; on `sm_120a` with UE8M0
//! scales the tensor core scales and adds up. Sums of a tensor core keep 13 bits of the largest addend on `sm_89`, 24 or
//! more elsewhere (numbers published by MMA-Sim, arXiv 2511.10909): against exact sums, `calc_diff` stays
//! below 1e-6. A NaN comes from the scale of its tile, which is how [`crate::Quantized`] makes them: a NaN code
//! under a finite scale is no NaN below `sm_89`. *BF16.* No scales, sums in FP32.
//!
//! *Grouped*, for experts. Forward and input gradient: w is `(E, N, K)` with scales for each expert, and rows
//! `first .. end` of x and y, of dy and dx, belong to expert e; ranges do not overlap, may be empty, and rows in none
//! of them are left alone. Weight gradient: dw is `(E, N, K)`, and expert e contracts its rows; with 128 x 1 tiles its
//! first row is a multiple of 128 (where it ends does not matter). Adding, an expert without rows keeps its dw;
//! overwriting, it gets zeros. Ranges are read by the kernel, never by the host.
//!
//! Any sizes, zero included. Rows that are no multiple of 16 bytes long, or do not begin at one, are read element by
//! element, at a fraction of the speed. Deterministic: each result is one thread's sum in a fixed order.
//! Source: DeepSeek-V3 report 3.3.
#![expect(unsafe_code, reason = "launches kernels")]

use std::sync::Arc;

use crate::fp8::{ScaleFormat, Tiling};
use crate::tensor::DType;

use super::image::{Arch, GEMM_BF16, GEMM_FP8};
use super::quantise::QuantizedSlices;
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// A, B, their scales, C, ranges; groups, m, n, k, flags.
type Gemm =
    Function<(Address, Address, Address, Address, Address, Address, u32, u32, u32, u32, u32)>;

/// As in `gemm_run.cuh`.
const C_BF16: u32 = 1;
const C_ACCUMULATE: u32 = 2;
const SCALES_FP32: u32 = 4;

/// Stages of operands in shared memory, and bytes of a row in each, as in `gemm_warp.cuh`.
const STAGES: u32 = 3;
const STAGE_BYTES: u32 = 128;

/// The kernels of `gemm_fp8.cu` and `gemm_bf16.cu`, loaded. A clone shares them.
#[derive(Clone, Debug)]
pub struct Kernels {
    loaded: Arc<Loaded>,
    tile: TileChoice,
}

/// How large a square of the result one block computes at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TileChoice {
    /// What takes less time, by the sizes.
    #[default]
    Best,
    /// 64 x 64.
    Small,
    /// 128 x 128.
    Large,
}

#[derive(Debug)]
struct Loaded {
    fp8: Products,
    /// UE8M0 scales inside the tensor core.
    scaled: Option<Products>,
    bf16: Products,
    multiprocessors: u32,
    shared_bytes_max: u32,
}

#[derive(Debug)]
struct Products {
    forward: Tiles,
    input_grad: Tiles,
    weight_grad: Tiles,
}

#[derive(Debug)]
struct Tiles {
    small: Tile,
    large: Tile,
}

/// One kernel, and the side of the square of C that a block computes at a time.
#[derive(Debug)]
struct Tile {
    function: Gemm,
    side: u32,
    shared_bytes: u32,
}

/// The sizes of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens.
    pub t: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

/// One side of a product.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    Fp8(QuantizedSlices<'a>),
    Bf16(Slice<'a>),
}

/// Where a product goes.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    pub values: Slice<'a>,
    pub dtype: DType,
    /// Added to what is there; otherwise over it.
    pub accumulate: bool,
}

/// Which rows belong to which expert: `experts` pairs of u32, first row and end, on the device. Ends beyond T
/// count as T.
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a> {
    pub ranges: Slice<'a>,
    pub experts: usize,
}

/// A product in the kernels' frame, C `(m, n)` = A B with k contracted.
struct Frame<'a> {
    operation: &'static str,
    a: (Operand<'a>, usize, usize, Tiling),
    /// The rows and columns of one expert.
    b: (Operand<'a>, usize, usize, Tiling),
    /// How often B, or C.
    b_copies: usize,
    c: (Output<'a>, usize),
    groups: Option<Groups<'a>>,
    m: usize,
    n: usize,
    k: usize,
}

impl Tile {
    fn load(module: &Module, name: &str, side: u32, words: u32) -> Result<Self, DeviceError> {
        let shared_bytes = STAGES * 2 * side * STAGE_BYTES + 2 * words * 4;
        let function = module.function(&format!("{name}_{side}"), shared_bytes)?;
        Ok(Self { function, side, shared_bytes })
    }

    fn threads(&self) -> u32 {
        if self.side == 64 { 128 } else { 256 }
    }
}

impl Products {
    fn load(module: &Module, kind: &str) -> Result<Self, DeviceError> {
        // Scales of a stage, as in `gemm_scale.cuh`.
        let words = |product: &str, side| match (kind, product) {
            ("bf16", _) => 0,
            (_, "weight_grad") => 2 * side,
            ("fp8_scaled", _) => side + 4,
            _ => side,
        };
        let tiles = |product: &str| {
            let tile =
                |side| Tile::load(module, &format!("{kind}_{product}"), side, words(product, side));
            Ok(Tiles { small: tile(64)?, large: tile(128)? })
        };
        Ok(Self {
            forward: tiles("forward")?,
            input_grad: tiles("input_grad")?,
            weight_grad: tiles("weight_grad")?,
        })
    }
}

impl Tiles {
    /// The tile with which a product takes less time, in units of one block's work on a large tile. Small tiles
    /// waste less at edges and spread over more multiprocessors, but read each operand twice as often.
    fn choose(&self, frame: &Frame<'_>, multiprocessors: u32) -> &Tile {
        // Two small tiles side by side on one multiprocessor, at 0.7 of the speed of a large one.
        const PAIR_OF_SMALL: f64 = 2.0 / 4.0 / 0.7;
        let tiles = |side: usize| {
            let experts = frame.groups.map_or(1, |groups| groups.experts).max(1);
            let (rows, columns) = (frame.m.div_ceil(side), frame.n.div_ceil(side));
            if matches!(frame.b.3, Tiling::Column) {
                experts * rows * columns
            } else {
                experts * frame.m.div_ceil(experts).div_ceil(side) * columns
            }
        };
        let waves = |tiles: usize, at_once: usize| tiles.div_ceil(at_once) as f64;
        let small = waves(tiles(64), 2 * multiprocessors as usize) * PAIR_OF_SMALL;
        let large = waves(tiles(128), multiprocessors as usize);
        if small < large { &self.small } else { &self.large }
    }
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(device, &device.load(&GEMM_FP8)?)
    }

    /// FP8 products of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(device: &Device, fp8: &Module) -> Result<Self, DeviceError> {
        let scaled = match device.arch() {
            Arch::Sm120a => Some(Products::load(fp8, "fp8_scaled")?),
            Arch::Sm80 | Arch::Sm89 | Arch::Sm90 => None,
        };
        let properties = device.properties();
        let loaded = Loaded {
            fp8: Products::load(fp8, "fp8")?,
            scaled,
            bf16: Products::load(&device.load(&GEMM_BF16)?, "bf16")?,
            multiprocessors: properties.multiprocessors,
            shared_bytes_max: properties.shared_bytes_max,
        };
        Ok(Self { loaded: Arc::new(loaded), tile: TileChoice::Best })
    }

    /// The same kernels with another choice of tiles, for measurements and tests. It changes no number: each
    /// result is the same sum in the same order.
    #[must_use]
    pub fn with_tile(&self, tile: TileChoice) -> Self {
        Self { loaded: Arc::clone(&self.loaded), tile }
    }

    fn products(&self, operand: Operand<'_>) -> &Products {
        match (operand, &self.loaded.scaled) {
            (Operand::Bf16(_), _) => &self.loaded.bf16,
            (Operand::Fp8(QuantizedSlices { format: ScaleFormat::Pow2, .. }), Some(scaled)) => {
                scaled
            }
            (Operand::Fp8(_), _) => &self.loaded.fp8,
        }
    }

    /// y = x w^T: x `(T, K)` in 1 x 128 tiles, w `(N, K)` or `(E, N, K)` in 128 x 128 blocks, y `(T, N)`.
    #[expect(clippy::too_many_arguments, reason = "what is multiplied, and where it goes")]
    pub fn forward(
        &self,
        stream: &Stream,
        x: Operand<'_>,
        w: Operand<'_>,
        y: Output<'_>,
        shape: Shape,
        groups: Option<Groups<'_>>,
    ) -> Result<(), DeviceError> {
        let Shape { t, n, k } = shape;
        let frame = Frame {
            operation: "forward",
            a: (x, t, k, Tiling::Row),
            b: (w, n, k, Tiling::Block),
            b_copies: groups.map_or(1, |groups| groups.experts),
            c: (y, t * n),
            groups,
            m: t,
            n,
            k,
        };
        self.launch(stream, &self.products(x).forward, &frame)
    }

    /// dx = dy w: dy `(T, N)` in 1 x 128 tiles, w as in `forward`, dx `(T, K)`.
    #[expect(clippy::too_many_arguments, reason = "what is multiplied, and where it goes")]
    pub fn input_grad(
        &self,
        stream: &Stream,
        dy: Operand<'_>,
        w: Operand<'_>,
        dx: Output<'_>,
        shape: Shape,
        groups: Option<Groups<'_>>,
    ) -> Result<(), DeviceError> {
        let Shape { t, n, k } = shape;
        let frame = Frame {
            operation: "input_grad",
            a: (dy, t, n, Tiling::Row),
            b: (w, n, k, Tiling::Block),
            b_copies: groups.map_or(1, |groups| groups.experts),
            c: (dx, t * k),
            groups,
            m: t,
            n: k,
            k: n,
        };
        self.launch(stream, &self.products(dy).input_grad, &frame)
    }

    /// dw = dy^T x: dy `(T, N)` and x `(T, K)` in 128 x 1 tiles, dw `(N, K)` or `(E, N, K)`.
    #[expect(clippy::too_many_arguments, reason = "what is multiplied, and where it goes")]
    pub fn weight_grad(
        &self,
        stream: &Stream,
        dy: Operand<'_>,
        x: Operand<'_>,
        dw: Output<'_>,
        shape: Shape,
        groups: Option<Groups<'_>>,
    ) -> Result<(), DeviceError> {
        let Shape { t, n, k } = shape;
        let experts = groups.map_or(1, |groups| groups.experts);
        let frame = Frame {
            operation: "weight_grad",
            a: (dy, t, n, Tiling::Column),
            b: (x, t, k, Tiling::Column),
            b_copies: 1,
            c: (dw, experts * n * k),
            groups,
            m: n,
            n: k,
            k: t,
        };
        self.launch(stream, &self.products(dy).weight_grad, &frame)
    }

    fn launch(&self, stream: &Stream, tiles: &Tiles, frame: &Frame<'_>) -> Result<(), DeviceError> {
        frame.check();
        let experts = frame.groups.map_or(1, |groups| groups.experts);
        if experts == 0 || frame.c.1 == 0 {
            return Ok(());
        }
        let Loaded { multiprocessors, shared_bytes_max, .. } = *self.loaded;
        let tile = match self.tile {
            TileChoice::Best => tiles.choose(frame, multiprocessors),
            TileChoice::Small => &tiles.small,
            TileChoice::Large => &tiles.large,
        };
        let Frame { operation, c: (output, _), m, n, k, .. } = *frame;
        let size = |size: usize| {
            let small = u32::try_from(size).ok().filter(|size| *size < 1 << 31);
            small.unwrap_or_else(|| panic!("{operation}: a size of {size}, at most 2^31 - 1"))
        };
        // Experts share the rows, but each may have one more tile than its share; or each has all tiles.
        let (rows, columns) = (m.div_ceil(tile.side as usize), n.div_ceil(tile.side as usize));
        let rows_at_most = match frame.b.3 {
            Tiling::Column => rows * experts,
            Tiling::Row | Tiling::Block => rows + experts - 1,
        };
        // Persistent blocks: as many as are resident at once, by shared memory and by registers.
        let resident = match tile.side {
            64 => (shared_bytes_max / tile.shared_bytes).clamp(1, 3),
            _ => 1,
        };
        let blocks = size(rows_at_most * columns).min(multiprocessors * resident);
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let (a, a_scales, fp32) = frame.a.0.parts();
        let (b, b_scales, _) = frame.b.0.parts();
        let arguments = (
            a,
            b,
            a_scales,
            b_scales,
            output.values.address(),
            frame.groups.map_or(Address(0), |groups| groups.ranges.address()),
            size(experts),
            size(m),
            size(n),
            size(k),
            flag(output.dtype == DType::Bf16, C_BF16)
                | flag(output.accumulate, C_ACCUMULATE)
                | flag(fp32, SCALES_FP32),
        );
        let grid = Grid::line(blocks, tile.threads());
        // SAFETY: the kernel stays inside matrices of these sizes, which were checked above, whatever the
        // ranges say: it cuts them at T.
        unsafe { tile.function.launch(stream, grid, arguments) }
    }
}

impl Operand<'_> {
    /// Codes or values, scales, whether these are FP32.
    fn parts(&self) -> (Address, Address, bool) {
        match self {
            Self::Bf16(values) => (values.address(), Address(0), false),
            Self::Fp8(x) => (x.codes.address(), x.scales.address(), x.format == ScaleFormat::Fp32),
        }
    }

    fn slices(&self) -> Vec<Slice<'_>> {
        match self {
            Self::Bf16(values) => vec![*values],
            Self::Fp8(x) => vec![x.codes, x.scales],
        }
    }

    /// Bytes and alignment, as `copies` matrices one after another.
    #[track_caller]
    fn check(&self, operation: &str, copies: usize, rows: usize, cols: usize, tiling: Tiling) {
        let check = |what: &str, slice: Slice<'_>, elements: usize, size: usize| {
            let want = copies * elements * size;
            let got = slice.bytes();
            assert_eq!(got, want, "{operation}: bytes of {what} of {copies} x {rows} x {cols}");
            let aligned = slice.is_aligned(size as u64);
            assert!(aligned, "{operation}: {what} that do not begin at a multiple of {size} bytes");
        };
        match self {
            Self::Bf16(values) => check("values", *values, rows * cols, 2),
            Self::Fp8(x) => {
                check("codes", x.codes, rows * cols, 1);
                check("scales", x.scales, tiling.scales(rows, cols), x.format.bytes());
            }
        }
    }
}

impl Frame<'_> {
    /// Sizes, formats, alignment, and that nothing is written which is read.
    #[track_caller]
    fn check(&self) {
        let operation = self.operation;
        let (a, rows, cols, tiling) = &self.a;
        a.check(operation, 1, *rows, *cols, *tiling);
        let (b, rows, cols, tiling) = &self.b;
        b.check(operation, self.b_copies, *rows, *cols, *tiling);
        let same = match (a, b) {
            (Operand::Fp8(a), Operand::Fp8(b)) => a.format == b.format,
            (Operand::Bf16(_), Operand::Bf16(_)) => true,
            (Operand::Fp8(_), Operand::Bf16(_)) | (Operand::Bf16(_), Operand::Fp8(_)) => false,
        };
        assert!(same, "{operation}: both operands are FP8 with scales of one format, or both BF16");
        let (c, elements) = &self.c;
        assert_eq!(c.values.bytes(), elements * c.dtype.size(), "{operation}: bytes of the result");
        let aligned = c.values.is_aligned(c.dtype.size() as u64);
        assert!(aligned, "{operation}: a result that does not begin at a multiple of its element");
        if let Some(groups) = &self.groups {
            let bytes = groups.ranges.bytes();
            assert_eq!(
                bytes,
                8 * groups.experts,
                "{operation}: bytes of {} ranges",
                groups.experts
            );
            assert!(
                groups.ranges.is_aligned(8),
                "{operation}: ranges that begin at no multiple of 8"
            );
        }
        let ranges = self.groups.map(|groups| groups.ranges);
        let mut read = a.slices().into_iter().chain(b.slices()).chain(ranges);
        let apart = read.all(|slice| !slice.overlaps(c.values));
        assert!(apart, "{operation}: the result overlaps with what is read");
    }
}
