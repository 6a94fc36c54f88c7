//! Between the dtypes of files: every one widens to FP32 exactly; FP32 is rounded once.

use std::borrow::Cow;

use shoal_kernels::bf16::{bf16_to_f32, narrow};
use shoal_kernels::e4m3;

use crate::StoredType;

/// The values of little-endian bytes. Codes of FP8 are decoded without a scale.
pub(crate) fn widen(dtype: StoredType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        StoredType::F32 => bytes.as_chunks().0.iter().map(|one| f32::from_le_bytes(*one)).collect(),
        StoredType::Bf16 => halves(bytes).map(bf16_to_f32).collect(),
        StoredType::F16 => halves(bytes).map(f16_to_f32).collect(),
        StoredType::F8E4m3 => bytes.iter().map(|code| e4m3::decode(*code)).collect(),
    }
}

/// Values as BF16 or F32 bytes.
pub(crate) fn stored(dtype: StoredType, values: &[f32]) -> Cow<'_, [u8]> {
    match dtype {
        StoredType::F32 => Cow::Borrowed(bytemuck::cast_slice(values)),
        StoredType::Bf16 => {
            let mut bits = vec![0_u16; values.len()];
            narrow(values, &mut bits);
            Cow::Owned(bytemuck::cast_slice(&bits).to_vec())
        }
        StoredType::F16 | StoredType::F8E4m3 => panic!("values are written as F32 or BF16"),
    }
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.as_chunks().0.iter().map(|bits| u16::from_le_bytes(*bits))
}

/// IEEE binary16: 5 exponent bits of bias 15, 10 mantissa bits. Exact.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    let value = match magnitude {
        0..0x400 => (magnitude as f32 / 16_777_216.0).to_bits(),
        0x400..0x7c00 => (magnitude << 13) + (112 << 23),
        _ => (magnitude << 13) + (224 << 23),
    };
    f32::from_bits(sign | value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_number_is_what_the_definition_says() {
        for bits in 0..=u16::MAX {
            let got = f16_to_f32(bits);
            let sign = if bits < 0x8000 { 1.0 } else { -1.0 };
            let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
            let want = match exponent {
                0 => sign * mantissa * 2.0_f64.powi(-24),
                31 if mantissa > 0.0 => f64::NAN,
                31 => sign * f64::INFINITY,
                _ => sign * (1.0 + mantissa / 1024.0) * 2.0_f64.powi(exponent - 15),
            };
            if want.is_nan() {
                assert!(got.is_nan(), "{bits:#x}");
            } else {
                assert_eq!(f64::from(got).to_bits(), want.to_bits(), "{bits:#x}");
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let values = [0.0, -1.5, 3.0e38, 1e-40, f32::INFINITY];
        assert_eq!(widen(StoredType::F32, &stored(StoredType::F32, &values)), values);
        let bf16 = widen(StoredType::Bf16, &stored(StoredType::Bf16, &values));
        assert_eq!(bf16[1].to_bits(), (-1.5_f32).to_bits());
        assert_eq!(stored(StoredType::Bf16, &bf16), stored(StoredType::Bf16, &values));
    }
}
