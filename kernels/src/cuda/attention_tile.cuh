// Rows of heads in shared memory, and the products of one warp's 16 rows with them. contract: attention.rs
//
// A tile has a row of BF16 for each token, and between rows one chunk of 16 bytes is left out: rows then are an odd
// number of chunks long, and the 8 rows of an `ldmatrix` matrix begin at 8 different groups of banks, whichever way they
// are read. Nothing is transposed on the way: a product along the columns reads matrices as they lie, one along
// the rows reads them turned.
#pragma once
#include "dev.cuh"

// Fragments as dev.cuh has them: rows of a lane are g and g + 8, columns of a tile of 8 are 2 t and 2 t + 1.
DEV u32 lane_of_warp() { return threadIdx.x % WARP; }
DEV u32 row_of_lane() { return threadIdx.x % WARP / 4; }
DEV u32 column_of_lane() { return threadIdx.x % 4 * 2; }

// `COLUMNS` is a multiple of 16: narrower heads are filled up with zeros.
template <u32 COLUMNS> struct Tile {
    static constexpr u32 CHUNKS = COLUMNS / 8;
    static constexpr u32 ROW_BYTES = (CHUNKS + 1) * 16;
    static_assert(COLUMNS % 16 == 0, "a step of the tensor core has 16 columns");
};

// Some columns of one head of one sequence in memory: a row for each token.
struct Rows {
    const u8* base;
    // From one token's row to the next, in bytes.
    u32 stride;
    // BF16 of a row.
    u32 columns;

    // Whether rows may be copied 16 bytes at a time.
    __device__ __forceinline__ bool is_aligned() const { return (((u64)base | stride | columns * 2) & 15) == 0; }
};

// Columns that are together in memory, and others behind them that lie elsewhere.
struct Parts {
    Rows first, rest;
};

DEV bool is_aligned(const Rows& rows) { return rows.is_aligned(); }
DEV bool is_aligned(const Parts& parts) { return parts.first.is_aligned() && parts.rest.is_aligned(); }

// Where 8 columns of a row lie; whether there are any.
DEV const u8* chunk_of(const Rows& rows, u32 row, u32 chunk, bool& exists) {
    exists &= chunk * 8 < rows.columns;
    return rows.base + (u64)row * rows.stride + chunk * 16;
}
DEV const u8* chunk_of(const Parts& parts, u32 row, u32 chunk, bool& exists) {
    const u32 before = parts.first.columns / 8;
    if (chunk < before) return chunk_of(parts.first, row, chunk, exists);
    return chunk_of(parts.rest, row, chunk - before, exists);
}

// The same of rows that are not aligned: the columns themselves, zeros where there are none.
DEV u32 column_of(const Rows& rows, u32 row, u32 column) {
    if (column >= rows.columns) return 0;
    return ((const u16*)(rows.base + (u64)row * rows.stride))[column];
}
DEV u32 column_of(const Parts& parts, u32 row, u32 column) {
    const u32 before = parts.first.columns;
    return column < before ? column_of(parts.first, row, column) : column_of(parts.rest, row, column - before);
}

// Starts the copy of `COUNT` rows from `first` on; rows from `end` on, and columns that there are not, become zeros.
template <u32 COUNT, u32 COLUMNS, u32 THREADS, class FROM>
DEV void load_rows(u32 shared, const FROM& from, u32 first, u32 end) {
    constexpr u32 CHUNKS = Tile<COLUMNS>::CHUNKS, ALL = COUNT * CHUNKS;
    if (is_aligned(from)) {
#pragma unroll
        for (u32 done = 0; done < ALL; done += THREADS) {
            const u32 at = done + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
            if (ALL % THREADS != 0 && at >= ALL) break;
            bool exists = first + row < end;
            const u8* source = chunk_of(from, first + row, chunk, exists);
            copy16_async(shared + row * Tile<COLUMNS>::ROW_BYTES + chunk * 16, source, exists);
        }
    } else {
#pragma unroll 1
        for (u32 at = threadIdx.x; at < ALL; at += THREADS) {
            const u32 row = at / CHUNKS, chunk = at % CHUNKS;
            u32 words[4] = {0, 0, 0, 0};
            if (first + row < end) {
#pragma unroll
                for (u32 i = 0; i < 8; i++) words[i / 2] |= column_of(from, first + row, chunk * 8 + i) << (i % 2 * 16);
            }
            store16_shared(shared + row * Tile<COLUMNS>::ROW_BYTES + chunk * 16, words);
        }
    }
}

// The 16 rows from `row` on and 16 columns: as A.
template <u32 COLUMNS> DEV void load_left(u32 (&a)[4], u32 tile, u32 row, u32 step) {
    const u32 lane = lane_of_warp();
    load_matrices(a, tile + (row + lane % 16) * Tile<COLUMNS>::ROW_BYTES + (2 * step + lane / 16) * 16);
}

// The same as B, contracted along the columns: b[0], b[1] rows 0 to 7; b[2], b[3] rows 8 to 15.
template <u32 COLUMNS> DEV void load_right(u32 (&b)[4], u32 tile, u32 row, u32 step) {
    const u32 lane = lane_of_warp(), place = lane % 8 + lane / 16 * 8;
    load_matrices(b, tile + (row + place) * Tile<COLUMNS>::ROW_BYTES + (2 * step + lane / 8 % 2) * 16);
}

// The same as B, contracted along the rows: b[0], b[1] columns 0 to 7 of the step; b[2], b[3] columns 8 to 15.
template <u32 COLUMNS> DEV void load_right_turned(u32 (&b)[4], u32 tile, u32 row, u32 step) {
    const u32 lane = lane_of_warp();
    load_matrices_turned(b, tile + (row + lane % 16) * Tile<COLUMNS>::ROW_BYTES + (2 * step + lane / 16) * 16);
}

// sums = 16 rows of `left` times 8 N rows of `right`, along the columns.
template <u32 COLUMNS, u32 N>
DEV void multiply_rows(float (&sums)[N][4], u32 left, u32 left_row, u32 right, u32 right_row) {
#pragma unroll
    for (u32 n = 0; n < N; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) sums[n][e] = 0.0f;
#pragma unroll
    for (u32 step = 0; step < COLUMNS / 16; step++) {
        u32 a[4];
        load_left<COLUMNS>(a, left, left_row, step);
#pragma unroll
        for (u32 pair = 0; pair < N / 2; pair++) {
            u32 b[4];
            load_right<COLUMNS>(b, right, right_row + pair * 16, step);
            mma_bf16(sums[2 * pair], a, b[0], b[1]);
            mma_bf16(sums[2 * pair + 1], a, b[2], b[3]);
        }
    }
}

// sums += weights (16 x 16) times the 16 rows of `right` from `row` on.
template <u32 COLUMNS> DEV void add_weighted(float (&sums)[COLUMNS / 8][4], const u32 (&weights)[4], u32 right, u32 row) {
#pragma unroll
    for (u32 step = 0; step < COLUMNS / 16; step++) {
        u32 b[4];
        load_right_turned<COLUMNS>(b, right, row, step);
        mma_bf16(sums[2 * step], weights, b[0], b[1]);
        mma_bf16(sums[2 * step + 1], weights, b[2], b[3]);
    }
}

// Two neighbouring tiles of results, 16 x 16, as the A of a further product: rounded to BF16.
DEV void to_left(u32 (&a)[4], const float (&first)[4], const float (&second)[4]) {
    a[0] = to_bf16x2(first[0], first[1]);
    a[1] = to_bf16x2(first[2], first[3]);
    a[2] = to_bf16x2(second[0], second[1]);
    a[3] = to_bf16x2(second[2], second[3]);
}

// Writes the columns from `before` on of 16 rows from `row` on, as many as `to` has, times `factors` of rows g and g + 8;
// rows from `end` on are left out.
template <u32 N>
DEV void store_sums(const Rows& to, u32 before, u32 row, u32 end, const float (&sums)[N][4], const float (&factors)[2]) {
    const bool in_pairs = (((u64)to.base | to.stride | (to.columns | before) * 2) & 3) == 0;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 own = row + row_of_lane() + 8 * half;
        if (own >= end) continue;
        u16* out = (u16*)(to.base + (u64)own * to.stride);
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            // Columns before the first are far beyond the last one.
            const u32 column = n * 8 + column_of_lane() - before;
            const u32 pair = to_bf16x2(sums[n][2 * half] * factors[half], sums[n][2 * half + 1] * factors[half]);
            if (in_pairs) {
                if (column < to.columns) *(u32*)(out + column) = pair;
            } else {
                if (column < to.columns) out[column] = (u16)pair;
                if (column + 1 < to.columns) out[column + 1] = (u16)(pair >> 16);
            }
        }
    }
}
