// From the accumulators to C: BF16 or FP32, over what is there or added to it.
//
// The tile passes through shared memory, so that a warp writes whole rows and rows of any alignment take
// the same way. There it lies in FP32 in rows of TILE. A thread has pairs of one row in neighbouring
// registers, and writes these. The four-element chunk c of row r is kept at place c ^ swizzle(r), and in
// every other pair of rows its two pairs change places: so the 16 threads that write at once meet on no bank.
#pragma once
#include "dev.cuh"

struct Output {
    void* base;
    u32 columns;
    bool bf16, accumulate;

    // Whether four neighbours from a column that is a multiple of four may be written at once.
    __device__ __forceinline__ bool is_aligned() const {
        const u32 bytes = bf16 ? 8 : 16;
        return columns % 4 == 0 && (u64)base % bytes == 0;
    }
};

// Rows of a fragment are every second one, or neighbours.
template <bool PAIRED_ROWS> DEV u32 place_in_fragment(u32 row) { return PAIRED_ROWS ? row >> 1 : row; }

// Where pair `pair` of chunk `chunk` lies, in floats.
template <u32 TILE, bool PAIRED_ROWS> DEV u32 pair_place(u32 row, u32 chunk, u32 pair) {
    const u32 place = place_in_fragment<PAIRED_ROWS>(row), swizzle = (place & 1) << 2 | (place & 2);
    return (row * (TILE / 4) + (chunk ^ swizzle)) * 4 + (pair ^ (place >> 1 & 1)) * 2;
}

// A chunk in the order of its columns. The pairs are of columns (0, 2) and (1, 3) where C's columns are
// `PAIRED_COLUMNS` in the fragments, otherwise of (0, 1) and (2, 3).
template <u32 TILE, bool PAIRED_ROWS, bool PAIRED_COLUMNS>
DEV float4 staged_chunk(const float* staged, u32 row, u32 chunk) {
    const float2 a = *(const float2*)(staged + pair_place<TILE, PAIRED_ROWS>(row, chunk, 0));
    const float2 b = *(const float2*)(staged + pair_place<TILE, PAIRED_ROWS>(row, chunk, 1));
    return PAIRED_COLUMNS ? make_float4(a.x, b.x, a.y, b.y) : make_float4(a.x, a.y, b.x, b.y);
}

DEV float bf16_value(u32 bits) { return __uint_as_float(bits << 16); }

// Four neighbours of C at element `at`, aligned.
DEV void store_four(const Output& c, u64 at, float4 v) {
    if (c.bf16) {
        uint2* to = (uint2*)((u16*)c.base + at);
        if (c.accumulate) {
            const uint2 old = *to;
            v.x += bf16_value(old.x & 0xffff), v.y += bf16_value(old.x >> 16);
            v.z += bf16_value(old.y & 0xffff), v.w += bf16_value(old.y >> 16);
        }
        *to = make_uint2(to_bf16x2(v.x, v.y), to_bf16x2(v.z, v.w));
    } else {
        float4* to = (float4*)((float*)c.base + at);
        if (c.accumulate) {
            const float4 old = *to;
            v.x += old.x, v.y += old.y, v.z += old.z, v.w += old.w;
        }
        *to = v;
    }
}

DEV void store_one(const Output& c, u64 at, float v) {
    if (c.bf16) {
        u16* to = (u16*)c.base + at;
        if (c.accumulate) v += bf16_value(*to);
        *to = (u16)to_bf16x2(v, 0.0f);
    } else {
        float* to = (float*)c.base + at;
        if (c.accumulate) v += *to;
        *to = v;
    }
}

// Writes `rows` rows of a staged tile, those that exist, from row `row` and column `column` of C on.
template <u32 TILE, bool PAIRED_ROWS, bool PAIRED_COLUMNS, u32 ROWS, u32 THREADS>
DEV void store_rows(const Output& c, const float* staged, u64 row, u32 rows, u32 column) {
    constexpr u32 CHUNKS = TILE / 4;
    const bool aligned = c.is_aligned();
    const u32 chunk = threadIdx.x % CHUNKS, own_column = column + chunk * 4;
    if (own_column >= c.columns) return;
#pragma unroll 2
    for (u32 first = 0; first < ROWS; first += THREADS / CHUNKS) {
        const u32 own = first + threadIdx.x / CHUNKS;
        if (own >= rows) return;
        const float4 v = staged_chunk<TILE, PAIRED_ROWS, PAIRED_COLUMNS>(staged, own, chunk);
        const u64 at = (row + own) * c.columns + own_column;
        if (aligned) {
            store_four(c, at, v);
        } else {
            const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (own_column + i < c.columns) store_one(c, at + i, values[i]);
        }
    }
}
