//! A quantised matrix from its bytes and back: how it crosses to a device.

use bytemuck::cast_slice;

use super::{Quantized, ScaleFormat, Scales, Tiling};
use crate::storage::Storage;

impl Scales {
    /// As they lie in memory: one byte each, or FP32.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Pow2(scales) => scales,
            Self::Fp32(scales) => cast_slice(scales),
        }
    }
}

impl Quantized {
    /// The matrix `(rows, cols)` of these codes and scales, as `codes` and `Scales::bytes` gave them. Panics when there are
    /// not as many as the shape wants.
    pub fn from_parts(
        (rows, cols): (usize, usize),
        (tiling, format): (Tiling, ScaleFormat),
        codes: &[u8],
        scales: &[u8],
    ) -> Self {
        let n_scales = tiling.scales(rows, cols);
        assert_eq!(codes.len(), rows * cols, "from_parts: codes of {rows} x {cols}");
        assert_eq!(scales.len(), n_scales * format.bytes(), "from_parts: scales");
        let scales = match format {
            ScaleFormat::Pow2 => Scales::Pow2(Storage::of(scales)),
            ScaleFormat::Fp32 => {
                let mut values = Storage::new(n_scales);
                bytemuck::cast_slice_mut(&mut values).copy_from_slice(scales);
                Scales::Fp32(values)
            }
        };
        Self { rows, cols, tiling, codes: Storage::of(codes), scales }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Random;
    use crate::tensor::{DType, Tensor};

    #[test]
    fn bytes_go_round() {
        let x = Tensor::from_f32(DType::F32, &[130, 150], &Random::new(3).normal(130 * 150));
        for format in [ScaleFormat::Pow2, ScaleFormat::Fp32] {
            for tiling in [Tiling::Row, Tiling::Column, Tiling::Block] {
                let q = Quantized::quantise(&x, tiling, format);
                let (codes, scales) = (q.codes(), q.scales().bytes());
                let back = Quantized::from_parts((130, 150), (tiling, format), codes, scales);
                assert_eq!(back, q);
            }
        }
    }
}
