// contract: cross_entropy.rs
//
// A block of 512 threads takes one row of logits, which it reads twice: once for the maximum and the sum of
// exponentials, each thread bringing its sum to a new maximum as it goes (Milakov and Gimelshein 2018,
// arXiv:1805.02867), and once for the gradient. A row of 102400 logits is 400 KiB: the second time it comes from the
// second-level cache. Logits are read four at a time where rows begin at multiples of 16 bytes.
#include "ordered_sum.cuh"

constexpr u32 THREADS = 512, WARPS = THREADS / WARP;
constexpr float LOG2_E = 1.44269504f;
// A row without a target.
constexpr u32 IGNORE = 0xffffffffu;

// The largest of some numbers, and the sum of their exponentials relative to it.
struct Softmax {
    float max, sum;
};

// Relative to what exponentials are computed: of nothing but minus infinities, to 0.
DEV float base_of(float max) { return max == __int_as_float(0xff800000) ? 0.0f : max; }

DEV Softmax joined(const Softmax& a, const Softmax& b) {
    const float max = fmaxf(a.max, b.max), base = base_of(max);
    return {max, a.sum * exp2_approx((a.max - base) * LOG2_E) + b.sum * exp2_approx((b.max - base) * LOG2_E)};
}

// Four neighbouring logits; beyond the end minus infinity.
DEV float4 load4(const float* row, u32 column, u32 v, bool aligned) {
    const float none = __int_as_float(0xff800000);
    if (aligned) return *(const float4*)(row + column);
    return make_float4(row[column], column + 1 < v ? row[column + 1] : none, column + 2 < v ? row[column + 2] : none,
                       column + 3 < v ? row[column + 3] : none);
}

// Of a whole row, for all threads.
DEV Softmax softmax_of_row(const float* row, u32 v, bool aligned) {
    __shared__ Softmax of_warp[WARPS];
    Softmax own = {__int_as_float(0xff800000), 0.0f};
    for (u32 column = threadIdx.x * 4; column < v; column += THREADS * 4) {
        const float4 x = load4(row, column, v, aligned);
        const float max = fmaxf(fmaxf(own.max, fmaxf(x.x, x.y)), fmaxf(x.z, x.w)), base = base_of(max);
        own.sum = own.sum * exp2_approx((own.max - base) * LOG2_E) + exp2_approx((x.x - base) * LOG2_E) +
                  exp2_approx((x.y - base) * LOG2_E) + exp2_approx((x.z - base) * LOG2_E) +
                  exp2_approx((x.w - base) * LOG2_E);
        own.max = max;
    }
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) {
        const Softmax other = {__shfl_xor_sync(ALL_LANES, own.max, step), __shfl_xor_sync(ALL_LANES, own.sum, step)};
        own = joined(own, other);
    }
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = own;
    __syncthreads();
    Softmax all = of_warp[0];
    for (u32 warp = 1; warp < WARPS; warp++) all = joined(all, of_warp[warp]);
    return all;
}

// Writes four neighbouring BF16, as many as there are.
DEV void store4(u16* row, u32 column, u32 v, bool aligned, const float (&x)[4]) {
    const u32 low = to_bf16x2(x[0], x[1]), high = to_bf16x2(x[2], x[3]);
    if (aligned) {
        *(uint2*)(row + column) = make_uint2(low, high);
        return;
    }
    row[column] = (u16)low;
    if (column + 1 < v) row[column + 1] = (u16)(low >> 16);
    if (column + 2 < v) row[column + 2] = (u16)high;
    if (column + 3 < v) row[column + 3] = (u16)(high >> 16);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_rows(const float* logits, const u32* targets, float* losses, u16* d_logits, u32 v, float scale) {
    const float* row = logits + (u64)blockIdx.x * v;
    u16* out = d_logits + (u64)blockIdx.x * v;
    const u32 target = targets[blockIdx.x];
    const bool aligned = ((u64)logits & 15) == 0 && ((u64)d_logits & 7) == 0 && v % 4 == 0;
    float max = 0.0f, factor = 0.0f, of_target = 0.0f;
    if (target != IGNORE) {
        const Softmax all = softmax_of_row(row, v, aligned);
        // What is no token has no logit: its loss, and then all of its gradient, say so.
        const float logit = target < v ? row[target] : __int_as_float(0x7fc00000);
        const float loss = logf(all.sum) + (all.max - logit);
        if (threadIdx.x == 0) losses[blockIdx.x] = loss;
        max = all.max;
        factor = target < v ? scale / all.sum : __int_as_float(0x7fc00000);
        of_target = scale;
    } else if (threadIdx.x == 0) {
        losses[blockIdx.x] = 0.0f;
    }
    if (d_logits == nullptr) return;
    for (u32 column = threadIdx.x * 4; column < v; column += THREADS * 4) {
        float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (target != IGNORE) {
            const float4 read = load4(row, column, v, aligned);
            x[0] = read.x, x[1] = read.y, x[2] = read.z, x[3] = read.w;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                x[i] = __fmul_rn(exp2_approx((x[i] - max) * LOG2_E), factor) - (column + i == target ? of_target : 0.0f);
            }
        }
        store4(out, column, v, aligned, x);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_total(const float* losses, double* total, u32 rows) {
    sum_in_order<THREADS>(losses, rows, 1.0, total);
}
