//! Conversions between number formats.

use super::float::clamp_to_one;
use crate::formats::{
    bf16_to_f32, e4m3_to_f32, e5m2_to_f32, f16_to_f32, f32_to_bf16, f32_to_bf16_toward_zero,
    f32_to_e4m3, f32_to_e5m2, f32_to_tf32, f64_to_bf16, f64_to_f16,
};
use crate::instruction::{Conversion, Pack, Register, Rounding, Scalar};
use crate::warp::{Lanes32, Lanes64, Warp};

/// A value between formats: whole numbers of every type fit `i128`, floats fit a double.
#[derive(Clone, Copy)]
enum Value {
    Whole(i128),
    Float(f64),
}

pub(super) fn convert(warp: &mut Warp, op: &Conversion, lanes: u32) {
    match op {
        Conversion::Scalar { from, to, rounding, is_whole, saturate, d, a } => {
            let a = warp.any(*a);
            let value: Lanes64 = match (from, to) {
                // The ones that address arithmetic is full of.
                (Scalar::S32, Scalar::S64) => a.map(|a| a as i32 as i64 as u64),
                (Scalar::U32, Scalar::U64)
                | (Scalar::U64 | Scalar::S64, Scalar::U32 | Scalar::S32)
                    if !saturate =>
                {
                    a.map(|a| a & 0xFFFF_FFFF)
                }
                _ => a.map(|a| match read(a, *from) {
                    Value::Float(value) if *is_whole => {
                        let value = Value::Float(whole(value, *rounding));
                        write(value, *to, Rounding::NearestEven, *saturate)
                    }
                    value @ (Value::Whole(_) | Value::Float(_)) => {
                        write(value, *to, *rounding, *saturate)
                    }
                }),
            };
            warp.set_any(*d, lanes, &extended(value, *to, *d));
        }
        Conversion::Pack { to, is_relu, d, high, low } => {
            let (high, low) = (warp.r32(*high), warp.r32(*low));
            let one = |bits: u32| {
                let value = f32::from_bits(bits);
                let value = if *is_relu && value <= 0.0 { 0.0 } else { value };
                match to {
                    Pack::F16 => u32::from(f64_to_f16(f64::from(value))),
                    Pack::Bf16 => u32::from(f32_to_bf16(value)),
                    Pack::E4m3 => u32::from(f32_to_e4m3(value)),
                    Pack::E5m2 => u32::from(f32_to_e5m2(value)),
                }
            };
            let shift = if matches!(to, Pack::F16 | Pack::Bf16) { 16 } else { 8 };
            let value: Lanes32 = std::array::from_fn(|l| one(high[l]) << shift | one(low[l]));
            warp.set32(*d, lanes, &value);
        }
        Conversion::Unpack { from, d, a } => {
            let one = |code: u8| match from {
                Pack::E5m2 => u32::from(f64_to_f16(f64::from(e5m2_to_f32(code)))),
                Pack::E4m3 | Pack::F16 | Pack::Bf16 => {
                    u32::from(f64_to_f16(f64::from(e4m3_to_f32(code))))
                }
            };
            let value = warp.r32(*a).map(|a| one((a >> 8) as u8) << 16 | one(a as u8));
            warp.set32(*d, lanes, &value);
        }
    }
}

/// Registers wider than a signed type keep its sign, others zeros.
fn extended(value: Lanes64, to: Scalar, d: Register) -> Lanes64 {
    let is_wide = matches!(d, Register::Wide(_));
    if to == Scalar::S8 {
        value.map(|v| v as i8 as i64 as u64)
    } else if to == Scalar::S16 && is_wide {
        value.map(|v| v as i16 as i64 as u64)
    } else if to == Scalar::S32 && is_wide {
        value.map(|v| v as i32 as i64 as u64)
    } else {
        value
    }
}

fn read(bits: u64, from: Scalar) -> Value {
    match from {
        Scalar::U8 => Value::Whole(i128::from(bits as u8)),
        Scalar::S8 => Value::Whole(i128::from(bits as i8)),
        Scalar::U16 => Value::Whole(i128::from(bits as u16)),
        Scalar::S16 => Value::Whole(i128::from(bits as i16)),
        Scalar::U32 => Value::Whole(i128::from(bits as u32)),
        Scalar::S32 => Value::Whole(i128::from(bits as i32)),
        Scalar::U64 => Value::Whole(i128::from(bits)),
        Scalar::S64 => Value::Whole(i128::from(bits as i64)),
        Scalar::F16 => Value::Float(f64::from(f16_to_f32(bits as u16))),
        Scalar::Bf16 => Value::Float(f64::from(bf16_to_f32(bits as u16))),
        Scalar::F32 | Scalar::Tf32 => Value::Float(f64::from(f32::from_bits(bits as u32))),
        Scalar::F64 => Value::Float(f64::from_bits(bits)),
    }
}

fn whole(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::NearestEven => value.round_ties_even(),
        Rounding::NearestAway => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// Smallest and greatest value of a whole type.
fn range(to: Scalar) -> Option<(i128, i128)> {
    Some(match to {
        Scalar::U8 => (0, u8::MAX.into()),
        Scalar::S8 => (i8::MIN.into(), i8::MAX.into()),
        Scalar::U16 => (0, u16::MAX.into()),
        Scalar::S16 => (i16::MIN.into(), i16::MAX.into()),
        Scalar::U32 => (0, u32::MAX.into()),
        Scalar::S32 => (i32::MIN.into(), i32::MAX.into()),
        Scalar::U64 => (0, u64::MAX.into()),
        Scalar::S64 => (i64::MIN.into(), i64::MAX.into()),
        Scalar::F16 | Scalar::Bf16 | Scalar::Tf32 | Scalar::F32 | Scalar::F64 => return None,
    })
}

fn write(value: Value, to: Scalar, rounding: Rounding, saturate: bool) -> u64 {
    if let Some((min, max)) = range(to) {
        let value = match value {
            Value::Whole(value) if saturate => value.clamp(min, max),
            Value::Whole(value) => value,
            // From floats the conversion saturates always; NaN is zero, but in 64 bits the sign bit.
            Value::Float(value) if value.is_nan() => {
                if max > i128::from(u32::MAX) {
                    1 << 63
                } else {
                    0
                }
            }
            Value::Float(value) => (whole(value, rounding) as i128).clamp(min, max),
        };
        let bits = 128 - (max - min).leading_zeros();
        return value as u64 & (u64::MAX >> (64 - bits));
    }
    match value {
        // One rounding from the whole number, not two.
        Value::Whole(value) if to == Scalar::F32 => u64::from((value as f32).to_bits()),
        Value::Whole(value) => write_float(value as f64, to, rounding, saturate),
        Value::Float(value) => write_float(value, to, rounding, saturate),
    }
}

fn write_float(value: f64, to: Scalar, rounding: Rounding, saturate: bool) -> u64 {
    let value = if saturate { f64::from(clamp_to_one(value as f32)) } else { value };
    let single = |value: f64| if value.is_nan() { 0x7FFF_FFFF } else { (value as f32).to_bits() };
    match to {
        Scalar::F16 => u64::from(f64_to_f16(value)),
        Scalar::Bf16 if rounding == Rounding::Zero => {
            u64::from(f32_to_bf16_toward_zero(value as f32))
        }
        Scalar::Bf16 => u64::from(f64_to_bf16(value)),
        Scalar::F64 => value.to_bits(),
        Scalar::Tf32 => u64::from(f32_to_tf32(value as f32).to_bits()),
        Scalar::F32
        | Scalar::U8
        | Scalar::S8
        | Scalar::U16
        | Scalar::S16
        | Scalar::U32
        | Scalar::S32
        | Scalar::U64
        | Scalar::S64 => u64::from(single(value)),
    }
}
