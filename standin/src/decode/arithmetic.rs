//! Integer, float and predicate arithmetic, comparisons and selections.

use super::functions::{alu32, arity, float, half};
use super::{Decoded, Decoder, Operation, bits_of};
use crate::instruction::{
    Alu32, Alu64, Bits, Choice, Compare, CompareAs, Extend, Guard, Half, Logic, Op, P, Shift,
};

impl Decoder {
    pub(super) fn arithmetic(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        match o.parts[0] {
            "setp" => return self.setp(o),
            "set" => return self.set(o),
            "selp" => return self.selp(o),
            "slct" | "testp" => return o.unknown(),
            "lop3" => return self.lop3(o),
            "bfi" => return self.bfi(o),
            "prmt" => {
                o.only(&["b32"])?;
                o.expect(4)?;
                return Ok(Op::Bits(Bits::Prmt {
                    d: self.d32(o.operands[0])?,
                    a: self.s32(o.operands[1])?,
                    b: self.s32(o.operands[2])?,
                    selector: self.s32(o.operands[3])?,
                }));
            }
            _ => {}
        }
        match o.ty() {
            "pred" => self.predicates(o),
            "f32" => self.float(o),
            "f64" => self.double(o),
            "f16" | "f16x2" | "bf16" | "bf16x2" => self.half(o),
            _ => self.integer(o),
        }
    }

    fn integer(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        if o.has("wide") {
            return self.wide(o);
        }
        let ty = o.ty();
        let Some(bits) = bits_of(ty) else { return o.unknown() };
        let is_signed = ty.starts_with('s');
        if o.has("cc") || o.has("sat") || bits == 8 {
            return o.unknown();
        }
        if bits == 64 {
            return self.integer64(o, is_signed);
        }
        let f = match alu32(o, is_signed) {
            Some(Alu32::MulHighS | Alu32::MulHighU) if bits == 16 => Alu32::MulHigh16,
            Some(f) => f,
            None => return o.unknown(),
        };
        let count = o.operands.len().saturating_sub(1);
        if count != arity(f) {
            return Err(format!("{} operands, {} are wanted", count + 1, arity(f) + 1));
        }
        let d = self.d32(o.operand(0)?)?;
        let a = self.s32(o.operand(1)?)?;
        let b = if count > 1 { self.s32(o.operands[2])? } else { a };
        let c = if count > 2 { self.s32(o.operands[3])? } else { a };
        let is_plain = !matches!(
            f,
            Alu32::Field(_)
                | Alu32::MulHighS
                | Alu32::MulHighU
                | Alu32::MadHighS
                | Alu32::MadHighU
                | Alu32::Mul24S
                | Alu32::Mul24U
                | Alu32::Cnot
        );
        if bits == 16 && !is_plain {
            return o.unknown();
        }
        let extend = if is_signed { Extend::Sign } else { Extend::Zero };
        Ok(Op::Alu32 { f, narrow: (bits == 16).then_some(extend), d, a, b, c })
    }

    fn integer64(&mut self, o: &Operation<'_>, is_signed: bool) -> Decoded<Op> {
        if o.parts[0] == "bfe" {
            o.expect(4)?;
            return Ok(Op::Bits(Bits::Bfe64 {
                is_signed,
                d: self.d64(o.operands[0])?,
                a: self.s64(o.operands[1])?,
                start: self.s32(o.operands[2])?,
                length: self.s32(o.operands[3])?,
            }));
        }
        let shift = match o.parts[0] {
            "shl" => Some(Shift::Left),
            "shr" if is_signed => Some(Shift::RightS),
            "shr" => Some(Shift::RightU),
            _ => None,
        };
        if let Some(f) = shift {
            o.expect(3)?;
            return Ok(Op::Bits(Bits::Shift64 {
                f,
                d: self.d64(o.operands[0])?,
                a: self.s64(o.operands[1])?,
                amount: self.s32(o.operands[2])?,
            }));
        }
        let count = match o.parts[0] {
            "popc" => Some(true),
            "clz" => Some(false),
            _ => None,
        };
        if let Some(is_population) = count {
            o.expect(2)?;
            return Ok(Op::Bits(Bits::Count64 {
                is_population,
                d: self.d32(o.operands[0])?,
                a: self.s64(o.operands[1])?,
            }));
        }
        let by_sign = |signed, unsigned| if is_signed { signed } else { unsigned };
        let (f, operands) = match (o.parts[0], o.has("hi")) {
            ("add", _) => (Alu64::Add, 3),
            ("sub", _) => (Alu64::Sub, 3),
            ("mul", false) => (Alu64::Mul, 3),
            ("mul", true) => (by_sign(Alu64::MulHighS, Alu64::MulHighU), 3),
            ("mad", false) => (Alu64::Mad, 4),
            ("div", _) => (by_sign(Alu64::DivS, Alu64::DivU), 3),
            ("rem", _) => (by_sign(Alu64::RemS, Alu64::RemU), 3),
            ("min", _) => (by_sign(Alu64::MinS, Alu64::MinU), 3),
            ("max", _) => (by_sign(Alu64::MaxS, Alu64::MaxU), 3),
            ("abs", _) => (Alu64::Abs, 2),
            ("neg", _) => (Alu64::Neg, 2),
            ("and", _) => (Alu64::And, 3),
            ("or", _) => (Alu64::Or, 3),
            ("xor", _) => (Alu64::Xor, 3),
            ("not", _) => (Alu64::Not, 2),
            _ => return o.unknown(),
        };
        o.expect(operands)?;
        let a = self.s64(o.operands[1])?;
        let b = if operands > 2 { self.s64(o.operands[2])? } else { a };
        let c = if operands > 3 { self.s64(o.operands[3])? } else { a };
        Ok(Op::Alu64 { f, d: self.d64(o.operands[0])?, a, b, c })
    }

    fn wide(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        let has_sum = match o.parts[0] {
            "mul" => false,
            "mad" => true,
            _ => return o.unknown(),
        };
        o.expect(if has_sum { 4 } else { 3 })?;
        let is_signed = o.ty().starts_with('s');
        let (a, b) = (self.s32(o.operands[1])?, self.s32(o.operands[2])?);
        match bits_of(o.ty()) {
            Some(32) => {
                let c = if has_sum { Some(self.s64(o.operands[3])?) } else { None };
                Ok(Op::Bits(Bits::Wide { is_signed, d: self.d64(o.operands[0])?, a, b, c }))
            }
            Some(16) => {
                let c = if has_sum { Some(self.s32(o.operands[3])?) } else { None };
                Ok(Op::Bits(Bits::Wide16 { is_signed, d: self.d32(o.operands[0])?, a, b, c }))
            }
            _ => o.unknown(),
        }
    }

    fn float(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        // Without .rn an add, a sub or a mul is rounded alike.
        o.only(&["rn", "approx", "full", "sat", "NaN", "f32"])?;
        let Some((f, operands)) = float(o) else { return o.unknown() };
        o.expect(operands)?;
        let a = self.s32(o.operands[1])?;
        let b = if operands > 2 { self.s32(o.operands[2])? } else { a };
        let c = if operands > 3 { self.s32(o.operands[3])? } else { a };
        Ok(Op::Float { f, saturate: o.has("sat"), d: self.d32(o.operands[0])?, a, b, c })
    }

    fn double(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        o.only(&["rn", "f64"])?;
        let Some((f, operands)) = float(o) else { return o.unknown() };
        o.expect(operands)?;
        let a = self.s64(o.operands[1])?;
        let b = if operands > 2 { self.s64(o.operands[2])? } else { a };
        let c = if operands > 3 { self.s64(o.operands[3])? } else { a };
        Ok(Op::Double { f, d: self.d64(o.operands[0])?, a, b, c })
    }

    fn half(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        let ty = o.ty();
        o.only(&["rn", "NaN", "relu", "f16", "f16x2", "bf16", "bf16x2"])?;
        let Some((f, operands)) = half(o) else { return o.unknown() };
        o.expect(operands)?;
        let a = self.s32(o.operands[1])?;
        let b = if operands > 2 { self.s32(o.operands[2])? } else { a };
        let c = if operands > 3 { self.s32(o.operands[3])? } else { a };
        Ok(Op::Half {
            f,
            format: if ty.starts_with('b') { Half::Bf16 } else { Half::F16 },
            is_pair: ty.ends_with("x2"),
            is_relu: o.has("relu"),
            d: self.d32(o.operands[0])?,
            a,
            b,
            c,
        })
    }

    fn predicates(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        let d = self.predicate(o.operand(0)?)?;
        let f = match o.parts[0] {
            "not" => {
                o.expect(2)?;
                let mut a = self.guard(o.operands[1])?;
                a.is_negated ^= true;
                return Ok(Op::Choice(Choice::Move { d, a }));
            }
            "and" => Logic::And,
            "or" => Logic::Or,
            "xor" => Logic::Xor,
            _ => return o.unknown(),
        };
        o.expect(3)?;
        Ok(Op::Choice(Choice::Combine {
            f,
            d,
            a: self.guard(o.operands[1])?,
            b: self.guard(o.operands[2])?,
        }))
    }

    fn bfi(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        o.expect(5)?;
        let (start, length) = (self.s32(o.operands[3])?, self.s32(o.operands[4])?);
        Ok(Op::Bits(match o.ty() {
            "b32" => Bits::Bfi {
                d: self.d32(o.operands[0])?,
                a: self.s32(o.operands[1])?,
                b: self.s32(o.operands[2])?,
                start,
                length,
            },
            "b64" => Bits::Bfi64 {
                d: self.d64(o.operands[0])?,
                a: self.s64(o.operands[1])?,
                b: self.s64(o.operands[2])?,
                start,
                length,
            },
            _ => return o.unknown(),
        }))
    }

    fn lop3(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        o.only(&["b32"])?;
        o.expect(5)?;
        Ok(Op::Bits(Bits::Lop3 {
            d: self.d32(o.operands[0])?,
            a: self.s32(o.operands[1])?,
            b: self.s32(o.operands[2])?,
            c: self.s32(o.operands[3])?,
            table: self.number(o.operands[4], false)? as u8,
        }))
    }

    fn selp(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        o.expect(4)?;
        let by = self.guard(o.operands[3])?;
        match bits_of(o.ty()) {
            Some(64) => Ok(Op::Choice(Choice::Select64 {
                d: self.d64(o.operands[0])?,
                a: self.s64(o.operands[1])?,
                b: self.s64(o.operands[2])?,
                by,
            })),
            Some(_) => Ok(Op::Choice(Choice::Select32 {
                d: self.d32(o.operands[0])?,
                a: self.s32(o.operands[1])?,
                b: self.s32(o.operands[2])?,
                by,
            })),
            None => o.unknown(),
        }
    }

    /// `setp.compare[.logic].type p[|q], a, b[, [!]c]`
    fn setp(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        let (f, as_) = compare(o)?;
        let logic = match o.modifiers().get(1..).unwrap_or_default() {
            [] => None,
            ["and"] => Some(Logic::And),
            ["or"] => Some(Logic::Or),
            ["xor"] => Some(Logic::Xor),
            _ => return o.unknown(),
        };
        o.expect(if logic.is_some() { 4 } else { 3 })?;
        let (p, q) = o.operands[0].split_once('|').unwrap_or((o.operands[0], "_"));
        let d = (self.predicate_or_sink(p.trim())?, self.predicate_or_sink(q.trim())?);
        let with = match logic {
            Some(logic) => Some((logic, self.guard(o.operands[3])?)),
            None => None,
        };
        self.comparison(o, (f, as_), d, with)
    }

    fn comparison(
        &mut self,
        o: &Operation<'_>,
        (f, as_): (Compare, CompareAs),
        (d, d_not): (Option<P>, Option<P>),
        with: Option<(Logic, Guard)>,
    ) -> Decoded<Op> {
        let (a, b) = (o.operands[1], o.operands[2]);
        match bits_of(o.ty()) {
            Some(64) => Ok(Op::Choice(Choice::Compare64 {
                f,
                as_,
                d,
                d_not,
                a: self.s64(a)?,
                b: self.s64(b)?,
                with,
            })),
            Some(bits @ (16 | 32)) => {
                let (a, b) = (self.s32(a)?, self.s32(b)?);
                Ok(Op::Choice(Choice::Compare32 {
                    f,
                    as_,
                    is_16: bits == 16,
                    d,
                    d_not,
                    a,
                    b,
                    with,
                }))
            }
            _ => o.unknown(),
        }
    }

    /// `set` into a register is what the compilers for our targets never write.
    #[expect(clippy::unused_self, reason = "one shape for every family")]
    fn set(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        o.unknown()
    }
}

fn compare(o: &Operation<'_>) -> Decoded<(Compare, CompareAs)> {
    let (Some(name), ty) = (o.modifiers().first().copied(), o.ty()) else { return o.unknown() };
    let is_float = ty.starts_with('f') || ty.starts_with("bf");
    // `ltu` and the like are true for NaN; `lo`, `ls`, `hi`, `hs` are the unsigned order.
    let unordered = name.strip_suffix('u').filter(|_| is_float && name.len() == 3);
    let f = match unordered.unwrap_or(name) {
        "eq" => Compare::Eq,
        "ne" => Compare::Ne,
        "lt" | "lo" => Compare::Lt,
        "le" | "ls" => Compare::Le,
        "gt" | "hi" => Compare::Gt,
        "ge" | "hs" => Compare::Ge,
        "num" if is_float => Compare::Number,
        "nan" if is_float => Compare::Nan,
        _ => return o.unknown(),
    };
    let is_true_for_nan = unordered.is_some();
    let as_ = match ty {
        "f32" | "f64" => CompareAs::Float { is_true_for_nan },
        "f16" => CompareAs::Half { format: Half::F16, is_true_for_nan },
        "bf16" => CompareAs::Half { format: Half::Bf16, is_true_for_nan },
        _ if ty.starts_with('s') => CompareAs::Signed,
        _ if ty.starts_with(['u', 'b']) && !is_float => CompareAs::Unsigned,
        _ => return o.unknown(),
    };
    Ok((f, as_))
}
