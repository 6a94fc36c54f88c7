//! E4M3 codes under a power of two as BF16 numbers, which hold them exactly: the way from stored
//! FP8 to a product.
#![expect(unsafe_code, reason = "vector instructions")]

use super::isa::Isa;
use crate::{bf16, e4m3};

/// Bytes of the scales with which neither the smallest code nor the largest leaves the normal
/// numbers of BF16: 2^-9 and 448 times the scale.
const SAFE: std::ops::RangeInclusive<u8> = 10..=245;

/// Decodes a stretch of one tile: `scale` is the UE8M0 byte of its scale.
pub(crate) fn decode(codes: &[u8], scale: u8, out: &mut [u16]) {
    decode_on(Isa::current(), codes, scale, out);
}

fn decode_on(isa: Isa, codes: &[u8], scale: u8, out: &mut [u16]) {
    assert_eq!(codes.len(), out.len(), "decode: lengths");
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx512Bf16 | Isa::Avx512) && SAFE.contains(&scale) {
        // SAFETY: AVX-512 is a part of what was found; the lengths are equal.
        return unsafe { avx512::decode(codes, scale, out) };
    }
    let _ = isa;
    let scale = e4m3::scale_value(scale);
    for (code, out) in codes.iter().zip(out) {
        *out = bf16::f32_to_bf16(e4m3::decode(*code) * scale);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    #[cfg_attr(
        not(test),
        expect(clippy::wildcard_imports, reason = "instructions go by their names")
    )]
    use std::arch::x86_64::*;

    /// BF16 bits of the codes without a sign.
    static VALUES: [u16; 128] = values();

    const fn values() -> [u16; 128] {
        let mut values = [0; 128];
        let mut code = 8;
        // Normal numbers keep their mantissa and change the exponent's bias from 7 to 127.
        while code < 127 {
            values[code] = ((code as u16) << 4) + (120 << 7);
            code += 1;
        }
        // m 2^-9, normalised.
        let mut code = 1_u16;
        while code < 8 {
            let exponent = code.ilog2() as u16;
            values[code as usize] = ((118 + exponent) << 7) | ((code << (7 - exponent)) & 0x7f);
            code += 1;
        }
        values[127] = 0x7fc0;
        values
    }

    /// # Safety
    /// `out` is as long as `codes`.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn decode(codes: &[u8], scale: u8, out: &mut [u16]) {
        // SAFETY: the table has four registers of 32 numbers.
        let table: [__m512i; 4] = std::array::from_fn(|i| unsafe {
            _mm512_loadu_si512(VALUES[32 * i..].as_ptr().cast())
        });
        let exponent = _mm512_set1_epi16((i16::from(scale) - 127) << 7);
        for (codes, out) in codes.chunks(32).zip(out.chunks_mut(32)) {
            let mask = if codes.len() == 32 { u32::MAX } else { (1 << codes.len()) - 1 };
            let lanes = if codes.len() == 32 {
                // SAFETY: there are 32 codes.
                _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) })
            } else {
                let mut rest = [0_u8; 32];
                rest[..codes.len()].copy_from_slice(codes);
                // SAFETY: the array has 32 bytes.
                _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(rest.as_ptr().cast()) })
            };
            let magnitude = _mm512_and_si512(lanes, _mm512_set1_epi16(0x7f));
            let lower = _mm512_permutex2var_epi16(table[0], magnitude, table[1]);
            let upper = _mm512_permutex2var_epi16(table[2], magnitude, table[3]);
            let is_upper = _mm512_test_epi16_mask(lanes, _mm512_set1_epi16(0x40));
            let value = _mm512_mask_blend_epi16(is_upper, lower, upper);
            // Zero has no exponent, and a NaN keeps its own.
            let scaled = _mm512_test_epi16_mask(magnitude, magnitude)
                & _mm512_cmpneq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
            let value = _mm512_mask_add_epi16(value, scaled, value, exponent);
            let sign = _mm512_slli_epi16::<8>(_mm512_and_si512(lanes, _mm512_set1_epi16(0x80)));
            let value = _mm512_or_si512(value, sign);
            // SAFETY: the mask is as long as `out`.
            unsafe { _mm512_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_codes_under_all_scales_are_their_value_in_bf16() {
        let codes: Vec<u8> = (0..=255).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for scale in 0..=255 {
                let mut out = vec![0x1234; 256];
                decode_on(isa, &codes, scale, &mut out);
                for (code, out) in codes.iter().zip(&out) {
                    let want = e4m3::decode(*code) * e4m3::scale_value(scale);
                    let same = *out == bf16::f32_to_bf16(want)
                        || (bf16::bf16_to_f32(*out).is_nan() && want.is_nan());
                    assert!(
                        same,
                        "{isa:?}: code {code:#x}, scale {scale}: {out:#x}, want {want:e}"
                    );
                }
            }
            for n in [0, 1, 31, 33, 127] {
                let mut out = vec![7; n];
                // Codes 128.. have a NaN only at the end.
                decode_on(isa, &codes[128..][..n], 127, &mut out);
                let value = |code: &u8| bf16::f32_to_bf16(e4m3::decode(*code));
                assert_eq!(out, codes[128..][..n].iter().map(value).collect::<Vec<_>>());
            }
        }
    }
}
