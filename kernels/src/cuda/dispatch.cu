// contract: dispatch.rs
//
// Lists are built by counting: a block for each bucket (a shard, or an expert) reads all choices in order, 512 at a time,
// and numbers those of its bucket by a prefix sum over its threads. So ranks are those of a stable sort, whatever order
// blocks run in. A second kernel, a thread for each choice, knows all totals and puts everything where it belongs.
//
// Rows are moved by a warp each, 16 bytes at a time where they are aligned; sums of rows by a block for each row, a
// thread for each column.
#include "dev.cuh"

constexpr u32 THREADS = 512;
constexpr u32 NONE = 0xffffffffu;
// Each expert's rows begin at a multiple of it, for tiles along the rows.
constexpr u32 ALIGNMENT = 128;
constexpr u32 EXPERTS = 512;

// The sum of `x` over the threads before this one; `total` becomes that of all. Sums fit into 32 bits.
DEV u32 sum_before(u32 x, u32& total) {
    __shared__ u32 of_warp[THREADS / WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 sum = x;
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) {
        const u32 before = __shfl_up_sync(ALL_LANES, sum, step);
        if (lane >= step) sum += before;
    }
    if (lane == WARP - 1) of_warp[warp] = sum;
    __syncthreads();
    u32 before = 0;
    total = 0;
    for (u32 i = 0; i < THREADS / WARP; i++) {
        if (i < warp) before += of_warp[i];
        total += of_warp[i];
    }
    // The next sums take the place of these.
    __syncthreads();
    return before + sum - x;
}

// ranks (shards, T): rows and pairs of tokens before, totals (shards): of all. A block for each shard.
extern "C" __global__ void __launch_bounds__(THREADS)
    dispatch_rank(const u32* chosen, const u32* bounds, uint2* ranks, uint2* totals, u32 t, u32 top_k) {
    const u32 shard = blockIdx.x, begin = bounds[shard], end = bounds[shard + 1];
    uint2 done = {0, 0};
    for (u32 first = 0; first < t; first += THREADS) {
        const u32 token = first + threadIdx.x;
        u32 pairs = 0;
        if (token < t) {
            for (u32 i = 0; i < top_k; i++) {
                const u32 expert = chosen[(u64)token * top_k + i];
                pairs += begin <= expert && expert < end ? 1 : 0;
            }
        }
        // 512 threads with at most 32 pairs and one row each: two sums in one.
        u32 total;
        const u32 before = sum_before(pairs | (pairs > 0 ? 1u << 16 : 0), total);
        if (token < t) ranks[(u64)shard * t + token] = {done.x + (before >> 16), done.y + (before & 0xffff)};
        done = {done.x + (total >> 16), done.y + (total & 0xffff)};
    }
    if (threadIdx.x == 0) totals[shard] = done;
}

// A thread for each token.
extern "C" __global__ void __launch_bounds__(THREADS)
    dispatch_lists(const u32* chosen, const float* gates, const u32* bounds, const uint2* ranks, const uint2* totals,
                   u32* token_of_row, u32* first_of_token, u32* rows_of_token, u32* row_of_pair, u32* expert_of_pair,
                   float* gate_of_pair, u32* pair_of_slot, u32 t, u32 top_k, u32 shards) {
    const u32 token = blockIdx.x * THREADS + threadIdx.x;
    if (token >= t) return;
    u32 place = 0;
    for (u32 shard = 0; shard < shards; shard++) place += ranks[(u64)shard * t + token].x;
    first_of_token[token] = place;
    // Of this token's shard at hand: what other shards have before it, and what its tokens have before this one.
    u32 shard = 0, reached = NONE, next = 0;
    uint2 before = {0, 0}, rank = {0, 0};
    for (u32 i = 0; i < top_k; i++) {
        // The choice of the lowest expert that is left.
        u32 expert = NONE, slot = 0;
        for (u32 j = 0; j < top_k; j++) {
            const u32 other = chosen[(u64)token * top_k + j];
            if (next <= other && other < expert) {
                expert = other;
                slot = j;
            }
        }
        next = expert + 1;
        // Nobody owns it: it stays here.
        if (expert < bounds[0]) continue;
        while (shard < shards && bounds[shard + 1] <= expert) {
            before = {before.x + totals[shard].x, before.y + totals[shard].y};
            shard++;
        }
        // The same of this one and those behind it.
        if (shard == shards) break;
        if (reached != shard) {
            reached = shard;
            rank = ranks[(u64)shard * t + token];
            token_of_row[before.x + rank.x] = token;
            rows_of_token[place] = before.x + rank.x;
            place++;
        }
        const u32 pair = before.y + rank.y;
        rank.y++;
        row_of_pair[pair] = rank.x;
        expert_of_pair[pair] = expert - bounds[shard];
        gate_of_pair[pair] = gates[(u64)token * top_k + slot];
        pair_of_slot[(u64)token * top_k + slot] = pair;
    }
    if (token == t - 1) first_of_token[t] = place;
}

// ranks (N): of each pair among those of its expert; counts (experts). A block for each expert.
extern "C" __global__ void __launch_bounds__(THREADS)
    dispatch_expert_rank(const u32* expert_of_pair, u32* ranks, u32* counts, u32 pairs) {
    u32 done = 0;
    for (u32 first = 0; first < pairs; first += THREADS) {
        const u32 pair = first + threadIdx.x;
        const bool own = pair < pairs && expert_of_pair[pair] == blockIdx.x;
        u32 total;
        const u32 before = sum_before(own ? 1 : 0, total);
        if (own) ranks[pair] = done + before;
        done += total;
    }
    if (threadIdx.x == 0) counts[blockIdx.x] = done;
}

// A thread for each pair; those of the first block also write the ranges. `rows_before` and `pairs_before` (sources + 1)
// are of the cells that sent.
extern "C" __global__ void __launch_bounds__(THREADS)
    dispatch_places(const u32* row_of_pair, const u32* expert_of_pair, const u32* rows_before, const u32* pairs_before,
                    const u32* ranks, const u32* counts, u32* first_of_row, u32* place_of_pair, u32* row_of_place,
                    u32* pair_of_place, uint2* ranges, u32 sources, u32 pairs, u32 rows, u32 experts) {
    __shared__ u32 begins[EXPERTS];
    const u32 padded = threadIdx.x < experts ? (counts[threadIdx.x] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : 0;
    u32 total;
    const u32 begin = sum_before(padded, total);
    if (threadIdx.x < experts) {
        begins[threadIdx.x] = begin;
        if (blockIdx.x == 0) ranges[threadIdx.x] = {begin, begin + counts[threadIdx.x]};
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) first_of_row[rows] = pairs;
    __syncthreads();
    const u32 pair = blockIdx.x * THREADS + threadIdx.x;
    if (pair >= pairs) return;
    u32 source = 0;
    while (source + 1 < sources && pairs_before[source + 1] <= pair) source++;
    const u32 row = rows_before[source] + row_of_pair[pair];
    const bool leads = pair == pairs_before[source] || row_of_pair[pair - 1] != row_of_pair[pair];
    if (leads && row < rows) first_of_row[row] = pair;
    const u32 expert = expert_of_pair[pair];
    // What a peer made up belongs nowhere.
    if (expert >= experts || row >= rows) {
        place_of_pair[pair] = NONE;
        return;
    }
    const u32 place = begins[expert] + ranks[pair];
    place_of_pair[pair] = place;
    row_of_place[place] = row;
    pair_of_place[place] = pair;
}

// Copies `bytes` from one row to another, or zeros, by one warp.
DEV void move_row(u8* to, const u8* from, u32 bytes, bool exists) {
    const u32 lane = threadIdx.x % WARP;
    if ((((u64)to | (u64)from | bytes) & 15) == 0) {
        for (u32 i = lane * 16; i < bytes; i += WARP * 16) {
            *(uint4*)(to + i) = exists ? *(const uint4*)(from + i) : make_uint4(0, 0, 0, 0);
        }
    } else if ((((u64)to | (u64)from | bytes) & 1) == 0) {
        for (u32 i = lane * 2; i < bytes; i += WARP * 2) *(u16*)(to + i) = exists ? *(const u16*)(from + i) : (u16)0;
    } else {
        for (u32 i = lane; i < bytes; i += WARP) to[i] = exists ? from[i] : (u8)0;
    }
}

// Row r of `out` is row index[r] of `x`, or zeros; and so are their scales. A warp for each row.
extern "C" __global__ void __launch_bounds__(THREADS)
    dispatch_gather_rows(const u8* x, const u8* x_scales, u8* out, u8* out_scales, const u32* index, u32 x_rows, u32 rows,
                         u32 bytes, u32 scale_bytes) {
    const u32 row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const u32 from = index[row];
    const bool exists = from < x_rows;
    // Whether they are aligned does not depend on which row it is, if all rows are.
    const u64 source = exists ? from : 0;
    move_row(out + (u64)row * bytes, x + source * bytes, bytes, exists);
    move_row(out_scales + (u64)row * scale_bytes, x_scales + source * scale_bytes, scale_bytes, exists);
}

// out (n) = x[index], or 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    dispatch_gather_numbers(const float* x, const u32* index, float* out, u32 x_numbers, u32 n) {
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    if (at < n) out[at] = index[at] < x_numbers ? x[index[at]] : 0.0f;
}

DEV float number(const float* x, u64 at) { return x[at]; }
DEV float number(const u16* x, u64 at) { return __uint_as_float((u32)x[at] << 16); }
DEV void put(float* x, u64 at, float value) { x[at] = value; }
DEV void put(u16* x, u64 at, float value) { x[at] = (u16)to_bf16x2(value, 0.0f); }

// Row r of `out` is the sum of the rows of `x` that index[first[r] .. first[r + 1]] names, in that order, and of row r of
// `also`. `terms` is the length of the index.
template <class X, class OUT>
DEV void sum_rows(const X* x, const u32* first, const u32* index, const float* also, OUT* out, u32 x_rows, u32 terms,
                  u32 columns) {
    const u32 begin = first[blockIdx.x], end = min(first[blockIdx.x + 1], terms);
    const u64 row = (u64)blockIdx.x * columns;
    for (u32 column = threadIdx.x; column < columns; column += THREADS) {
        float sum = 0.0f;
        for (u32 term = begin; term < end; term++) {
            if (index[term] < x_rows) sum += number(x, (u64)index[term] * columns + column);
        }
        if (also != nullptr) sum += also[row + column];
        put(out, row + column, sum);
    }
}

#define SUM_ROWS(NAME, X, OUT)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        dispatch_sum_rows_##NAME(const X* x, const u32* first, const u32* index, const float* also, OUT* out,         \
                                 u32 x_rows, u32 terms, u32 columns) {                                                \
        sum_rows(x, first, index, also, out, x_rows, terms, columns);                                                 \
    }
SUM_ROWS(f32_to_f32, float, float)
SUM_ROWS(f32_to_bf16, float, u16)
SUM_ROWS(bf16_to_f32, u16, float)
SUM_ROWS(bf16_to_bf16, u16, u16)
