//! `cvt` and its family.

use super::{Decoded, Decoder, Operation};
use crate::instruction::{Conversion, Op, Pack, Register, Rounding, Scalar};

impl Decoder {
    /// `cvt[.rounding][.sat].to.from`, and the packed forms.
    pub(super) fn convert(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        let count = o.parts.len();
        if count < 3 {
            return o.unknown();
        }
        let (to, from) = (o.parts[count - 2], o.parts[count - 1]);
        if let Some(op) = self.packed(o, to, from)? {
            return Ok(op);
        }
        let (Some(to), Some(from)) = (scalar(to), scalar(from)) else { return o.unknown() };
        o.expect(2)?;
        let (mut rounding, mut saturate) = (None, false);
        for part in &o.parts[1..count - 2] {
            match *part {
                "rn" | "rni" => rounding = Some(Rounding::NearestEven),
                "rna" => rounding = Some(Rounding::NearestAway),
                "rz" | "rzi" => rounding = Some(Rounding::Zero),
                "rm" | "rmi" => rounding = Some(Rounding::Down),
                "rp" | "rpi" => rounding = Some(Rounding::Up),
                "sat" => saturate = true,
                _ => return o.unknown(),
            }
        }
        // `cvt.rni.f32.f32` rounds to a whole number; plain `cvt.f32.f32` moves.
        let is_whole = o.parts[1..count - 2].iter().any(|part| part.ends_with('i'));
        if from == to && is_float(to) && rounding.is_some() != is_whole {
            return o.unknown();
        }
        let is_same = from == to && is_float(to) && !is_whole;
        if to == Scalar::Tf32 && rounding != Some(Rounding::NearestAway) {
            return o.unknown();
        }
        // Directed roundings to narrower floats: only those that are exact or cut.
        let narrows = is_float(to) && !is_whole && !is_same && to != Scalar::Tf32;
        if narrows && !matches!(rounding, None | Some(Rounding::NearestEven | Rounding::Zero)) {
            return o.unknown();
        }
        if narrows && rounding == Some(Rounding::Zero) && to != Scalar::Bf16 {
            return o.unknown();
        }
        Ok(Op::Conversion(Conversion::Scalar {
            from,
            to,
            rounding: rounding.unwrap_or(if is_whole || narrows || is_same {
                Rounding::NearestEven
            } else {
                Rounding::Zero
            }),
            is_whole: is_whole && is_float(to),
            saturate,
            d: self.data_of(o.operands[0], to)?,
            a: self.data_of(o.operands[1], from)?,
        }))
    }

    /// A register (or literal) for a scalar. `cvt` takes wider registers than its type needs.
    fn data_of(&mut self, text: &str, ty: Scalar) -> Decoded<Register> {
        if let Some(register) = self.registers.data(text) {
            let is_wide_type = matches!(ty, Scalar::U64 | Scalar::S64 | Scalar::F64);
            if is_wide_type && matches!(register, Register::Narrow(_)) {
                return Err(format!("{text} has 32 bits, 64 are wanted"));
            }
            return Ok(register);
        }
        let bits = if matches!(ty, Scalar::U64 | Scalar::S64 | Scalar::F64) { 64 } else { 32 };
        self.source(text, bits)
    }

    fn packed(&mut self, o: &Operation<'_>, to: &str, from: &str) -> Decoded<Option<Op>> {
        let modifiers = &o.parts[1..o.parts.len() - 2];
        let has = |wanted: &[&str]| modifiers.iter().all(|part| wanted.contains(part));
        let pack = match (to, from) {
            ("f16x2", "f32") if has(&["rn", "relu"]) => Pack::F16,
            ("bf16x2", "f32") if has(&["rn", "relu"]) => Pack::Bf16,
            ("e4m3x2", "f32") if has(&["rn", "satfinite", "relu"]) => Pack::E4m3,
            ("e5m2x2", "f32") if has(&["rn", "satfinite", "relu"]) => Pack::E5m2,
            ("f16x2", "e4m3x2" | "e5m2x2") if has(&["rn"]) => {
                o.expect(2)?;
                let from = if from.starts_with("e4") { Pack::E4m3 } else { Pack::E5m2 };
                let (d, a) = (self.d32(o.operands[0])?, self.s32(o.operands[1])?);
                return Ok(Some(Op::Conversion(Conversion::Unpack { from, d, a })));
            }
            _ if to.contains('x') || from.contains('x') => return o.unknown(),
            _ => return Ok(None),
        };
        o.expect(3)?;
        Ok(Some(Op::Conversion(Conversion::Pack {
            to: pack,
            is_relu: o.has("relu"),
            d: self.d32(o.operands[0])?,
            high: self.s32(o.operands[1])?,
            low: self.s32(o.operands[2])?,
        })))
    }
}

fn is_float(ty: Scalar) -> bool {
    matches!(ty, Scalar::F16 | Scalar::Bf16 | Scalar::Tf32 | Scalar::F32 | Scalar::F64)
}

fn scalar(name: &str) -> Option<Scalar> {
    Some(match name {
        "u8" => Scalar::U8,
        "s8" => Scalar::S8,
        "u16" => Scalar::U16,
        "s16" => Scalar::S16,
        "u32" => Scalar::U32,
        "s32" => Scalar::S32,
        "u64" => Scalar::U64,
        "s64" => Scalar::S64,
        "f16" => Scalar::F16,
        "bf16" => Scalar::Bf16,
        "tf32" => Scalar::Tf32,
        "f32" => Scalar::F32,
        "f64" => Scalar::F64,
        _ => return None,
    })
}
