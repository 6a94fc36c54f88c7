// Scales of tiles, one stage (128 of the contraction) at a time: fetched while the tensor cores work on the
// stage before, and kept in shared memory as FP32, or as UE8M0 bytes where the tensor core scales.
#pragma once
#include "gemm_schedule.cuh"

// What is multiplied by what. Row-major throughout; T tokens, K inputs, N outputs of a linear layer:
// FORWARD      y (T, N) = x (T, K) w (N, K)^T
// INPUT_GRAD   dx (T, K) = dy (T, N) w (N, K)
// WEIGHT_GRAD  dw (N, K) = dy (T, N)^T x (T, K)
// In the frame of C (m, n) = A B, with k contracted, these have (m, n, k) = (T, N, K), (T, K, N), (N, K, T).
enum Product { FORWARD, INPUT_GRAD, WEIGHT_GRAD };

// Elements that share a scale, in the direction of the contraction, and for weights in the other too.
constexpr u32 SCALE_BLOCK = 128;

struct Scales {
    const void* a;
    const void* b;
    bool fp32;
};

// 2^(byte - 127); 255 is NaN, and 0 does not occur.
DEV float ue8m0_value(u32 byte) { return __uint_as_float(byte == 255 ? 0x7fc00000u : byte << 23); }

DEV float scale_at(const void* scales, u64 at, bool fp32) {
    return fp32 ? ((const float*)scales)[at] : ue8m0_value(((const u8*)scales)[at]);
}

// Which scale of a block of weights belongs to a stage of a tile; the blocks are (groups, rows, columns).
template <Product PRODUCT> DEV u64 weight_block(const Problem& p, const Tile& tile, u32 stage) {
    const u32 n_blocks = ceil_div(p.n, SCALE_BLOCK), k_blocks = ceil_div(p.k, SCALE_BLOCK);
    const u64 group = (u64)tile.group * n_blocks * k_blocks;
    const u32 n_block = tile.column / SCALE_BLOCK;
    return group + (PRODUCT == FORWARD ? n_block * k_blocks + stage : stage * n_blocks + n_block);
}

// The words of one stage's scales. FP32: of A's rows times the weight's, or of A's rows and then of C's
// columns. UE8M0: of A's rows, then of the weight, or of C's columns.
template <Product PRODUCT, u32 TILE, bool SCALED_MMA>
constexpr u32 SCALE_WORDS = PRODUCT == WEIGHT_GRAD ? 2 * TILE : SCALED_MMA ? TILE + 4 : TILE;

// This thread's word for a stage; each of the first SCALE_WORDS threads has one. `FACTOR` goes into it.
template <Product PRODUCT, u32 TILE, bool SCALED_MMA, u32 FACTOR>
DEV u32 fetch_scale(const Problem& p, const Scales& scales, const Tile& tile, u32 stage) {
    const u32 thread = threadIdx.x;
    const void* from = scales.a;
    u64 at = 0;
    bool exists = false;
    if constexpr (PRODUCT == WEIGHT_GRAD) {
        const bool of_b = thread >= TILE;
        const u32 width = of_b ? p.n : p.m, position = (of_b ? tile.column - TILE : tile.row) + thread;
        if (of_b) from = scales.b;
        exists = position < width;
        at = (u64)(tile.step / SCALE_BLOCK + stage) * width + position;
    } else {
        const u32 row = tile.row + thread;
        exists = thread < TILE && row < tile.row_end;
        at = (u64)row * ceil_div(p.k, SCALE_BLOCK) + stage;
    }
    if constexpr (SCALED_MMA) {
        if (PRODUCT != WEIGHT_GRAD && thread >= TILE) {
            return ((const u8*)scales.b)[weight_block<PRODUCT>(p, tile, stage)];
        }
        return exists ? ((const u8*)from)[at] : 127;
    } else {
        float scale = exists ? scale_at(from, at, scales.fp32) : 0.0f;
        if constexpr (PRODUCT != WEIGHT_GRAD) {
            scale *= scale_at(scales.b, weight_block<PRODUCT>(p, tile, stage), scales.fp32);
        }
        if (PRODUCT != WEIGHT_GRAD || thread < TILE) scale *= (float)FACTOR;
        return __float_as_uint(scale);
    }
}
