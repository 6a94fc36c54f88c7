//! Memory of a card filled with numbers as in training: zeros would draw less power.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::gemm::Operand;
use shoal_kernels::cuda::quantise::{QuantizedSlices, Shape};
use shoal_kernels::cuda::{Buffer, DeviceError};
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, Quantized, ScaleFormat, Tensor, Tiling};

use super::Card;

/// Rows and columns of the numbers that are repeated.
const NOISE: (usize, usize) = (128, 1024);

/// The byte of a scale of 2^-7: codes of up to 448 become numbers of up to 3.5.
const SCALE: u8 = 120;

/// A matrix in the form of a product's operand.
#[derive(Debug)]
pub(crate) enum Side {
    Bf16(Buffer),
    /// Codes and scales, powers of two.
    Fp8(Buffer, Buffer),
}

impl Side {
    pub(crate) fn operand(&self) -> Operand<'_> {
        match self {
            Self::Bf16(values) => Operand::Bf16(values.all()),
            Self::Fp8(..) => Operand::Fp8(self.codes()),
        }
    }

    /// Of a matrix that is quantised.
    pub(crate) fn codes(&self) -> QuantizedSlices<'_> {
        let Self::Fp8(codes, scales) = self else { panic!("it is in BF16") };
        QuantizedSlices { codes: codes.all(), scales: scales.all(), format: ScaleFormat::Pow2 }
    }
}

impl Card {
    /// Bytes of zeros, to be written or added to.
    pub(crate) fn zeros(&self, what: &str, bytes: usize) -> Result<Buffer, DeviceError> {
        let buffer = self.device.buffer(what, bytes)?;
        self.stream.fill(buffer.all(), 0)?;
        Ok(buffer)
    }

    pub(crate) fn bytes(&self, what: &str, bytes: &[u8]) -> Result<Buffer, DeviceError> {
        let buffer = self.device.buffer(what, bytes.len())?;
        self.stream.upload(buffer.all(), bytes)?;
        Ok(buffer)
    }

    fn repeated(&self, what: &str, noise: &[u8], bytes: usize) -> Result<Buffer, DeviceError> {
        let buffer = self.device.buffer(what, bytes)?;
        for first in (0..bytes).step_by(noise.len()) {
            let end = (first + noise.len()).min(bytes);
            self.stream.upload(buffer.slice(first..end), &noise[..end - first])?;
        }
        Ok(buffer)
    }

    /// So many numbers of a dtype.
    pub(crate) fn noise(&self, what: &str, dtype: DType, n: usize) -> Result<Buffer, DeviceError> {
        let numbers = Random::new(1).normal(NOISE.0 * NOISE.1);
        let noise = Tensor::from_f32(dtype, &[NOISE.0, NOISE.1], &numbers);
        self.repeated(what, noise.bytes(), n * dtype.size())
    }

    /// A matrix as a product reads it.
    pub(crate) fn side(
        &self,
        what: &str,
        (rows, cols): (usize, usize),
        (math, tiling): (Math, Tiling),
    ) -> Result<Side, DeviceError> {
        if !matches!(math, Math::Fp8(_)) {
            return Ok(Side::Bf16(self.noise(what, DType::Bf16, rows * cols)?));
        }
        let numbers = Random::new(1).normal(NOISE.0 * NOISE.1);
        let form = (Tiling::Row, ScaleFormat::Pow2);
        let noise = Tensor::from_f32(DType::F32, &[NOISE.0, NOISE.1], &numbers);
        let noise = Quantized::quantise(&noise, form.0, form.1);
        let codes = self.repeated(what, noise.codes(), rows * cols)?;
        let scales = Shape { rows, cols }.scale_bytes(tiling, ScaleFormat::Pow2);
        let scales = self.device.buffer(what, scales)?;
        self.stream.fill(scales.all(), SCALE)?;
        Ok(Side::Fp8(codes, scales))
    }

    /// The matrices of several experts, one behind the other, as products read them.
    pub(crate) fn sides(
        &self,
        what: &str,
        (experts, rows, cols): (usize, usize, usize),
        math: Math,
    ) -> Result<Side, DeviceError> {
        let whole = self.side(what, (experts * rows, cols), (math, Tiling::Block))?;
        // Blocks do not cross from one matrix into the next, so that there may be more of them.
        let Side::Fp8(codes, _) = whole else { return Ok(whole) };
        let one = Shape { rows, cols }.scale_bytes(Tiling::Block, ScaleFormat::Pow2);
        let scales = self.device.buffer(what, experts * one)?;
        self.stream.fill(scales.all(), SCALE)?;
        Ok(Side::Fp8(codes, scales))
    }
}
