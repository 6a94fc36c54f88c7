// contract: rope.rs
//
// A thread has a chunk of 8 columns, four pairs, of one head of one token. Turned in place, so that nothing is read
// through a pointer that another thread writes through. Products and sums are rounded one by one, as on the CPU.
#include "rows.cuh"

enum : u32 { THREADS = 256 };

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 2)

// Four pairs (cosine, sine) from column `col` on, the columns being theirs; zeros beyond the end of a row.
DEV void load_turns(const float* turns, u32 position, u32 col, u32 cols, float (&v)[CHUNK]) {
    load8(turns + (u64)position * cols, col, cols, cols % 4 == 0, v);
}

// The pairs of `x` turned by `turn`.
DEV void turned(const float (&turn)[CHUNK], float (&x)[CHUNK]) {
#pragma unroll
    for (u32 i = 0; i < CHUNK; i += 2) {
        const float a = x[i], b = x[i + 1], cosine = turn[i], sine = turn[i + 1];
        x[i] = __fsub_rn(__fmul_rn(a, cosine), __fmul_rn(b, sine));
        x[i + 1] = __fadd_rn(__fmul_rn(a, sine), __fmul_rn(b, cosine));
    }
}

// The same backwards.
DEV void turned_back(const float (&turn)[CHUNK], float (&x)[CHUNK]) {
#pragma unroll
    for (u32 i = 0; i < CHUNK; i += 2) {
        const float a = x[i], b = x[i + 1], cosine = turn[i], sine = turn[i + 1];
        x[i] = __fadd_rn(__fmul_rn(a, cosine), __fmul_rn(b, sine));
        x[i + 1] = __fsub_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine));
    }
}

struct Heads {
    u32 tokens, heads, token_stride, head_stride, cols, tokens_per_sequence;
};

template <bool BACK>
DEV void turn(u16* x, const float* turns, const Heads& s) {
    const u32 chunks = (s.cols + CHUNK - 1) / CHUNK;
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    const u32 col = at % chunks * CHUNK, head = at / chunks % s.heads;
    const u32 token = at / chunks / s.heads;
    if (token >= s.tokens) return;
    const bool wide = is_wide(x, s.token_stride) && s.head_stride % CHUNK == 0;
    u16* own = x + (u64)token * s.token_stride + (u64)head * s.head_stride;
    float v[CHUNK], by[CHUNK];
    unpack(load8(own, col, s.cols, wide), v);
    load_turns(turns, token % s.tokens_per_sequence, col, s.cols, by);
    if (BACK) {
        turned_back(by, v);
        // Gradients are added to zero: that takes the sign of a zero.
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) v[j] = __fadd_rn(0.0f, v[j]);
    } else {
        turned(by, v);
    }
    store8(own, col, s.cols, wide, pack(v));
}

KERNEL rope_turn(u16* x, const float* turns, u32 tokens, u32 heads, u32 token_stride, u32 head_stride, u32 cols,
                 u32 tokens_per_sequence) {
    turn<false>(x, turns, {tokens, heads, token_stride, head_stride, cols, tokens_per_sequence});
}

KERNEL rope_turn_back(u16* x, const float* turns, u32 tokens, u32 heads, u32 token_stride, u32 head_stride, u32 cols,
                      u32 tokens_per_sequence) {
    turn<true>(x, turns, {tokens, heads, token_stride, head_stride, cols, tokens_per_sequence});
}

// out (tokens, cols), rows out_stride apart: the sum over heads, in order, of what is turned back.
KERNEL rope_sum_back(const u16* __restrict__ x, const float* __restrict__ turns, u16* __restrict__ out, u32 tokens,
                     u32 heads, u32 token_stride, u32 head_stride, u32 cols, u32 tokens_per_sequence, u32 out_stride) {
    const u32 chunks = (cols + CHUNK - 1) / CHUNK;
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    const u32 col = at % chunks * CHUNK, token = at / chunks;
    if (token >= tokens) return;
    const bool wide = is_wide(x, token_stride) && head_stride % CHUNK == 0;
    float sum[CHUNK], by[CHUNK];
    load_turns(turns, token % tokens_per_sequence, col, cols, by);
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) sum[j] = 0.0f;
#pragma unroll 2
    for (u32 head = 0; head < heads; head++) {
        float v[CHUNK];
        unpack(load8(x + (u64)token * token_stride + (u64)head * head_stride, col, cols, wide), v);
        turned_back(by, v);
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) sum[j] = __fadd_rn(sum[j], v[j]);
    }
    store8(out + (u64)token * out_stride, col, cols, is_wide(out, out_stride), pack(sum));
}
