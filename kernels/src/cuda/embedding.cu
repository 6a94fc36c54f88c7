// contract: embedding.rs
//
// A thread has a chunk of 8 columns of one token, or of one row of the table: neighbouring threads neighbouring chunks.
// The gradient of a row of the table is one thread's sum over the tokens of that row, in their order, which the host
// lists; nobody else writes there.
#include "rows.cuh"

enum : u32 { THREADS = 256 };

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 2)

struct Place {
    u32 row, col;
};

// What the threads of all blocks have, rows of `cols` one after the other.
DEV Place own_chunk(u32 cols) {
    const u32 chunks = (cols + CHUNK - 1) / CHUNK, at = blockIdx.x * THREADS + threadIdx.x;
    return {at / chunks, at % chunks * CHUNK};
}

// NaN in both halves.
enum : u32 { NAN_PAIR = 0x7fc07fc0u };

KERNEL embedding_forward(const u16* __restrict__ table, const u32* __restrict__ ids, u16* __restrict__ y, u32 tokens,
                         u32 vocabulary, u32 cols) {
    const Place at = own_chunk(cols);
    if (at.row >= tokens) return;
    const u32 id = ids[at.row];
    uint4 chunk = make_uint4(NAN_PAIR, NAN_PAIR, NAN_PAIR, NAN_PAIR);
    if (id < vocabulary) chunk = load8(table + (u64)id * cols, at.col, cols, is_wide(table, cols));
    store8(y + (u64)at.row * cols, at.col, cols, is_wide(y, cols), chunk);
}

// Row i of `rows` of the table is touched by the tokens order[starts[i]] .. order[starts[i + 1] - 1].
KERNEL embedding_backward(const u32* __restrict__ rows, const u32* __restrict__ starts, const u32* __restrict__ order,
                          const u16* __restrict__ dy, float* __restrict__ d_table, u32 touched, u32 tokens,
                          u32 vocabulary, u32 cols) {
    const Place at = own_chunk(cols);
    if (at.row >= touched) return;
    const u32 row = rows[at.row], end = min(starts[at.row + 1], tokens);
    if (row >= vocabulary) return;
    float* sums = d_table + (u64)row * cols;
    const bool sums_wide = is_wide(d_table, cols), dy_wide = is_wide(dy, cols);
    float sum[CHUNK], term[CHUNK];
    load8(sums, at.col, cols, sums_wide, sum);
#pragma unroll 2
    for (u32 i = starts[at.row]; i < end; i++) {
        const u32 token = order[i];
        if (token >= tokens) continue;
        unpack(load8(dy + (u64)token * cols, at.col, cols, dy_wide), term);
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) sum[j] = __fadd_rn(sum[j], term[j]);
    }
    store8(sums, at.col, cols, sums_wide, sum);
}
