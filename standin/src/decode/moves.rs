//! Moves between registers, state spaces and addresses.

use super::{Decoded, Decoder, Operation, bits_of, braces};
use crate::instruction::{
    Alu32, Alu64, Atomic, Choice, Extend, Op, Register, Repack, Space, Transfer, Update,
};

/// Parts of loads and stores that say how to cache, or what a plain access does anyway.
const HINTS: [&str; 24] = [
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "weak",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "cta",
    "gpu",
    "sys",
    "L1::evict_last",
    "L1::no_allocate",
    "L1::evict_first",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L2::64B",
    "L2::128B",
    "L2::256B",
];

fn space(part: &str) -> Option<Space> {
    Some(match part {
        "global" => Space::Global,
        "shared" | "shared::cta" => Space::Shared,
        "local" => Space::Local,
        "const" => Space::Const,
        "param" => Space::Param,
        _ => return None,
    })
}

impl Decoder {
    pub(super) fn moves(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        match o.parts[0] {
            "mov" => self.mov(o),
            "ld" | "ldu" => self.transfer(o, o.operand(1)?, o.operand(0)?, true).map(Op::Load),
            "st" => self.transfer(o, o.operand(0)?, o.operand(1)?, false).map(Op::Store),
            "cvta" => self.cvta(o),
            "atom" | "red" => self.atomic(o),
            "cp" => self.copy(o),
            "prefetch" | "applypriority" | "discard" => Ok(Op::Nothing),
            _ => o.unknown(),
        }
    }

    fn mov(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        o.expect(2)?;
        let (to, from) = (o.operands[0], o.operands[1]);
        if o.ty() == "pred" {
            let d = self.predicate(to)?;
            return match from.trim_start_matches('-').parse::<u32>() {
                Ok(value) => Ok(Op::Choice(Choice::Constant { d, value: value != 0 })),
                Err(_) => Ok(Op::Choice(Choice::Move { d, a: self.guard(from)? })),
            };
        }
        let Some(bits) = bits_of(o.ty()) else { return o.unknown() };
        if from.starts_with('{') {
            return self.pack(o, bits);
        }
        if to.starts_with('{') {
            return self.unpack(o, bits);
        }
        if bits == 64 {
            let (d, a) = (self.d64(to)?, self.s64(from)?);
            return Ok(Op::Alu64 { f: Alu64::Move, d, a, b: a, c: a });
        }
        let (d, a) = (self.d32(to)?, self.s32(from)?);
        Ok(Op::Alu32 { f: Alu32::Move, narrow: None, d, a, b: a, c: a })
    }

    fn pack(&mut self, o: &Operation<'_>, bits: usize) -> Decoded<Op> {
        let parts = braces(o.operands[1]);
        match (bits, parts.len()) {
            (64, 2) => Ok(Op::Repack(Repack::Pack64 {
                d: self.d64(o.operands[0])?,
                low: self.s32(parts[0])?,
                high: self.s32(parts[1])?,
            })),
            (32, 2 | 4) => {
                let d = self.d32(o.operands[0])?;
                let parts: Decoded<_> = parts.iter().map(|part| self.s32(part)).collect();
                Ok(Op::Repack(Repack::Pack32 { d, parts: parts? }))
            }
            _ => o.unknown(),
        }
    }

    fn unpack(&mut self, o: &Operation<'_>, bits: usize) -> Decoded<Op> {
        let parts = braces(o.operands[0]);
        match (bits, parts.len()) {
            (64, 2) => Ok(Op::Repack(Repack::Unpack64 {
                low: self.d32_or_sink(parts[0])?,
                high: self.d32_or_sink(parts[1])?,
                a: self.s64(o.operands[1])?,
            })),
            (32, 2 | 4) => {
                let d: Decoded<_> = parts.iter().map(|part| self.d32_or_sink(part)).collect();
                Ok(Op::Repack(Repack::Unpack32 { d: d?, a: self.s32(o.operands[1])? }))
            }
            _ => o.unknown(),
        }
    }

    /// `ld` and `st`. Registers may be wider than the elements.
    fn transfer(
        &mut self,
        o: &Operation<'_>,
        address: &str,
        data: &str,
        is_load: bool,
    ) -> Decoded<Transfer> {
        o.expect(2)?;
        let ty = o.ty();
        let Some(bits) = bits_of(ty) else { return o.unknown() };
        let (mut at, mut count) = (Space::Generic, 1);
        for part in o.modifiers() {
            if let Some(known) = space(part) {
                at = known;
            } else if let Some(vector) = part.strip_prefix('v') {
                count = vector.parse().map_err(|_| format!("vector .{part}"))?;
            } else if !HINTS.contains(part) {
                return o.unknown();
            }
        }
        let parts = braces(data);
        if parts.len() != count || count * bits > 256 {
            return Err(format!("{} registers for {count} elements", parts.len()));
        }
        let mut registers = Vec::with_capacity(count);
        for part in parts {
            let register = if is_load || self.registers.data(part).is_some() {
                self.destination(part)?
            } else {
                self.source(part, bits)?
            };
            if bits == 64 && matches!(register, Register::Narrow(_)) {
                return Err(format!("{part} has 32 bits, 64 are wanted"));
            }
            registers.push(register);
        }
        Ok(Transfer {
            space: at,
            address: self.address(address)?,
            width: (bits / 8) as u8,
            extend: if ty.starts_with('s') { Extend::Sign } else { Extend::Zero },
            registers: registers.into(),
        })
    }

    /// `cvta.space` makes an address generic, `cvta.to.space` takes it back.
    fn cvta(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        o.expect(2)?;
        let from_generic = o.has("to");
        let Some(at) = o.parts.iter().find_map(|part| space(part)) else { return o.unknown() };
        let bits = bits_of(o.ty()).unwrap_or(64);
        let (d, a) = (self.destination(o.operands[0])?, self.source(o.operands[1], bits)?);
        if matches!(
            (d, a),
            (Register::Wide(_), Register::Wide(_)) | (Register::Narrow(_), Register::Narrow(_))
        ) {
            return Ok(if from_generic {
                Op::Repack(Repack::FromGeneric { space: at, d, a })
            } else {
                Op::Repack(Repack::ToGeneric { space: at, d, a })
            });
        }
        o.unknown()
    }

    /// `atom.op d, [a], b[, c]` and `red.op [a], b`.
    fn atomic(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        let has_result = o.parts[0] == "atom";
        let ty = o.ty();
        let mut at = Space::Generic;
        let mut name = "";
        for part in o.modifiers() {
            if let Some(known) = space(part) {
                at = known;
            } else if !HINTS.contains(part) && *part != "acq_rel" && *part != "noftz" {
                if !name.is_empty() {
                    return o.unknown();
                }
                name = part;
            }
        }
        let (is_64, is_signed) = match ty {
            "u32" | "b32" | "f32" => (false, false),
            "s32" => (false, true),
            "u64" | "b64" => (true, false),
            "s64" => (true, true),
            _ => return o.unknown(),
        };
        let f = match (name, ty) {
            ("add", "f32") => Atomic::FloatAdd,
            (_, "f32") => return o.unknown(),
            ("add", _) => Atomic::Add,
            ("and", _) => Atomic::And,
            ("or", _) => Atomic::Or,
            ("xor", _) => Atomic::Xor,
            ("exch", _) => Atomic::Exchange,
            ("cas", _) => Atomic::CompareSwap,
            ("min", _) if is_signed => Atomic::MinS,
            ("min", _) => Atomic::MinU,
            ("max", _) if is_signed => Atomic::MaxS,
            ("max", _) => Atomic::MaxU,
            ("inc", "u32") => Atomic::Increment,
            ("dec", "u32") => Atomic::Decrement,
            _ => return o.unknown(),
        };
        let first = usize::from(has_result);
        let needs = first + if f == Atomic::CompareSwap { 3 } else { 2 };
        o.expect(needs)?;
        let d = if has_result { Some(self.destination(o.operands[0])?) } else { None };
        let bits = if is_64 { 64 } else { 32 };
        let a = self.source(o.operands[first + 1], bits)?;
        let b = if f == Atomic::CompareSwap {
            Some(self.source(o.operands[first + 2], bits)?)
        } else {
            None
        };
        Ok(Op::Atomic(Update {
            f,
            is_64,
            space: at,
            address: self.address(o.operands[first])?,
            d,
            a,
            b,
        }))
    }

    fn copy(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        if o.name == "cp.async.commit_group" {
            return Ok(Op::CopyCommit);
        }
        if o.name == "cp.async.wait_all" {
            return Ok(Op::CopyWait { pending: None });
        }
        if o.name == "cp.async.wait_group" {
            return Ok(Op::CopyWait { pending: Some(self.number(o.operand(0)?, false)? as u32) });
        }
        let is_known = matches!(
            o.parts[..],
            ["cp", "async", "ca" | "cg", "shared" | "shared::cta", "global", ..]
        ) && o.parts[5..].iter().all(|part| HINTS.contains(part));
        if !is_known {
            return o.unknown();
        }
        let bytes = self.number(o.operand(2)?, false)?;
        let fits = if o.has("cg") { bytes == 16 } else { matches!(bytes, 4 | 8 | 16) };
        if !fits || !(3..=4).contains(&o.operands.len()) {
            return Err(format!("a copy of {bytes} bytes"));
        }
        let source_bytes = match o.operands.get(3) {
            Some(text) => Some(self.s32(text)?),
            None => None,
        };
        Ok(Op::CopyAsync {
            bytes: bytes as u8,
            to: self.address(o.operands[0])?,
            from: self.address(o.operands[1])?,
            source_bytes,
        })
    }
}
