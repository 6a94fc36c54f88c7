//! RMS norm on the device, forward and backward. The judge is [`crate::rmsnorm`].
//!
//! T rows, D columns; x, y, dy, dx and residuals BF16, gain and its gradient FP32 `(D)`. Sums are FP32.
//! - [`Kernels::forward`]  y = x r gain, r = (mean(x^2) + eps)^(-1/2), rounded once; overwritten. With a residual
//!   h = x + residual is rounded and written, and takes the place of x. y as it is rounded also goes to E4M3 in
//!   1 x 128 tiles, the same bytes that [`crate::Quantized`] makes of y. Bytes moved for each element: 2, and 4 with a
//!   residual; 2 for y; 1 and a scale's 1/128 or 4/128 for codes.
//! - [`Kernels::backward`]  dx = r (dy gain) - x r^3 / D sum(dy gain x), plus the residual, rounded once; overwritten.
//!   `d_gain` += sum over rows of dy x r, in an order that T and D alone determine. Bytes moved for each element: 6, 8
//!   with a residual, and 1/2 for partial sums.
//!
//! x and y, dy and dx may be some columns of wider matrices; residual and h have none beside them. h may be x or the
//! residual itself, dx may be the residual. Any number of rows; up to [`WIDTH_MAX`] columns. Rows that do not begin at
//! multiples of 16 bytes are moved element by element. Source: `DeepSeek`-V3 report 3.2 (r is computed again).
#![expect(unsafe_code, reason = "launches kernels")]

use crate::fp8::{ScaleFormat, Tiling};

use super::check::{Check, Rows, address};
use super::image::RMSNORM;
use super::quantise::{QuantizedSlices, Shape};
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// As in `rmsnorm.cu`.
const THREADS: u32 = 256;
const TEAM_ROWS: usize = 16;
/// Columns that one warp has room for.
const WARP_COLS: usize = 1024;

/// Most columns of a row.
pub const WIDTH_MAX: usize = 8192;

/// x, residual, h, gain, y; strides of x and y, rows, columns; eps.
type Plain = Function<(Address, Address, Address, Address, Address, u32, u32, u32, u32, f32)>;
/// The same; codes and scales.
type Quantised = Function<(
    Address,
    Address,
    Address,
    Address,
    Address,
    u32,
    u32,
    u32,
    u32,
    f32,
    Address,
    Address,
)>;
/// x, gain, dy, residual, dx, partial sums; strides of x, dy and dx, rows, columns; eps.
type Backward =
    Function<(Address, Address, Address, Address, Address, Address, u32, u32, u32, u32, u32, f32)>;
/// Partial sums, gradient of the gain; rows, columns.
type GainGrad = Function<(Address, Address, u32, u32)>;

/// The kernels of `rmsnorm.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    warp: Team,
    block: Team,
    gain_grad: GainGrad,
}

/// For rows of one warp, or of one block.
#[derive(Debug)]
struct Team {
    rows_of_block: usize,
    plain: Plain,
    pow2: Quantised,
    fp32: Quantised,
    backward: Backward,
}

/// The sizes of a norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub rows: usize,
    pub cols: usize,
    pub eps: f32,
}

/// What is added to x before it is normalised.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// `(T, D)` without gaps.
    pub residual: Slice<'a>,
    /// Where the sum goes, the same.
    pub sum: Slice<'a>,
}

/// What `backward` reads.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    pub x: Rows<'a>,
    pub gain: Slice<'a>,
    pub dy: Rows<'a>,
    /// `(T, D)` without gaps, added to dx.
    pub residual: Option<Slice<'a>>,
}

/// What `backward` writes.
#[derive(Clone, Copy, Debug)]
pub struct Gradients<'a> {
    pub dx: Rows<'a>,
    /// Added to.
    pub d_gain: Slice<'a>,
    /// [`Norm::scratch_bytes`]; undefined afterwards.
    pub scratch: Slice<'a>,
}

impl Norm {
    /// Bytes that `backward` needs for partial sums.
    pub fn scratch_bytes(&self) -> usize {
        self.rows.div_ceil(TEAM_ROWS) * self.cols * 4
    }

    fn checked(&self, check: Check) -> Result<(u32, u32), DeviceError> {
        if self.cols > WIDTH_MAX {
            let cols = self.cols;
            return check
                .wrong(format!("{cols} columns, at most {WIDTH_MAX} fit; use the device cpu"));
        }
        Ok((check.number("rows", self.rows)?, self.cols as u32))
    }
}

impl Team {
    fn of(module: &Module, name: &str, rows_of_block: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            rows_of_block,
            plain: module.function(&format!("rmsnorm_forward_{name}"), 0)?,
            pow2: module.function(&format!("rmsnorm_forward_{name}_pow2"), 0)?,
            fp32: module.function(&format!("rmsnorm_forward_{name}_fp32"), 0)?,
            backward: module.function(&format!("rmsnorm_backward_{name}"), 0)?,
        })
    }

    /// Blocks for so many teams.
    fn grid(&self, teams: usize) -> Grid {
        Grid::line(teams.div_ceil(self.rows_of_block) as u32, THREADS)
    }
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&RMSNORM)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        Ok(Self {
            warp: Team::of(module, "warp", 8)?,
            block: Team::of(module, "block", 1)?,
            gain_grad: module.function("rmsnorm_gain_grad", 0)?,
        })
    }

    fn team(&self, cols: usize) -> &Team {
        if cols <= WARP_COLS { &self.warp } else { &self.block }
    }

    /// See the head of this file. At least one of `y` and `tiles` is what the caller wants.
    ///
    /// # Errors
    /// Sizes that do not fit `norm`, a result that overlaps with something else; what the driver says.
    pub fn forward(
        &self,
        stream: &Stream,
        (x, gain, residual): (Rows<'_>, Slice<'_>, Option<Residual<'_>>),
        y: Option<Rows<'_>>,
        tiles: Option<QuantizedSlices<'_>>,
        norm: Norm,
    ) -> Result<(), DeviceError> {
        let (t, d) = (norm.rows, norm.cols);
        let (rows, cols) = norm.checked(FORWARD)?;
        check_forward((x, gain, residual), y, tiles, (t, d))?;
        let team = self.team(d);
        let grid = team.grid(if d == 0 { 0 } else { t });
        let (added, sum) = residual.map_or((Address(0), Address(0)), |residual| {
            (residual.residual.address(), residual.sum.address())
        });
        let (y_at, y_stride) = y.map_or((Address(0), d), |y| (y.address(), y.stride));
        let (x_at, gain_at, eps) = (x.address(), gain.address(), norm.eps);
        let (x_stride, y_stride) = (x.stride as u32, y_stride as u32);
        let Some(tiles) = tiles else {
            let arguments = (x_at, added, sum, gain_at, y_at, x_stride, y_stride, rows, cols, eps);
            // SAFETY: the kernel stays inside matrices of these shapes, whose sizes were checked above.
            return unsafe { team.plain.launch(stream, grid, arguments) };
        };
        let (codes, scales) = (tiles.codes.address(), tiles.scales.address());
        let arguments =
            (x_at, added, sum, gain_at, y_at, x_stride, y_stride, rows, cols, eps, codes, scales);
        let quantised = match tiles.format {
            ScaleFormat::Pow2 => &team.pow2,
            ScaleFormat::Fp32 => &team.fp32,
        };
        // SAFETY: as above.
        unsafe { quantised.launch(stream, grid, arguments) }
    }

    /// See the head of this file.
    ///
    /// # Errors
    /// Sizes that do not fit `norm`, a result that overlaps with something else; what the driver says.
    pub fn backward(
        &self,
        stream: &Stream,
        from: Upstream<'_>,
        to: Gradients<'_>,
        norm: Norm,
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("rmsnorm backward");
        let (t, d) = (norm.rows, norm.cols);
        let (rows, cols) = norm.checked(CHECK)?;
        CHECK.rows("x", from.x, (t, d), 2)?;
        CHECK.rows("dy", from.dy, (t, d), 2)?;
        CHECK.rows("dx", to.dx, (t, d), 2)?;
        CHECK.bytes("gain", from.gain, 4 * d)?;
        CHECK.bytes("d_gain", to.d_gain, 4 * d)?;
        CHECK.bytes("scratch", to.scratch, norm.scratch_bytes())?;
        CHECK.apart_rows(("dx", to.dx, d), ("x", from.x, d), 2)?;
        CHECK.apart_rows(("dx", to.dx, d), ("dy", from.dy, d), 2)?;
        let mut read = vec![("x", from.x.slice), ("dy", from.dy.slice), ("gain", from.gain)];
        if let Some(residual) = from.residual {
            CHECK.bytes("residual", residual, 2 * t * d)?;
            if residual.address() != to.dx.address() || to.dx.stride != d {
                CHECK.apart(&[("dx", to.dx.slice)], &[("residual", residual)])?;
            }
            read.push(("residual", residual));
        }
        read.push(("dx", to.dx.slice));
        CHECK.apart(&[("d_gain", to.d_gain), ("scratch", to.scratch)], &read)?;
        CHECK.apart(&[("dx", to.dx.slice)], &[("gain", from.gain)])?;

        let teams = if d == 0 { 0 } else { t.div_ceil(TEAM_ROWS) };
        let team = self.team(d);
        let arguments = (
            from.x.address(),
            from.gain.address(),
            from.dy.address(),
            address(from.residual),
            to.dx.address(),
            to.scratch.address(),
            from.x.stride as u32,
            from.dy.stride as u32,
            to.dx.stride as u32,
            rows,
            cols,
            norm.eps,
        );
        let sums = Grid::line(if teams == 0 { 0 } else { cols.div_ceil(32) }, THREADS);
        let add = (to.scratch.address(), to.d_gain.address(), teams as u32, cols);
        // SAFETY: the kernel stays inside matrices of these shapes, whose sizes were checked above.
        unsafe { team.backward.launch(stream, team.grid(teams), arguments) }?;
        // SAFETY: as above.
        unsafe { self.gain_grad.launch(stream, sums, add) }
    }
}

const FORWARD: Check = Check("rmsnorm forward");

/// Sizes of what `forward` is given, and that nothing is written which is read.
fn check_forward(
    (x, gain, residual): (Rows<'_>, Slice<'_>, Option<Residual<'_>>),
    y: Option<Rows<'_>>,
    tiles: Option<QuantizedSlices<'_>>,
    (t, d): (usize, usize),
) -> Result<(), DeviceError> {
    FORWARD.rows("x", x, (t, d), 2)?;
    FORWARD.bytes("gain", gain, 4 * d)?;
    let mut read = vec![("gain", gain)];
    if let Some(Residual { residual, sum }) = residual {
        FORWARD.bytes("residual", residual, 2 * t * d)?;
        FORWARD.bytes("sum", sum, 2 * t * d)?;
        if sum.address() != residual.address() {
            FORWARD.apart(&[("sum", sum)], &[("residual", residual)])?;
        }
        if sum.address() != x.address() || x.stride != d {
            FORWARD.apart(&[("sum", sum)], &[("x", x.slice)])?;
        }
        read.extend([("residual", residual), ("sum", sum)]);
        FORWARD.apart(&[("sum", sum)], &[("gain", gain)])?;
    }
    if let Some(y) = y {
        FORWARD.rows("y", y, (t, d), 2)?;
        FORWARD.apart_rows(("y", y, d), ("x", x, d), 2)?;
        FORWARD.apart(&[("y", y.slice)], &read)?;
        read.push(("y", y.slice));
    }
    read.push(("x", x.slice));
    let mut written = Vec::new();
    if let Some(tiles) = tiles {
        let scale_bytes = Shape { rows: t, cols: d }.scale_bytes(Tiling::Row, tiles.format);
        FORWARD.bytes("codes", tiles.codes, t * d)?;
        FORWARD.bytes("scales", tiles.scales, scale_bytes)?;
        written.extend([("codes", tiles.codes), ("scales", tiles.scales)]);
    }
    FORWARD.apart(&written, &read)
}
