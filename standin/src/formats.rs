//! Number formats that Rust does not have: E4M3, E5M2, BF16, FP16, TF32. Encoding rounds to nearest
//! even unless it says otherwise.

/// OCP E4M3 without infinities: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7F and 0xFF are NaN.
pub(crate) fn e4m3_to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if code >= 128 { -magnitude } else { magnitude }
}

/// OCP E5M2: the upper byte of an FP16.
pub(crate) fn e5m2_to_f32(code: u8) -> f32 {
    f16_to_f32(u16::from(code) << 8)
}

/// To E4M3, beyond 448 (infinity too) to 448; NaN becomes 0x7F. (`cvt.rn.satfinite.e4m3x2.f32`.)
pub(crate) fn f32_to_e4m3(value: f32) -> u8 {
    if value.is_nan() {
        return 0x7F;
    }
    let code = encode(f64::from(value), SmallFloat { exponent_bits: 4, mantissa_bits: 3 });
    (code.sign as u8) << 7 | code.magnitude.min(0x7E) as u8
}

/// To E5M2, beyond 57344 (infinity too) to 57344; NaN becomes 0x7F.
pub(crate) fn f32_to_e5m2(value: f32) -> u8 {
    if value.is_nan() {
        return 0x7F;
    }
    let code = encode(f64::from(value), SmallFloat { exponent_bits: 5, mantissa_bits: 2 });
    (code.sign as u8) << 7 | code.magnitude.min(0x7B) as u8
}

pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// NaN becomes 0x7FFF, as the hardware's `cvt.rn.bf16.f32` has it.
pub(crate) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return 0x7FFF;
    }
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

/// Cut off instead of rounded.
pub(crate) fn f32_to_bf16_toward_zero(value: f32) -> u16 {
    if value.is_nan() { 0x7FFF } else { (value.to_bits() >> 16) as u16 }
}

pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3FF));
    let magnitude = match (exponent, bits & 0x3FF) {
        (31, 0) => f32::INFINITY,
        (31, _) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-24),
        _ => (1024.0 + mantissa) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// Beyond 65504 to infinity; NaN becomes 0x7FFF.
pub(crate) fn f64_to_f16(value: f64) -> u16 {
    if value.is_nan() {
        return 0x7FFF;
    }
    let code = encode(value, SmallFloat { exponent_bits: 5, mantissa_bits: 10 });
    (code.sign as u16) << 15 | code.magnitude.min(0x7C00) as u16
}

/// To BF16 in one rounding from a double.
pub(crate) fn f64_to_bf16(value: f64) -> u16 {
    if value.is_nan() {
        return 0x7FFF;
    }
    let code = encode(value, SmallFloat { exponent_bits: 8, mantissa_bits: 7 });
    (code.sign as u16) << 15 | code.magnitude.min(0x7F80) as u16
}

/// To TF32 (10 bits of mantissa) in an FP32 register, ties away from zero.
pub(crate) fn f32_to_tf32(value: f32) -> f32 {
    if value.is_nan() || value.is_infinite() {
        return value;
    }
    f32::from_bits(value.to_bits().wrapping_add(0x1000) & !0x1FFF)
}

#[derive(Clone, Copy)]
struct SmallFloat {
    exponent_bits: i32,
    mantissa_bits: i32,
}

struct Code {
    sign: bool,
    magnitude: u32,
}

/// Rounds a number to nearest even. Overflow gives a magnitude beyond the greatest finite one.
fn encode(value: f64, format: SmallFloat) -> Code {
    let bias = (1 << (format.exponent_bits - 1)) - 1;
    let (sign, value) = (value.is_sign_negative(), value.abs());
    let limit = 1 << (format.exponent_bits + format.mantissa_bits);
    if value.is_infinite() {
        return Code { sign, magnitude: limit };
    }
    // The exponent of the unit in the last place.
    let exponent = (value.to_bits() >> 52) as i32 - 1023;
    let unit = exponent.max(1 - bias) - format.mantissa_bits;
    // Scaling by a power of two is exact, and so is the sum below 2^52.
    let units = (value * 2f64.powi(-unit)).round_ties_even() as u32;
    // Codes of magnitudes are consecutive, so a mantissa that overflows carries into the exponent.
    let first = (unit + format.mantissa_bits + bias - 1) << format.mantissa_bits;
    Code { sign, magnitude: (first as u32 + units).min(limit) }
}

/// A sum of two doubles that, rounded once more to a format of at most 50 bits, is correct.
///
/// The double nearest to the sum is nudged towards what was lost if its last bit is even ("round to
/// odd"), so that the second rounding cannot be misled.
pub(crate) fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    // Knuth's two-sum: a + b = sum + lost exactly.
    let b_seen = sum - a;
    let lost = (a - (sum - b_seen)) + (b - b_seen);
    if lost == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    let away = (lost > 0.0) == (sum > 0.0);
    f64::from_bits(if away { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest value by search, ties to the even code.
    fn nearest(value: f64, codes: &[(u16, f64)]) -> u16 {
        let distance = |code: &&(u16, f64)| (code.1 - value).abs();
        let best = codes.iter().min_by(|a, b| {
            let by_distance = distance(a).total_cmp(&distance(b));
            by_distance.then((a.0 & 1).cmp(&(b.0 & 1)))
        });
        best.map_or(0, |code| code.0)
    }

    #[test]
    fn every_e4m3_code_survives_and_midpoints_go_to_even() {
        let codes: Vec<(u16, f64)> =
            (0..0x7Fu16).map(|code| (code, f64::from(e4m3_to_f32(code as u8)))).collect();
        for pair in codes.windows(2) {
            let middle = f64::midpoint(pair[0].1, pair[1].1);
            for value in [pair[0].1, middle, middle * (1.0 - 1e-7), middle * (1.0 + 1e-7)] {
                let expected = nearest(f64::from(value as f32), &codes) as u8;
                assert_eq!(f32_to_e4m3(value as f32), expected, "{value}");
                assert_eq!(f32_to_e4m3(-value as f32), expected | 0x80, "-{value}");
            }
        }
        for (value, code) in [(448.0, 0x7E), (1e9, 0x7E), (f32::INFINITY, 0x7E), (f32::NAN, 0x7F)] {
            assert_eq!(f32_to_e4m3(value), code);
        }
        assert!(e4m3_to_f32(0x7F).is_nan() && e4m3_to_f32(0xFF).is_nan());
    }

    #[test]
    fn every_f16_code_survives_and_midpoints_go_to_even() {
        for code in 0..0x7C00u16 {
            let value = f64::from(f16_to_f32(code));
            assert_eq!(f64_to_f16(value), code);
            assert_eq!(f64_to_f16(-value), code | 0x8000);
            let next = if code == 0x7BFF { 65536.0 } else { f64::from(f16_to_f32(code + 1)) };
            let middle = f64::midpoint(value, next);
            assert_eq!(f64_to_f16(middle), code + (code & 1), "{middle}");
        }
        assert_eq!(f64_to_f16(f64::NEG_INFINITY), 0xFC00);
    }

    #[test]
    fn bf16_by_bits_is_bf16_by_value() {
        for high in 0..0x7F80u32 {
            for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let value = f32::from_bits(high << 16 | low);
                assert_eq!(f32_to_bf16(value), f64_to_bf16(f64::from(value)), "{value:e}");
                assert_eq!(f32_to_bf16(-value), f64_to_bf16(-f64::from(value)), "-{value:e}");
            }
        }
        assert_eq!((f32_to_bf16(f32::NAN), f32_to_bf16(f32::MAX)), (0x7FFF, 0x7F80));
    }

    #[test]
    fn a_sum_rounded_to_odd_is_not_rounded_twice() {
        // 1 + 2^-24 is a tie between two floats; the tiny part decides.
        let tie = 1.0 + 2f64.powi(-24);
        let rounded = |sum: f64| (sum as f32).to_bits();
        let above = 1.0 + 2f32.powi(-23);
        assert_eq!(rounded(tie + 2f64.powi(-80)), 1f32.to_bits(), "the plain sum loses it");
        assert_eq!(rounded(add_to_odd(tie, 2f64.powi(-80))), above.to_bits());
        assert_eq!(rounded(add_to_odd(tie, -(2f64.powi(-80)))), 1f32.to_bits());
        assert_eq!(rounded(add_to_odd(-tie, -(2f64.powi(-80)))), (-above).to_bits());
    }
}
