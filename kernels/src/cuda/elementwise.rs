//! Vectors on the device: another dtype, and sums. The judge is [`crate::Tensor`]: results are the same bytes.
//!
//! n elements, FP32 or BF16, from a multiple of 16 bytes on.
//! - [`Kernels::cast`]  y = x in the other dtype, rounded to the nearest even; overwritten. 6 bytes moved for each
//!   element.
//! - [`Kernels::add`]  sum += x ([`crate::Tensor::add_assign`]): one FP32 addition, rounded to the dtype of the sum.
//!   Bytes moved for each element: twice the size of the sum's, once that of x's.
//!
//! Zeros are written by [`Stream::fill`].
#![expect(unsafe_code, reason = "launches kernels")]

use crate::tensor::DType;

use super::check::Check;
use super::image::ELEMENTWISE;
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// As in `elementwise.cu`: threads of a block, and elements of a thread.
const THREADS: usize = 256;
const CHUNK: usize = 8;

/// Two vectors, their length.
type OnVectors = Function<(Address, Address, u64)>;

/// The kernels of `elementwise.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    to_bf16: OnVectors,
    to_f32: OnVectors,
    /// By the dtype of the sum, then of what is added: FP32, BF16.
    add: [[OnVectors; 2]; 2],
}

/// A vector on the device.
#[derive(Clone, Copy, Debug)]
pub struct Vector<'a> {
    pub slice: Slice<'a>,
    pub dtype: DType,
}

impl Vector<'_> {
    fn checked(self, check: Check, what: &str, n: usize) -> Result<(), DeviceError> {
        check.bytes(what, self.slice, self.dtype.size() * n)
    }
}

fn grid(check: Check, n: usize) -> Result<Grid, DeviceError> {
    Ok(Grid::line(check.number("blocks", n.div_ceil(THREADS * CHUNK))?, THREADS as u32))
}

fn index(dtype: DType) -> usize {
    match dtype {
        DType::F32 => 0,
        DType::Bf16 => 1,
    }
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&ELEMENTWISE)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        let function = |name: &str| module.function(name, 0);
        Ok(Self {
            to_bf16: function("cast_f32_bf16")?,
            to_f32: function("cast_bf16_f32")?,
            add: [
                [function("add_f32_f32")?, function("add_f32_bf16")?],
                [function("add_bf16_f32")?, function("add_bf16_bf16")?],
            ],
        })
    }

    /// See the head of this file.
    ///
    /// # Errors
    /// Sizes that are not those of `n` elements, two vectors of one dtype or that overlap; what the driver says.
    pub fn cast(
        &self,
        stream: &Stream,
        x: Vector<'_>,
        y: Vector<'_>,
        n: usize,
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("cast");
        x.checked(CHECK, "x", n)?;
        y.checked(CHECK, "y", n)?;
        CHECK.apart(&[("y", y.slice)], &[("x", x.slice)])?;
        let function = match (x.dtype, y.dtype) {
            (DType::F32, DType::Bf16) => &self.to_bf16,
            (DType::Bf16, DType::F32) => &self.to_f32,
            (dtype, _) => {
                return CHECK.wrong(format!("x and y are both {dtype:?}; copy with the stream"));
            }
        };
        let arguments = (x.slice.address(), y.slice.address(), n as u64);
        // SAFETY: the kernel stays inside vectors of this length, whose sizes were checked above.
        unsafe { function.launch(stream, grid(CHECK, n)?, arguments) }
    }

    /// See the head of this file.
    ///
    /// # Errors
    /// Sizes that are not those of `n` elements, two vectors that overlap; what the driver says.
    pub fn add(
        &self,
        stream: &Stream,
        sum: Vector<'_>,
        x: Vector<'_>,
        n: usize,
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("add");
        sum.checked(CHECK, "the sum", n)?;
        x.checked(CHECK, "x", n)?;
        CHECK.apart(&[("the sum", sum.slice)], &[("x", x.slice)])?;
        let function = &self.add[index(sum.dtype)][index(x.dtype)];
        let arguments = (sum.slice.address(), x.slice.address(), n as u64);
        // SAFETY: the kernel stays inside vectors of this length, whose sizes were checked above.
        unsafe { function.launch(stream, grid(CHECK, n)?, arguments) }
    }
}
