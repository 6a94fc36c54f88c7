//! What a warp or a block does together: exchanges, votes, barriers, matrices; and its end.

use super::{Decoded, Decoder, Operation, braces};
use crate::instruction::{
    Address, BarrierKind, Mma, Op, Product, Reduce, Scale, Shuffle, Together, Vote,
};

impl Decoder {
    pub(super) fn together(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        match o.parts[0] {
            "shfl" => self.shuffle(o),
            "vote" => self.vote(o),
            "redux" => self.reduce(o),
            "activemask" => Ok(Op::ActiveMask { d: self.d32(o.operand(0)?)? }),
            "elect" => {
                o.expect(2)?;
                let (d, p) = o.operands[0].split_once('|').ok_or("a predicate is wanted")?;
                let d = self.d32_or_sink(d.trim())?;
                let members = self.s32(o.operands[1])?;
                Ok(Op::Together(Together::Elect {
                    d,
                    is_leader: self.predicate(p.trim())?,
                    members,
                }))
            }
            "bar" | "barrier" => self.barrier(o),
            "membar" | "fence" | "nanosleep" => Ok(Op::Nothing),
            "ldmatrix" => self.matrix(o, 1, 0).map(|(count, is_transposed, address, d)| {
                Op::LoadMatrix { count, is_transposed, address, d }
            }),
            "stmatrix" => self.matrix(o, 0, 1).map(|(count, is_transposed, address, a)| {
                Op::StoreMatrix { count, is_transposed, address, a }
            }),
            "mma" => self.mma(o),
            "ret" | "exit" if o.operands.is_empty() => Ok(Op::Exit),
            "trap" => Ok(Op::Trap),
            _ => o.unknown(),
        }
    }

    /// `shfl.sync.mode.b32 d[|p], a, b, c, members`
    fn shuffle(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        let f = match o.parts[..] {
            ["shfl", "sync", "up", "b32"] => Shuffle::Up,
            ["shfl", "sync", "down", "b32"] => Shuffle::Down,
            ["shfl", "sync", "bfly", "b32"] => Shuffle::Butterfly,
            ["shfl", "sync", "idx", "b32"] => Shuffle::Index,
            _ => return o.unknown(),
        };
        o.expect(5)?;
        let (d, p) = o.operands[0].split_once('|').unwrap_or((o.operands[0], "_"));
        Ok(Op::Together(Together::Shuffle {
            f,
            d: self.d32(d.trim())?,
            valid: self.predicate_or_sink(p.trim())?,
            a: self.s32(o.operands[1])?,
            b: self.s32(o.operands[2])?,
            clamp: self.s32(o.operands[3])?,
            members: self.s32(o.operands[4])?,
        }))
    }

    fn vote(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        o.expect(3)?;
        let f = match o.parts[..] {
            ["vote", "sync", "all", "pred"] => Vote::All,
            ["vote", "sync", "any", "pred"] => Vote::Any,
            ["vote", "sync", "uni", "pred"] => Vote::Uniform,
            ["vote", "sync", "ballot", "b32"] => Vote::Ballot,
            _ => return o.unknown(),
        };
        let members = self.s32(o.operands[2])?;
        let a = self.guard(o.operands[1])?;
        Ok(if f == Vote::Ballot {
            Op::Together(Together::Vote {
                f,
                d: self.d32(o.operands[0])?,
                d_predicate: None,
                a,
                members,
            })
        } else {
            Op::Together(Together::Vote {
                f,
                d: 0,
                d_predicate: Some(self.predicate(o.operands[0])?),
                a,
                members,
            })
        })
    }

    fn reduce(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        o.expect(3)?;
        let f = match o.parts[..] {
            ["redux", "sync", "add", "s32" | "u32"] => Reduce::Add,
            ["redux", "sync", "and", "b32"] => Reduce::And,
            ["redux", "sync", "or", "b32"] => Reduce::Or,
            ["redux", "sync", "xor", "b32"] => Reduce::Xor,
            ["redux", "sync", "min", "s32"] => Reduce::MinS,
            ["redux", "sync", "min", "u32"] => Reduce::MinU,
            ["redux", "sync", "max", "s32"] => Reduce::MaxS,
            ["redux", "sync", "max", "u32"] => Reduce::MaxU,
            _ => return o.unknown(),
        };
        Ok(Op::Together(Together::Reduce {
            f,
            d: self.d32(o.operands[0])?,
            a: self.s32(o.operands[1])?,
            members: self.s32(o.operands[2])?,
        }))
    }

    /// `bar.sync a[, b]`, `bar.arrive a, b`, `bar.red.op d, a[, b], p`, `bar.warp.sync members`.
    fn barrier(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        let parts: Vec<&str> = o.parts[1..]
            .iter()
            .copied()
            .filter(|part| !matches!(*part, "cta" | "aligned"))
            .collect();
        let (kind, rest) = match parts[..] {
            ["warp", "sync"] => {
                o.expect(1)?;
                return Ok(Op::Together(Together::Sync { members: self.s32(o.operands[0])? }));
            }
            ["sync"] => (BarrierKind::Sync, &o.operands[..]),
            ["arrive"] => (BarrierKind::Arrive, &o.operands[..]),
            ["red", operation, _] => {
                let (Some((last, head)), true) = (o.operands.split_last(), o.operands.len() >= 3)
                else {
                    return o.unknown();
                };
                let of = self.guard(last)?;
                let kind = match operation {
                    "popc" => BarrierKind::Count { d: self.d32(head[0])?, of },
                    "and" => BarrierKind::All { d: self.predicate(head[0])?, of },
                    "or" => BarrierKind::Any { d: self.predicate(head[0])?, of },
                    _ => return o.unknown(),
                };
                (kind, &head[1..])
            }
            _ => return o.unknown(),
        };
        let threads = match rest {
            [_] if kind != BarrierKind::Arrive => None,
            [_, threads] => Some(self.s32(threads)?),
            _ => return o.unknown(),
        };
        Ok(Op::Barrier { kind, id: self.s32(rest[0])?, threads })
    }

    /// `ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16 {..}, [a]` and `stmatrix` alike.
    fn matrix(
        &mut self,
        o: &Operation<'_>,
        address: usize,
        data: usize,
    ) -> Decoded<(u8, bool, Address, [u32; 4])> {
        o.expect(2)?;
        let (is_transposed, count) = match o.parts[1..] {
            ["sync", "aligned", "m8n8", count, "trans", "shared" | "shared::cta", "b16"] => {
                (true, count)
            }
            ["sync", "aligned", "m8n8", count, "shared" | "shared::cta", "b16"] => (false, count),
            _ => return o.unknown(),
        };
        let count = match count {
            "x1" => 1,
            "x2" => 2,
            "x4" => 4,
            _ => return o.unknown(),
        };
        let parts = braces(o.operands[data]);
        if parts.len() != count {
            return Err(format!("{} registers for {count} matrices", parts.len()));
        }
        let mut registers = [0; 4];
        for (register, part) in registers.iter_mut().zip(parts) {
            *register = self.d32(part)?;
        }
        Ok((count as u8, is_transposed, self.address(o.operands[address])?, registers))
    }

    fn mma(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        let Some(product) = product(o.name) else { return o.unknown() };
        let has_scales = product == Product::MxE4m3;
        o.expect(if has_scales { 8 } else { 4 })?;
        let mut d = [0; 4];
        let parts = braces(o.operands[0]);
        if parts.len() != 4 {
            return Err("the result has 4 registers".to_owned());
        }
        for (register, part) in d.iter_mut().zip(parts) {
            *register = self.d32(part)?;
        }
        let scales = if has_scales {
            let a = self.scale(o.operands[4], o.operands[5])?;
            Some([a, self.scale(o.operands[6], o.operands[7])?])
        } else {
            None
        };
        Ok(Op::Mma(Box::new(Mma {
            product,
            d,
            a: self.vector(o.operands[1])?,
            b: self.vector(o.operands[2])?,
            c: self.vector(o.operands[3])?,
            scales,
        })))
    }

    fn scale(&mut self, data: &str, selectors: &str) -> Decoded<Scale> {
        let [data] = self.vector(data)?;
        let [byte, thread] = self.vector(selectors)?;
        Ok(Scale { data, byte, thread })
    }
}

/// Formats by the whole opcode. The compiler's own intrinsics put the shape before the kind.
fn product(name: &str) -> Option<Product> {
    Some(match name.strip_prefix("mma.sync.aligned.")? {
        "m16n8k32.row.col.f32.e4m3.e4m3.f32"
        // With a kind but without scales the product is the plain one.
        | "kind::f8f6f4.m16n8k32.row.col.f32.e4m3.e4m3.f32"
        | "m16n8k32.row.col.kind::f8f6f4.f32.e4m3.e4m3.f32" => Product::E4m3,
        "m16n8k16.row.col.f32.bf16.bf16.f32" => Product::Bf16,
        "m16n8k16.row.col.f32.f16.f16.f32" => Product::F16,
        "kind::mxf8f6f4.block_scale.m16n8k32.row.col.f32.e4m3.e4m3.f32.ue8m0"
        | "kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e4m3.e4m3.f32.ue8m0"
        | "m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e4m3.f32.ue8m0" => {
            Product::MxE4m3
        }
        _ => return None,
    })
}
