//! Every family of instructions on one thread, against the same written in Rust.

use super::kit::{Numbers, evaluate};

/// Corners and random numbers, in all combinations of corners.
fn cases() -> Vec<[u64; 3]> {
    let corners = [
        0,
        1,
        2,
        31,
        32,
        33,
        63,
        64,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xFFFF_FFFF,
        1 << 32,
        i64::MAX as u64,
        1 << 63,
        u64::MAX,
        0x0102_0304_0506_0708,
    ];
    let mut numbers = Numbers(7);
    let mut cases = Vec::new();
    for a in corners {
        for b in corners {
            cases.push([a, b, numbers.next()]);
            cases.push([numbers.next(), a, b]);
        }
    }
    cases.extend((0..500).map(|_| [numbers.next(), numbers.next(), numbers.next()]));
    cases
}

/// Floats of every kind, among them NaN, infinities and subnormals.
fn float_cases() -> Vec<[u64; 3]> {
    let corners: Vec<u32> = [
        0.0f32,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        448.0,
        464.0,
        65504.0,
        65520.0,
        3.0e38,
        1.0e-40,
        f32::MIN_POSITIVE,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        16_777_216.0,
        2_147_483_648.0,
    ]
    .map(f32::to_bits)
    .to_vec();
    let mut numbers = Numbers(11);
    let mut cases = Vec::new();
    for a in &corners {
        for b in &corners {
            cases.push([u64::from(*a), u64::from(*b), numbers.next()]);
        }
    }
    cases.extend((0..1000).map(|_| [numbers.next(), numbers.next(), numbers.next()]));
    let mut real = || u64::from(numbers.real().to_bits());
    cases.extend((0..500).map(|_| [real(), real(), real()]));
    cases
}

#[track_caller]
fn check(text: &str, cases: &[[u64; 3]], expected: impl Fn(u64, u64, u64) -> u64) {
    for (case, got) in cases.iter().zip(evaluate(text, cases)) {
        let [x, y, z] = *case;
        let expected = expected(x, y, z);
        assert_eq!(got, expected, "{text} of {x:#x}, {y:#x}, {z:#x}: {got:#x}, {expected:#x}");
    }
}

/// For 32-bit results.
#[track_caller]
fn check32(text: &str, expected: impl Fn(u32, u32, u32) -> u32) {
    check(text, &cases(), |x, y, z| u64::from(expected(x as u32, y as u32, z as u32)));
}

#[track_caller]
fn check64(text: &str, expected: impl Fn(u64, u64, u64) -> u64) {
    check(text, &cases(), expected);
}

/// For floats: any NaN equals any other.
#[track_caller]
fn check_float(text: &str, expected: impl Fn(f32, f32, f32) -> f32) {
    let cases = float_cases();
    for (case, got) in cases.iter().zip(evaluate(text, &cases)) {
        let [a, b, c] = case.map(|bits| f32::from_bits(bits as u32));
        let (got, expected) = (f32::from_bits(got as u32), expected(a, b, c));
        let is_same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
        assert!(is_same, "{text} of {a:e}, {b:e}, {c:e}: {got:e}, {expected:e}");
    }
}

#[test]
fn whole_numbers_of_32_bits() {
    check32("add.s32 %d, %a, %b;", u32::wrapping_add_three);
    check32("sub.s32 %d, %a, %b;", |a, b, _| a.wrapping_sub(b));
    check32("mul.lo.s32 %d, %a, %b;", |a, b, _| a.wrapping_mul(b));
    check32("mul.hi.u32 %d, %a, %b;", |a, b, _| ((a as u64 * b as u64) >> 32) as u32);
    check32("mul.hi.s32 %d, %a, %b;", |a, b, _| ((a as i32 as i64 * b as i32 as i64) >> 32) as u32);
    check32("mad.lo.s32 %d, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check32("div.u32 %d, %a, %b;", |a, b, _| a.checked_div(b).unwrap_or(u32::MAX));
    check32("rem.s32 %d, %a, %b;", |a, b, _| {
        if b == 0 { u32::MAX } else { (a as i32).wrapping_rem(b as i32) as u32 }
    });
    check32("min.s32 %d, %a, %b;", |a, b, _| (a as i32).min(b as i32) as u32);
    check32("max.u32 %d, %a, %b;", |a, b, _| a.max(b));
    check32("abs.s32 %d, %a;", |a, _, _| (a as i32).wrapping_abs() as u32);
    check32("neg.s32 %d, %a;", |a, _, _| a.wrapping_neg());
    check32("shl.b32 %d, %a, %b;", |a, b, _| a.checked_shl(b).unwrap_or(0));
    check32("shr.u32 %d, %a, %b;", |a, b, _| a.checked_shr(b).unwrap_or(0));
    check32("shr.s32 %d, %a, %b;", |a, b, _| (a as i32 >> b.min(31)) as u32);
    check32("sad.u32 %d, %a, %b, %c;", |a, b, c| a.abs_diff(b).wrapping_add(c));
}

/// A name for `wrapping_add` with a third operand that is not there.
trait WrappingAddThree {
    fn wrapping_add_three(self, b: u32, c: u32) -> u32;
}

impl WrappingAddThree for u32 {
    fn wrapping_add_three(self, b: u32, _: u32) -> u32 {
        self.wrapping_add(b)
    }
}

#[test]
fn bits_of_32_bits() {
    check32("and.b32 %d, %a, %b;", |a, b, _| a & b);
    check32("not.b32 %d, %a;", |a, _, _| !a);
    check32("cnot.b32 %d, %a;", |a, _, _| u32::from(a == 0));
    check32("lop3.b32 %d, %a, %b, %c, 0xCA;", |a, b, c| a & b | !a & c);
    check32("lop3.b32 %d, %a, %b, %c, 0x96;", |a, b, c| a ^ b ^ c);
    check32("popc.b32 %d, %a;", |a, _, _| a.count_ones());
    check32("clz.b32 %d, %a;", |a, _, _| a.leading_zeros());
    check32("brev.b32 %d, %a;", |a, _, _| a.reverse_bits());
    check32("bfind.u32 %d, %a;", |a, _, _| a.checked_ilog2().unwrap_or(u32::MAX));
    check32(
        "bfind.shiftamt.u32 %d, %a;",
        |a, _, _| if a == 0 { u32::MAX } else { a.leading_zeros() },
    );
    check32("shf.l.wrap.b32 %d, %a, %b, %c;", |a, b, c| {
        ((((b as u64) << 32 | a as u64) << (c & 31)) >> 32) as u32
    });
    check32("shf.r.clamp.b32 %d, %a, %b, %c;", |a, b, c| {
        (((b as u64) << 32 | a as u64) >> c.min(32)) as u32
    });
    // As the PTX ISA writes it, bit by bit.
    let extract = |a: u32, b: u32, c: u32, is_signed: bool| {
        let (start, length) = (b & 255, c & 255);
        let sign =
            if !is_signed || length == 0 { 0 } else { a >> (start + length - 1).min(31) & 1 };
        (0..32).fold(0, |d, i| {
            let inside = i < length && start + i <= 31;
            d | (if inside { a >> (start + i) & 1 } else { sign }) << i
        })
    };
    check32("bfe.u32 %d, %a, %b, %c;", |a, b, c| extract(a, b, c, false));
    check32("bfe.s32 %d, %a, %b, %c;", |a, b, c| extract(a, b, c, true));
    check32("bfi.b32 %d, %a, %b, %c, 7;", |a, b, c| {
        let start = c & 255;
        (0..7).fold(b, |d, i| {
            if start + i > 31 { d } else { d & !(1 << (start + i)) | (a >> i & 1) << (start + i) }
        })
    });
    check32("prmt.b32 %d, %a, %b, %c;", |a, b, c| {
        let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
        let pick = |i: u32| {
            let selector = c >> (4 * i) & 15;
            let byte = bytes[selector as usize & 7];
            if selector < 8 {
                byte
            } else if byte < 128 {
                0
            } else {
                255
            }
        };
        u32::from_le_bytes([0, 1, 2, 3].map(pick))
    });
    check32("prmt.b32 %d, %a, %b, 0x5410U;", |a, b, _| a & 0xFFFF | b << 16);
    check32("dp4a.s32.s32 %d, %a, %b, %c;", |a, b, c| {
        let dot: i32 =
            (0..4).map(|i| (a >> (8 * i)) as i8 as i32 * (b >> (8 * i)) as i8 as i32).sum();
        c.wrapping_add(dot as u32)
    });
}

#[test]
fn sixteen_and_sixty_four_bits() {
    check32("add.s16 %d, %a, %b;", |a, b, _| u32::from((a as u16).wrapping_add(b as u16)));
    check32("shr.s16 %d, %a, %b;", |a, b, _| u32::from((a as i16 >> b.min(15)) as u16));
    check32("max.s16 %d, %a, %b;", |a, b, _| u32::from((a as i16).max(b as i16) as u16));
    check32("mul.hi.u16 %d, %a, %b;", |a, b, _| ((a & 0xFFFF) * (b & 0xFFFF)) >> 16);
    check32("mul.hi.s16 %d, %a, %b;", |a, b, _| {
        u32::from(((a as i16 as i32 * b as i16 as i32) >> 16) as u16)
    });
    check32("and.b16 %d, %a, %b;", |a, b, _| a & b & 0xFFFF);
    check32("mul.wide.s16 %d, %a, %b;", |a, b, _| (a as i16 as i32 * b as i16 as i32) as u32);
    check32("mul.wide.u16 %d, %a, %b;", |a, b, _| (a as u16 as u32) * (b as u16 as u32));
    check64("mul.wide.s32 %q, %a, %b;", |x, y, _| (x as i32 as i64 * y as i32 as i64) as u64);
    check64("mad.wide.u32 %q, %a, %b, %z;", |x, y, z| {
        (x as u32 as u64 * y as u32 as u64).wrapping_add(z)
    });
    check64("add.s64 %q, %x, %y;", |x, y, _| x.wrapping_add(y));
    check64("mad.lo.s64 %q, %x, %y, %z;", |x, y, z| x.wrapping_mul(y).wrapping_add(z));
    check64("mul.hi.u64 %q, %x, %y;", |x, y, _| ((x as u128 * y as u128) >> 64) as u64);
    check64("div.s64 %q, %x, %y;", |x, y, _| {
        if y == 0 { u64::MAX } else { (x as i64).wrapping_div(y as i64) as u64 }
    });
    check64("rem.u64 %q, %x, %y;", |x, y, _| if y == 0 { u64::MAX } else { x % y });
    check64("min.s64 %q, %x, %y;", |x, y, _| (x as i64).min(y as i64) as u64);
    check64("xor.b64 %q, %x, %y;", |x, y, _| x ^ y);
    check64("shl.b64 %q, %x, %b;", |x, y, _| x.checked_shl(y as u32).unwrap_or(0));
    check64("shr.s64 %q, %x, %b;", |x, y, _| (x as i64 >> (y as u32).min(63)) as u64);
    let mask = |length: u32| if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    check64("bfi.b64 %q, %x, %y, %c, 48;", |x, y, z| {
        let mask = mask(48).checked_shl(z as u32 & 255).unwrap_or(0);
        y & !mask | x.checked_shl(z as u32 & 255).unwrap_or(0) & mask
    });
    check64("bfe.u64 %q, %x, %b, %c;", |x, y, z| {
        x.checked_shr(y as u32 & 255).unwrap_or(0) & mask(z as u32 & 255)
    });
    check64("bfe.s64 %q, %x, %b, %c;", |x, y, z| {
        let (start, length) = (y as u32 & 255, z as u32 & 255);
        let sign = if length == 0 { 0 } else { x >> (start + length - 1).min(63) & 1 };
        (0..64).fold(0, |d, i| {
            d | (if i < length && start + i <= 63 { x >> (start + i) & 1 } else { sign }) << i
        })
    });
    check64("popc.b64 %d, %x;", |x, _, _| u64::from(x.count_ones()));
    check64("clz.b64 %d, %x;", |x, _, _| u64::from(x.leading_zeros()));
}

#[test]
fn moves_and_parts_of_registers() {
    check64("mov.b64 %q, {%a, %b};", |x, y, _| y << 32 | x & 0xFFFF_FFFF);
    check64("mov.b64 {%r10, %r11}, %x; sub.s32 %d, %r11, %r10;", |x, _, _| {
        u64::from(((x >> 32) as u32).wrapping_sub(x as u32))
    });
    check32("{ .reg .b16 l, h; mov.b32 {l, h}, %a; mov.b32 %d, {h, l}; }", |a, _, _| {
        a.rotate_left(16)
    });
    check32("{ .reg .b32 %a2; mov.b32 %a2, %a; add.u32 %d, %a2, 0x10; }", |a, _, _| {
        a.wrapping_add(16)
    });
    check32("setp.lt.s32 %p1, %a, %b; selp.b32 %d, %a, %c, %p1;", |a, b, c| {
        if (a as i32) < b as i32 { a } else { c }
    });
    check64(
        "setp.hi.u64 %p1, %x, %y; selp.b64 %q, %x, %z, %p1;",
        |x, y, z| if x > y { x } else { z },
    );
    check32("setp.ge.u32 %p1|%p2, %a, %b; selp.u32 %d, 1, 0, %p2;", |a, b, _| u32::from(a < b));
    check32(
        "setp.eq.s32 %p1, %c, 0; setp.ne.and.s32 %p2, %a, %b, !%p1; selp.u32 %d, 1, 0, %p2;",
        |a, b, c| u32::from(a != b && c != 0),
    );
    check32(
        "setp.lt.u32 %p1, %a, %b; setp.lt.u32 %p2, %b, %c; xor.pred %p3, %p1, %p2; not.pred %p4, %p3; \
         mov.pred %p5, %p4; mov.u32 %d, 3; @%p5 mov.u32 %d, 4; @!%p5 add.u32 %d, %d, 6;",
        |a, b, c| if (a < b) == (b < c) { 4 } else { 9 },
    );
}

#[test]
fn branches_loops_and_divergence() {
    // Counts the steps of Collatz' sequence from a small number: every lane leaves when it is done.
    let text = "and.b32 %r10, %a, 63; add.u32 %r10, %r10, 1; mov.u32 %d, 0;\n\
        $loop: setp.eq.u32 %p1, %r10, 1; @%p1 bra $done;\n\
        add.u32 %d, %d, 1; and.b32 %r11, %r10, 1; setp.eq.u32 %p2, %r11, 0; @%p2 bra $even;\n\
        mad.lo.u32 %r10, %r10, 3, 1; bra.uni $loop;\n\
        $even: shr.u32 %r10, %r10, 1; bra $loop;\n$done:";
    check32(text, |a, _, _| {
        let (mut value, mut steps) = ((a & 63) + 1, 0);
        while value != 1 {
            value = if value % 2 == 0 { value / 2 } else { 3 * value + 1 };
            steps += 1;
        }
        steps
    });
}

#[test]
fn floats() {
    check_float("add.f32 %d, %a, %b;", |a, b, _| a + b);
    check_float("sub.rn.f32 %d, %a, %b;", |a, b, _| a - b);
    check_float("mul.f32 %d, %a, %b;", |a, b, _| a * b);
    check_float("fma.rn.f32 %d, %a, %b, %c;", f32::mul_add);
    check_float("div.rn.f32 %d, %a, %b;", |a, b, _| a / b);
    check_float("rcp.rn.f32 %d, %a;", |a, _, _| 1.0 / a);
    check_float("sqrt.rn.f32 %d, %a;", |a, _, _| a.sqrt());
    check_float("neg.f32 %d, %a;", |a, _, _| -a);
    check_float("abs.f32 %d, %a;", |a, _, _| a.abs());
    check_float("min.f32 %d, %a, %b;", |a, b, _| {
        if b.is_nan() || a.total_cmp(&b).is_lt() && !a.is_nan() { a } else { b }
    });
    check_float("max.NaN.f32 %d, %a, %b;", |a, b, _| {
        if a.is_nan() || b.is_nan() {
            f32::NAN
        } else if a.total_cmp(&b).is_gt() {
            a
        } else {
            b
        }
    });
    check_float("fma.rn.sat.f32 %d, %a, %b, %c;", |a, b, c| {
        let value = a.mul_add(b, c);
        if value.is_nan() || value <= 0.0 { 0.0 } else { value.min(1.0) }
    });
    check_float("ex2.approx.f32 %d, %a;", |a, _, _| f64::from(a).exp2() as f32);
    check_float("rsqrt.approx.f32 %d, %a;", |a, _, _| (1.0 / f64::from(a).sqrt()) as f32);
    check_float(
        "setp.ltu.f32 %p1, %a, %b; selp.f32 %d, 0f3F800000, 0f00000000, %p1;",
        |a, b, _| f32::from(u8::from(a.is_nan() || b.is_nan() || a < b)),
    );
    check_float(
        "setp.neu.f32 %p1, %a, %b; selp.f32 %d, 0f3F800000, 0f00000000, %p1;",
        |a, b, _| f32::from(u8::from(a.is_nan() || b.is_nan() || a < b || a > b)),
    );
    check_float(
        "setp.nan.f32 %p1, %a, %b; selp.f32 %d, 0f3F800000, 0f00000000, %p1;",
        |a, b, _| f32::from(u8::from(a.is_nan() || b.is_nan())),
    );
    let double = |x: u64| f64::from_bits(x);
    check("fma.rn.f64 %q, %x, %y, %z;", &[[1.5f64, 2.25, -3.0].map(f64::to_bits)], |x, y, z| {
        double(x).mul_add(double(y), double(z)).to_bits()
    });
}

#[test]
fn conversions_between_whole_numbers() {
    check64("cvt.s64.s32 %q, %a;", |x, _, _| x as i32 as i64 as u64);
    check64("cvt.u64.u32 %q, %a;", |x, _, _| x & 0xFFFF_FFFF);
    check32("cvt.u32.u64 %d, %x;", |a, _, _| a);
    check32("cvt.s32.s8 %d, %a;", |a, _, _| a as i8 as i32 as u32);
    check32("cvt.u32.u16 %d, %a;", |a, _, _| a & 0xFFFF);
    check32("cvt.u16.u32 %d, %a;", |a, _, _| a & 0xFFFF);
    check32("cvt.sat.u8.s32 %d, %a;", |a, _, _| (a as i32).clamp(0, 255) as u32);
}

#[test]
fn conversions_from_and_to_floats() {
    check("cvt.rn.f32.s32 %d, %a;", &cases(), |x, _, _| u64::from((x as i32 as f32).to_bits()));
    check("cvt.rn.f32.u32 %d, %a;", &cases(), |x, _, _| u64::from((x as u32 as f32).to_bits()));
    check("cvt.rn.f32.s64 %d, %x;", &cases(), |x, _, _| u64::from((x as i64 as f32).to_bits()));
    let single = |x: u64| f32::from_bits(x as u32);
    check("cvt.rzi.s32.f32 %d, %a;", &float_cases(), |x, _, _| u64::from(single(x) as i32 as u32));
    check("cvt.rni.s32.f32 %d, %a;", &float_cases(), |x, _, _| {
        u64::from(single(x).round_ties_even() as i32 as u32)
    });
    check("cvt.rmi.u32.f32 %d, %a;", &float_cases(), |x, _, _| u64::from(single(x).floor() as u32));
    check_float("cvt.rni.f32.f32 %d, %a;", |a, _, _| a.round_ties_even());
    check_float("cvt.f64.f32 %q, %a; cvt.rn.f32.f64 %d, %q;", |a, _, _| a);
    // FP16 and BF16 and back, over every code.
    let codes: Vec<[u64; 3]> = (0..0x1_0000u64).map(|code| [code, code << 16, 0]).collect();
    let is_nan16 = |code: u64| code & 0x7C00 == 0x7C00 && code & 0x3FF != 0;
    check("cvt.f32.f16 %r10, %a; cvt.rn.f16.f32 %d, %r10;", &codes, |x, _, _| {
        if is_nan16(x) { 0x7FFF } else { x }
    });
    check(
        "cvt.rn.bf16.f32 %d, %b;",
        &codes,
        |x, _, _| if x & 0x7FFF > 0x7F80 { 0x7FFF } else { x },
    );
    check(
        "cvt.f32.bf16 %d, %a;",
        &codes,
        |x, _, _| {
            if x & 0x7FFF > 0x7F80 { 0x7FFF_FFFF } else { x << 16 }
        },
    );
}

/// The value of an E4M3 code, as OCP's "8-bit Floating Point Specification" 1.0 says.
pub(crate) fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa * 2f64.powi(-6),
        _ => (1.0 + mantissa) * 2f64.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[test]
fn packed_conversions() {
    let cases = float_cases();
    let single = |x: u64| f32::from_bits(x as u32);
    check("cvt.rn.bf16x2.f32 %d, %a, %b;", &cases, |x, y, _| {
        let one = |x: u64| {
            let bits = x as u32;
            if single(x).is_nan() {
                0x7FFF
            } else {
                u64::from((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
            }
        };
        one(x) << 16 | one(y)
    });
    // The nearest finite code, ties to the even one, by looking at all of them.
    let encode = |x: f32| {
        if x.is_nan() {
            return 0x7F;
        }
        let wanted = f64::from(x).abs().min(448.0);
        let distance = |code: &u8| (e4m3(*code) - wanted).abs();
        let best = (0..0x7F_u8)
            .min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
        u64::from(best.unwrap() | if x.is_sign_negative() { 0x80 } else { 0 })
    };
    check("cvt.rn.satfinite.e4m3x2.f32 %d, %a, %b;", &cases, |x, y, _| {
        encode(single(x)) << 8 | encode(single(y))
    });
    let codes: Vec<[u64; 3]> = (0..256u64).map(|code| [code << 8 | (255 - code), 0, 0]).collect();
    let text = "cvt.rn.f16x2.e4m3x2 %r10, %a; mov.b32 {%r11, %r12}, %r10; cvt.f32.f16 %r13, %r12; \
                cvt.f32.f16 %r14, %r11; mov.b64 %q, {%r14, %r13};";
    check(text, &codes, |x, _, _| {
        let one = |code: u64| {
            let value = e4m3(code as u8) as f32;
            u64::from(if value.is_nan() { 0x7FFF_FFFF } else { value.to_bits() })
        };
        one(x >> 8) << 32 | one(x & 255)
    });
}

#[test]
fn pairs_of_16_bit_floats() {
    // 1.5 and -2.0 in BF16, and in FP16.
    let pair = |high: u64, low: u64| high << 16 | low;
    let bf16 = [[pair(0x3FC0, 0xC000), pair(0x4000, 0x3F80), pair(0x3F80, 0x3F80)]];
    check("fma.rn.bf16x2 %d, %a, %b, %c;", &bf16, |_, _, _| pair(0x4080, 0xBF80));
    check("add.rn.bf16x2 %d, %a, %b;", &bf16, |_, _, _| pair(0x4060, 0xBF80));
    check("max.bf16x2 %d, %a, %b;", &bf16, |_, _, _| pair(0x4000, 0x3F80));
    check("neg.bf16x2 %d, %a;", &bf16, |_, _, _| pair(0xBFC0, 0x4000));
    let f16 = [[pair(0x3E00, 0xC000), pair(0x4000, 0x3C00), 0]];
    check("mul.f16x2 %d, %a, %b;", &f16, |_, _, _| pair(0x4200, 0xC000));
    check("setp.lt.bf16 %p1, %a, %b; selp.u32 %d, 1, 0, %p1;", &bf16, |_, _, _| 1);
}
