//! Sixteen lanes for kernels that the compiler does not vectorise by itself: products of small
//! blocks with something done to the sums while they are in registers.
//!
//! A product reads *units* of 32 bits: one FP32 number, or two BF16 numbers that are neighbours along
//! the contracted side. `Vector::PAIR` says which; the rest of a kernel is the same for both. On a
//! CPU without BF16 products, BF16 numbers are widened and multiplied in FP32, which is exact for
//! each product.
//!
//! BF16 products take subnormal operands and results as zero, and round sums to nearest even.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::gemm::Isa;
use crate::tensor::DType;

use self::portable::Portable;

/// Lanes of a vector: one AVX-512 register.
pub(crate) const LANES: usize = 16;

/// Sixteen units in memory.
pub(crate) type Units = [u32; LANES];

/// An instruction set with sixteen lanes. Everything is inlined into a function compiled for it.
pub(crate) trait Vector: Copy {
    /// Sixteen FP32 numbers, or sixteen units of a product.
    type Lanes: Copy;
    /// Numbers in a unit.
    const PAIR: usize;
    /// Whether there are registers for two dozen vectors of sums.
    const ROOMY: bool;

    fn all(self, x: f32) -> Self::Lanes;
    fn floats(self, x: &[f32; LANES]) -> Self::Lanes;
    fn array(self, x: Self::Lanes) -> [f32; LANES];
    fn units(self, x: &Units) -> Self::Lanes;
    fn unit_array(self, x: Self::Lanes) -> Units;
    /// One unit in all lanes.
    fn all_units(self, x: u32) -> Self::Lanes;
    /// `sum + a b`, where `a` and `b` are units.
    fn multiply_units(self, a: Self::Lanes, b: Self::Lanes, sum: Self::Lanes) -> Self::Lanes;

    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// `a b + c`.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    /// The larger one; `b` where either is NaN.
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// The smaller one; `b` where either is NaN.
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// `x` in the lanes from `first` on, `other` in those before.
    fn lanes_from(self, first: usize, x: Self::Lanes, other: Self::Lanes) -> Self::Lanes;
    /// The nearest integer, and two to its power: `x` is within -126..=127, or NaN.
    fn power_of_two(self, x: Self::Lanes) -> (Self::Lanes, Self::Lanes);

    /// Interleaves: `[a0, b0, a1, b1, ..]` of the lower lanes, and of the upper ones.
    fn zip(self, a: Self::Lanes, b: Self::Lanes) -> (Self::Lanes, Self::Lanes);

    /// Units of one row of 32 neighbours along the contracted side: `2 / PAIR` vectors.
    #[inline(always)]
    fn row_units(self, row: [Self::Lanes; 2], out: &mut [Units]) {
        for (out, row) in out.iter_mut().zip(row) {
            *out = self.unit_array(row);
        }
    }

    /// Units of two neighbours along the contracted side, 32 columns each: `4 / PAIR` vectors. For
    /// pairs `[row 0 with row 1]`, else row 0, then row 1.
    #[inline(always)]
    fn column_units(self, rows: [[Self::Lanes; 2]; 2], out: &mut [Units]) {
        for (out, row) in out.iter_mut().zip(rows.as_flattened()) {
            *out = self.unit_array(*row);
        }
    }

    /// Numbers as units, `PAIR` neighbours in one: 16 units from `16 PAIR` numbers.
    #[inline(always)]
    fn pack(self, x: &[f32], out: &mut [u32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x.to_bits();
        }
    }

    /// `2^x` within 2 ulp; 2^-126 for everything below, 2^127 for everything above, NaN for NaN.
    #[inline(always)]
    fn exp2(self, x: Self::Lanes) -> Self::Lanes {
        let x = self.min(self.all(127.0), self.max(self.all(-126.0), x));
        let (n, power) = self.power_of_two(x);
        let r = self.sub(x, n);
        // (2^r - 1) / r on |r| <= 1/2, interpolated at Chebyshev's nodes: 5e-9 of 2^r.
        let r2 = self.mul(r, r);
        let low = self.mul_add(r, self.all(0.240_226_5), self.all(std::f32::consts::LN_2));
        let middle = self.mul_add(r, self.all(0.009_618_083), self.all(0.055_503_57));
        let high = self.mul_add(r, self.all(0.000_154_531_63), self.all(0.001_339_086_3));
        let poly = self.mul_add(r2, self.mul_add(r2, high, middle), low);
        self.mul(self.mul_add(r, poly, self.all(1.0)), power)
    }
}

/// Work that is compiled for every instruction set there may be.
pub(crate) trait Work {
    fn with<V: Vector>(self, v: V);
}

/// Runs `work` on the vectors of `isa` for products of numbers of `dtype`.
#[inline(always)]
pub(crate) fn run(isa: Isa, dtype: DType, work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    {
        use self::x86::{Avx2, Avx512, Pairs};
        let pairs = isa.multiplies_pairs() && dtype == DType::Bf16;
        if let Some(v) = Pairs::try_new().filter(|_| pairs) {
            return v.vectorize(
                #[inline(always)]
                || work.with(v),
            );
        }
        let wide = matches!(isa, Isa::Avx512Bf16 | Isa::Avx512);
        if let Some(v) = Avx512::try_new().filter(|_| wide) {
            return v.vectorize(
                #[inline(always)]
                || work.with(v),
            );
        }
        if let Some(v) = Avx2::try_new().filter(|_| isa != Isa::Portable) {
            return v.vectorize(
                #[inline(always)]
                || work.with(v),
            );
        }
    }
    let _ = dtype;
    portable(isa, work);
}

/// Runs `work` with the vectors that the compiler finds.
#[inline(always)]
fn portable(isa: Isa, work: impl Work) {
    if isa == Isa::Neon {
        // Part of every 64-bit ARM, where a fused multiply-add is one instruction.
        return work.with(Portable::<true>);
    }
    work.with(Portable::<false>);
}

/// Turns a square of units about its diagonal.
#[inline(always)]
pub(crate) fn transpose<V: Vector>(v: V, mut rows: [V::Lanes; LANES]) -> [V::Lanes; LANES] {
    for _ in 0..LANES.ilog2() {
        let mut next = rows;
        for i in 0..LANES / 2 {
            (next[2 * i], next[2 * i + 1]) = v.zip(rows[i], rows[i + LANES / 2]);
        }
        rows = next;
    }
    rows
}

#[cfg(test)]
#[path = "vector/tests.rs"]
mod tests;
