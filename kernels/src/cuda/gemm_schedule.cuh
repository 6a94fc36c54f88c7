// Which tile of which group a block works on. The grid is a few blocks for each multiprocessor, and block b
// takes tiles b, b + blocks, and so on: of all groups in order, counted from ranges in device memory, so
// the host never needs to know how many tokens an expert has.
#pragma once
#include "gemm_tile.cuh"

// The contraction's shape and its groups.
//
// Rows grouped (forward, input gradient): group e has rows ranges[e] of A and C, and B number e.
// Contraction grouped (weight gradient): group e contracts rows ranges[e] of A and B into C number e.
// A range is (first, end); without ranges there is one group with everything.
struct Problem {
    const uint2* ranges;
    u32 groups;
    u32 m, n, k;
};

struct Tile {
    bool exists;
    u32 group;
    // The first row and column of C. Rows are counted over all groups where they are grouped.
    u32 row, row_end, column;
    // The stretch of the contraction.
    u32 step, step_end;
};

DEV u32 ceil_div(u32 a, u32 b) { return a / b + (a % b != 0); }

DEV uint2 range_of(const Problem& p, u32 group, u32 limit) {
    if (p.ranges == nullptr) return make_uint2(0, limit);
    uint2 range = p.ranges[group];
    range.y = min(range.y, limit);
    range.x = min(range.x, range.y);
    return range;
}

// Tile `index` of `rows` x `columns` of them. Neighbours in time are near each other in both directions,
// so that what they read is in the L2 cache: bands of 8 tiles, column by column.
DEV uint2 place_of(u32 index, u32 rows, u32 columns) {
    constexpr u32 BAND = 8;
    const u32 band = index / (BAND * columns), in_band = index - band * BAND * columns;
    const u32 height = min(BAND, rows - band * BAND);
    return make_uint2(band * BAND + in_band % height, in_band / height);
}

// Walks the tiles of one block. All lanes of a warp call it together.
template <u32 TILE_M, u32 TILE_N, bool CONTRACTION_GROUPED> struct Walk {
    u32 index = blockIdx.x;
    // The first of the 32 groups looked at last, and the tiles of all groups before it.
    u32 base = 0, before = 0;

    __device__ __forceinline__ Tile next(const Problem& p) {
        const u32 columns = ceil_div(p.n, TILE_N);
        Tile tile = CONTRACTION_GROUPED ? in_uniform(p, columns) : in_ragged(p, columns);
        index += gridDim.x;
        return tile;
    }

  private:
    // All groups have equally many tiles.
    __device__ __forceinline__ Tile in_uniform(const Problem& p, u32 columns) {
        const u32 rows = ceil_div(p.m, TILE_M), group = index / (rows * columns);
        Tile tile = {};
        if (group >= p.groups) return tile;
        const uint2 at = place_of(index - group * rows * columns, rows, columns);
        const uint2 steps = range_of(p, group, p.k);
        return {true, group, at.x * TILE_M, p.m, at.y * TILE_N, steps.x, steps.y};
    }

    // Each lane counts the tiles of one group.
    __device__ __forceinline__ Tile in_ragged(const Problem& p, u32 columns) {
        const u32 lane = threadIdx.x % WARP;
        Tile tile = {};
        for (; base < p.groups; base += WARP) {
            uint2 rows = make_uint2(0, 0);
            if (base + lane < p.groups) rows = range_of(p, base + lane, p.m);
            const u32 own = ceil_div(rows.y - rows.x, TILE_M) * columns;
            u32 through = own;
#pragma unroll
            for (u32 distance = 1; distance < WARP; distance *= 2) {
                u32 lower = __shfl_up_sync(ALL_LANES, through, distance);
                if (lane >= distance) through += lower;
            }
            const u32 all = __shfl_sync(ALL_LANES, through, WARP - 1);
            if (index - before < all) {
                const u32 group = __popc(__ballot_sync(ALL_LANES, through <= index - before));
                const u32 first = __shfl_sync(ALL_LANES, rows.x, group);
                const u32 end = __shfl_sync(ALL_LANES, rows.y, group);
                const u32 local = index - before - __shfl_sync(ALL_LANES, through - own, group);
                const uint2 at = place_of(local, ceil_div(end - first, TILE_M), columns);
                return {true, base + group, first + at.x * TILE_M, end, at.y * TILE_N, 0, p.k};
            }
            before += all;
        }
        return tile;
    }
};
