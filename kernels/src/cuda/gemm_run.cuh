// The loop over tiles and stages. contract: gemm.rs
#pragma once
#include "gemm_warp.cuh"

// One stage: this warp's part of A B, summed over the stage's contraction.
template <class K> DEV void multiply_stage(Sums<K>& sums, u32 shared, u32 a_place, u32 b_place, const u32* words,
                                           u32 warp_row, u32 warp_column) {
    u32 a_scales[K::A_UNITS] = {}, b_scales[K::B_UNITS][2] = {};
    if constexpr (K::SCALED_MMA) scales_of_lane<K>(words, warp_row, warp_column, a_scales, b_scales);
    Sums<K> part;
    Sums<K>& into = K::PROMOTES ? part : sums;
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        Unit a[K::A_UNITS], b[K::B_UNITS];
#pragma unroll
        for (u32 i = 0; i < K::A_UNITS; i++) {
            a[i] = load_unit<typename K::A>(shared, a_place, i, step);
            if constexpr (K::MATH != E4M3_WIDENED) a[i] = in_order<typename K::A>(a[i]);
        }
#pragma unroll
        for (u32 j = 0; j < K::B_UNITS; j++) {
            b[j] = load_unit<typename K::B>(shared + K::A::BYTES, b_place, j, step);
            if constexpr (K::MATH != E4M3_WIDENED) b[j] = in_order<typename K::B>(b[j]);
        }
        multiply_step<K>(into, a, b, step == 0, a_scales, b_scales);
    }
    if constexpr (K::PROMOTES) promote<K>(sums, part, (const float*)words, warp_row, warp_column);
}

template <class K> DEV void run(const Arguments& args) {
    constexpr u32 STAGE = K::A::BYTES + K::B::BYTES;
    constexpr bool HAS_SCALES = K::MATH != BF16;
    static_assert(STAGE >= K::WARP_M * K::TILE * 4, "the results of the warps side by side fit the place of a stage");
    extern __shared__ __align__(128) u8 memory[];
    const u32 shared = shared_address(memory);
    u32* const words = (u32*)(memory + K::STAGES * STAGE);

    const Problem& p = args.problem;
    const u32 warp = threadIdx.x / WARP;
    const u32 warp_row = warp / (K::TILE / K::WARP_N) * K::WARP_M, warp_column = warp % (K::TILE / K::WARP_N) * K::WARP_N;
    const u32 a_place = place_of_lane<typename K::A>(warp_row), b_place = place_of_lane<typename K::B>(warp_column);
    const u32 a_row = (K::PRODUCT == WEIGHT_GRAD ? p.m : p.k) * K::ELEMENT;
    const u32 b_row = (K::PRODUCT == FORWARD ? p.k : p.n) * K::ELEMENT;
    const bool a_aligned = Matrix{args.a, a_row}.is_aligned(), b_aligned = Matrix{args.b, b_row}.is_aligned();

    auto fetch = [&](const Tile& tile, u32 stage) {
        return fetch_scale<K::PRODUCT, K::TILE, K::SCALED_MMA, K::FACTOR>(p, args.scales, tile, stage);
    };
    auto keep = [&](u32 stage, u32 word) {
        if (K::WORDS == K::THREADS || threadIdx.x < K::WORDS) words[stage % 2 * K::WORDS + threadIdx.x] = word;
    };
    auto stages_of = [&](const Tile& tile) { return ceil_div(tile.step_end - tile.step, K::DEPTH); };
    auto load = [&](const Tile& tile, u32 stage) {
        load_stage<K>(shared + stage % K::STAGES * STAGE, args, tile, stage, a_aligned, b_aligned);
    };
    auto begin = [&](const Tile& tile) {
        const u32 stages = stages_of(tile);
#pragma unroll 1
        for (u32 stage = 0; stage < K::STAGES - 1; stage++) {
            if (stage < stages) load(tile, stage);
            copies_commit();
        }
        if (HAS_SCALES && stages > 0) keep(0, fetch(tile, 0));
    };

    typename K::Tiles walk;
    Sums<K> sums;
    Tile tile = {};
    while (true) {
        const Tile next = walk.next(p);
        // Nobody reads shared memory of the tile before any more.
        __syncthreads();
        if (next.exists) begin(next);
        // The place of the last stage is free until the loop below. Where nothing was contracted, adding
        // leaves C as it is.
        if (tile.exists && (tile.step < tile.step_end || !args.c.accumulate)) {
            float* staged = (float*)(memory + (K::STAGES - 1) * STAGE);
            store_tile<K>(staged, sums, args, tile, warp_row, warp_column);
        }
        if (!next.exists) break;
        tile = next;
        sums = {};
        const u32 stages = stages_of(tile);
        for (u32 stage = 0; stage < stages; stage++) {
            // This stage has arrived for all threads, and all are done with the one before, whose place
            // the next copy takes.
            copies_wait<K::STAGES - 2>();
            __syncthreads();
            if (stage + K::STAGES - 1 < stages) load(tile, stage + K::STAGES - 1);
            copies_commit();
            u32 word = 0;
            if (HAS_SCALES && stage + 1 < stages) word = fetch(tile, stage + 1);
            multiply_stage<K>(sums, shared + stage % K::STAGES * STAGE, a_place, b_place, words + stage % 2 * K::WORDS,
                              warp_row, warp_column);
            if (HAS_SCALES && stage + 1 < stages) keep(stage + 1, word);
        }
    }
}

enum Flag : u32 { C_BF16 = 1, C_ACCUMULATE = 2, SCALES_FP32 = 4 };

#define GEMM_KERNEL(NAME, PRODUCT, MATH, TILE, BLOCKS)                                                                \
    extern "C" __global__ void __launch_bounds__((Kernel<PRODUCT, MATH, TILE>::THREADS), BLOCKS)                      \
        NAME(const u8* a, const u8* b, const void* a_scales, const void* b_scales, void* c, const uint2* ranges,      \
             u32 groups, u32 m, u32 n, u32 k, u32 flags) {                                                            \
        using K = Kernel<PRODUCT, MATH, TILE>;                                                                        \
        run<K>({{ranges, groups, m, n, k},                                                                            \
                a,                                                                                                    \
                b,                                                                                                    \
                {a_scales, b_scales, (flags & SCALES_FP32) != 0},                                                     \
                {c, n, (flags & C_BF16) != 0, (flags & C_ACCUMULATE) != 0}});                                         \
    }
#define GEMM_KERNELS(NAME, MATH)                                                                                      \
    GEMM_KERNEL(NAME##_forward_64, FORWARD, MATH, 64, 2)                                                              \
    GEMM_KERNEL(NAME##_forward_128, FORWARD, MATH, 128, 1)                                                            \
    GEMM_KERNEL(NAME##_input_grad_64, INPUT_GRAD, MATH, 64, 2)                                                        \
    GEMM_KERNEL(NAME##_input_grad_128, INPUT_GRAD, MATH, 128, 1)                                                      \
    GEMM_KERNEL(NAME##_weight_grad_64, WEIGHT_GRAD, MATH, 64, 2)                                                      \
    GEMM_KERNEL(NAME##_weight_grad_128, WEIGHT_GRAD, MATH, 128, 1)
