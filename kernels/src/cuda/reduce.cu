// contract: reduce.rs
//
// The sum of squares is the CPU's, addition by addition: pieces of 16384 elements, sixteen lanes of each in FP64, the
// lanes in order, the pieces in order. Half a warp has a piece and reads 64 bytes at a time; the pieces are what runs
// side by side. FP64 units are few on a GeForce card, and just enough: one multiply-add for four bytes.
#include "rows.cuh"

enum : u32 { THREADS = 256, LANES = 16, PIECE = 16384, AHEAD = 8 };

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 2)

KERNEL sum_of_squares_pieces(const float* __restrict__ x, double* __restrict__ pieces, u64 n) {
    const u32 lane = threadIdx.x % LANES;
    const u64 piece = (u64)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    const u64 first = piece * PIECE;
    double sum = 0.0;
    if (first < n) {
        const u32 here = (u32)min((u64)PIECE, n - first);
        const float* own = x + first;
        u32 at = lane;
        for (; at + (AHEAD - 1) * LANES < here; at += AHEAD * LANES) {
            float v[AHEAD];
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) v[i] = own[at + i * LANES];
            // The square of an FP32 number is exact in FP64.
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) sum = __fma_rn((double)v[i], (double)v[i], sum);
        }
        for (; at < here; at += LANES) sum = __fma_rn((double)own[at], (double)own[at], sum);
    }
    double total = 0.0;
#pragma unroll
    for (u32 i = 0; i < LANES; i++) total = __dadd_rn(total, __shfl_sync(ALL_LANES, sum, i, LANES));
    if (first < n && lane == 0) pieces[piece] = total;
}

// One thread: few numbers, in order.
KERNEL sum_of_pieces(const double* __restrict__ pieces, double* __restrict__ out, u32 n) {
    if (threadIdx.x > 0) return;
    double total = 0.0;
#pragma unroll 8
    for (u32 i = 0; i < n; i++) total = __dadd_rn(total, pieces[i]);
    *out = total;
}

// first = min(first, the first place of x that is infinite or NaN).
template <class T>
DEV void first_nonfinite(const T* x, u64* first, u64 n) {
    const u64 from = ((u64)blockIdx.x * THREADS + threadIdx.x) * CHUNK;
    const u64 left = from < n ? n - from : 0;
    const u32 here = left < CHUNK ? (u32)left : (u32)CHUNK;
    float v[CHUNK];
    if constexpr (sizeof(T) == 4) {
        load8(x + from, 0, here, true, v);
    } else {
        unpack(load8(x + from, 0, here, true), v);
    }
    u32 bad = CHUNK;
#pragma unroll
    for (u32 j = CHUNK; j-- > 0;) bad = (__float_as_uint(v[j]) & 0x7fffffffu) >= 0x7f800000u ? j : bad;
    // Hardly ever.
    if (bad < CHUNK) atomicMin(first, from + bad);
}

KERNEL first_nonfinite_f32(const float* x, u64* first, u64 n) { first_nonfinite(x, first, n); }
KERNEL first_nonfinite_bf16(const u16* x, u64* first, u64 n) { first_nonfinite(x, first, n); }
