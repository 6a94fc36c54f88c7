// The matrix product that all kernels of gemm_*.cu are made of. contract: gemm.rs
//
// A block computes square tiles of C, one after another (gemm_schedule.cuh); each warp a part of the tile. Stages
// of both operands are copied to shared memory `STAGES` - 1 ahead. The first copies of the next tile start
// before the results of this one are written.
//
// E4M3 operands: the products of one stage, 128 of the contraction, are summed in the tensor core, then
// scaled and added up in FP32 (DeepSeek-V3 report 3.3.2, "increasing accumulation precision"): on sm_89 the
// tensor core keeps 13 bits of a sum. sm_120a scales inside the tensor core and keeps 25.
#pragma once
#include "gemm_fragment.cuh"
#include "gemm_scale.cuh"
#include "gemm_store.cuh"

enum Math {
    // BF16 operands.
    BF16,
    // E4M3 operands, multiplied as such.
    E4M3,
    // E4M3 operands, widened to FP16 by bit operations, or by an instruction.
    E4M3_WIDENED,
    E4M3_CONVERTED,
    // E4M3 operands with UE8M0 scales, multiplied and scaled as such.
    E4M3_SCALED,
};

template <Product PRODUCT_, Math MATH_, u32 TILE_> struct Kernel {
    static constexpr Product PRODUCT = PRODUCT_;
    static constexpr Math MATH = MATH_;
    static constexpr u32 TILE = TILE_;
    static constexpr u32 ELEMENT = MATH == BF16 ? 2 : 1;
    using A = Operand<LEFT, PRODUCT == WEIGHT_GRAD ? ACROSS : ALONG, TILE, ELEMENT>;
    using B = Operand<RIGHT, PRODUCT == FORWARD ? ALONG : ACROSS, TILE, ELEMENT>;
    using Tiles = Walk<TILE, TILE, PRODUCT == WEIGHT_GRAD>;

    // Tile 64: 4 warps of 32 x 32. Tile 128: 8 warps of 64 x 32.
    static constexpr u32 WARP_M = TILE / 2, WARP_N = 32;
    static constexpr u32 THREADS = TILE * TILE / (WARP_M * WARP_N) * WARP;
    static constexpr u32 A_UNITS = WARP_M / 16, B_UNITS = WARP_N / 16;

    // 48 or 96 KiB, and two sets of scales: sm_86, sm_89 and sm_120 have 99 KiB for a block.
    static constexpr u32 STAGES = 3;
    // Contraction steps of a stage.
    static constexpr u32 DEPTH = STAGE_BYTES / ELEMENT;
    static constexpr bool SCALED_MMA = MATH == E4M3_SCALED;
    static constexpr bool PROMOTES = MATH != BF16 && MATH != E4M3_SCALED;
    static constexpr u32 WORDS = SCALE_WORDS<PRODUCT, TILE, SCALED_MMA>;
    static constexpr u32 FACTOR = MATH == E4M3_WIDENED ? (u32)WIDENED_PRODUCT : 1;
    static_assert(THREADS >= WORDS, "a thread fetches one scale");
};

// The sums of one warp: of unit (i, j), C's columns of half h, as the tensor core leaves them.
template <class K> struct Sums {
    float d[K::A_UNITS][K::B_UNITS][2][4];
};

struct Arguments {
    Problem problem;
    const u8* a;
    const u8* b;
    Scales scales;
    Output c;
};

template <class K> DEV void load_stage(u32 shared, const Arguments& args, const Tile& tile, u32 stage, bool a_aligned,
                                       bool b_aligned) {
    constexpr u32 ELEMENT = K::ELEMENT;
    const Problem& p = args.problem;
    const u32 a_shared = shared, b_shared = shared + K::A::BYTES;
    if constexpr (K::PRODUCT == WEIGHT_GRAD) {
        const u32 line = tile.step + stage * K::DEPTH;
        const Matrix a = {args.a, p.m * ELEMENT}, b = {args.b, p.n * ELEMENT};
        load_tile<typename K::A, K::THREADS>(a_shared, a, line, tile.step_end, tile.row * ELEMENT, a_aligned);
        load_tile<typename K::B, K::THREADS>(b_shared, b, line, tile.step_end, tile.column * ELEMENT, b_aligned);
    } else {
        const Matrix a = {args.a, p.k * ELEMENT};
        load_tile<typename K::A, K::THREADS>(a_shared, a, tile.row, tile.row_end, stage * STAGE_BYTES, a_aligned);
        const u8* w = args.b + (u64)tile.group * p.n * p.k * ELEMENT;
        if constexpr (K::PRODUCT == FORWARD) {
            const Matrix b = {w, p.k * ELEMENT};
            load_tile<typename K::B, K::THREADS>(b_shared, b, tile.column, p.n, stage * STAGE_BYTES, b_aligned);
        } else {
            const Matrix b = {w, p.n * ELEMENT};
            load_tile<typename K::B, K::THREADS>(b_shared, b, stage * K::DEPTH, p.k, tile.column * ELEMENT, b_aligned);
        }
    }
}

// sums += A B over one step; `fresh`: sums = A B. The scales are those of the tensor core.
template <class K> DEV void multiply_step(Sums<K>& sums, const Unit (&a)[K::A_UNITS], const Unit (&b)[K::B_UNITS],
                                          bool fresh, const u32 (&a_scales)[K::A_UNITS],
                                          const u32 (&b_scales)[K::B_UNITS][2]) {
    constexpr float ZEROS[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    constexpr bool BITS = K::MATH == E4M3_WIDENED, WIDENS = BITS || K::MATH == E4M3_CONVERTED;
#pragma unroll
    for (u32 half = 0; half < (WIDENS ? 2 : 1); half++) {
        Unit wide_b[K::B_UNITS];
#pragma unroll
        for (u32 j = 0; j < K::B_UNITS; j++) {
            if constexpr (BITS) wide_b[j] = widen_bits<typename K::B>(b[j], half);
            else if constexpr (WIDENS) wide_b[j] = widen_natively<typename K::B>(b[j], half);
            else wide_b[j] = b[j];
        }
#pragma unroll
        for (u32 i = 0; i < K::A_UNITS; i++) {
            Unit wide_a = a[i];
            if constexpr (BITS) wide_a = widen_bits<typename K::A>(a[i], half);
            else if constexpr (WIDENS) wide_a = widen_natively<typename K::A>(a[i], half);
#pragma unroll
            for (u32 j = 0; j < K::B_UNITS; j++)
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    float(&d)[4] = sums.d[i][j][h];
                    const u32 b0 = wide_b[j].q[2 * h], b1 = wide_b[j].q[2 * h + 1];
                    const bool first = fresh && half == 0;
                    if constexpr (K::MATH == BF16) {
                        mma_bf16(d, wide_a.q, b0, b1);
                    } else if constexpr (K::MATH == E4M3_SCALED) {
                        mma_e4m3_scaled(d, wide_a.q, b0, b1, a_scales[i], b_scales[j][h]);
                    } else if constexpr (K::MATH == E4M3) {
                        if (first) mma_e4m3(d, wide_a.q, b0, b1, ZEROS);
                        else mma_e4m3(d, wide_a.q, b0, b1, d);
                    } else {
                        if (first) mma_f16(d, wide_a.q, b0, b1, ZEROS);
                        else mma_f16(d, wide_a.q, b0, b1, d);
                    }
                }
        }
    }
}

// Row `place` of half `h` of a unit that starts at `first`.
template <class OPERAND> DEV u32 row_in_unit(u32 h, u32 place) {
    return OPERAND::PAIRED ? 2 * place + h : 8 * h + place;
}

// The scales that a lane gives the tensor core: of A's rows by lanes t = 0 and 1, of C's columns by t = 0.
template <class K> DEV void scales_of_lane(const u32* words, u32 warp_row, u32 warp_column, u32 (&a)[K::A_UNITS],
                                           u32 (&b)[K::B_UNITS][2]) {
    const u32 place = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (u32 i = 0; i < K::A_UNITS; i++) a[i] = words[warp_row + i * 16 + row_in_unit<typename K::A>(t % 2, place)];
#pragma unroll
    for (u32 j = 0; j < K::B_UNITS; j++)
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            const u32 column = warp_column + j * 16 + row_in_unit<typename K::B>(h, place);
            b[j][h] = words[K::TILE + (K::PRODUCT == WEIGHT_GRAD ? column : 0)];
        }
}

// sums += scale * part, the scales of a stage from shared memory.
template <class K> DEV void promote(Sums<K>& sums, const Sums<K>& part, const float* words, u32 warp_row,
                                    u32 warp_column) {
    const u32 place = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (u32 j = 0; j < K::B_UNITS; j++) {
        // Columns 4 t to 4 t + 3 of the unit: h = 0 has the even ones.
        float4 b = {1.0f, 1.0f, 1.0f, 1.0f};
        if constexpr (K::PRODUCT == WEIGHT_GRAD) {
            b = *(const float4*)(words + K::TILE + warp_column + j * 16 + 4 * t);
        }
        const float columns[2][2] = {{b.x, b.z}, {b.y, b.w}};
#pragma unroll
        for (u32 i = 0; i < K::A_UNITS; i++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                const float a = words[warp_row + i * 16 + row_in_unit<typename K::A>(e / 2, place)];
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    const float scale = K::PRODUCT == WEIGHT_GRAD ? a * columns[h][e % 2] : a;
                    sums.d[i][j][h][e] = fmaf(part.d[i][j][h][e], scale, sums.d[i][j][h][e]);
                }
            }
    }
}

// Writes one warp's sums to a staged tile (gemm_store.cuh), rows counted from the warp's first.
template <class K> DEV void stage_sums(float* staged, const Sums<K>& sums, u32 warp_column) {
    const u32 place = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (u32 i = 0; i < K::A_UNITS; i++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = i * 16 + row_in_unit<typename K::A>(half, place);
#pragma unroll
            for (u32 j = 0; j < K::B_UNITS; j++) {
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    // Along paired columns a chunk has one pair of each half of the unit.
                    const u32 chunk = (warp_column + j * 16) / 4 + (K::B::PAIRED ? t : 2 * h + t / 2);
                    const u32 at = pair_place<K::TILE, K::A::PAIRED>(row, chunk, K::B::PAIRED ? h : t % 2);
                    const float(&d)[4] = sums.d[i][j][h];
                    *(float2*)(staged + at) = make_float2(d[2 * half], d[2 * half + 1]);
                }
            }
        }
}

// Writes a tile. `staged` has room for the rows of the warps side by side.
template <class K> DEV void store_tile(float* staged, const Sums<K>& sums, const Arguments& args, const Tile& tile,
                                       u32 warp_row, u32 warp_column) {
    const u64 before = K::PRODUCT == WEIGHT_GRAD ? (u64)tile.group * args.problem.m : 0;
    for (u32 first = 0; first < K::TILE; first += K::WARP_M) {
        if (first != 0) __syncthreads();
        if (warp_row == first) stage_sums<K>(staged, sums, warp_column);
        __syncthreads();
        const u32 row = tile.row + first, rows = tile.row_end > row ? tile.row_end - row : 0;
        store_rows<K::TILE, K::A::PAIRED, K::B::PAIRED, K::WARP_M, K::THREADS>(args.c, staged, before + row, rows, tile.column);
    }
}
