//! Micro-kernels: one tile of a product, its sums held in registers, for each instruction set.
//!
//! Numbers are read as 4-byte *cells*: an FP32 number, or two BF16 numbers that are neighbours along
//! the contracted side, the first in the lower half.
#![expect(unsafe_code, reason = "vector instructions, and tiles addressed by pointers and strides")]

#[cfg(target_arch = "aarch64")]
#[cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "instructions go by their names")
)]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
#[cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "instructions go by their names")
)]
use std::arch::x86_64::*;

use super::isa::Isa;
use crate::bf16::f32_to_bf16;

/// Where a tile is. Strides count cells, those of `c` floats.
pub(super) struct Tile {
    /// Cells along the contracted side.
    pub(super) depth: usize,
    /// `a[i, p]` is at `i * a_row + p * a_depth`. May be aligned to two bytes only.
    pub(super) a: *const u32,
    pub(super) a_row: usize,
    pub(super) a_depth: usize,
    /// `b[p, j]` is at `p * Kernel::cols + j`.
    pub(super) b: *const u32,
    /// `c[i, j]` is at `i * c_row + j`.
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    /// Add to what is there.
    pub(super) add: bool,
    /// Where not null, sums are rounded to BF16 and go here instead: `c[i, j]` as above.
    pub(super) halves: *mut u16,
}

/// A micro-kernel and the largest tile that its registers hold.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Computes a tile of so many rows and vectors of columns: 2 are `cols`, 1 is half of them.
    ///
    /// # Safety
    /// `1 <= rows <= Kernel::rows`, vectors 1 or 2; the CPU has the instruction set; all that the
    /// tile says must be there: `a` rows x depth, `b` depth x `cols`, `c` rows x the vectors' width.
    pub(super) run: unsafe fn(rows: usize, vectors: usize, tile: &Tile),
}

/// Asks for memory that is going to be read soon, and far away now. Changes nothing.
#[inline(always)]
pub(crate) fn prefetch<T>(data: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..size_of_val(data)).step_by(64) {
        let line = data.as_ptr().cast::<i8>().wrapping_add(at);
        // SAFETY: it reads nothing, and the address is inside the slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// Rounds a vector to BF16 where no instruction does.
///
/// # Safety
/// There is room for as many numbers at `at`, whatever its alignment.
#[inline(always)]
unsafe fn narrow<const LANES: usize>(at: *mut u16, x: [f32; LANES]) {
    // SAFETY: the caller promises the room.
    unsafe { at.cast::<[u16; LANES]>().write_unaligned(x.map(f32_to_bf16)) };
}

/// Writes the micro-kernels of one instruction set: the vectors' lanes, the rows of the largest tile
/// and the functions that load, spread, multiply and add, add, store, round to BF16 and store.
macro_rules! kernels {
    (
        $(#[$attribute:meta])* $module:ident, $vector:ty, $lanes:literal, [$($rows:literal)*] $most:literal,
        $load:expr, $splat:expr, $fma:expr, $plus:expr, $store:expr, $narrow:expr, $zero:expr
    ) => {
        mod $module {
            use super::*;

            pub(super) const ROWS: usize = $most;
            pub(super) const COLS: usize = 2 * $lanes;

            /// # Safety
            /// As for `Kernel::run`.
            $(#[$attribute])*
            unsafe fn tile<const ROWS: usize, const VECTORS: usize>(t: &Tile) {
                // SAFETY: the caller promises that every address of the tile is there.
                unsafe {
                    let mut sums = [[$zero; VECTORS]; ROWS];
                    let (mut a, mut b) = (t.a, t.b);
                    for _ in 0..t.depth {
                        let mut columns = [$zero; VECTORS];
                        for (j, column) in columns.iter_mut().enumerate() {
                            *column = $load(b.add(j * $lanes).cast());
                        }
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let row = $splat(a.add(i * t.a_row).read_unaligned());
                            for (sum, column) in sums.iter_mut().zip(columns) {
                                *sum = $fma(row, column, *sum);
                            }
                        }
                        a = a.wrapping_add(t.a_depth);
                        b = b.wrapping_add(COLS);
                    }
                    if !t.halves.is_null() {
                        for (i, sums) in sums.into_iter().enumerate() {
                            for (j, sum) in sums.into_iter().enumerate() {
                                $narrow(t.halves.add(i * t.c_row + j * $lanes), sum);
                            }
                        }
                        return;
                    }
                    for (i, sums) in sums.into_iter().enumerate() {
                        for (j, sum) in sums.into_iter().enumerate() {
                            let c = t.c.add(i * t.c_row + j * $lanes);
                            let sum = if t.add { $plus($load(c), sum) } else { sum };
                            $store(c, sum);
                        }
                    }
                }
            }

            /// # Safety
            /// As for `Kernel::run`.
            $(#[$attribute])*
            pub(super) unsafe fn run(rows: usize, vectors: usize, t: &Tile) {
                // SAFETY: the caller's promise is handed on.
                unsafe {
                    match (vectors, rows) {
                        $((1, $rows) => tile::<$rows, 1>(t),)*
                        $((2, $rows) => tile::<$rows, 2>(t),)*
                        _ => unreachable!("a tile of {rows} rows and {vectors} vectors"),
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    avx512bf16, __m512, 16, [1 2 3 4 5 6 7 8 9 10 11 12 13 14] 14,
    |at: *const f32| _mm512_loadu_ps(at),
    |cell: u32| _mm512_castsi512_ps(_mm512_set1_epi32(cell as i32)),
    |a: __m512, b: __m512, sum| _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512, __m512bh>(a),
        std::mem::transmute::<__m512, __m512bh>(b)
    ),
    |a, b| _mm512_add_ps(a, b),
    |at: *mut f32, x| _mm512_storeu_ps(at, x),
    // Takes subnormal sums as zero, which these products have none of.
    |at: *mut u16, x| _mm256_storeu_si256(
        at.cast(),
        std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))
    ),
    _mm512_setzero_ps()
);

#[cfg(target_arch = "x86_64")]
kernels!(
    #[target_feature(enable = "avx512f")]
    avx512, __m512, 16, [1 2 3 4 5 6 7 8 9 10 11 12 13 14] 14,
    |at: *const f32| _mm512_loadu_ps(at),
    |cell: u32| _mm512_castsi512_ps(_mm512_set1_epi32(cell as i32)),
    |a, b, sum| _mm512_fmadd_ps(a, b, sum),
    |a, b| _mm512_add_ps(a, b),
    |at: *mut f32, x| _mm512_storeu_ps(at, x),
    |at: *mut u16, x| narrow(at, std::mem::transmute::<__m512, [f32; 16]>(x)),
    _mm512_setzero_ps()
);

#[cfg(target_arch = "x86_64")]
kernels!(
    #[target_feature(enable = "avx2,fma")]
    avx2, __m256, 8, [1 2 3 4 5 6] 6,
    |at: *const f32| _mm256_loadu_ps(at),
    |cell: u32| _mm256_castsi256_ps(_mm256_set1_epi32(cell as i32)),
    |a, b, sum| _mm256_fmadd_ps(a, b, sum),
    |a, b| _mm256_add_ps(a, b),
    |at: *mut f32, x| _mm256_storeu_ps(at, x),
    |at: *mut u16, x| narrow(at, std::mem::transmute::<__m256, [f32; 8]>(x)),
    _mm256_setzero_ps()
);

#[cfg(target_arch = "aarch64")]
kernels!(
    #[target_feature(enable = "neon")]
    neon, float32x4_t, 4, [1 2 3 4 5 6 7 8 9 10 11 12] 12,
    |at: *const f32| vld1q_f32(at),
    |cell: u32| vdupq_n_f32(f32::from_bits(cell)),
    |a, b, sum| vfmaq_f32(sum, a, b),
    |a, b| vaddq_f32(a, b),
    |at: *mut f32, x| vst1q_f32(at, x),
    |at: *mut u16, x| narrow(at, std::mem::transmute::<float32x4_t, [f32; 4]>(x)),
    vdupq_n_f32(0.0)
);

/// Eight floats that any compiler makes vectors of.
type Plain = [f32; 8];

kernels!(
    #[inline]
    portable, Plain, 8, [1 2 3 4] 4,
    |at: *const f32| at.cast::<Plain>().read_unaligned(),
    |cell: u32| [f32::from_bits(cell); 8],
    |a: Plain, b: Plain, sum: Plain| -> Plain {
        std::array::from_fn(|lane| a[lane] * b[lane] + sum[lane])
    },
    |a: Plain, b: Plain| -> Plain {
        std::array::from_fn(|lane| a[lane] + b[lane])
    },
    |at: *mut f32, x: Plain| at.cast::<Plain>().write_unaligned(x),
    |at: *mut u16, x: Plain| narrow(at, x),
    [0.0; 8]
);

macro_rules! kernel {
    ($module:ident) => {
        Kernel { rows: $module::ROWS, cols: $module::COLS, run: $module::run }
    };
}

impl Kernel {
    /// For FP32 cells.
    pub(super) fn singles(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512 if isa.is_available() => kernel!(avx512),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if isa.is_available() => kernel!(avx2),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => kernel!(neon),
            Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 | Isa::Neon | Isa::Portable => {
                kernel!(portable)
            }
        }
    }

    /// For pairs of BF16 numbers; `None` where they are widened first.
    pub(super) fn pairs(isa: Isa) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if isa.is_available() => Some(kernel!(avx512bf16)),
            Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 | Isa::Neon | Isa::Portable => None,
        }
    }
}
