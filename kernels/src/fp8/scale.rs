//! The scale of a tile, in one of two forms, and the scales of a whole matrix.

use bytemuck::Pod;

use crate::e4m3;
use crate::storage::Storage;

/// How scales are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleFormat {
    /// One UE8M0 byte: the smallest power of two that brings a tile within 448.
    #[default]
    Pow2,
    /// Four bytes, FP32: the tile's largest magnitude / 448.
    Fp32,
}

impl ScaleFormat {
    /// Bytes of one scale.
    pub fn bytes(self) -> usize {
        match self {
            Self::Pow2 => 1,
            Self::Fp32 => 4,
        }
    }

    /// Of scales in wire form the first that no tile has, if there is one, and what is wrong with it.
    pub(super) fn impossible(self, scales: &[u8]) -> Option<(usize, String)> {
        match self {
            Self::Pow2 => {
                let at = scales.iter().position(|scale| *scale == 0)?;
                Some((at, "the scale 2^-127, want at least 2^-126".to_owned()))
            }
            Self::Fp32 => {
                let values = || scales.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                let possible = |scale: f32| scale.is_nan() || (scale.is_normal() && 0.0 < scale);
                let (at, scale) = values().enumerate().find(|(_, scale)| !possible(*scale))?;
                Some((at, format!("the scale {scale:e}, want 2^-126 or more, or a NaN")))
            }
        }
    }
}

/// The scales of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// UE8M0.
    Pow2(Storage<u8>),
    Fp32(Storage<f32>),
}

/// One scale: a UE8M0 byte or FP32. A zero tile has scale 1; one with an infinity or a NaN has
/// scale NaN, so that none of it ever looks finite.
pub(super) trait Scale: Pod + Send + Sync {
    /// Of a tile whose largest magnitude has these bits.
    fn of(amax_bits: i32) -> Self;
    /// What a value that `value` gave came from.
    fn from_value(value: f32) -> Self;
    /// What codes are multiplied by.
    fn value(self) -> f32;
    /// What values are multiplied by before they are rounded.
    fn inverse(self) -> f32;
}

impl Scale for u8 {
    #[inline(always)]
    fn of(amax_bits: i32) -> Self {
        e4m3::scale_byte(amax_bits)
    }

    #[inline(always)]
    fn from_value(value: f32) -> Self {
        if value.is_nan() { 255 } else { (value.to_bits() >> 23) as u8 }
    }

    #[inline(always)]
    fn value(self) -> f32 {
        e4m3::scale_value(self)
    }

    #[inline(always)]
    fn inverse(self) -> f32 {
        e4m3::inverse_scale(self)
    }
}

impl Scale for f32 {
    /// At least 2^-126, so that its inverse is finite.
    #[inline(always)]
    fn of(amax_bits: i32) -> Self {
        let scale = f32::from_bits(amax_bits as u32) / e4m3::MAX;
        let scale = if scale < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { scale };
        let scale = if amax_bits == 0 { 1.0 } else { scale };
        if amax_bits >= 0x7f80_0000 { f32::NAN } else { scale }
    }

    #[inline(always)]
    fn from_value(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    fn inverse(self) -> f32 {
        1.0 / self
    }
}

impl Scales {
    /// So many scales with unspecified values.
    pub(super) fn unwritten(format: ScaleFormat, len: usize) -> Self {
        match format {
            ScaleFormat::Pow2 => Self::Pow2(Storage::new(len)),
            ScaleFormat::Fp32 => Self::Fp32(Storage::new(len)),
        }
    }

    pub fn format(&self) -> ScaleFormat {
        match self {
            Self::Pow2(_) => ScaleFormat::Pow2,
            Self::Fp32(_) => ScaleFormat::Fp32,
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Pow2(scales) => scales.len(),
            Self::Fp32(scales) => scales.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the codes of tile `at` are multiplied by.
    pub fn value(&self, at: usize) -> f32 {
        match self {
            Self::Pow2(scales) => scales[at].value(),
            Self::Fp32(scales) => scales[at],
        }
    }

    /// Copies `n` scales of `other`, of the same format, from `from` to `to`.
    pub(super) fn copy_from(&mut self, to: usize, other: &Self, from: usize, n: usize) {
        match (self, other) {
            (Self::Pow2(own), Self::Pow2(other)) => {
                own[to..][..n].copy_from_slice(&other[from..][..n]);
            }
            (Self::Fp32(own), Self::Fp32(other)) => {
                own[to..][..n].copy_from_slice(&other[from..][..n]);
            }
            (Self::Pow2(_) | Self::Fp32(_), _) => panic!("scales of two formats in one matrix"),
        }
    }

    /// Writes `n` scales from `start` on, little endian.
    pub(super) fn write_wire(&self, start: usize, n: usize, out: &mut [u8]) {
        match self {
            Self::Pow2(scales) => out.copy_from_slice(&scales[start..][..n]),
            Self::Fp32(scales) => {
                let scales = &scales[start..][..n];
                out.copy_from_slice(bytemuck::cast_slice(scales));
            }
        }
    }

    /// Reads scales as `write_wire` writes them, from `start` on.
    pub(super) fn read_wire(&mut self, start: usize, bytes: &[u8]) {
        match self {
            Self::Pow2(scales) => scales[start..][..bytes.len()].copy_from_slice(bytes),
            Self::Fp32(scales) => {
                for (own, bytes) in scales[start..].iter_mut().zip(bytes.as_chunks().0) {
                    *own = f32::from_le_bytes(*bytes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fp32_scale_is_the_largest_magnitude_over_448() {
        let of = |amax: f32| <f32 as Scale>::of(amax.to_bits() as i32);
        for amax in [1.0_f32, 448.0, 3.0, 1e-30, 3e38] {
            assert_eq!(of(amax).to_bits(), (amax / 448.0).to_bits(), "{amax:e}");
            assert!((amax * of(amax).inverse()) < 448.1);
        }
        assert_eq!(of(0.0).to_bits(), 1.0_f32.to_bits());
        // 1e-40 / 448 has no finite inverse.
        assert_eq!(of(1e-40).to_bits(), f32::MIN_POSITIVE.to_bits());
        assert!(of(1e-40).inverse().is_finite());
        assert!(of(f32::INFINITY).is_nan() && of(f32::NAN).is_nan());
    }

    #[test]
    fn scales_that_no_tile_has_are_found() {
        for bad in [0.0_f32, -0.0, -1.0, 1e-40, f32::INFINITY, f32::NEG_INFINITY] {
            let scales = [f32::NAN, f32::MIN_POSITIVE, bad].map(f32::to_le_bytes).concat();
            assert_eq!(ScaleFormat::Fp32.impossible(&scales[..8]), None);
            let (at, problem) = ScaleFormat::Fp32.impossible(&scales).unwrap();
            assert!(at == 2 && problem.contains(&format!("{bad:e}")), "{problem}");
        }
        assert_eq!(ScaleFormat::Pow2.impossible(&[127, 0]).unwrap().0, 1);
        assert_eq!(ScaleFormat::Pow2.impossible(&[127, 255, 1]), None);
        let mut scales = Scales::unwritten(ScaleFormat::Pow2, 3);
        scales.read_wire(0, &[127, 255, 1]);
        assert_eq!(scales, Scales::Pow2(Storage::of(&[127, 255, 1])));
    }
}
