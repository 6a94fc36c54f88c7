//! E4M3FN numbers and UE8M0 scales, one at a time and by the slice.
//!
//! E4M3FN (Micikevicius et al. 2022, arXiv:2209.05433): sign, 4 exponent bits of bias 7, 3 mantissa
//! bits; no infinity; NaN is 0x7f and 0xff; largest 448; smallest normal 2^-6, subnormal 2^-9.
//! UE8M0 (OCP MX 1.0, section 5.4.1): byte b means 2^(b - 127); 0xff is NaN.

/// Largest finite E4M3 number.
pub const MAX: f32 = 448.0;

/// The code of NaN.
pub const NAN: u8 = 0x7f;

/// Added to a number below 2^-6, this leaves its count of 2^-9 in the last bits, rounded to even.
const SUBNORMAL_ROUNDER: f32 = 16_384.0;

/// FP32 bits of the smallest normal E4M3 number, 2^-6.
const NORMAL_MIN_BITS: i32 = 121 << 23;

/// Rounds to nearest, ties to even; beyond 448, infinity included, saturates; NaN becomes 0x7f.
#[inline(always)]
pub fn encode(x: f32) -> u8 {
    let bits = x.to_bits() as i32;
    let magnitude = bits & 0x7fff_ffff;
    // Round the 23 mantissa bits to 3, then move the exponent's bias from 127 to 7.
    let rounded = (magnitude as u32 + 0x7_ffff + ((magnitude as u32 >> 20) & 1)) >> 20;
    let normal = rounded as i32 - (120 << 3);
    let subnormal = (f32::from_bits(magnitude as u32) + SUBNORMAL_ROUNDER).to_bits() as i32;
    let subnormal = subnormal.wrapping_sub(SUBNORMAL_ROUNDER.to_bits() as i32);
    let code = if magnitude < NORMAL_MIN_BITS { subnormal } else { normal };
    let code = if code > 0x7e { 0x7e } else { code };
    let signed = code | ((bits >> 24) & 0x80);
    (if magnitude > 0x7f80_0000 { i32::from(NAN) } else { signed }) as u8
}

/// Exact.
#[inline(always)]
pub fn decode(code: u8) -> f32 {
    let magnitude = i32::from(code & 0x7f);
    let shifted = magnitude << 20;
    let normal = f32::from_bits((shifted + (120 << 23)) as u32);
    // One exponent higher the implicit one can be taken off again: m * 2^-9 without a subnormal
    // FP32 operand, which some CPUs handle in microcode.
    let subnormal = f32::from_bits((shifted + NORMAL_MIN_BITS) as u32) - 1.0 / 64.0;
    let value = if magnitude < 8 { subnormal } else { normal };
    // All bits set is a NaN.
    let nan = -i32::from(magnitude == i32::from(NAN)) as u32;
    f32::from_bits(value.to_bits() | (u32::from(code & 0x80) << 24) | nan)
}

/// What `decode_finite` keeps of a code that was moved up, sign extended: sign, exponent, mantissa.
pub(crate) const FINITE_BITS: u32 = 0x87ff_ffff;

/// 2^120: FP32's exponents are biased by 127, E4M3's by 7.
pub(crate) const FINITE_FACTOR: f32 = f32::from_bits((120 + 127) << 23);

/// `decode` of a code that is no NaN, in four instructions a register: moved to where FP32 keeps its
/// sign, exponent and mantissa, a code is its value times 2^-120.
#[inline(always)]
pub(crate) fn decode_finite(code: u8) -> f32 {
    f32::from_bits((i32::from(code as i8) << 20) as u32 & FINITE_BITS) * FINITE_FACTOR
}

/// For a magnitude of at most 448, the number whose addition leaves it rounded to E4M3: 2^20 times
/// its own power of two, or that of the subnormals. Returns that power's bits, too.
#[inline(always)]
fn rounder(magnitude: i32) -> (f32, i32) {
    let exponent = (magnitude & 0x7f80_0000).max(NORMAL_MIN_BITS);
    (f32::from_bits(exponent.wrapping_add(20 << 23) as u32), exponent)
}

/// `encode` of a number that a scale has brought within 448.
#[inline(always)]
fn encode_within_range(x: f32) -> u8 {
    let bits = x.to_bits() as i32;
    let magnitude = bits & 0x7fff_ffff;
    let (rounder, exponent) = rounder(magnitude);
    // The sum's last bits count eighths of the power of two: 8 to 16, or 0 to 8 for subnormals.
    let eighths = (f32::from_bits(magnitude as u32) + rounder).to_bits() as i32;
    let count = eighths.wrapping_sub(rounder.to_bits() as i32);
    let code = count.wrapping_add((exponent >> 20) - (121 << 3));
    (code | ((bits >> 24) & 0x80)) as u8
}

/// `decode(encode(x))` for a number that a scale has brought within 448.
#[inline(always)]
fn round_within_range(x: f32) -> f32 {
    let magnitude = (x.to_bits() & 0x7fff_ffff) as i32;
    let (rounder, _) = rounder(magnitude);
    let value = (f32::from_bits(magnitude as u32) + rounder) - rounder;
    f32::from_bits(value.to_bits() | (x.to_bits() & 0x8000_0000))
}

/// A magnitude as an integer that orders like it, with infinity and NaN on top.
#[inline(always)]
pub(crate) fn magnitude_bits(x: f32) -> i32 {
    (x.to_bits() & 0x7fff_ffff) as i32
}

/// The largest magnitude of a slice, as bits.
#[inline(always)]
pub(crate) fn largest_bits(x: &[f32]) -> i32 {
    let mut largest = 0;
    for x in x {
        largest = largest.max(magnitude_bits(*x));
    }
    largest
}

/// The scale byte of a tile whose largest magnitude has these bits: the smallest power of two `s`
/// with `amax / s <= 448`, at least 2^-126. A zero tile has scale 1; one with an infinity or a NaN
/// has scale NaN, so that none of it ever looks finite.
#[inline(always)]
pub(crate) fn scale_byte(amax_bits: i32) -> u8 {
    // 448 = 1.75 * 2^8: the exponent less 8, and one more for a significand above 1.75.
    let exponent = ((amax_bits as u32 + 0x1f_ffff) >> 23) as i32 - 8;
    let byte = if exponent < 1 { 1 } else { exponent };
    let byte = if amax_bits == 0 { 127 } else { byte };
    (if amax_bits >= 0x7f80_0000 { 255 } else { byte }) as u8
}

/// The scale that a byte means.
#[inline(always)]
pub fn scale_value(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        1..=254 => f32::from_bits(u32::from(byte) << 23),
    }
}

/// `1 / scale_value(byte)` for the bytes that `scale_byte` gives.
#[inline(always)]
pub(crate) fn inverse_scale(byte: u8) -> f32 {
    if byte == 255 { f32::NAN } else { f32::from_bits((254 - u32::from(byte)) << 23) }
}

/// Encodes a stretch of one tile, given the inverse of its scale.
#[inline(always)]
pub(crate) fn encode_scaled(x: &[f32], inverse: f32, codes: &mut [u8]) {
    if inverse.is_nan() {
        return codes.fill(NAN);
    }
    for (code, x) in codes.iter_mut().zip(x) {
        *code = encode_within_range(x * inverse);
    }
}

/// Decodes a stretch of one tile.
#[inline(always)]
pub(crate) fn decode_scaled(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out = decode(*code) * scale;
    }
}

/// Encodes a row whose every column has its own scale.
#[inline(always)]
pub(crate) fn encode_columns(x: &[f32], inverses: &[f32], codes: &mut [u8]) {
    for ((code, x), inverse) in codes.iter_mut().zip(x).zip(inverses) {
        *code = encode(x * inverse);
    }
}

/// Decodes a row whose every column has its own scale.
#[inline(always)]
pub(crate) fn decode_columns(codes: &[u8], scales: &[f32], out: &mut [f32]) {
    for ((out, code), scale) in out.iter_mut().zip(codes).zip(scales) {
        *out = decode(*code) * scale;
    }
}

/// Replaces a row by what `encode_columns` and `decode_columns` would give.
#[inline(always)]
pub(crate) fn round_columns(x: &mut [f32], inverses: &[f32], scales: &[f32]) {
    for ((x, inverse), scale) in x.iter_mut().zip(inverses).zip(scales) {
        *x = round_within_range(*x * inverse) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a code, from the definition.
    fn plain_decode(code: u8) -> f32 {
        let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
        let (exponent, mantissa) = ((code >> 3) & 15, f32::from(code & 7));
        match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => sign * mantissa * 2.0_f32.powi(-9),
            _ => sign * (1.0 + mantissa / 8.0) * 2.0_f32.powi(i32::from(exponent) - 7),
        }
    }

    /// The nearest code by search; of two equally near, the even one.
    fn plain_encode(x: f32) -> u8 {
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let distance = |code: u8| (f64::from(plain_decode(code)) - f64::from(x).abs()).abs();
        let nearest = (0..0x7f_u8)
            .min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1))));
        nearest.unwrap() | sign
    }

    #[test]
    fn all_codes_decode_by_the_definition_and_come_back() {
        for code in 0..=255_u8 {
            let (got, want) = (decode(code), plain_decode(code));
            if want.is_nan() {
                assert!(got.is_nan() && encode(got) == NAN);
            } else {
                assert_eq!(got.to_bits(), want.to_bits(), "code {code:#x}");
                assert_eq!(decode_finite(code).to_bits(), want.to_bits(), "code {code:#x}");
                assert_eq!(encode(got), code);
                assert_eq!(round_within_range(got).to_bits(), got.to_bits());
            }
        }
    }

    #[test]
    fn encoding_is_the_nearest_code_with_ties_to_even() {
        let mut cases: Vec<f32> = vec![0.0, -0.0, 1e-30, 447.9, 448.0, 463.9, 464.0, 1e9, -1e7];
        for code in 0..0x7e_u8 {
            let middle = f32::midpoint(decode(code), decode(code + 1));
            for x in [middle, f32::from_bits(middle.to_bits() + 1)] {
                cases.extend([x, -x, f32::from_bits(x.to_bits() - 2)]);
            }
        }
        for x in cases {
            assert_eq!(encode(x), plain_encode(x), "{x:e}");
            if x.abs() <= MAX {
                assert_eq!(round_within_range(x).to_bits(), decode(encode(x)).to_bits(), "{x:e}");
                assert_eq!(encode_within_range(x), encode(x), "{x:e}");
            }
        }
        assert_eq!(encode(f32::INFINITY), 0x7e);
        assert_eq!(encode(f32::NEG_INFINITY), 0xfe);
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(0x7f80_0001)] {
            assert_eq!(encode(nan), NAN);
        }
    }

    #[test]
    fn a_scale_is_the_smallest_power_of_two_that_fits() {
        for amax in [1.0, 448.0, 448.1, 447.9, 1.75, 1.750_000_1, 3e-20, 3e38, 1e-44, 1e-37] {
            let byte = scale_byte(magnitude_bits(amax));
            let scale = f64::from(scale_value(byte));
            assert!(f64::from(amax) / scale <= 448.0, "{amax:e} fits");
            assert!(byte == 1 || f64::from(amax) / (scale / 2.0) > 448.0, "{amax:e} is smallest");
            assert_eq!((scale_value(byte) * inverse_scale(byte)).to_bits(), 1.0_f32.to_bits());
        }
        assert_eq!(scale_byte(0), 127);
        assert_eq!(scale_byte(magnitude_bits(f32::INFINITY)), 255);
        assert_eq!(scale_byte(magnitude_bits(f32::NAN)), 255);
        assert!(scale_value(255).is_nan());
        assert_eq!(scale_value(0).to_bits(), 2.0_f32.powi(-127).to_bits());
    }
}
