//! BF16: the upper half of an FP32 number, rounded to nearest even.

use crate::simd::vectorised;

/// Exact.
#[inline(always)]
pub fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Rounds to nearest, ties to even; overflow becomes infinity; a NaN stays a NaN.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // The rounding could carry a NaN's payload away; a quiet bit keeps it one.
    let nan = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }) as u16
}

/// Widens `x` into `out`, of the same length.
pub fn widen(x: &[u16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "widen: lengths");
    vectorised(
        #[inline(always)]
        || {
            for (out, x) in out.iter_mut().zip(x) {
                *out = bf16_to_f32(*x);
            }
        },
    );
}

/// Rounds `x` into `out`, of the same length.
pub fn narrow(x: &[f32], out: &mut [u16]) {
    assert_eq!(x.len(), out.len(), "narrow: lengths");
    vectorised(
        #[inline(always)]
        || {
            for (out, x) in out.iter_mut().zip(x) {
                *out = f32_to_bf16(*x);
            }
        },
    );
}

/// Rounds every element to the nearest BF16 number and keeps it in FP32.
pub fn round(x: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || round_inlined(x),
    );
}

/// `round`, in functions that are compiled for an instruction set already.
#[inline(always)]
pub(crate) fn round_inlined(x: &mut [f32]) {
    for x in x {
        *x = bf16_to_f32(f32_to_bf16(*x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_number_comes_back() {
        for code in 0..=u16::MAX {
            let x = bf16_to_f32(code);
            if x.is_nan() {
                assert!(bf16_to_f32(f32_to_bf16(x)).is_nan());
            } else {
                assert_eq!(f32_to_bf16(x), code);
            }
        }
    }

    #[test]
    fn ties_go_to_the_even_neighbour_and_nan_stays_nan() {
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(f32_to_bf16(f32::MAX), f32_to_bf16(f32::INFINITY));
        assert!(bf16_to_f32(f32_to_bf16(f32::from_bits(0x7f80_0001))).is_nan());
        assert!(bf16_to_f32(f32_to_bf16(f32::from_bits(0xffff_ffff))).is_nan());
    }

    #[test]
    fn slices_agree_with_single_numbers_at_any_length() {
        for n in [0, 1, 7, 127, 129] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 - 60.5) * 1.003).collect();
            let mut narrowed = vec![0; n];
            narrow(&x, &mut narrowed);
            let mut widened = vec![0.0; n];
            widen(&narrowed, &mut widened);
            let mut rounded = x.clone();
            round(&mut rounded);
            for i in 0..n {
                assert_eq!(narrowed[i], f32_to_bf16(x[i]));
                assert_eq!(widened[i].to_bits(), rounded[i].to_bits());
            }
        }
    }
}
