// contract: swiglu.rs
//
// A warp has a row and walks along it, 256 columns at a time, a chunk of 8 a lane: sixteen neighbouring lanes hold a
// tile of 128 columns and agree on its scale. Nothing is exchanged beyond the warp.
#include "sigmoid.cuh"
#include "tiles.cuh"

enum : u32 { THREADS = 256, WARPS = THREADS / WARP };

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 2)

// The row of this warp.
DEV u32 own_row() { return blockIdx.x * WARPS + threadIdx.x / WARP; }

// h = silu(g) u gate; if `keep`, g and u are quantised as well.
template <class Out>
DEV void forward(PlainIn g, PlainIn u, const float* gates, Out h, Out g_kept, Out u_kept, bool keep, u32 rows,
                 u32 cols) {
    const u32 row = own_row();
    if (row >= rows) return;
    const float gate = gates != nullptr ? gates[row] : 1.0f;
#pragma unroll 1
    for (u32 first = 0; first < cols; first += WARP * CHUNK) {
        const u32 col = first + threadIdx.x % WARP * CHUNK;
        const uint4 g_chunk = g.load(row, col, cols), u_chunk = u.load(row, col, cols);
        float gs[CHUNK], us[CHUNK];
        unpack(g_chunk, gs);
        unpack(u_chunk, us);
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) {
            gs[j] = __fmul_rn(__fmul_rn(__fmul_rn(gs[j], sigmoid(gs[j])), us[j]), gate);
        }
        h.store(row, col, cols, pack(gs));
        if (keep) {
            g_kept.store(row, col, cols, g_chunk);
            u_kept.store(row, col, cols, u_chunk);
        }
    }
}

KERNEL swiglu_forward(const u16* g, const u16* u, const float* gates, u16* h, u32 rows, u32 cols) {
    forward<PlainOut>({g}, {u}, gates, {h}, {nullptr}, {nullptr}, false, rows, cols);
}

#define FORWARD(FORMAT, SCALE)                                                                                   \
    KERNEL swiglu_forward_##FORMAT(const u16* g, const u16* u, const float* gates, u8* h_codes,                  \
                                   SCALE::Stored* h_scales, u8* g_codes, SCALE::Stored* g_scales, u8* u_codes,   \
                                   SCALE::Stored* u_scales, u32 rows, u32 cols) {                                \
        forward<TilesOut<SCALE>>({g}, {u}, gates, {h_codes, h_scales}, {g_codes, g_scales}, {u_codes, u_scales}, \
                                 g_codes != nullptr, rows, cols);                                                \
    }

FORWARD(pow2, Pow2Scale)
FORWARD(fp32, Fp32Scale)

template <class In, class Out, class GradOut>
DEV void backward(In g, In u, PlainIn dh, const float* gates, Out h, GradOut dg, GradOut du, float* d_gates, u32 rows,
                  u32 cols) {
    const u32 row = own_row();
    if (row >= rows) return;
    const float gate = gates != nullptr ? gates[row] : 1.0f;
    float d_gate = 0.0f;
#pragma unroll 1
    for (u32 first = 0; first < cols; first += WARP * CHUNK) {
        const u32 col = first + threadIdx.x % WARP * CHUNK;
        float gs[CHUNK], us[CHUNK], dhs[CHUNK];
        unpack(g.load(row, col, cols), gs);
        unpack(u.load(row, col, cols), us);
        unpack(dh.load(row, col, cols), dhs);
        float hs[CHUNK];
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) {
            const float s = sigmoid(gs[j]), silu = __fmul_rn(gs[j], s), scaled = __fmul_rn(dhs[j], gate);
            const float ungated = __fmul_rn(silu, us[j]);
            d_gate = __fmaf_rn(ungated, dhs[j], d_gate);
            hs[j] = __fmul_rn(ungated, gate);
            // Of silu: s (1 + g (1 - s)).
            const float slope = __fmul_rn(s, __fadd_rn(1.0f, __fmul_rn(gs[j], __fsub_rn(1.0f, s))));
            gs[j] = __fmul_rn(__fmul_rn(scaled, us[j]), slope);
            us[j] = __fmul_rn(scaled, silu);
        }
        dg.store(row, col, cols, pack(gs));
        du.store(row, col, cols, pack(us));
        h.store(row, col, cols, pack(hs));
    }
    d_gate = warp_sum(d_gate);
    if (d_gates != nullptr && threadIdx.x % WARP == 0) d_gates[row] = d_gate;
}

KERNEL swiglu_backward(const u16* g, const u16* u, const u16* dh, const float* gates, u16* h, u16* dg, u16* du,
                       float* d_gates, u32 rows, u32 cols) {
    backward<PlainIn, PlainOut, PlainOut>({g}, {u}, {dh}, gates, {h}, {dg}, {du}, d_gates, rows, cols);
}

// FORMAT of activations, GRAD of gradients.
#define BACKWARD(FORMAT, SCALE, GRAD, GRAD_SCALE)                                                                     \
    KERNEL swiglu_backward_##FORMAT##_##GRAD(                                                                         \
        const u8* g_codes, const SCALE::Stored* g_scales, const u8* u_codes, const SCALE::Stored* u_scales,           \
        const u16* dh, const float* gates, u8* h_codes, SCALE::Stored* h_scales, u8* dg_codes,                        \
        GRAD_SCALE::Stored* dg_scales, u8* du_codes, GRAD_SCALE::Stored* du_scales, float* d_gates, u32 rows,         \
        u32 cols) {                                                                                                   \
        backward<TilesIn<SCALE>, TilesOut<SCALE>, TilesOut<GRAD_SCALE>>(                                              \
            {g_codes, g_scales}, {u_codes, u_scales}, {dh}, gates, {h_codes, h_scales}, {dg_codes, dg_scales},        \
            {du_codes, du_scales}, d_gates, rows, cols);                                                              \
    }

BACKWARD(pow2, Pow2Scale, pow2, Pow2Scale)
BACKWARD(pow2, Pow2Scale, fp32, Fp32Scale)
BACKWARD(fp32, Fp32Scale, pow2, Pow2Scale)
BACKWARD(fp32, Fp32Scale, fp32, Fp32Scale)
