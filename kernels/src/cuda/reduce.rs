//! What a step's vote asks of whole vectors on the device: the norm of gradients, and where a number is not finite. The
//! judges are [`crate::adamw::sum_of_squares`], the same bits, and [`crate::tensor::all_finite`].
//!
//! n elements from a multiple of 16 bytes on.
//! - [`Kernels::sum_of_squares`]  out (one FP64) = sum(x^2) of FP32, overwritten; an infinity or a NaN anywhere shows
//!   in it. Products and sums FP64, in the CPU's order. 4 bytes moved for each element, and one FP64 multiply-add,
//!   which is what binds where a card has few FP64 units. Then one thread adds the sums of 16384 elements.
//! - [`Kernels::first_nonfinite`]  place (one u64) = min(place, index of the first infinity or NaN of x), FP32 or BF16.
//!   Set all bytes to 0xff before ([`NONE`]): a step's checks of many tensors are then read at once, each tensor having
//!   a place of its own, and the first in the order of the step says where it began. 4 or 2 bytes for each element.
//!
//! Deterministic: the only atomic takes a minimum of integers.
#![expect(unsafe_code, reason = "launches kernels")]

use crate::tensor::DType;

use super::check::Check;
use super::elementwise::Vector;
use super::image::REDUCE;
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// As in `reduce.cu`.
const THREADS: usize = 256;
const LANES: usize = 16;
const PIECE: usize = 16 * 1024;
const CHUNK: usize = 8;

/// What a place says when everything is finite.
pub const NONE: u64 = u64::MAX;

/// Vector, result, length.
type OfVector = Function<(Address, Address, u64)>;
/// Sums of pieces, result, how many.
type OfPieces = Function<(Address, Address, u32)>;

/// The kernels of `reduce.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    pieces: OfVector,
    of_pieces: OfPieces,
    nonfinite_f32: OfVector,
    nonfinite_bf16: OfVector,
}

/// Bytes that `sum_of_squares` needs for sums of pieces of `n` elements.
pub fn scratch_bytes(n: usize) -> usize {
    8 * n.div_ceil(PIECE)
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&REDUCE)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        Ok(Self {
            pieces: module.function("sum_of_squares_pieces", 0)?,
            of_pieces: module.function("sum_of_pieces", 0)?,
            nonfinite_f32: module.function("first_nonfinite_f32", 0)?,
            nonfinite_bf16: module.function("first_nonfinite_bf16", 0)?,
        })
    }

    /// See the head of this file. `scratch` has [`scratch_bytes`], undefined afterwards.
    ///
    /// # Errors
    /// Sizes that are not those of `n` elements, a result that overlaps with something else; what the driver says.
    pub fn sum_of_squares(
        &self,
        stream: &Stream,
        x: Slice<'_>,
        (out, scratch): (Slice<'_>, Slice<'_>),
        n: usize,
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("sum of squares");
        CHECK.bytes("x", x, 4 * n)?;
        CHECK.bytes("scratch", scratch, scratch_bytes(n))?;
        place(CHECK, "out", out)?;
        CHECK.apart(&[("out", out), ("scratch", scratch)], &[("x", x)])?;
        let pieces = CHECK.number("pieces", n.div_ceil(PIECE))?;
        let blocks = pieces.div_ceil((THREADS / LANES) as u32);
        let of_x = (x.address(), scratch.address(), n as u64);
        let of_pieces = (scratch.address(), out.address(), pieces);
        // SAFETY: the kernel stays inside vectors of these lengths, whose sizes were checked above.
        unsafe { self.pieces.launch(stream, Grid::line(blocks, THREADS as u32), of_x) }?;
        // SAFETY: as above.
        unsafe { self.of_pieces.launch(stream, Grid::line(1, 32), of_pieces) }
    }

    /// See the head of this file.
    ///
    /// # Errors
    /// Sizes that are not those of `n` elements, a place inside the vector; what the driver says.
    pub fn first_nonfinite(
        &self,
        stream: &Stream,
        x: Vector<'_>,
        first: Slice<'_>,
        n: usize,
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("first place that is not finite");
        CHECK.bytes("x", x.slice, x.dtype.size() * n)?;
        place(CHECK, "the place", first)?;
        CHECK.apart(&[("the place", first)], &[("x", x.slice)])?;
        let blocks = CHECK.number("blocks", n.div_ceil(THREADS * CHUNK))?;
        let function = match x.dtype {
            DType::F32 => &self.nonfinite_f32,
            DType::Bf16 => &self.nonfinite_bf16,
        };
        let arguments = (x.slice.address(), first.address(), n as u64);
        // SAFETY: the kernel stays inside vectors of these lengths, whose sizes were checked above.
        unsafe { function.launch(stream, Grid::line(blocks, THREADS as u32), arguments) }
    }
}

/// One number of eight bytes.
fn place(check: Check, what: &str, slice: Slice<'_>) -> Result<(), DeviceError> {
    if slice.bytes() != 8 || !slice.is_aligned(8) {
        let bytes = slice.bytes();
        return check
            .wrong(format!("{what} has {bytes} bytes, 8 from a multiple of 8 on are wanted"));
    }
    Ok(())
}
