//! `exp` and the sigmoid in FP32, written so that the compiler vectorises them.
//!
//! The standard library's `exp` is a call per element. This one is Cody and Waite's reduction to
//! |r| <= ln 2 / 2 and a Taylor polynomial of degree 7 (truncation below 2^-30): within 2 ulp.

/// Above this, `exp` is infinite in FP32; below its negative counterpart it is zero.
const OVERFLOW: f32 = 88.722_84;
const UNDERFLOW: f32 = -103.972_08;

/// Where `e^x` and `e^-x` are both normal floats.
const SIGMOID_END: f32 = 87.0;

/// ln 2 in two parts; the first has 9 trailing zero bits, so `n * LN2_HIGH` is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// 1.5 * 2^23: adding and subtracting it rounds to the nearest integer.
pub(crate) const ROUNDER: f32 = 12_582_912.0;

/// `e^x`: within 2 ulp, 0 and infinity at the ends, NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let clamped = if x > OVERFLOW { OVERFLOW } else { x };
    let clamped = if clamped < UNDERFLOW { UNDERFLOW } else { clamped };
    let (value, n) = reduced(clamped);
    // 2^n in two factors, since n reaches from -150 to 128 and each must be a normal float.
    let half = n >> 1;
    let value = value * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    let value = if x > OVERFLOW { f32::INFINITY } else { value };
    if x < UNDERFLOW { 0.0 } else { value }
}

/// `e^x` as `(e^r, n)` with `e^x = e^r 2^n`.
#[inline(always)]
fn reduced(x: f32) -> (f32, i32) {
    let rounded = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Pairs of terms first (Estrin): half the chain of dependent operations.
    let (r2, low) = (r * r, 0.5 + r * (1.0 / 6.0));
    let middle = 1.0 / 24.0 + r * (1.0 / 120.0);
    let high = 1.0 / 720.0 + r * (1.0 / 5040.0);
    let poly = low + r2 * (middle + r2 * high);
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    (1.0 + (r + r2 * poly), n)
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `1 / (1 + e^-x)`; beyond 87 on either side the value at 87, some 1e-38 from 0 or exactly 1.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let clamped = if x > SIGMOID_END { SIGMOID_END } else { x };
    let clamped = if clamped < -SIGMOID_END { -SIGMOID_END } else { clamped };
    let (value, n) = reduced(-clamped);
    1.0 / (1.0 + value * power_of_two(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_standard_one() {
        let mut x = -87.3_f32;
        while x < 88.7 {
            let want = f64::from(x).exp();
            let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1) - want as f32);
            let error = (f64::from(exp(x)) - want).abs() / ulp;
            assert!(error <= 2.0, "exp({x}) = {}, want {want}: {error} ulp", exp(x));
            x += 0.000_97;
        }
    }

    #[test]
    fn exp_ends_in_zero_infinity_and_nan() {
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(-1e30).to_bits(), 0);
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert!(exp(-100.0) > 0.0 && exp(-100.0) < f32::MIN_POSITIVE, "subnormal results");
        assert!(exp(88.8).is_infinite() && exp(f32::INFINITY).is_infinite());
        assert!(exp(88.7).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_agrees_with_the_formula_and_saturates() {
        for i in -9000..=9000 {
            let x = i as f32 * 0.01;
            let want = 1.0 / (1.0 + (-f64::from(x.clamp(-87.0, 87.0))).exp());
            let error = (f64::from(sigmoid(x)) - want).abs() / want;
            assert!(error < 4e-7, "sigmoid({x}) = {}, want {want}", sigmoid(x));
        }
        assert!(sigmoid(f32::NEG_INFINITY) < 1e-37);
        assert_eq!(sigmoid(f32::INFINITY).to_bits(), 1.0_f32.to_bits());
        assert!(sigmoid(f32::NAN).is_nan());
    }
}
