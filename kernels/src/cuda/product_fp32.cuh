// Products in FP32 on the ordinary units, for what must not be rounded to BF16: the router. contract: router.rs
//
// A block of 128 threads computes 32 x 64 of C, a thread 4 x 4, from 16 steps of the contraction at a time in shared
// memory. Each sum is one thread's, in the order of the contraction.
#pragma once
#include "dev.cuh"

constexpr u32 PRODUCT_THREADS = 128, TILE_M = 32, TILE_N = 64, TILE_K = 16;

// A matrix (rows, columns), row-major, and how an element is read as FP32.
struct Fp32Matrix {
    const float* x;
    u32 rows, columns;
    __device__ __forceinline__ float at(u32 row, u32 column) const {
        return row < rows && column < columns ? x[(u64)row * columns + column] : 0.0f;
    }
};
struct Bf16Matrix {
    const u16* x;
    u32 rows, columns;
    __device__ __forceinline__ float at(u32 row, u32 column) const {
        return row < rows && column < columns ? __uint_as_float((u32)x[(u64)row * columns + column] << 16) : 0.0f;
    }
};

// C (m, n) = A B, or added. A is `left` (m, k), or turned: (k, m). B is `right` as (n, k), or turned: (k, n).
template <bool LEFT_TURNED, bool RIGHT_TURNED, class LEFT, class RIGHT>
DEV void product_fp32(const LEFT& left, const RIGHT& right, float* c, u32 m, u32 n, u32 k, bool accumulate) {
    // One more quad than there are, so that columns of a tile fall on different banks.
    __shared__ __align__(16) float a[TILE_K][TILE_M + 4];
    __shared__ __align__(16) float b[TILE_K][TILE_N + 4];
    const u32 tiles = (n + TILE_N - 1) / TILE_N;
    const u32 row = blockIdx.x / tiles * TILE_M, column = blockIdx.x % tiles * TILE_N;
    const u32 own_row = threadIdx.x / 16 * 4, own_column = threadIdx.x % 16 * 4;
    float sums[4][4] = {};
    for (u32 step = 0; step < k; step += TILE_K) {
        // Neighbouring threads read neighbours in memory.
#pragma unroll
        for (u32 at = 0; at < TILE_M * TILE_K; at += PRODUCT_THREADS) {
            const u32 i = at + threadIdx.x;
            const u32 mi = LEFT_TURNED ? i % TILE_M : i / TILE_K, ki = LEFT_TURNED ? i / TILE_M : i % TILE_K;
            a[ki][mi] = LEFT_TURNED ? left.at(step + ki, row + mi) : left.at(row + mi, step + ki);
        }
#pragma unroll
        for (u32 at = 0; at < TILE_N * TILE_K; at += PRODUCT_THREADS) {
            const u32 i = at + threadIdx.x;
            const u32 ni = RIGHT_TURNED ? i % TILE_N : i / TILE_K, ki = RIGHT_TURNED ? i / TILE_N : i % TILE_K;
            b[ki][ni] = RIGHT_TURNED ? right.at(step + ki, column + ni) : right.at(column + ni, step + ki);
        }
        __syncthreads();
#pragma unroll
        for (u32 ki = 0; ki < TILE_K; ki++) {
            const float4 x = *(const float4*)&a[ki][own_row], y = *(const float4*)&b[ki][own_column];
            const float of_a[4] = {x.x, x.y, x.z, x.w}, of_b[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (u32 i = 0; i < 4; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++) sums[i][j] = fmaf(of_a[i], of_b[j], sums[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 at_row = row + own_row + i, at_column = column + own_column + j;
            if (at_row >= m || at_column >= n) continue;
            float& out = c[(u64)at_row * n + at_column];
            out = accumulate ? out + sums[i][j] : sums[i][j];
        }
}
