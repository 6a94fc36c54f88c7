//! Eight FP32 lanes and what dot products do with them: an AVX2 register, or an array elsewhere. Where
//! multiply-adds are fused the two give the same bits.

use crate::e4m3;

/// Lanes of a sum: one AVX2 register, so that 8 sums and their operands fit into 16 registers.
pub(crate) const LANES: usize = 8;

/// The unit that computes. Everything is inlined into a function compiled for it.
pub(crate) trait Unit: Copy {
    type Lanes: Copy;

    fn zero(self) -> Self::Lanes;
    fn all(self, x: f32) -> Self::Lanes;
    fn floats(self, x: &[f32; LANES]) -> Self::Lanes;
    /// Exact.
    fn bf16s(self, x: &[u16; LANES]) -> Self::Lanes;
    /// Exact. A NaN's code is not looked at: its tile has scale NaN.
    fn e4m3s(self, x: [u8; LANES]) -> Self::Lanes;
    /// `a b + c`.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    fn array(self, x: Self::Lanes) -> [f32; LANES];
}

/// Any CPU; fused where asked, which is one instruction or a slow call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable<const FUSED: bool>;

impl<const FUSED: bool> Unit for Portable<FUSED> {
    type Lanes = [f32; LANES];

    #[inline(always)]
    fn zero(self) -> Self::Lanes {
        [0.0; LANES]
    }

    #[inline(always)]
    fn all(self, x: f32) -> Self::Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn floats(self, x: &[f32; LANES]) -> Self::Lanes {
        *x
    }

    #[inline(always)]
    fn bf16s(self, x: &[u16; LANES]) -> Self::Lanes {
        x.map(
            #[inline(always)]
            |x| f32::from_bits(u32::from(x) << 16),
        )
    }

    #[inline(always)]
    fn e4m3s(self, x: [u8; LANES]) -> Self::Lanes {
        x.map(e4m3::decode_finite)
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        std::array::from_fn(
            #[inline(always)]
            |l| if FUSED { a[l].mul_add(b[l], c[l]) } else { a[l] * b[l] + c[l] },
        )
    }

    #[inline(always)]
    fn array(self, x: Self::Lanes) -> [f32; LANES] {
        x
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{__m128i, __m256};

    use pulp::x86::V3;

    use super::{LANES, Unit};
    use crate::e4m3::{FINITE_BITS, FINITE_FACTOR};

    impl Unit for V3 {
        type Lanes = __m256;

        #[inline(always)]
        fn zero(self) -> __m256 {
            self.avx._mm256_setzero_ps()
        }

        #[inline(always)]
        fn all(self, x: f32) -> __m256 {
            self.avx._mm256_set1_ps(x)
        }

        #[inline(always)]
        fn floats(self, x: &[f32; LANES]) -> __m256 {
            bytemuck::cast(*x)
        }

        #[inline(always)]
        fn bf16s(self, x: &[u16; LANES]) -> __m256 {
            let wide = self.avx2._mm256_cvtepu16_epi32(bytemuck::cast::<_, __m128i>(*x));
            self.avx._mm256_castsi256_ps(self.avx2._mm256_slli_epi32::<16>(wide))
        }

        #[inline(always)]
        fn e4m3s(self, x: [u8; LANES]) -> __m256 {
            let codes = bytemuck::cast::<[u64; 2], __m128i>([u64::from_le_bytes(x), 0]);
            let wide = self.avx2._mm256_slli_epi32::<20>(self.avx2._mm256_cvtepi8_epi32(codes));
            let mask = self.avx._mm256_set1_epi32(FINITE_BITS as i32);
            let small = self.avx._mm256_castsi256_ps(self.avx2._mm256_and_si256(wide, mask));
            self.avx._mm256_mul_ps(small, self.avx._mm256_set1_ps(FINITE_FACTOR))
        }

        #[inline(always)]
        fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            self.fma._mm256_fmadd_ps(a, b, c)
        }

        #[inline(always)]
        fn array(self, x: __m256) -> [f32; LANES] {
            bytemuck::cast(x)
        }
    }
}

/// Work that is compiled for every unit there may be.
pub(crate) trait Work {
    fn with<U: Unit>(self, unit: U);
}

/// Runs `work` on the best unit of this CPU.
#[inline(always)]
pub(crate) fn run(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    if let Some(unit) = pulp::x86::V3::try_new() {
        return unit.vectorize(
            #[inline(always)]
            || work.with(unit),
        );
    }
    let arch = pulp::Arch::new();
    if matches!(arch, pulp::Arch::Scalar) {
        return work.with(Portable::<false>);
    }
    arch.dispatch(
        #[inline(always)]
        || work.with(Portable::<true>),
    );
}
