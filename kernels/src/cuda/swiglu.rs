//! The gated activation on the device, forward and backward. The judge is [`crate::swiglu`]: h, dg and du are the same
//! bytes, codes and scales included; `d_gate` is summed in another order.
//!
//! T rows, F columns; g, u, dh BF16 or E4M3 in 1 x 128 tiles, gates FP32 `(T)` or none; nothing beside the matrices.
//! - [`Kernels::forward`]  h = silu(g) u gate, rounded to BF16, which is written or quantised; g and u are quantised on
//!   the way, if they are kept so. Bytes moved for each element: 4 and 2 in BF16; 4 and 1, or 3 with g and u kept, in
//!   FP8.
//! - [`Kernels::backward`]  dg = dh gate u silu'(g), du = dh gate silu(g), h again, each rounded to BF16 and then
//!   written or quantised; `d_gate` = sum of dh silu(g) u over a row, where there are gates. Quantised g and u are
//!   rounded to BF16 as they are read. Bytes moved for each element: 12 in BF16, 7 in FP8, scales of 1/128 or 4/128 a
//!   matrix not counted.
//!
//! All results are overwritten. Any sizes; where F is no multiple of 8, elements are moved one by one. Deterministic: a
//! row is one warp's work. Source: numerics.md, "Our choices" (the gate before the down projection).
#![expect(unsafe_code, reason = "launches kernels")]

use crate::fp8::{ScaleFormat, Tiling};

use super::check::{Check, address};
use super::image::SWIGLU;
use super::quantise::{QuantizedSlices, Shape};
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// As in `swiglu.cu`.
const THREADS: u32 = 256;
const ROWS_OF_BLOCK: usize = 8;

/// g, u, gates, h; rows, columns.
type Forward = Function<(Address, Address, Address, Address, u32, u32)>;
/// g, u, gates; codes and scales of h, g and u; rows, columns.
type ForwardQuantised = Function<(
    Address,
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
)>;
/// g, u, dh, gates, h, dg, du, gradients of the gates; rows, columns.
type Backward =
    Function<(Address, Address, Address, Address, Address, Address, Address, Address, u32, u32)>;
/// Codes and scales of g and u, dh, gates, codes and scales of h, dg and du, gradients of the gates; rows, columns.
type BackwardQuantised = Function<(
    Address,
    Address,
    Address,
    Address,
    Address,
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
)>;

/// The kernels of `swiglu.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    forward: Forward,
    forward_pow2: ForwardQuantised,
    forward_fp32: ForwardQuantised,
    backward: Backward,
    /// By the format of activations, then of gradients: pow2, fp32.
    backward_quantised: [[BackwardQuantised; 2]; 2],
}

/// Where h goes.
#[derive(Clone, Copy, Debug)]
pub enum Hidden<'a> {
    Bf16(Slice<'a>),
    /// With g and u beside it, if they are kept: all in one format.
    Fp8 {
        h: QuantizedSlices<'a>,
        kept: Option<[QuantizedSlices<'a>; 2]>,
    },
}

/// What `backward` reads and writes beside dh and gates: all in BF16, or all quantised.
#[derive(Clone, Copy, Debug)]
pub enum Sides<'a> {
    Bf16 {
        g: Slice<'a>,
        u: Slice<'a>,
        h: Slice<'a>,
        dg: Slice<'a>,
        du: Slice<'a>,
    },
    /// g, u and h in one format, dg and du in one.
    Fp8 {
        g: QuantizedSlices<'a>,
        u: QuantizedSlices<'a>,
        h: QuantizedSlices<'a>,
        dg: QuantizedSlices<'a>,
        du: QuantizedSlices<'a>,
    },
}

/// The gates of rows, and where their gradients go.
#[derive(Clone, Copy, Debug)]
pub struct Gates<'a> {
    pub gates: Slice<'a>,
    pub d_gates: Slice<'a>,
}

/// A grid of warps, one a row.
fn grid(shape: Shape) -> Grid {
    let rows = if shape.cols == 0 { 0 } else { shape.rows };
    Grid::line(rows.div_ceil(ROWS_OF_BLOCK) as u32, THREADS)
}

fn index(format: ScaleFormat) -> usize {
    match format {
        ScaleFormat::Pow2 => 0,
        ScaleFormat::Fp32 => 1,
    }
}

type Named<'a> = Vec<(&'static str, Slice<'a>)>;

/// Checks a quantised matrix and lists its parts.
fn tiles<'a>(
    check: Check,
    (codes, scales): (&'static str, &'static str),
    x: QuantizedSlices<'a>,
    shape: Shape,
    list: &mut Named<'a>,
) -> Result<(), DeviceError> {
    check.bytes(codes, x.codes, shape.rows * shape.cols)?;
    check.bytes(scales, x.scales, shape.scale_bytes(Tiling::Row, x.format))?;
    list.extend([(codes, x.codes), (scales, x.scales)]);
    Ok(())
}

fn same_format(check: Check, what: &str, all: &[QuantizedSlices<'_>]) -> Result<(), DeviceError> {
    if all.windows(2).any(|pair| pair[0].format != pair[1].format) {
        return check.wrong(format!("scales of {what} are not in one format"));
    }
    Ok(())
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&SWIGLU)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        let backward = |activations: &str, gradients: &str| {
            module.function(&format!("swiglu_backward_{activations}_{gradients}"), 0)
        };
        Ok(Self {
            forward: module.function("swiglu_forward", 0)?,
            forward_pow2: module.function("swiglu_forward_pow2", 0)?,
            forward_fp32: module.function("swiglu_forward_fp32", 0)?,
            backward: module.function("swiglu_backward", 0)?,
            backward_quantised: [
                [backward("pow2", "pow2")?, backward("pow2", "fp32")?],
                [backward("fp32", "pow2")?, backward("fp32", "fp32")?],
            ],
        })
    }

    /// See the head of this file.
    ///
    /// # Errors
    /// Sizes that do not fit `shape`, a result that overlaps with something else; what the driver says.
    pub fn forward(
        &self,
        stream: &Stream,
        (g, u, gates): (Slice<'_>, Slice<'_>, Option<Slice<'_>>),
        h: Hidden<'_>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("swiglu forward");
        let bytes = 2 * shape.rows * shape.cols;
        let (rows, cols) =
            (CHECK.number("rows", shape.rows)?, CHECK.number("columns", shape.cols)?);
        CHECK.bytes("g", g, bytes)?;
        CHECK.bytes("u", u, bytes)?;
        let mut read: Named<'_> = vec![("g", g), ("u", u)];
        if let Some(gates) = gates {
            CHECK.bytes("gates", gates, 4 * shape.rows)?;
            read.push(("gates", gates));
        }
        let (g_at, u_at, gates_at) = (g.address(), u.address(), address(gates));
        match h {
            Hidden::Bf16(h) => {
                CHECK.bytes("h", h, bytes)?;
                CHECK.apart(&[("h", h)], &read)?;
                let arguments = (g_at, u_at, gates_at, h.address(), rows, cols);
                // SAFETY: the kernel stays inside matrices of this shape, whose sizes were checked above.
                unsafe { self.forward.launch(stream, grid(shape), arguments) }
            }
            Hidden::Fp8 { h, kept } => {
                let mut written = Vec::new();
                tiles(CHECK, ("codes of h", "scales of h"), h, shape, &mut written)?;
                if let Some([g, u]) = kept {
                    same_format(CHECK, "h, g and u", &[h, g, u])?;
                    tiles(CHECK, ("codes of g", "scales of g"), g, shape, &mut written)?;
                    tiles(CHECK, ("codes of u", "scales of u"), u, shape, &mut written)?;
                }
                CHECK.apart(&written, &read)?;
                let [g, u] = kept.map_or([[Address(0); 2]; 2], |kept| {
                    kept.map(|x| [x.codes.address(), x.scales.address()])
                });
                let h_at = (h.codes.address(), h.scales.address());
                let arguments =
                    (g_at, u_at, gates_at, h_at.0, h_at.1, g[0], g[1], u[0], u[1], rows, cols);
                let function = [&self.forward_pow2, &self.forward_fp32][index(h.format)];
                // SAFETY: the kernel stays inside matrices of this shape, whose sizes were checked above.
                unsafe { function.launch(stream, grid(shape), arguments) }
            }
        }
    }

    /// See the head of this file.
    ///
    /// # Errors
    /// Sizes that do not fit `shape`, a result that overlaps with something else; what the driver says.
    pub fn backward(
        &self,
        stream: &Stream,
        (dh, gates): (Slice<'_>, Option<Gates<'_>>),
        sides: Sides<'_>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("swiglu backward");
        let bytes = 2 * shape.rows * shape.cols;
        let (rows, cols) =
            (CHECK.number("rows", shape.rows)?, CHECK.number("columns", shape.cols)?);
        CHECK.bytes("dh", dh, bytes)?;
        let (mut read, mut written): (Named<'_>, Named<'_>) = (vec![("dh", dh)], Vec::new());
        if let Some(Gates { gates, d_gates }) = gates {
            CHECK.bytes("gates", gates, 4 * shape.rows)?;
            CHECK.bytes("d_gates", d_gates, 4 * shape.rows)?;
            read.push(("gates", gates));
            written.push(("d_gates", d_gates));
            if shape.cols == 0 {
                stream.fill(d_gates, 0)?;
            }
        }
        let (gates_at, d_gates_at) = gates.map_or((Address(0), Address(0)), |gates| {
            (gates.gates.address(), gates.d_gates.address())
        });
        let dh_at = dh.address();
        match sides {
            Sides::Bf16 { g, u, h, dg, du } => {
                for (what, slice) in [("g", g), ("u", u)] {
                    CHECK.bytes(what, slice, bytes)?;
                    read.push((what, slice));
                }
                for (what, slice) in [("h", h), ("dg", dg), ("du", du)] {
                    CHECK.bytes(what, slice, bytes)?;
                    written.push((what, slice));
                }
                CHECK.apart(&written, &read)?;
                let [g, u, h, dg, du] = [g, u, h, dg, du].map(Slice::address);
                let arguments = (g, u, dh_at, gates_at, h, dg, du, d_gates_at, rows, cols);
                // SAFETY: the kernel stays inside matrices of this shape, whose sizes were checked above.
                unsafe { self.backward.launch(stream, grid(shape), arguments) }
            }
            Sides::Fp8 { g, u, h, dg, du } => {
                same_format(CHECK, "g, u and h", &[g, u, h])?;
                same_format(CHECK, "dg and du", &[dg, du])?;
                tiles(CHECK, ("codes of g", "scales of g"), g, shape, &mut read)?;
                tiles(CHECK, ("codes of u", "scales of u"), u, shape, &mut read)?;
                tiles(CHECK, ("codes of h", "scales of h"), h, shape, &mut written)?;
                tiles(CHECK, ("codes of dg", "scales of dg"), dg, shape, &mut written)?;
                tiles(CHECK, ("codes of du", "scales of du"), du, shape, &mut written)?;
                CHECK.apart(&written, &read)?;
                let function = &self.backward_quantised[index(g.format)][index(dg.format)];
                let [g, u, h, dg, du] =
                    [g, u, h, dg, du].map(|x| [x.codes.address(), x.scales.address()]);
                let arguments = (
                    g[0], g[1], u[0], u[1], dh_at, gates_at, h[0], h[1], dg[0], dg[1], du[0],
                    du[1], d_gates_at, rows, cols,
                );
                // SAFETY: the kernel stays inside matrices of this shape, whose sizes were checked above.
                unsafe { function.launch(stream, grid(shape), arguments) }
            }
        }
    }
}
