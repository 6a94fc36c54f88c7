//! Which function an opcode names, and how many operands it has.

use super::Operation;
use crate::instruction::{Alu32, Field, Float, HalfFunction};

/// The function of an instruction on 16-bit floats and its number of operands.
pub(super) fn half(o: &Operation<'_>) -> Option<(HalfFunction, usize)> {
    Some(match o.parts[0] {
        "add" => (HalfFunction::Add, 3),
        "sub" => (HalfFunction::Sub, 3),
        "mul" => (HalfFunction::Mul, 3),
        "fma" => (HalfFunction::Fma, 4),
        "min" if o.has("NaN") => (HalfFunction::MinNan, 3),
        "max" if o.has("NaN") => (HalfFunction::MaxNan, 3),
        "min" => (HalfFunction::Min, 3),
        "max" => (HalfFunction::Max, 3),
        "abs" => (HalfFunction::Abs, 2),
        "neg" => (HalfFunction::Neg, 2),
        _ => return None,
    })
}

/// The function of a float instruction and its number of operands.
pub(super) fn float(o: &Operation<'_>) -> Option<(Float, usize)> {
    let is_approximate = o.has("approx");
    Some(match o.parts[0] {
        "add" => (Float::Add, 3),
        "sub" => (Float::Sub, 3),
        "mul" => (Float::Mul, 3),
        "fma" | "mad" => (Float::Fma, 4),
        "div" => (Float::Div, 3),
        "min" if o.has("NaN") => (Float::MinNan, 3),
        "max" if o.has("NaN") => (Float::MaxNan, 3),
        "min" => (Float::Min, 3),
        "max" => (Float::Max, 3),
        "abs" => (Float::Abs, 2),
        "neg" => (Float::Neg, 2),
        "copysign" => (Float::CopySign, 3),
        "sqrt" => (Float::Sqrt, 2),
        "rcp" => (Float::Rcp, 2),
        "rsqrt" if is_approximate => (Float::Rsqrt, 2),
        "ex2" if is_approximate => (Float::Ex2, 2),
        "lg2" if is_approximate => (Float::Lg2, 2),
        "sin" if is_approximate => (Float::Sin, 2),
        "cos" if is_approximate => (Float::Cos, 2),
        "tanh" if is_approximate => (Float::Tanh, 2),
        _ => return None,
    })
}

pub(super) fn alu32(o: &Operation<'_>, is_signed: bool) -> Option<Alu32> {
    let by_sign = |signed, unsigned| if is_signed { signed } else { unsigned };
    let is_high = o.has("hi");
    Some(match o.parts[0] {
        "add" => Alu32::Add,
        "sub" => Alu32::Sub,
        "mul" if is_high => by_sign(Alu32::MulHighS, Alu32::MulHighU),
        "mul" => Alu32::Mul,
        "mad" if is_high => by_sign(Alu32::MadHighS, Alu32::MadHighU),
        "mad" => Alu32::Mad,
        "mul24" if !is_high => by_sign(Alu32::Mul24S, Alu32::Mul24U),
        "div" => by_sign(Alu32::DivS, Alu32::DivU),
        "rem" => by_sign(Alu32::RemS, Alu32::RemU),
        "min" => by_sign(Alu32::MinS, Alu32::MinU),
        "max" => by_sign(Alu32::MaxS, Alu32::MaxU),
        "abs" => Alu32::Abs,
        "neg" => Alu32::Neg,
        "and" => Alu32::And,
        "or" => Alu32::Or,
        "xor" => Alu32::Xor,
        "not" => Alu32::Not,
        "cnot" => Alu32::Cnot,
        "shl" => Alu32::Shl,
        "shr" => by_sign(Alu32::ShrS, Alu32::ShrU),
        "shf" => match (o.parts.get(1).copied()?, o.has("clamp")) {
            ("l", false) => Alu32::Field(Field::FunnelLeftWrap),
            ("l", true) => Alu32::Field(Field::FunnelLeftClamp),
            ("r", false) => Alu32::Field(Field::FunnelRightWrap),
            ("r", true) => Alu32::Field(Field::FunnelRightClamp),
            _ => return None,
        },
        "bfe" => by_sign(Alu32::Field(Field::BfeS), Alu32::Field(Field::BfeU)),
        "popc" => Alu32::Field(Field::Popc),
        "clz" => Alu32::Field(Field::Clz),
        "brev" => Alu32::Field(Field::Brev),
        "bfind" if o.has("shiftamt") => {
            by_sign(Alu32::Field(Field::FindShiftS), Alu32::Field(Field::FindShiftU))
        }
        "bfind" => by_sign(Alu32::Field(Field::FindS), Alu32::Field(Field::FindU)),
        "bmsk" if o.has("clamp") => Alu32::Field(Field::BitMaskClamp),
        "bmsk" => Alu32::Field(Field::BitMaskWrap),
        "sad" => by_sign(Alu32::Field(Field::Sad), Alu32::Field(Field::SadU)),
        "dp4a" if o.parts == ["dp4a", "s32", "s32"] => Alu32::Field(Field::Dp4aS),
        "dp4a" if o.parts == ["dp4a", "u32", "u32"] => Alu32::Field(Field::Dp4aU),
        _ => return None,
    })
}

/// Sources of a function.
pub(super) fn arity(f: Alu32) -> usize {
    match f {
        Alu32::Move | Alu32::Abs | Alu32::Neg | Alu32::Not | Alu32::Cnot => 1,
        Alu32::Mad | Alu32::MadHighS | Alu32::MadHighU => 3,
        Alu32::Field(f) => match f {
            Field::Popc
            | Field::Clz
            | Field::Brev
            | Field::FindS
            | Field::FindU
            | Field::FindShiftS
            | Field::FindShiftU => 1,
            Field::BitMaskClamp | Field::BitMaskWrap => 2,
            Field::FunnelLeftWrap
            | Field::FunnelLeftClamp
            | Field::FunnelRightWrap
            | Field::FunnelRightClamp
            | Field::BfeS
            | Field::BfeU
            | Field::Sad
            | Field::SadU
            | Field::Dp4aS
            | Field::Dp4aU => 3,
        },
        Alu32::Add
        | Alu32::Sub
        | Alu32::Mul
        | Alu32::MulHighS
        | Alu32::MulHighU
        | Alu32::MulHigh16
        | Alu32::Mul24S
        | Alu32::Mul24U
        | Alu32::DivS
        | Alu32::DivU
        | Alu32::RemS
        | Alu32::RemU
        | Alu32::MinS
        | Alu32::MinU
        | Alu32::MaxS
        | Alu32::MaxU
        | Alu32::And
        | Alu32::Or
        | Alu32::Xor
        | Alu32::Shl
        | Alu32::ShrS
        | Alu32::ShrU => 2,
    }
}
