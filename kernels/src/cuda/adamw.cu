// contract: adamw.rs
//
// One pass over memory: master, moments and gradient are read once and written once, and the compute weight is made of
// the new masters while they are in registers. Products, sums, quotients and roots are rounded one by one, as on the
// CPU; nothing is contracted to an FMA.
//
//   flat:   a thread has 8 neighbouring parameters, whatever their matrix;
//   blocks: a block of 512 threads has a tile of 128 x 128 masters, a warp a row of it at a time and a lane 4 of its
//           columns, and keeps them all (32 a thread) until the tile's largest is known.
#include "e4m3.cuh"
#include "rows.cuh"

enum : u32 { THREADS = 256, TILE_THREADS = 512, TILE_WARPS = TILE_THREADS / WARP, TILE_ROWS = BLOCK / TILE_WARPS };

// What follows from a step's settings alone, computed by the host.
struct Rates {
    float step_size, v_correction, keep, beta1, beta2, one_less_beta1, one_less_beta2, epsilon, grad_scale, decay;
};

#define RATES                                                                                                     \
    float step_size, float v_correction, float keep, float beta1, float beta2, float epsilon, float grad_scale, \
        float decay
#define RATES_GIVEN                                                                                             \
    {step_size, v_correction, keep, beta1, beta2, 1.0f - beta1, 1.0f - beta2, epsilon, grad_scale, decay}

MEMBER void step(float& p, float& m, float& v, float g, const Rates& r) {
    g = __fmul_rn(g, r.grad_scale);
    m = __fadd_rn(__fmul_rn(r.beta1, m), __fmul_rn(r.one_less_beta1, g));
    v = __fadd_rn(__fmul_rn(r.beta2, v), __fmul_rn(r.one_less_beta2, __fmul_rn(g, g)));
    const float size = __fadd_rn(__fsqrt_rn(__fmul_rn(v, r.v_correction)), r.epsilon);
    p = __fsub_rn(__fmul_rn(p, r.keep), __fdiv_rn(__fmul_rn(r.step_size, m), size));
}

MEMBER float averaged(float average, float p, const Rates& r) {
    return __fadd_rn(__fmul_rn(r.decay, average), __fmul_rn(1.0f - r.decay, p));
}

// What a master adds to the checksum: its bits times an odd number of its place, as in checksum.rs.
DEV u64 checked(float p, u64 at) { return (u64)__float_as_uint(p) * ((u32)at * 0x9e3779b9u | 1u); }

// Adds up what the threads of a block have, and adds that to `sum`: integers, so in any order.
template <u32 WARPS_>
DEV void add_to_checksum(u64* sum, u64 own) {
    __shared__ u64 partial[WARPS_];
#pragma unroll
    for (u32 lanes = 1; lanes < WARP; lanes *= 2) own += __shfl_xor_sync(ALL_LANES, own, lanes);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = own;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (u32 w = 1; w < WARPS_; w++) own += partial[w];
    atomicAdd(sum, own);
}

// Four neighbouring numbers; `here` of them are there, all four at a multiple of 16 bytes if `wide`.
DEV void load4(const float* x, u32 here, bool wide, float (&v)[4]) {
    if (wide && here == 4) {
        const float4 quad = *reinterpret_cast<const float4*>(x);
        v[0] = quad.x, v[1] = quad.y, v[2] = quad.z, v[3] = quad.w;
        return;
    }
#pragma unroll
    for (u32 j = 0; j < 4; j++) v[j] = j < here ? x[j] : 0.0f;
}

MEMBER void store4(float* x, u32 here, bool wide, const float (&v)[4]) {
    if (wide && here == 4) {
        *reinterpret_cast<float4*>(x) = make_float4(v[0], v[1], v[2], v[3]);
        return;
    }
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        if (j < here) x[j] = v[j];
    }
}

MEMBER void load4(const u16* x, u32 here, bool wide, float (&v)[4]) {
    if (wide && here == 4) {
        const uint2 quad = *reinterpret_cast<const uint2*>(x);
        v[0] = low_bf16(quad.x), v[1] = high_bf16(quad.x), v[2] = low_bf16(quad.y), v[3] = high_bf16(quad.y);
        return;
    }
#pragma unroll
    for (u32 j = 0; j < 4; j++) v[j] = j < here ? low_bf16(x[j]) : 0.0f;
}

MEMBER void store4(u16* x, u32 here, bool wide, const float (&v)[4]) {
    const u32 low = to_bf16x2(v[0], v[1]), high = to_bf16x2(v[2], v[3]);
    if (wide && here == 4) {
        *reinterpret_cast<uint2*>(x) = make_uint2(low, high);
        return;
    }
    if (here > 0) x[0] = (u16)low;
    if (here > 1) x[1] = (u16)(low >> 16);
    if (here > 2) x[2] = (u16)high;
    if (here > 3) x[3] = (u16)(high >> 16);
}

// Masters, moments (M is their stored form), gradients, and the average or null, of the same length.
template <class M>
struct State {
    float* p;
    M* m;
    M* v;
    float* g;
    float* average;

    // Steps four neighbouring parameters, of which `here` are there, and forgets their gradients; returns them in `p4`
    // and what they add to the checksum.
    MEMBER u64 step4(u64 at, u32 here, bool wide, const Rates& rates, float (&p4)[4]) const {
        float m4[4], v4[4], g4[4];
        load4(p + at, here, wide, p4);
        load4(m + at, here, wide, m4);
        load4(v + at, here, wide, v4);
        load4(g + at, here, wide, g4);
        u64 sum = 0;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            step(p4[j], m4[j], v4[j], g4[j], rates);
            g4[j] = 0.0f;
            sum += j < here ? checked(p4[j], at + j) : 0;
        }
        store4(p + at, here, wide, p4);
        store4(m + at, here, wide, m4);
        store4(v + at, here, wide, v4);
        store4(g + at, here, wide, g4);
        if (average != nullptr) {
            float a4[4];
            load4(average + at, here, wide, a4);
#pragma unroll
            for (u32 j = 0; j < 4; j++) a4[j] = averaged(a4[j], p4[j], rates);
            store4(average + at, here, wide, a4);
        }
        return sum;
    }
};

template <class M>
DEV void flat(const State<M>& state, u16* copy, u64* checksum, u64 n, const Rates& rates) {
    const u64 first = ((u64)blockIdx.x * THREADS + threadIdx.x) * CHUNK;
    u64 sum = 0;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u64 at = first + half * 4;
        const u64 left = at < n ? n - at : 0;
        const u32 here = left < 4 ? (u32)left : 4;
        if (here == 0) break;
        float p[4];
        sum += state.step4(at, here, true, rates, p);
        if (copy != nullptr) store4(copy + at, here, true, p);
    }
    if (checksum != nullptr) add_to_checksum<THREADS / WARP>(checksum, sum);
}

template <class M, class Scale>
DEV void blocks(const State<M>& state, u8* codes, typename Scale::Stored* scales, u64* checksum, u32 rows, u32 cols,
                const Rates& rates) {
    __shared__ u32 partial[TILE_WARPS];
    const u32 tiles = (cols + BLOCK - 1) / BLOCK, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 first_row = blockIdx.x / tiles * BLOCK + warp, col = blockIdx.x % tiles * BLOCK + lane * 4;
    const u32 here = col < cols ? min(4u, cols - col) : 0;
    const bool wide = cols % 4 == 0;

    float p[TILE_ROWS][4];
    u32 largest = 0;
    u64 sum = 0;
#pragma unroll
    for (u32 i = 0; i < TILE_ROWS; i++) {
        const u32 row = first_row + i * TILE_WARPS;
#pragma unroll
        for (u32 j = 0; j < 4; j++) p[i][j] = 0.0f;
        if (row < rows && here > 0) sum += state.step4((u64)row * cols + col, here, wide, rates, p[i]);
#pragma unroll
        for (u32 j = 0; j < 4; j++) largest = max(largest, j < here ? magnitude_bits(p[i][j]) : 0u);
    }
#pragma unroll
    for (u32 lanes = 1; lanes < WARP; lanes *= 2) largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, lanes));
    if (lane == 0) partial[warp] = largest;
    __syncthreads();
#pragma unroll
    for (u32 w = 0; w < TILE_WARPS; w++) largest = max(largest, partial[w]);

    const typename Scale::Stored scale = Scale::of(largest);
    const float inverse = Scale::inverse(scale);
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
#pragma unroll
    for (u32 i = 0; i < TILE_ROWS; i++) {
        const u32 row = first_row + i * TILE_WARPS;
        if (row >= rows || here == 0) continue;
        const u32 word = encode4_e4m3(__fmul_rn(p[i][0], inverse), __fmul_rn(p[i][1], inverse),
                                      __fmul_rn(p[i][2], inverse), __fmul_rn(p[i][3], inverse));
        u8* at = codes + (u64)row * cols + col;
        if (wide) {
            *reinterpret_cast<u32*>(at) = word;
        } else {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                if (j < here) at[j] = (u8)(word >> (j * 8));
            }
        }
    }
    if (checksum != nullptr) add_to_checksum<TILE_WARPS>(checksum, sum);
}

#define FLAT(NAME, M)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                       \
        adamw_flat_##NAME(float* p, M* m, M* v, float* g, float* average, u16* copy, u64* checksum, u64 n, RATES) { \
        flat<M>({p, m, v, g, average}, copy, checksum, n, RATES_GIVEN);                                            \
    }

#define BLOCKS(NAME, M, FORMAT, SCALE)                                                                            \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1)                                                 \
        adamw_blocks_##NAME##_##FORMAT(float* p, M* m, M* v, float* g, float* average, u8* codes,                 \
                                       SCALE::Stored* scales, u64* checksum, u32 rows, u32 cols, RATES) {         \
        blocks<M, SCALE>({p, m, v, g, average}, codes, scales, checksum, rows, cols, RATES_GIVEN);                \
    }

FLAT(bf16, u16)
FLAT(f32, float)
BLOCKS(bf16, u16, pow2, Pow2Scale)
BLOCKS(bf16, u16, fp32, Fp32Scale)
BLOCKS(f32, float, pow2, Pow2Scale)
BLOCKS(f32, float, fp32, Fp32Scale)

// Adds `speed` to the bias of an expert with fewer tokens than the mean, subtracts it from that of one with more.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    router_bias(float* bias, const u64* counts, u32 experts, float speed) {
    // Every thread adds all up, in order: there are few.
    u64 total = 0;
#pragma unroll 8
    for (u32 i = 0; i < experts; i++) total += counts[i];
    for (u32 i = threadIdx.x; i < experts; i += THREADS) {
        const u64 share = counts[i] * experts;
        const float old = bias[i];
        bias[i] = share < total ? __fadd_rn(old, speed) : share > total ? __fsub_rn(old, speed) : old;
    }
}
