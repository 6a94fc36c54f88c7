// contract: router.rs
//
// Logits and the two products of backward are in FP32 (product_fp32.cuh). Everything else is a warp for each
// token: its experts lie in shared memory, expert e in lane e % 32's care. A choice is the largest of what is not chosen
// yet, found by shuffles; a lane remembers which of its experts are chosen, one bit each.
//
// Counts are added by integer atomics, whose order is no matter.
#include "ordered_sum.cuh"
#include "product_fp32.cuh"
#include "sigmoid.cuh"

constexpr u32 THREADS = 128, WARPS = THREADS / WARP;
// At most: two arrays of floats for each warp are 16 KiB.
constexpr u32 EXPERTS = 512;
constexpr u32 NOBODY = 0xffffffffu;
// Keeps a sum of scores that all underflowed from dividing by zero.
constexpr float GATE_FLOOR = 1e-20f;

extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS)
    router_logits(const u16* x, const float* w, float* logits, u32 t, u32 d, u32 e) {
    product_fp32<false, false>(Bf16Matrix{x, t, d}, Fp32Matrix{w, e, d}, logits, t, e, d, false);
}

extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS)
    router_input_gradient(const float* d_logits, const float* w, float* dx, u32 t, u32 d, u32 e, u32 accumulate) {
    product_fp32<false, true>(Fp32Matrix{d_logits, t, e}, Fp32Matrix{w, e, d}, dx, t, d, e, accumulate != 0);
}

extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS)
    router_weight_gradient(const float* d_logits, const u16* x, float* d_w, u32 t, u32 d, u32 e) {
    product_fp32<true, true>(Fp32Matrix{d_logits, t, e}, Bf16Matrix{x, t, d}, d_w, e, d, t, true);
}

DEV u32 lane_of_warp() { return threadIdx.x % WARP; }

// The largest of n values that no lane has chosen yet, of equals the lower index; but the lowest index that is left if its
// value is a NaN, which nothing is larger than. Marks it.
DEV u32 take_largest(const float* values, u32 n, u32& chosen) {
    const u32 lane = lane_of_warp();
    u32 lowest = NOBODY, best = NOBODY;
    float largest = 0.0f;
    for (u32 i = lane, bit = 0; i < n; i += WARP, bit++) {
        if (chosen >> bit & 1) continue;
        lowest = min(lowest, i);
        const float value = values[i];
        if (value == value && (best == NOBODY || value > largest)) {
            best = i;
            largest = value;
        }
    }
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) {
        lowest = min(lowest, __shfl_xor_sync(ALL_LANES, lowest, step));
        const u32 other = __shfl_xor_sync(ALL_LANES, best, step);
        const float value = __shfl_xor_sync(ALL_LANES, largest, step);
        const bool better = best == NOBODY || value > largest || (value == largest && other < best);
        if (other != NOBODY && better) {
            best = other;
            largest = value;
        }
    }
    const float first = values[lowest];
    if (first != first) best = lowest;
    if (best % WARP == lane) chosen |= 1u << best / WARP;
    return best;
}

// The sum of the two largest biased scores of a group; of a group of one, that one.
DEV float group_score(const float* biased, u32 size) {
    float first = __int_as_float(0xff800000), second = first;
    for (u32 i = 0; i < size; i++) {
        const float score = biased[i];
        if (score > first) {
            second = first;
            first = score;
        } else if (score > second) {
            second = score;
        }
    }
    return size == 1 ? first : first + second;
}

// Scores that are closed become minus infinity: all but those of the best groups.
DEV void close_groups(float* biased, float* room, u32 experts, u32 groups, u32 groups_kept) {
    const u32 size = experts / groups;
    for (u32 group = lane_of_warp(); group < groups; group += WARP) room[group] = group_score(biased + group * size, size);
    __syncwarp();
    u32 kept = 0;
    for (u32 i = 0; i < groups_kept; i++) take_largest(room, groups, kept);
    __syncwarp();
    for (u32 group = lane_of_warp(), bit = 0; group < groups; group += WARP, bit++) {
        if (kept >> bit & 1) continue;
        for (u32 i = 0; i < size; i++) biased[group * size + i] = __int_as_float(0xff800000);
    }
    __syncwarp();
}

// Scores take the place of logits. `load` (sequences, experts) counts the K largest scores without bias.
extern "C" __global__ void __launch_bounds__(THREADS)
    router_choose(float* scores, const float* bias, u32* chosen, float* gates, u32* counts, u32* load, u32 t, u32 experts,
                  u32 top_k, u32 groups, u32 groups_kept, u32 tokens_per_sequence, u32 normalise, float scaling) {
    __shared__ float memory[WARPS][2][EXPERTS];
    float* const biased = memory[threadIdx.x / WARP][0];
    float* const room = memory[threadIdx.x / WARP][1];
    const u32 token = blockIdx.x * WARPS + threadIdx.x / WARP, lane = lane_of_warp();
    if (token >= t) return;
    float* const of_token = scores + (u64)token * experts;
    for (u32 i = lane; i < experts; i += WARP) {
        const float score = sigmoid(of_token[i]);
        of_token[i] = score;
        biased[i] = score + bias[i];
        room[i] = score;
    }
    __syncwarp();
    u32 taken = 0;
    u32* const of_sequence = load + (u64)(token / tokens_per_sequence) * experts;
    for (u32 i = 0; i < top_k; i++) {
        const u32 expert = take_largest(room, experts, taken);
        if (lane == 0) atomicAdd(of_sequence + expert, 1u);
    }
    __syncwarp();
    if (groups_kept < groups) close_groups(biased, room, experts, groups, groups_kept);
    taken = 0;
    u32 own = 0;
    for (u32 i = 0; i < top_k; i++) {
        const u32 expert = take_largest(biased, experts, taken);
        if (lane == i) own = expert;
        if (lane == 0) atomicAdd(counts + expert, 1u);
    }
    // Lane i has choice i; what it wrote above was its own expert's score or another lane's of this warp.
    const float score = lane < top_k ? of_token[own] : 0.0f;
    float sum = 0.0f;
    for (u32 i = 0; i < top_k; i++) sum += __shfl_sync(ALL_LANES, score, i);
    const float factor = scaling / (normalise != 0 ? sum + GATE_FLOOR : 1.0f);
    if (lane < top_k) {
        chosen[(u64)token * top_k + lane] = own;
        gates[(u64)token * top_k + lane] = score * factor;
    }
}

// The sum of a token's scores, and of f times them: `f_factor` makes f of a count.
DEV void sums_of_token(const float* scores, const u32* load, u32 experts, float f_factor, float& sum, float& weighted) {
    sum = weighted = 0.0f;
    for (u32 i = lane_of_warp(); i < experts; i += WARP) {
        sum += scores[i];
        weighted = fmaf(scores[i], (float)load[i] * f_factor, weighted);
    }
    sum = sum_of_warp(sum);
    weighted = sum_of_warp(weighted);
}

// terms (T) = sum_i f_i s_i / sum_j s_j.
extern "C" __global__ void __launch_bounds__(THREADS)
    router_balance(const float* scores, const u32* load, float* terms, u32 t, u32 experts, u32 tokens_per_sequence,
                   float f_factor) {
    const u32 token = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (token >= t) return;
    float sum, weighted;
    const u32* of_sequence = load + (u64)(token / tokens_per_sequence) * experts;
    sums_of_token(scores + (u64)token * experts, of_sequence, experts, f_factor, sum, weighted);
    if (lane_of_warp() == 0) terms[token] = weighted / sum;
}

// balance = the sum of all terms / tokens of a sequence.
extern "C" __global__ void __launch_bounds__(THREADS)
    router_total(const float* terms, double* balance, u32 t, u32 tokens_per_sequence) {
    sum_in_order<THREADS>(terms, t, 1.0 / (double)tokens_per_sequence, balance);
}

// P_i = s_i / sum s, so d(sum f P)/ds_i = (f_i - sum f P) / sum s. `weight` is the balance loss's over the tokens of a
// sequence.
extern "C" __global__ void __launch_bounds__(THREADS)
    router_gradient(const float* scores, const u32* chosen, const float* d_gates, const u32* load, float* d_logits, u32 t,
                    u32 experts, u32 top_k, u32 tokens_per_sequence, u32 normalise, float scaling, float f_factor,
                    float weight) {
    __shared__ float memory[WARPS][EXPERTS];
    float* const d_scores = memory[threadIdx.x / WARP];
    const u32 token = blockIdx.x * WARPS + threadIdx.x / WARP, lane = lane_of_warp();
    if (token >= t) return;
    const float* of_token = scores + (u64)token * experts;
    const u32* of_sequence = load + (u64)(token / tokens_per_sequence) * experts;
    float sum = 1.0f, weighted = 0.0f;
    if (weight != 0.0f) sums_of_token(of_token, of_sequence, experts, f_factor, sum, weighted);
    const float mean = weighted / sum;
    for (u32 i = lane; i < experts; i += WARP) {
        d_scores[i] = weight != 0.0f ? weight * ((float)of_sequence[i] * f_factor - mean) / sum : 0.0f;
    }
    __syncwarp();
    const u64 choice = (u64)token * top_k + lane;
    const u32 own = lane < top_k ? chosen[choice] : 0;
    const float score = lane < top_k ? of_token[own] : 0.0f, d_gate = lane < top_k ? d_gates[choice] : 0.0f;
    float gate_sum = 0.0f, along = 0.0f;
    for (u32 i = 0; i < top_k; i++) {
        gate_sum += __shfl_sync(ALL_LANES, score, i);
        along += __shfl_sync(ALL_LANES, score * d_gate, i);
    }
    gate_sum = normalise != 0 ? gate_sum + GATE_FLOOR : 1.0f;
    along = normalise != 0 ? along / gate_sum : 0.0f;
    // A token's choices are different experts.
    if (lane < top_k) d_scores[own] += scaling * (d_gate - along) / gate_sum;
    __syncwarp();
    for (u32 i = lane; i < experts; i += WARP) {
        d_logits[(u64)token * experts + i] = d_scores[i] * (of_token[i] * (1.0f - of_token[i]));
    }
}
