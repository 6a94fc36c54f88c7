//! Tensor-core products D = A B + C of 16 x K by K x 8, K = 32 (8-bit) or 16 (16-bit elements).
//!
//! Fragments as in the PTX ISA, "Matrix Fragments for mma.m16n8k16 / m16n8k32": lane = 4 g + t.
//! With e elements in a register, register r of A holds row g + 8 (r mod 2), columns
//! e t + K/2 (r div 2) and on; register r of B holds column g, rows e t + K/2 r and on; register r of
//! C and D holds row g + 8 (r div 2), column 2 t + r mod 2.
//!
//! How a sum is rounded is not documented by the vendor. Two models:
//!
//! * exact: products and sum in double precision (for 8-bit elements without any error), rounded
//!   once to FP32;
//! * as the hardware does, after the measurements in "MMA-Sim" (arXiv 2511.10909): in steps of some
//!   k, all products and the accumulator are cut, towards zero, at F bits below the greatest
//!   exponent, added exactly, and cut again to the result's mantissa.

use crate::formats::add_to_odd;
use crate::instruction::Product;

/// The longest K.
pub(crate) const K_MAX: usize = 32;

/// Rows of A (16) or columns of B (8) as values; beyond K they are zero.
pub(crate) struct Operands {
    pub(crate) a: [[f32; K_MAX]; 16],
    pub(crate) b: [[f32; K_MAX]; 8],
    /// Powers of two that multiply rows of A and columns of B, as exponents; NaN scales poison.
    pub(crate) scale_a: [i32; 16],
    pub(crate) scale_b: [i32; 8],
}

/// K and the elements in a 32-bit register.
pub(crate) fn shape(product: Product) -> (usize, usize) {
    match product {
        Product::E4m3 | Product::MxE4m3 => (32, 4),
        Product::Bf16 | Product::F16 => (16, 2),
    }
}

/// The scale code 0xFF, a NaN.
pub(crate) const NAN_SCALE: i32 = i32::MIN;

/// The hardware's way of adding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Adder {
    /// Bits kept below the greatest exponent.
    fraction_bits: i32,
    /// Bits of the result's mantissa below the leading one.
    mantissa_bits: i32,
    /// k of one step.
    step: usize,
}

/// How an architecture (80, 89, 120, ...) adds. Ada's FP8 unit keeps 13 bits; Hopper and the
/// data-centre Blackwell have no FP8 `mma.sync` and widen to FP16 in steps of 16.
pub(crate) fn adder(architecture: u32, product: Product) -> Adder {
    let is_fp8 = matches!(product, Product::E4m3 | Product::MxE4m3);
    let of = |fraction_bits, mantissa_bits, step| Adder { fraction_bits, mantissa_bits, step };
    match (architecture, is_fp8) {
        (120.., true) => of(25, 23, 32),
        (90.., _) => of(25, 23, 16),
        (89, true) => of(13, 13, 16),
        (_, true) => of(24, 23, 16),
        (_, false) => of(24, 23, 8),
    }
}

/// D, given C, in double precision and one rounding.
pub(crate) fn exact(operands: &Operands, k: usize, c: &[[f32; 8]; 16]) -> [[f32; 8]; 16] {
    let mut b_kn = [[0f64; 8]; K_MAX];
    for (n, column) in operands.b.iter().enumerate() {
        for (row, value) in b_kn.iter_mut().zip(column) {
            row[n] = f64::from(*value);
        }
    }
    let mut d = [[0f32; 8]; 16];
    for (m, row) in operands.a.iter().enumerate() {
        let mut sums = [0f64; 8];
        for (a, b) in row[..k].iter().zip(&b_kn) {
            let a = f64::from(*a);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
        for (n, sum) in sums.iter().enumerate() {
            let scaled = sum * scale(operands.scale_a[m], operands.scale_b[n]);
            d[m][n] = add_to_odd(scaled, f64::from(c[m][n])) as f32;
        }
    }
    d
}

fn scale(a: i32, b: i32) -> f64 {
    if a == NAN_SCALE || b == NAN_SCALE { f64::NAN } else { 2f64.powi(a + b) }
}

/// D, given C, as the hardware adds.
pub(crate) fn hardware(
    operands: &Operands,
    k: usize,
    c: &[[f32; 8]; 16],
    (adder, min_exponent): (Adder, i32),
) -> [[f32; 8]; 16] {
    let a = operands.a.map(|row| Parts::new(&row, min_exponent));
    let b = operands.b.map(|column| Parts::new(&column, min_exponent));
    let mut d = *c;
    for (m, row) in a.iter().enumerate() {
        for (n, column) in b.iter().enumerate() {
            let (scale_a, scale_b) = (operands.scale_a[m], operands.scale_b[n]);
            if scale_a == NAN_SCALE || scale_b == NAN_SCALE {
                d[m][n] = f32::from_bits(0x7FFF_FFFF);
                continue;
            }
            for start in (0..k).step_by(adder.step) {
                let range = start..(start + adder.step).min(k);
                let is_finite = row.is_finite && column.is_finite && d[m][n].is_finite();
                d[m][n] = if is_finite {
                    adder.add(row, column, range, (scale_a + scale_b, d[m][n]))
                } else {
                    not_finite(&operands.a[m][range.clone()], &operands.b[n][range], d[m][n])
                };
            }
        }
    }
    d
}

/// A sum in which something is no number, by the rules of IEEE 754; the NaN is the hardware's.
fn not_finite(a: &[f32], b: &[f32], c: f32) -> f32 {
    let sum = a.iter().zip(b).map(|(a, b)| a * b).chain([c]).sum::<f32>();
    if sum.is_nan() { f32::from_bits(0x7FFF_FFFF) } else { sum }
}

/// Where a product or sum has no bits: below every exponent.
const NOTHING: i32 = -1 << 20;

/// Numbers as integer significands times 2^(exponent - 23), `exponent` being that of the format: a
/// subnormal keeps the least one, and zero has [`NOTHING`].
struct Parts {
    significands: [i64; K_MAX],
    exponents: [i32; K_MAX],
    is_finite: bool,
}

impl Parts {
    fn new(values: &[f32; K_MAX], min_exponent: i32) -> Parts {
        let parts = values.map(|value| part(value, min_exponent));
        Parts {
            significands: parts.map(|part| part.0),
            exponents: parts.map(|part| part.1),
            is_finite: values.iter().all(|value| value.is_finite()),
        }
    }
}

fn part(value: f32, min_exponent: i32) -> (i64, i32) {
    let bits = value.to_bits();
    let (field, mantissa) = ((bits >> 23 & 0xFF) as i32, i64::from(bits & 0x7F_FFFF));
    let (exponent, magnitude) =
        if field == 0 { (-126, mantissa) } else { (field - 127, mantissa | 1 << 23) };
    if magnitude == 0 {
        return (0, NOTHING);
    }
    // A subnormal of a smaller format is normal as FP32.
    let magnitude = magnitude >> (min_exponent - exponent).clamp(0, 63);
    let significand = if value.is_sign_negative() { -magnitude } else { magnitude };
    (significand, exponent.max(min_exponent))
}

impl Adder {
    /// The products of a range, times 2^scale, plus an accumulator.
    fn add(
        self,
        a: &Parts,
        b: &Parts,
        range: std::ops::Range<usize>,
        (scale, c): (i32, f32),
    ) -> f32 {
        let (c, c_exponent) = part(c, -126);
        let mut greatest = c_exponent;
        for i in range.clone() {
            greatest = greatest.max(a.exponents[i] + b.exponents[i] + scale);
        }
        if greatest < NOTHING / 2 {
            return 0.0;
        }
        // Significands of products count units of 2^(exponent - 46), and what is kept units of
        // 2^(greatest - fraction_bits): a shift that rounds towards zero.
        let cut = |significand: i64, exponent: i32| {
            let shift = (46 - self.fraction_bits + greatest - exponent).min(62);
            let towards_zero = significand >> 63 & ((1 << shift) - 1);
            (significand + towards_zero) >> shift
        };
        let mut sum = cut(c << 23, c_exponent);
        for i in range {
            let exponent = a.exponents[i] + b.exponents[i] + scale;
            sum += cut(a.significands[i] * b.significands[i], exponent);
        }
        self.cut_result(sum, greatest - self.fraction_bits)
    }

    /// sum 2^unit as FP32, cut towards zero after `mantissa_bits`.
    fn cut_result(self, sum: i64, unit: i32) -> f32 {
        let magnitude = sum.unsigned_abs();
        if magnitude == 0 {
            return 0.0;
        }
        let exponent = 63 - magnitude.leading_zeros() as i32 + unit;
        // The unit of the last bit that is kept.
        let last = exponent.max(-126) - self.mantissa_bits;
        let shift = last - unit;
        let kept = if shift > 63 {
            0
        } else if shift > 0 {
            magnitude >> shift << shift
        } else {
            magnitude
        };
        // At most 24 bits are set: both factors and the product are exact in a double.
        let value = kept as f64 * 2f64.powi(unit);
        let value = if value > f64::from(f32::MAX) { f32::INFINITY } else { value as f32 };
        if sum < 0 { -value } else { value }
    }
}
