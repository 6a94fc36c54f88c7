//! AVX-512 with BF16 products, AVX-512, and AVX2 as two halves. A token of each proves that the CPU
//! has its instructions.
#![expect(unsafe_code, reason = "the tokens of `pulp` do not reach the two BF16 instructions")]

use std::arch::x86_64::{__m256, __m512, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps};
use std::mem::transmute;

use super::{LANES, Units, Vector};
use crate::exp::ROUNDER;

pub(super) use pulp::x86::V3 as Avx2;
pub(super) use pulp::x86::V4 as Avx512;

pulp::simd_type! {
    /// AVX-512 and its BF16 products.
    pub(super) struct Pairs {
        sse: "sse",
        sse2: "sse2",
        fxsr: "fxsr",
        sse3: "sse3",
        ssse3: "ssse3",
        sse4_1: "sse4.1",
        sse4_2: "sse4.2",
        popcnt: "popcnt",
        avx: "avx",
        avx2: "avx2",
        bmi1: "bmi1",
        bmi2: "bmi2",
        fma: "fma",
        lzcnt: "lzcnt",
        avx512f: "avx512f",
        avx512bw: "avx512bw",
        avx512cd: "avx512cd",
        avx512dq: "avx512dq",
        avx512vl: "avx512vl",
        avx512bf16: "avx512bf16",
    }
}

/// Lanes of `zip`: of the lower halves, and of the upper ones. Bit 4 chooses the second operand.
const ZIP: [[u32; LANES]; 2] = [
    [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23],
    [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31],
];

/// The same for 16-bit lanes: bit 5 chooses the second operand.
const ZIP_HALVES: [[u16; 2 * LANES]; 2] = [zip_halves(0), zip_halves(LANES as u16)];

const fn zip_halves(first: u16) -> [u16; 2 * LANES] {
    let mut lanes = [0; 2 * LANES];
    let mut i = 0;
    while i < 2 * LANES {
        lanes[i] = first + (i / 2) as u16 + if i % 2 == 1 { 2 * LANES as u16 } else { 0 };
        i += 1;
    }
    lanes
}

macro_rules! sixteen_lanes {
    () => {
        #[inline(always)]
        fn all(self, x: f32) -> __m512 {
            self.avx512f._mm512_set1_ps(x)
        }

        #[inline(always)]
        fn floats(self, x: &[f32; LANES]) -> __m512 {
            bytemuck::cast(*x)
        }

        #[inline(always)]
        fn array(self, x: __m512) -> [f32; LANES] {
            bytemuck::cast(x)
        }

        #[inline(always)]
        fn units(self, x: &Units) -> __m512 {
            bytemuck::cast(*x)
        }

        #[inline(always)]
        fn unit_array(self, x: __m512) -> Units {
            bytemuck::cast(x)
        }

        #[inline(always)]
        fn all_units(self, x: u32) -> __m512 {
            self.avx512f._mm512_set1_ps(f32::from_bits(x))
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            self.avx512f._mm512_add_ps(a, b)
        }

        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            self.avx512f._mm512_sub_ps(a, b)
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            self.avx512f._mm512_mul_ps(a, b)
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            self.avx512f._mm512_fmadd_ps(a, b, c)
        }

        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            self.avx512f._mm512_max_ps(a, b)
        }

        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            self.avx512f._mm512_min_ps(a, b)
        }

        #[inline(always)]
        fn lanes_from(self, first: usize, x: __m512, other: __m512) -> __m512 {
            let before = (1_u32 << first.min(LANES)) - 1;
            self.avx512f._mm512_mask_blend_ps(before as u16, x, other)
        }

        #[inline(always)]
        fn power_of_two(self, x: __m512) -> (__m512, __m512) {
            let n = self.avx512f._mm512_roundscale_ps::<0>(x);
            (n, self.avx512f._mm512_scalef_ps(self.all(1.0), n))
        }

        #[inline(always)]
        fn zip(self, a: __m512, b: __m512) -> (__m512, __m512) {
            let [low, high] = ZIP.map(bytemuck::cast::<_, __m512i>);
            (
                self.avx512f._mm512_permutex2var_ps(a, low, b),
                self.avx512f._mm512_permutex2var_ps(a, high, b),
            )
        }
    };
}

impl Vector for Avx512 {
    type Lanes = __m512;
    const PAIR: usize = 1;
    const ROOMY: bool = true;

    sixteen_lanes!();

    #[inline(always)]
    fn multiply_units(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        self.avx512f._mm512_fmadd_ps(a, b, sum)
    }
}

impl Pairs {
    /// Rounds 32 numbers: `low` into the lower lanes.
    #[expect(clippy::unused_self, reason = "it is the proof that the CPU can")]
    #[inline(always)]
    fn narrow(self, low: __m512, high: __m512) -> __m512i {
        // SAFETY: `self` proves that the CPU has AVX512_BF16.
        let narrowed = unsafe { _mm512_cvtne2ps_pbh(high, low) };
        // SAFETY: both are 64 bytes of plain numbers.
        unsafe { transmute::<__m512bh, __m512i>(narrowed) }
    }
}

impl Vector for Pairs {
    type Lanes = __m512;
    const PAIR: usize = 2;
    const ROOMY: bool = true;

    sixteen_lanes!();

    #[inline(always)]
    fn multiply_units(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: both are 64 bytes of plain numbers.
        let a = unsafe { transmute::<__m512, __m512bh>(a) };
        // SAFETY: as above.
        let b = unsafe { transmute::<__m512, __m512bh>(b) };
        // SAFETY: `self` proves that the CPU has AVX512_BF16.
        unsafe { _mm512_dpbf16_ps(sum, a, b) }
    }

    #[inline(always)]
    fn row_units(self, [low, high]: [__m512; 2], out: &mut [Units]) {
        out[0] = bytemuck::cast(self.narrow(low, high));
    }

    #[inline(always)]
    fn column_units(self, rows: [[__m512; 2]; 2], out: &mut [Units]) {
        let [first, second] = rows.map(
            #[inline(always)]
            |[low, high]| self.narrow(low, high),
        );
        for (out, lanes) in out.iter_mut().zip(ZIP_HALVES) {
            let lanes = bytemuck::cast(lanes);
            *out = bytemuck::cast(self.avx512bw._mm512_permutex2var_epi16(first, lanes, second));
        }
    }

    #[inline(always)]
    fn pack(self, x: &[f32], out: &mut [u32]) {
        let blocks = x.as_chunks::<{ 2 * LANES }>().0;
        for (out, x) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(blocks) {
            let [low, high] = bytemuck::cast::<_, [__m512; 2]>(*x);
            *out = bytemuck::cast(self.narrow(low, high));
        }
    }
}

impl Vector for Avx2 {
    type Lanes = [__m256; 2];
    const PAIR: usize = 1;
    const ROOMY: bool = false;

    #[inline(always)]
    fn all(self, x: f32) -> Self::Lanes {
        [self.avx._mm256_set1_ps(x); 2]
    }

    #[inline(always)]
    fn floats(self, x: &[f32; LANES]) -> Self::Lanes {
        bytemuck::cast(*x)
    }

    #[inline(always)]
    fn array(self, x: Self::Lanes) -> [f32; LANES] {
        bytemuck::cast(x)
    }

    #[inline(always)]
    fn units(self, x: &Units) -> Self::Lanes {
        bytemuck::cast(*x)
    }

    #[inline(always)]
    fn unit_array(self, x: Self::Lanes) -> Units {
        bytemuck::cast(x)
    }

    #[inline(always)]
    fn all_units(self, x: u32) -> Self::Lanes {
        self.all(f32::from_bits(x))
    }

    #[inline(always)]
    fn multiply_units(self, a: Self::Lanes, b: Self::Lanes, sum: Self::Lanes) -> Self::Lanes {
        self.mul_add(a, b, sum)
    }

    #[inline(always)]
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        [self.avx._mm256_add_ps(a[0], b[0]), self.avx._mm256_add_ps(a[1], b[1])]
    }

    #[inline(always)]
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        [self.avx._mm256_sub_ps(a[0], b[0]), self.avx._mm256_sub_ps(a[1], b[1])]
    }

    #[inline(always)]
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        [self.avx._mm256_mul_ps(a[0], b[0]), self.avx._mm256_mul_ps(a[1], b[1])]
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        [self.fma._mm256_fmadd_ps(a[0], b[0], c[0]), self.fma._mm256_fmadd_ps(a[1], b[1], c[1])]
    }

    #[inline(always)]
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        [self.avx._mm256_max_ps(a[0], b[0]), self.avx._mm256_max_ps(a[1], b[1])]
    }

    #[inline(always)]
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        [self.avx._mm256_min_ps(a[0], b[0]), self.avx._mm256_min_ps(a[1], b[1])]
    }

    #[inline(always)]
    fn lanes_from(self, first: usize, x: Self::Lanes, other: Self::Lanes) -> Self::Lanes {
        let mask: [f32; LANES] = std::array::from_fn(
            #[inline(always)]
            |l| if first <= l { -1.0 } else { 1.0 },
        );
        let mask = self.floats(&mask);
        [
            self.avx._mm256_blendv_ps(other[0], x[0], mask[0]),
            self.avx._mm256_blendv_ps(other[1], x[1], mask[1]),
        ]
    }

    #[inline(always)]
    fn power_of_two(self, x: Self::Lanes) -> (Self::Lanes, Self::Lanes) {
        let shifted = self.add(x, self.all(ROUNDER));
        let bias = self.avx._mm256_set1_epi32(127_i32.wrapping_sub(ROUNDER.to_bits() as i32));
        let power = shifted.map(
            #[inline(always)]
            |shifted| {
                let n = self.avx2._mm256_add_epi32(self.avx._mm256_castps_si256(shifted), bias);
                self.avx._mm256_castsi256_ps(self.avx2._mm256_slli_epi32::<23>(n))
            },
        );
        (self.sub(shifted, self.all(ROUNDER)), power)
    }

    #[inline(always)]
    fn zip(self, a: Self::Lanes, b: Self::Lanes) -> (Self::Lanes, Self::Lanes) {
        let half = |i: usize| {
            let low = self.avx._mm256_unpacklo_ps(a[i], b[i]);
            let high = self.avx._mm256_unpackhi_ps(a[i], b[i]);
            [
                self.avx._mm256_permute2f128_ps::<0x20>(low, high),
                self.avx._mm256_permute2f128_ps::<0x31>(low, high),
            ]
        };
        (half(0), half(1))
    }
}
