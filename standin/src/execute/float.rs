//! Floating point. What PTX rounds to nearest is exact here; what it calls approximate is computed
//! in double precision and rounded once, which is at least as near as the hardware.

use crate::formats::{add_to_odd, bf16_to_f32, f16_to_f32, f64_to_bf16, f64_to_f16};
use crate::instruction::{Float, Half, HalfFunction};
use crate::warp::{Lanes32, Lanes64};

/// The NaN that float instructions give.
const NAN: u32 = 0x7FFF_FFFF;

#[inline]
fn each(f: impl Fn(usize) -> f32) -> Lanes32 {
    std::array::from_fn(|lane| {
        let value = f(lane);
        if value.is_nan() { NAN } else { value.to_bits() }
    })
}

/// Single precision.
pub(super) fn single(f: Float, saturate: bool, [a, b, c]: [&Lanes32; 3]) -> Lanes32 {
    let x = f32::from_bits;
    let by_double = |f: &dyn Fn(f64) -> f64| each(|l| f(f64::from(x(a[l]))) as f32);
    let value = match f {
        Float::Add => each(|l| x(a[l]) + x(b[l])),
        Float::Sub => each(|l| x(a[l]) - x(b[l])),
        Float::Mul => each(|l| x(a[l]) * x(b[l])),
        Float::Fma => each(|l| fma(x(a[l]), x(b[l]), x(c[l]))),
        Float::Div => each(|l| x(a[l]) / x(b[l])),
        Float::Min => each(|l| x(a[l]).min(x(b[l])).min_sign(x(a[l]), x(b[l]))),
        Float::Max => each(|l| x(a[l]).max(x(b[l])).max_sign(x(a[l]), x(b[l]))),
        Float::MinNan => each(|l| {
            either_nan(x(a[l]), x(b[l])).unwrap_or(x(a[l]).min(x(b[l])).min_sign(x(a[l]), x(b[l])))
        }),
        Float::MaxNan => each(|l| {
            either_nan(x(a[l]), x(b[l])).unwrap_or(x(a[l]).max(x(b[l])).max_sign(x(a[l]), x(b[l])))
        }),
        // Signs of NaN are kept by these three.
        Float::Abs => a.map(|a| a & 0x7FFF_FFFF),
        Float::Neg => a.map(|a| a ^ 0x8000_0000),
        Float::CopySign => std::array::from_fn(|l| b[l] & 0x7FFF_FFFF | a[l] & 0x8000_0000),
        Float::Sqrt => each(|l| x(a[l]).sqrt()),
        Float::Rcp => each(|l| 1.0 / x(a[l])),
        Float::Rsqrt => by_double(&|a| 1.0 / a.sqrt()),
        Float::Ex2 => by_double(&f64::exp2),
        Float::Lg2 => by_double(&f64::log2),
        Float::Sin => by_double(&f64::sin),
        Float::Cos => by_double(&f64::cos),
        Float::Tanh => by_double(&f64::tanh),
    };
    if saturate { each(|l| clamp_to_one(x(value[l]))) } else { value }
}

/// `.sat`: into 0..=1, NaN becomes 0.
pub(super) fn clamp_to_one(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 }
}

/// a b + c in one rounding. The product of two floats is exact in a double.
#[inline]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    add_to_odd(f64::from(a) * f64::from(b), f64::from(c)) as f32
}

fn either_nan(a: f32, b: f32) -> Option<f32> {
    (a.is_nan() || b.is_nan()).then_some(f32::NAN)
}

/// Rust may return either zero of a pair; PTX orders -0 before +0.
trait Zeros {
    fn min_sign(self, a: Self, b: Self) -> Self;
    fn max_sign(self, a: Self, b: Self) -> Self;
}

impl Zeros for f32 {
    #[inline]
    fn min_sign(self, a: f32, b: f32) -> f32 {
        let is_negative = a.is_sign_negative() || b.is_sign_negative();
        if a == 0.0 && b == 0.0 && is_negative { -0.0 } else { self }
    }
    #[inline]
    fn max_sign(self, a: f32, b: f32) -> f32 {
        let is_negative = a.is_sign_negative() && b.is_sign_negative();
        if a == 0.0 && b == 0.0 { if is_negative { -0.0 } else { 0.0 } } else { self }
    }
}

/// Double precision.
pub(super) fn double(f: Float, [a, b, c]: [&Lanes64; 3]) -> Lanes64 {
    let each = |f: &dyn Fn(f64, f64, f64) -> f64| {
        std::array::from_fn(|l| {
            f(f64::from_bits(a[l]), f64::from_bits(b[l]), f64::from_bits(c[l])).to_bits()
        })
    };
    match f {
        Float::Add => each(&|a, b, _| a + b),
        Float::Sub => each(&|a, b, _| a - b),
        Float::Mul => each(&|a, b, _| a * b),
        Float::Fma => each(&|a, b, c| a.mul_add(b, c)),
        Float::Div => each(&|a, b, _| a / b),
        Float::Min | Float::MinNan => each(&|a, b, _| a.min(b)),
        Float::Max | Float::MaxNan => each(&|a, b, _| a.max(b)),
        Float::Abs => a.map(|a| a & !(1 << 63)),
        Float::Neg => a.map(|a| a ^ 1 << 63),
        Float::CopySign => each(&|a, b, _| b.copysign(a)),
        Float::Sqrt => each(&|a, _, _| a.sqrt()),
        Float::Rcp => each(&|a, _, _| 1.0 / a),
        Float::Rsqrt => each(&|a, _, _| 1.0 / a.sqrt()),
        Float::Ex2 => each(&|a, _, _| a.exp2()),
        Float::Lg2 => each(&|a, _, _| a.log2()),
        Float::Sin => each(&|a, _, _| a.sin()),
        Float::Cos => each(&|a, _, _| a.cos()),
        Float::Tanh => each(&|a, _, _| a.tanh()),
    }
}

/// FP16 and BF16, one or two a register, one rounding.
pub(super) fn half(
    f: HalfFunction,
    (format, is_pair, is_relu): (Half, bool, bool),
    [a, b, c]: [&Lanes32; 3],
) -> Lanes32 {
    std::array::from_fn(|l| {
        let part = |shift: u32| {
            let cut = |value: u32| (value >> shift) as u16;
            u32::from(half_one(f, format, is_relu, [cut(a[l]), cut(b[l]), cut(c[l])])) << shift
        };
        if is_pair { part(0) | part(16) } else { part(0) }
    })
}

fn half_one(f: HalfFunction, format: Half, is_relu: bool, bits: [u16; 3]) -> u16 {
    let widen = |bits| match format {
        Half::F16 => f16_to_f32(bits),
        Half::Bf16 => bf16_to_f32(bits),
    };
    let [a, b, c] = bits.map(widen);
    let [x, y, z] = [a, b, c].map(f64::from);
    let value = match f {
        HalfFunction::Add => add_to_odd(x, y),
        HalfFunction::Sub => add_to_odd(x, -y),
        HalfFunction::Mul => x * y,
        HalfFunction::Fma => add_to_odd(x * y, z),
        HalfFunction::Min => f64::from(a.min(b).min_sign(a, b)),
        HalfFunction::Max => f64::from(a.max(b).max_sign(a, b)),
        HalfFunction::MinNan => f64::from(either_nan(a, b).unwrap_or(a.min(b).min_sign(a, b))),
        HalfFunction::MaxNan => f64::from(either_nan(a, b).unwrap_or(a.max(b).max_sign(a, b))),
        HalfFunction::Abs => return bits[0] & 0x7FFF,
        HalfFunction::Neg => return bits[0] ^ 0x8000,
    };
    let value = if is_relu && value <= 0.0 { 0.0 } else { value };
    match format {
        Half::F16 => f64_to_f16(value),
        Half::Bf16 => f64_to_bf16(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fma_rounds_once() {
        // The product 1 + 2^-11 + 2^-24 is a tie to 24 bits but for the addend.
        let a = 1.0 + 2f32.powi(-12);
        for (b, c) in [(a, 2f32.powi(-60)), (a, -(2f32.powi(-60))), (-a, 2f32.powi(-60)), (a, 0.0)]
        {
            assert_eq!(fma(a, b, c).to_bits(), a.mul_add(b, c).to_bits(), "{b} {c}");
        }
        let mut random = crate::random::Random::new(5);
        for _ in 0..100_000 {
            let [a, b, c] = [(); 3].map(|()| f32::from_bits(random.next() as u32));
            let (ours, rusts) = (fma(a, b, c), a.mul_add(b, c));
            assert!(
                ours.to_bits() == rusts.to_bits() || ours.is_nan() && rusts.is_nan(),
                "{a:e} {b:e} {c:e}"
            );
        }
    }
}
