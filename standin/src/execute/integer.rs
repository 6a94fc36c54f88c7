//! Whole numbers and bits.

use crate::instruction::{Alu32, Alu64, Bits, Extend, Field, Shift};
use crate::warp::{Lanes32, Lanes64, Warp};

#[inline]
fn each(f: impl Fn(usize) -> u32) -> Lanes32 {
    std::array::from_fn(f)
}

/// Arithmetic of 32 bits; with `narrow` of 16, whose result is zero-extended.
pub(super) fn alu32(f: Alu32, narrow: Option<Extend>, inputs: [&Lanes32; 3]) -> Lanes32 {
    let Some(extend) = narrow else { return alu32_full(f, inputs) };
    let cut = |lanes: &Lanes32| match extend {
        Extend::Zero => lanes.map(|value| value & 0xFFFF),
        Extend::Sign => lanes.map(|value| value as i16 as i32 as u32),
    };
    // The amount of a shift has 32 bits whatever is shifted.
    let is_shift = matches!(f, Alu32::Shl | Alu32::ShrS | Alu32::ShrU);
    let [a, b, c] = inputs;
    let b = if is_shift { *b } else { cut(b) };
    alu32_full(f, [&cut(a), &b, &cut(c)]).map(|value| value & 0xFFFF)
}

fn alu32_full(f: Alu32, [a, b, c]: [&Lanes32; 3]) -> Lanes32 {
    match f {
        Alu32::Move => *a,
        Alu32::Add => each(|l| a[l].wrapping_add(b[l])),
        Alu32::Sub => each(|l| a[l].wrapping_sub(b[l])),
        Alu32::Mul => each(|l| a[l].wrapping_mul(b[l])),
        Alu32::Mad => each(|l| a[l].wrapping_mul(b[l]).wrapping_add(c[l])),
        Alu32::MulHighS => each(|l| high_signed(a[l], b[l])),
        // Operands are extended by their sign or by zeros: these bits are the same.
        Alu32::MulHigh16 => each(|l| a[l].wrapping_mul(b[l]) >> 16),
        Alu32::MulHighU => each(|l| high_unsigned(a[l], b[l])),
        Alu32::MadHighS => each(|l| high_signed(a[l], b[l]).wrapping_add(c[l])),
        Alu32::MadHighU => each(|l| high_unsigned(a[l], b[l]).wrapping_add(c[l])),
        Alu32::Mul24S => each(|l| {
            let cut = |value: u32| (value << 8) as i32 >> 8;
            cut(a[l]).wrapping_mul(cut(b[l])) as u32
        }),
        Alu32::Mul24U => each(|l| (a[l] & 0xFF_FFFF).wrapping_mul(b[l] & 0xFF_FFFF)),
        // Division by zero is not defined; the hardware gives all ones.
        Alu32::DivU => each(|l| a[l].checked_div(b[l]).unwrap_or(u32::MAX)),
        Alu32::RemU => each(|l| a[l].checked_rem(b[l]).unwrap_or(u32::MAX)),
        Alu32::DivS => {
            each(
                |l| {
                    if b[l] == 0 {
                        u32::MAX
                    } else {
                        (a[l] as i32).wrapping_div(b[l] as i32) as u32
                    }
                },
            )
        }
        Alu32::RemS => {
            each(
                |l| {
                    if b[l] == 0 {
                        u32::MAX
                    } else {
                        (a[l] as i32).wrapping_rem(b[l] as i32) as u32
                    }
                },
            )
        }
        Alu32::MinS => each(|l| (a[l] as i32).min(b[l] as i32) as u32),
        Alu32::MinU => each(|l| a[l].min(b[l])),
        Alu32::MaxS => each(|l| (a[l] as i32).max(b[l] as i32) as u32),
        Alu32::MaxU => each(|l| a[l].max(b[l])),
        Alu32::Abs => each(|l| (a[l] as i32).wrapping_abs() as u32),
        Alu32::Neg => each(|l| a[l].wrapping_neg()),
        Alu32::And => each(|l| a[l] & b[l]),
        Alu32::Or => each(|l| a[l] | b[l]),
        Alu32::Xor => each(|l| a[l] ^ b[l]),
        Alu32::Not => each(|l| !a[l]),
        Alu32::Cnot => each(|l| u32::from(a[l] == 0)),
        Alu32::Shl => each(|l| if b[l] > 31 { 0 } else { a[l] << b[l] }),
        Alu32::ShrU => each(|l| if b[l] > 31 { 0 } else { a[l] >> b[l] }),
        Alu32::ShrS => each(|l| (a[l] as i32 >> b[l].min(31)) as u32),
        Alu32::Field(f) => field(f, [a, b, c]),
    }
}

fn high_signed(a: u32, b: u32) -> u32 {
    ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
}

fn high_unsigned(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

fn field(f: Field, [a, b, c]: [&Lanes32; 3]) -> Lanes32 {
    let joined = |l: usize| u64::from(b[l]) << 32 | u64::from(a[l]);
    match f {
        Field::FunnelLeftWrap => each(|l| (joined(l) << (c[l] & 31) >> 32) as u32),
        Field::FunnelLeftClamp => each(|l| (joined(l) << c[l].min(32) >> 32) as u32),
        Field::FunnelRightWrap => each(|l| (joined(l) >> (c[l] & 31)) as u32),
        Field::FunnelRightClamp => each(|l| (joined(l) >> c[l].min(32)) as u32),
        Field::BfeU => each(|l| bfe(a[l], b[l], c[l], false)),
        Field::BfeS => each(|l| bfe(a[l], b[l], c[l], true)),
        Field::Popc => each(|l| a[l].count_ones()),
        Field::Clz => each(|l| a[l].leading_zeros()),
        Field::Brev => each(|l| a[l].reverse_bits()),
        Field::FindU => each(|l| 31u32.wrapping_sub(a[l].leading_zeros())),
        Field::FindS => each(|l| {
            let folded = a[l] ^ (a[l] as i32 >> 31) as u32;
            31u32.wrapping_sub(folded.leading_zeros())
        }),
        Field::FindShiftU => each(|l| if a[l] == 0 { u32::MAX } else { a[l].leading_zeros() }),
        Field::FindShiftS => each(|l| {
            let folded = a[l] ^ (a[l] as i32 >> 31) as u32;
            if folded == 0 { u32::MAX } else { folded.leading_zeros() }
        }),
        Field::BitMaskClamp => each(|l| bit_mask(a[l].min(32), b[l].min(32))),
        Field::BitMaskWrap => each(|l| bit_mask(a[l] & 31, b[l] & 31)),
        Field::Sad => each(|l| (a[l] as i32).abs_diff(b[l] as i32).wrapping_add(c[l])),
        Field::SadU => each(|l| a[l].abs_diff(b[l]).wrapping_add(c[l])),
        Field::Dp4aS => each(|l| {
            let (a, b) = (a[l].to_le_bytes(), b[l].to_le_bytes());
            let products = a.iter().zip(b).map(|(a, b)| i32::from(*a as i8) * i32::from(b as i8));
            (products.sum::<i32>() as u32).wrapping_add(c[l])
        }),
        Field::Dp4aU => each(|l| {
            let (a, b) = (a[l].to_le_bytes(), b[l].to_le_bytes());
            let products = a.iter().zip(b).map(|(a, b)| u32::from(*a) * u32::from(b));
            products.sum::<u32>().wrapping_add(c[l])
        }),
    }
}

/// Bit field extract: what lies beyond bit 31 is the sign (or zero).
fn bfe(a: u32, start: u32, length: u32, is_signed: bool) -> u32 {
    let (start, length) = (start & 0xFF, length & 0xFF);
    if length == 0 {
        return 0;
    }
    let value = if is_signed { i64::from(a as i32) } else { i64::from(a) };
    let value = value >> start.min(63);
    let length = if is_signed { length.min(32u32.saturating_sub(start).max(1)) } else { length };
    if length >= 32 {
        return value as u32;
    }
    let unused = 64 - length;
    if is_signed {
        (value << unused >> unused) as u32
    } else {
        ((value as u64) << unused >> unused) as u32
    }
}

fn bit_mask(start: u32, width: u32) -> u32 {
    let ones = if width >= 32 { u32::MAX } else { (1 << width) - 1 };
    if start >= 32 { 0 } else { ones << start }
}

/// Arithmetic of 64 bits.
pub(super) fn alu64(f: Alu64, [a, b, c]: [&Lanes64; 3]) -> Lanes64 {
    let each = |f: &dyn Fn(usize) -> u64| std::array::from_fn(f);
    match f {
        Alu64::Move => *a,
        Alu64::Add => std::array::from_fn(|l| a[l].wrapping_add(b[l])),
        Alu64::Sub => std::array::from_fn(|l| a[l].wrapping_sub(b[l])),
        Alu64::Mul => std::array::from_fn(|l| a[l].wrapping_mul(b[l])),
        Alu64::Mad => std::array::from_fn(|l| a[l].wrapping_mul(b[l]).wrapping_add(c[l])),
        Alu64::And => std::array::from_fn(|l| a[l] & b[l]),
        Alu64::Or => std::array::from_fn(|l| a[l] | b[l]),
        Alu64::Xor => std::array::from_fn(|l| a[l] ^ b[l]),
        Alu64::Not => std::array::from_fn(|l| !a[l]),
        Alu64::MulHighS => {
            each(&|l| ((i128::from(a[l] as i64) * i128::from(b[l] as i64)) >> 64) as u64)
        }
        Alu64::MulHighU => each(&|l| ((u128::from(a[l]) * u128::from(b[l])) >> 64) as u64),
        Alu64::DivU => each(&|l| a[l].checked_div(b[l]).unwrap_or(u64::MAX)),
        Alu64::RemU => each(&|l| a[l].checked_rem(b[l]).unwrap_or(u64::MAX)),
        Alu64::DivS => each(&|l| {
            if b[l] == 0 { u64::MAX } else { (a[l] as i64).wrapping_div(b[l] as i64) as u64 }
        }),
        Alu64::RemS => each(&|l| {
            if b[l] == 0 { u64::MAX } else { (a[l] as i64).wrapping_rem(b[l] as i64) as u64 }
        }),
        Alu64::MinS => each(&|l| (a[l] as i64).min(b[l] as i64) as u64),
        Alu64::MinU => each(&|l| a[l].min(b[l])),
        Alu64::MaxS => each(&|l| (a[l] as i64).max(b[l] as i64) as u64),
        Alu64::MaxU => each(&|l| a[l].max(b[l])),
        Alu64::Abs => each(&|l| (a[l] as i64).wrapping_abs() as u64),
        Alu64::Neg => each(&|l| a[l].wrapping_neg()),
    }
}

/// Products into twice the bits, shifts of 64 bits, and the rest of the bit instructions.
pub(super) fn bits(warp: &mut Warp, op: &Bits, lanes: u32) {
    match op {
        Bits::Wide { is_signed, d, a, b, c } => {
            let (a, b) = (warp.r32(*a), warp.r32(*b));
            let mut value: Lanes64 = if *is_signed {
                std::array::from_fn(|l| (i64::from(a[l] as i32) * i64::from(b[l] as i32)) as u64)
            } else {
                std::array::from_fn(|l| u64::from(a[l]) * u64::from(b[l]))
            };
            if let Some(c) = c {
                let c = warp.r64(*c);
                value = std::array::from_fn(|l| value[l].wrapping_add(c[l]));
            }
            warp.set64(*d, lanes, &value);
        }
        Bits::Wide16 { is_signed, d, a, b, c } => {
            let (a, b) = (warp.r32(*a), warp.r32(*b));
            let c = c.map(|c| warp.r32(c));
            let value = each(|l| {
                let product = if *is_signed {
                    (i32::from(a[l] as i16) * i32::from(b[l] as i16)) as u32
                } else {
                    (a[l] & 0xFFFF) * (b[l] & 0xFFFF)
                };
                product.wrapping_add(c.map_or(0, |c| c[l]))
            });
            warp.set32(*d, lanes, &value);
        }
        Bits::Shift64 { f, d, a, amount } => {
            let (a, amount) = (warp.r64(*a), warp.r32(*amount));
            let value = std::array::from_fn(|l| match f {
                Shift::Left => a[l].checked_shl(amount[l]).unwrap_or(0),
                Shift::RightU => a[l].checked_shr(amount[l]).unwrap_or(0),
                Shift::RightS => (a[l] as i64 >> amount[l].min(63)) as u64,
            });
            warp.set64(*d, lanes, &value);
        }
        Bits::Count64 { is_population, d, a } => {
            let a = warp.r64(*a);
            let value =
                each(|l| if *is_population { a[l].count_ones() } else { a[l].leading_zeros() });
            warp.set32(*d, lanes, &value);
        }
        Bits::Lop3 { table, d, a, b, c } => {
            let (a, b, c) = (warp.r32(*a), warp.r32(*b), warp.r32(*c));
            // Bit i of the table answers for a, b, c = the bits of i, a the highest.
            let value = each(|l| {
                (0..8).filter(|i| table >> i & 1 == 1).fold(0, |value, i: u32| {
                    let bit = |x: u32, place: u32| if i >> place & 1 == 1 { x } else { !x };
                    value | bit(a[l], 2) & bit(b[l], 1) & bit(c[l], 0)
                })
            });
            warp.set32(*d, lanes, &value);
        }
        Bits::Prmt { d, a, b, selector } => {
            let (a, b, selector) = (warp.r32(*a), warp.r32(*b), warp.r32(*selector));
            let value = each(|l| permute(a[l], b[l], selector[l]));
            warp.set32(*d, lanes, &value);
        }
        Bits::Bfi { .. } | Bits::Bfi64 { .. } | Bits::Bfe64 { .. } => fields(warp, op, lanes),
    }
}

/// Fields of bits put in and taken out.
fn fields(warp: &mut Warp, op: &Bits, lanes: u32) {
    if let Bits::Bfi { d, a, b, start, length } = op {
        let [a, b, start, length] = [a, b, start, length].map(|r| warp.r32(*r));
        let value = each(|l| {
            let mask = bit_mask(start[l] & 0xFF, length[l] & 0xFF);
            b[l] & !mask | a[l].checked_shl(start[l] & 0xFF).unwrap_or(0) & mask
        });
        warp.set32(*d, lanes, &value);
    }
    if let Bits::Bfi64 { d, a, b, start, length } = op {
        let [a, b] = [a, b].map(|r| warp.r64(*r));
        let [start, length] = [start, length].map(|r| warp.r32(*r));
        let value = std::array::from_fn(|l| {
            let (start, length) = (start[l] & 0xFF, length[l] & 0xFF);
            let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
            let mask = ones.checked_shl(start).unwrap_or(0);
            b[l] & !mask | a[l].checked_shl(start).unwrap_or(0) & mask
        });
        warp.set64(*d, lanes, &value);
    }
    if let Bits::Bfe64 { is_signed, d, a, start, length } = op {
        let a = warp.r64(*a);
        let [start, length] = [start, length].map(|r| warp.r32(*r));
        let value = std::array::from_fn(|l| {
            let (start, length) = (start[l] & 0xFF, length[l] & 0xFF);
            if length == 0 {
                return 0;
            }
            let highest = if *is_signed { a[l] as i64 >> 63 } else { 0 };
            let value = if start > 63 { highest as u64 } else { (a[l] as i64 >> start) as u64 };
            let value = if *is_signed { value } else { a[l].checked_shr(start).unwrap_or(0) };
            if length >= 64 {
                return value;
            }
            // A field that begins behind the highest bit is all sign.
            let unused = 64 - length;
            if *is_signed {
                (((value << unused) as i64) >> unused) as u64
            } else {
                value << unused >> unused
            }
        });
        warp.set64(*d, lanes, &value);
    }
}

/// Bytes of the pair (b, a) by number; bit 3 of a number asks for the byte's sign, eight times.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    (0..4).fold(0, |value, place| {
        let number = selector >> (4 * place) & 0xF;
        let byte = bytes[(number & 7) as usize];
        let byte = if number & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 };
        value | u32::from(byte) << (8 * place)
    })
}
