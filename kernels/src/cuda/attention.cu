// contract: attention.rs
//
// Forward: a block of 8 warps takes 128 queries of one head of one sequence, a warp 16 of them, and meets the keys 64
// at a time. While scores are computed the values arrive, while values are multiplied the next keys.
//
// Backward computes weights again from the log-sum-exps, in two kernels that each own what they write, so that
// nothing is added by two blocks: the gradient of 64 queries over all keys they saw, and those of 64 keys and values
// over all queries that saw them. The 8 warps are 4 pairs: both of a pair own the same 16 rows, and of every 32
// tokens that come by each takes 16. Their two sums are added at the end, always in the same order. Tokens that come by
// have two places in shared memory: one is multiplied while the other is filled.
//
// Blocks with most work start first. Shared memory: 92, 84 and 84 KiB where heads are large (attention.rs has the
// formula), which sm_86, sm_89 and sm_120 give a block.
#include "attention_tile.cuh"

constexpr u32 THREADS = 256;
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

struct Shape {
    u32 sequences, tokens, heads;
    // Columns of a head: plain and rotated ones of queries and keys, and of values.
    u32 nope, rope, value;

    __device__ __forceinline__ u32 tasks() const { return heads * sequences; }
};

// One head of one sequence, and which block of its tokens.
struct Task {
    u32 head, sequence, block;
    // Where its log-sum-exps begin.
    u64 first_of_lse;

    // Blocks of one number are neighbours in the grid. `last_first`: the last block of all tasks comes first.
    __device__ __forceinline__ Task(const Shape& s, u32 tokens_of_block, bool last_first) {
        const u32 at = blockIdx.x / s.tasks(), task = blockIdx.x % s.tasks();
        const u32 blocks = (s.tokens + tokens_of_block - 1) / tokens_of_block;
        block = last_first ? blocks - 1 - at : at;
        head = task / s.sequences;
        sequence = task % s.sequences;
        first_of_lse = (u64)task * s.tokens;
    }

    // `columns` columns of this head, from column `first` of the `width` that each head has in x.
    __device__ __forceinline__ Rows rows(const u16* x, const Shape& s, u32 width, u32 first, u32 columns) const {
        const u16* base = x + ((u64)sequence * s.tokens * s.heads + head) * width + first;
        return {(const u8*)base, s.heads * width * 2, columns};
    }

    __device__ __forceinline__ Rows queries(const u16* q, const Shape& s) const {
        return rows(q, s, s.nope + s.rope, 0, s.nope + s.rope);
    }
    // Keys: the plain columns of each head beside its values, the rotated ones the same for all heads.
    __device__ __forceinline__ Parts keys(const u16* kv, const u16* k_rope, const Shape& s) const {
        const u16* base = k_rope + (u64)sequence * s.tokens * s.rope;
        return {rows(kv, s, s.nope + s.value, 0, s.nope), {(const u8*)base, s.rope * 2, s.rope}};
    }
    __device__ __forceinline__ Rows values(const u16* kv, const Shape& s) const {
        return rows(kv, s, s.nope + s.value, s.nope, s.value);
    }
    __device__ __forceinline__ Rows outputs(const u16* o, const Shape& s) const { return rows(o, s, s.value, 0, s.value); }
};

// The larger, and the sum, of the four lanes that have one row.
DEV float max_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
DEV float sum_of_row(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

constexpr u32 QUERIES = 128, KEYS = 64;

// The scores of a block of keys become weights, relative to a new maximum; returns by what earlier sums shrink.
// Scores are in units of log2.
template <u32 N>
DEV void weigh(float (&scores)[N][4], float factor, bool hides, u32 query, u32 key, float (&max)[2], float (&sum)[2],
               float (&correction)[2]) {
    float largest[2] = {max[0], max[1]};
#pragma unroll
    for (u32 n = 0; n < N; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
            float score = scores[n][e] * factor;
            const u32 column = key + n * 8 + column_of_lane() + e % 2;
            if (hides && column > query + e / 2 * 8) score = __int_as_float(0xff800000);
            largest[e / 2] = fmaxf(largest[e / 2], score);
            scores[n][e] = score;
        }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        largest[half] = max_of_row(largest[half]);
        correction[half] = exp2_approx(max[half] - largest[half]);
        max[half] = largest[half];
        sum[half] *= correction[half];
    }
#pragma unroll
    for (u32 n = 0; n < N; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
            scores[n][e] = exp2_approx(scores[n][e] - max[e / 2]);
            sum[e / 2] += scores[n][e];
        }
}

template <u32 QK, u32 V>
DEV void forward(const u16* q, const u16* kv, const u16* k_rope, u16* o, float* lse, const Shape& s, float factor) {
    extern __shared__ __align__(16) u8 memory[];
    const u32 queries = shared_address(memory), keys = queries + QUERIES * Tile<QK>::ROW_BYTES;
    const u32 values = keys + KEYS * Tile<QK>::ROW_BYTES;
    const Task task(s, QUERIES, true);
    const Parts k_rows = task.keys(kv, k_rope, s);
    const Rows v_rows = task.values(kv, s);
    const u32 first = task.block * QUERIES, end = min(first + QUERIES, s.tokens);
    const u32 warp_row = threadIdx.x / WARP * 16, query = first + warp_row + row_of_lane();

    load_rows<QUERIES, QK, THREADS>(queries, task.queries(q, s), first, end);
    load_rows<KEYS, QK, THREADS>(keys, k_rows, 0, end);
    copies_commit();
    float sums[V / 8][4] = {};
    float max[2] = {__int_as_float(0xff800000), __int_as_float(0xff800000)}, sum[2] = {0.0f, 0.0f};
    for (u32 key = 0; key < end; key += KEYS) {
        // These keys have arrived, and all are done with the values before.
        copies_wait<0>();
        __syncthreads();
        load_rows<KEYS, V, THREADS>(values, v_rows, key, end);
        copies_commit();
        // Of this warp's queries the last one sees them.
        const bool visible = key <= first + warp_row + 15;
        float scores[KEYS / 8][4];
        if (visible) multiply_rows<QK, KEYS / 8>(scores, queries, warp_row, keys, 0);
        // The values have arrived, and all are done with the keys.
        copies_wait<0>();
        __syncthreads();
        if (key + KEYS < end) load_rows<KEYS, QK, THREADS>(keys, k_rows, key + KEYS, end);
        copies_commit();
        if (!visible) continue;
        float correction[2];
        weigh(scores, factor, key + KEYS > first + warp_row, query, key, max, sum, correction);
#pragma unroll
        for (u32 n = 0; n < V / 8; n++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) sums[n][e] *= correction[e / 2];
#pragma unroll
        for (u32 step = 0; step < KEYS / 16; step++) {
            u32 weights[4];
            to_left(weights, scores[2 * step], scores[2 * step + 1]);
            add_weighted<V>(sums, weights, values, step * 16);
        }
    }
    float inverse[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        sum[half] = sum_of_row(sum[half]);
        inverse[half] = 1.0f / sum[half];
        const u32 own = query + 8 * half;
        if (threadIdx.x % 4 == 0 && own < end) lse[task.first_of_lse + own] = (max[half] + log2f(sum[half])) * LN_2;
    }
    store_sums(task.outputs(o, s), 0, first + warp_row, end, sums, inverse);
}

// The rows that a block of the backward kernels owns, and those that come by at a time.
constexpr u32 OWNED = 64, PASSING = 32;

// The second warp of each pair gives its sums to the first. `room` is shared memory that nobody reads any more.
template <u32 N> DEV void give_sums(float* room, const float (&sums)[N][4]) {
    const u32 lane = threadIdx.x % (THREADS / 2);
#pragma unroll
    for (u32 n = 0; n < N; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) room[(n * 4 + e) * (THREADS / 2) + lane] = sums[n][e];
}
template <u32 N> DEV void take_sums(const float* room, float (&sums)[N][4]) {
#pragma unroll
    for (u32 n = 0; n < N; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) sums[n][e] += room[(n * 4 + e) * (THREADS / 2) + threadIdx.x];
}

template <u32 QK, u32 V>
DEV void query_gradient(const u16* q, const u16* kv, const u16* k_rope, const u16* d_o, const float* lse,
                        const float* delta, u16* dq, const Shape& s, float scale) {
    constexpr u32 PLACE = PASSING * (Tile<QK>::ROW_BYTES + Tile<V>::ROW_BYTES);
    extern __shared__ __align__(16) u8 memory[];
    const u32 queries = shared_address(memory), gradients = queries + OWNED * Tile<QK>::ROW_BYTES;
    const u32 places = gradients + OWNED * Tile<V>::ROW_BYTES;
    const Task task(s, OWNED, true);
    const Parts k_rows = task.keys(kv, k_rope, s);
    const Rows v_rows = task.values(kv, s);
    const u32 first = task.block * OWNED, end = min(first + OWNED, s.tokens);
    const u32 warp = threadIdx.x / WARP, warp_row = warp % 4 * 16, share = warp / 4 * 16;
    const u32 query = first + warp_row + row_of_lane();

    auto load = [&](u32 key, u32 place) {
        const u32 keys = places + place * PLACE;
        load_rows<PASSING, QK, THREADS>(keys, k_rows, key, end);
        load_rows<PASSING, V, THREADS>(keys + PASSING * Tile<QK>::ROW_BYTES, v_rows, key, end);
        copies_commit();
    };
    load_rows<OWNED, QK, THREADS>(queries, task.queries(q, s), first, end);
    load_rows<OWNED, V, THREADS>(gradients, task.outputs(d_o, s), first, end);
    load(0, 0);
    float of_lse[2], of_delta[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const bool exists = query + 8 * half < end;
        of_lse[half] = exists ? lse[task.first_of_lse + query + 8 * half] * LOG2_E : 0.0f;
        of_delta[half] = exists ? delta[task.first_of_lse + query + 8 * half] : 0.0f;
    }
    const float factor = scale * LOG2_E;
    float sums[QK / 8][4] = {};
    u32 place = 0;
    for (u32 key = 0; key < end; key += PASSING, place ^= 1) {
        // These have arrived, and all are done with the place that is filled next.
        copies_wait<0>();
        __syncthreads();
        if (key + PASSING < end) load(key + PASSING, place ^ 1);
        const u32 own = key + share;
        if (own > first + warp_row + 15) continue;
        const u32 keys = places + place * PLACE, values = keys + PASSING * Tile<QK>::ROW_BYTES;
        float scores[2][4], d_weights[2][4];
        multiply_rows<QK, 2>(scores, queries, warp_row, keys, share);
        multiply_rows<V, 2>(d_weights, gradients, warp_row, values, share);
#pragma unroll
        for (u32 n = 0; n < 2; n++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                const bool visible = own + n * 8 + column_of_lane() + e % 2 <= query + e / 2 * 8;
                const float weight = exp2_approx(fmaf(scores[n][e], factor, -of_lse[e / 2]));
                scores[n][e] = visible ? weight * (d_weights[n][e] - of_delta[e / 2]) : 0.0f;
            }
        u32 d_scores[4];
        to_left(d_scores, scores[0], scores[1]);
        add_weighted<QK>(sums, d_scores, keys, share);
    }
    static_assert(QK / 8 * 4 * THREADS / 2 * 4 <= 2 * PLACE + OWNED * (PLACE / PASSING), "the sums fit");
    __syncthreads();
    if (warp >= 4) give_sums((float*)memory, sums);
    __syncthreads();
    if (warp >= 4) return;
    take_sums((const float*)memory, sums);
    const float factors[2] = {scale, scale};
    store_sums(task.queries(dq, s), 0, first + warp_row, end, sums, factors);
}

// Rows of scores are keys here, columns are queries.
template <u32 QK, u32 V>
DEV void key_value_gradient(const u16* q, const u16* kv, const u16* k_rope, const u16* d_o, const float* lse,
                            const float* delta, u16* d_kv, u16* dk_rope, const Shape& s, float scale) {
    constexpr u32 PLACE = PASSING * (Tile<QK>::ROW_BYTES + Tile<V>::ROW_BYTES);
    extern __shared__ __align__(16) u8 memory[];
    const u32 keys = shared_address(memory), values = keys + OWNED * Tile<QK>::ROW_BYTES;
    const u32 places = values + OWNED * Tile<V>::ROW_BYTES;
    const Task task(s, OWNED, false);
    const Rows q_rows = task.queries(q, s), d_o_rows = task.outputs(d_o, s);
    const u32 first = task.block * OWNED, end = min(first + OWNED, s.tokens);
    const u32 warp = threadIdx.x / WARP, warp_row = warp % 4 * 16, share = warp / 4 * 16;
    const u32 key = first + warp_row + row_of_lane();

    auto load = [&](u32 query, u32 place) {
        const u32 queries = places + place * PLACE;
        load_rows<PASSING, QK, THREADS>(queries, q_rows, query, s.tokens);
        load_rows<PASSING, V, THREADS>(queries + PASSING * Tile<QK>::ROW_BYTES, d_o_rows, query, s.tokens);
        copies_commit();
    };
    load_rows<OWNED, QK, THREADS>(keys, task.keys(kv, k_rope, s), first, end);
    load_rows<OWNED, V, THREADS>(values, task.values(kv, s), first, end);
    load(first, 0);
    const float factor = scale * LOG2_E;
    const float* const lse_of_task = lse + task.first_of_lse;
    const float* const delta_of_task = delta + task.first_of_lse;
    float dk_sums[QK / 8][4] = {}, dv_sums[V / 8][4] = {};
    u32 place = 0;
    for (u32 query = first; query < s.tokens; query += PASSING, place ^= 1) {
        // These have arrived, and all are done with the place that is filled next.
        copies_wait<0>();
        __syncthreads();
        if (query + PASSING < s.tokens) load(query + PASSING, place ^ 1);
        const u32 own = query + share;
        if (own + 15 < first + warp_row) continue;
        const u32 queries = places + place * PLACE, gradients = queries + PASSING * Tile<QK>::ROW_BYTES;
        float scores[2][4], d_weights[2][4];
        multiply_rows<QK, 2>(scores, keys, warp_row, queries, share);
        multiply_rows<V, 2>(d_weights, values, warp_row, gradients, share);
#pragma unroll
        for (u32 n = 0; n < 2; n++)
#pragma unroll
            for (u32 column = 0; column < 2; column++) {
                const u32 seer = own + n * 8 + column_of_lane() + column;
                const float of_lse = seer < s.tokens ? lse_of_task[seer] * LOG2_E : 0.0f;
                const float of_delta = seer < s.tokens ? delta_of_task[seer] : 0.0f;
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    const u32 e = 2 * half + column;
                    const bool visible = key + 8 * half <= seer;
                    const float weight = exp2_approx(fmaf(scores[n][e], factor, -of_lse));
                    d_weights[n][e] = visible ? weight * (d_weights[n][e] - of_delta) : 0.0f;
                    scores[n][e] = visible ? weight : 0.0f;
                }
            }
        u32 weights[4], d_scores[4];
        to_left(weights, scores[0], scores[1]);
        add_weighted<V>(dv_sums, weights, gradients, share);
        to_left(d_scores, d_weights[0], d_weights[1]);
        add_weighted<QK>(dk_sums, d_scores, queries, share);
    }
    static_assert((QK + V) / 8 * 4 * THREADS / 2 * 4 <= 2 * PLACE + OWNED * (PLACE / PASSING), "the sums fit");
    float* const room = (float*)memory;
    float* const room_of_values = room + QK / 8 * 4 * (THREADS / 2);
    __syncthreads();
    if (warp >= 4) {
        give_sums(room, dk_sums);
        give_sums(room_of_values, dv_sums);
    }
    __syncthreads();
    if (warp >= 4) return;
    take_sums(room, dk_sums);
    take_sums(room_of_values, dv_sums);
    const float scales[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
    const u32 width = s.nope + s.value;
    store_sums(task.rows(d_kv, s, width, 0, s.nope), 0, first + warp_row, end, dk_sums, scales);
    store_sums(task.rows(dk_rope, s, s.rope, 0, s.rope), s.nope, first + warp_row, end, dk_sums, scales);
    store_sums(task.rows(d_kv, s, width, s.nope, s.value), 0, first + warp_row, end, dv_sums, ones);
}

// delta (H, T) = sum(d_o o) of each row and head, a warp for each. Rows of o are (token, head).
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_delta(const u16* o, const u16* d_o, float* delta, u32 sequences, u32 tokens, u32 heads, u32 v) {
    const u64 rows = (u64)sequences * tokens * heads;
    const u64 row = (u64)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    float sum = 0.0f;
    for (u32 i = lane_of_warp(); i < v; i += WARP) {
        const float of_o = __uint_as_float((u32)o[row * v + i] << 16);
        sum = fmaf(of_o, __uint_as_float((u32)d_o[row * v + i] << 16), sum);
    }
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    if (lane_of_warp() == 0) delta[row % heads * ((u64)sequences * tokens) + row / heads] = sum;
}

#define ATTENTION(NAME, QK, V, BLOCKS)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                     \
        attention_forward_##NAME(const u16* q, const u16* kv, const u16* k_rope, u16* o, float* lse, u32 sequences,   \
                                 u32 tokens, u32 heads, u32 nope, u32 rope, u32 value, float scale) {                 \
        forward<QK, V>(q, kv, k_rope, o, lse, {sequences, tokens, heads, nope, rope, value}, scale * LOG2_E);         \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                     \
        attention_query_gradient_##NAME(const u16* q, const u16* kv, const u16* k_rope, const u16* d_o,               \
                                        const float* lse, const float* delta, u16* dq, u32 sequences, u32 tokens,     \
                                        u32 heads, u32 nope, u32 rope, u32 value, float scale) {                      \
        query_gradient<QK, V>(q, kv, k_rope, d_o, lse, delta, dq, {sequences, tokens, heads, nope, rope, value},      \
                              scale);                                                                                 \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                     \
        attention_key_value_gradient_##NAME(const u16* q, const u16* kv, const u16* k_rope, const u16* d_o,           \
                                            const float* lse, const float* delta, u16* d_kv, u16* dk_rope,            \
                                            u32 sequences, u32 tokens, u32 heads, u32 nope, u32 rope, u32 value,      \
                                            float scale) {                                                            \
        key_value_gradient<QK, V>(q, kv, k_rope, d_o, lse, delta, d_kv, dk_rope,                                      \
                                  {sequences, tokens, heads, nope, rope, value}, scale);                              \
    }

// Heads of up to 192 columns (128 and 64 rotated) and 128 of values, as DeepSeek's; and of up to 48 and 32.
ATTENTION(192, 192, 128, 1)
ATTENTION(48, 48, 32, 2)
