//! Comparisons, selections and predicates.

use super::ordered;
use crate::formats::{bf16_to_f32, f16_to_f32};
use crate::instruction::{Choice, Compare, CompareAs, Guard, Half, Logic};
use crate::warp::{Lanes32, Lanes64, Warp};

pub(super) fn choose(warp: &mut Warp, op: &Choice, lanes: u32) {
    match op {
        Choice::Compare32 { f, as_, is_16, d, d_not, a, b, with } => {
            let mask = compare32(*f, *as_, *is_16, [*a, *b].map(|r| warp.r32(r)));
            conclude(warp, lanes, mask, (*d, *d_not), *with);
        }
        Choice::Compare64 { f, as_, d, d_not, a, b, with } => {
            let mask = compare64(*f, *as_, [*a, *b].map(|r| warp.r64(r)));
            conclude(warp, lanes, mask, (*d, *d_not), *with);
        }
        Choice::Select32 { d, a, b, by } => {
            let (mask, a, b) = (warp.holds(*by), warp.r32(*a), warp.r32(*b));
            let value = std::array::from_fn(|l| if mask >> l & 1 == 1 { a[l] } else { b[l] });
            warp.set32(*d, lanes, &value);
        }
        Choice::Select64 { d, a, b, by } => {
            let (mask, a, b) = (warp.holds(*by), warp.r64(*a), warp.r64(*b));
            let value = std::array::from_fn(|l| if mask >> l & 1 == 1 { a[l] } else { b[l] });
            warp.set64(*d, lanes, &value);
        }
        Choice::Move { d, a } => warp.set_predicate(*d, lanes, warp.holds(*a)),
        Choice::Constant { d, value } => {
            warp.set_predicate(*d, lanes, if *value { u32::MAX } else { 0 });
        }
        Choice::Combine { f, d, a, b } => {
            let value = logic(*f, warp.holds(*a), warp.holds(*b));
            warp.set_predicate(*d, lanes, value);
        }
    }
}

fn logic(f: Logic, a: u32, b: u32) -> u32 {
    match f {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

/// The end of a `setp`: `q` is the comparison's opposite, both combined with a third predicate.
fn conclude(
    warp: &mut Warp,
    lanes: u32,
    mask: u32,
    (d, d_not): (Option<u32>, Option<u32>),
    with: Option<(Logic, Guard)>,
) {
    let combined = |mask| match with {
        Some((f, guard)) => logic(f, mask, warp.holds(guard)),
        None => mask,
    };
    let (value, opposite) = (combined(mask), combined(!mask));
    if let Some(d) = d {
        warp.set_predicate(d, lanes, value);
    }
    if let Some(d) = d_not {
        warp.set_predicate(d, lanes, opposite);
    }
}

fn mask_of(f: impl Fn(usize) -> bool) -> u32 {
    (0..32).fold(0, |mask, lane| mask | u32::from(f(lane)) << lane)
}

/// The lanes for which a comparison of 32-bit (or 16-bit) values holds.
fn compare32(f: Compare, as_: CompareAs, is_16: bool, [a, b]: [&Lanes32; 2]) -> u32 {
    match as_ {
        CompareAs::Unsigned if is_16 => mask_of(|l| ordered(f, a[l] & 0xFFFF, b[l] & 0xFFFF)),
        CompareAs::Signed if is_16 => mask_of(|l| ordered(f, a[l] as i16, b[l] as i16)),
        CompareAs::Unsigned => mask_of(|l| ordered(f, a[l], b[l])),
        CompareAs::Signed => mask_of(|l| ordered(f, a[l] as i32, b[l] as i32)),
        CompareAs::Float { is_true_for_nan } => {
            let value = |x: u32| f64::from(f32::from_bits(x));
            mask_of(|l| float(f, is_true_for_nan, value(a[l]), value(b[l])))
        }
        CompareAs::Half { format, is_true_for_nan } => {
            let value = |x: u32| match format {
                Half::F16 => f64::from(f16_to_f32(x as u16)),
                Half::Bf16 => f64::from(bf16_to_f32(x as u16)),
            };
            mask_of(|l| float(f, is_true_for_nan, value(a[l]), value(b[l])))
        }
    }
}

/// The lanes for which a comparison of 64-bit values holds.
fn compare64(f: Compare, as_: CompareAs, [a, b]: [&Lanes64; 2]) -> u32 {
    match as_ {
        CompareAs::Unsigned => mask_of(|l| ordered(f, a[l], b[l])),
        CompareAs::Signed => mask_of(|l| ordered(f, a[l] as i64, b[l] as i64)),
        CompareAs::Float { is_true_for_nan } | CompareAs::Half { is_true_for_nan, .. } => {
            mask_of(|l| float(f, is_true_for_nan, f64::from_bits(a[l]), f64::from_bits(b[l])))
        }
    }
}

fn float(f: Compare, is_true_for_nan: bool, a: f64, b: f64) -> bool {
    if a.is_nan() || b.is_nan() {
        return match f {
            Compare::Nan => true,
            Compare::Number => false,
            Compare::Eq | Compare::Ne | Compare::Lt | Compare::Le | Compare::Gt | Compare::Ge => {
                is_true_for_nan
            }
        };
    }
    ordered(f, a, b)
}
