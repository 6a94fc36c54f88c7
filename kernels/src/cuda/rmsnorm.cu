// contract: rmsnorm.rs
//
// A team of threads has a row and keeps it in registers, so memory is read once: a warp for rows of up to 1024
// columns, a block for rows of up to 8192. A thread holds four chunks of 8 columns that lie a team's width apart, so
// that neighbouring lanes read neighbouring 16 bytes, and the sixteen lanes of a tile of 128 columns are neighbours.
//
// Backward, a team takes 16 rows one after the other and keeps the gain's gradient of its columns in registers; one
// row of partial sums a team goes to memory, and a second kernel adds them up in order.
#include "tiles.cuh"

enum : u32 { THREADS = 256, WARPS = THREADS / WARP, CHUNKS = 4, TEAM_ROWS = 16 };

#define KERNEL(BLOCKS) extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)

// Sums over the threads of a team, one pair a row; every thread gets the same bits.
template <u32 TEAM>
struct Sums {
    u32 turn = 0;

    // Two buffers in turns: whoever writes one again has passed the barrier after it was read.
    MEMBER void add(float& a, float& b) {
        a = warp_sum(a);
        b = warp_sum(b);
        if constexpr (TEAM > WARP) {
            __shared__ float2 partial[2][WARPS];
            if (threadIdx.x % WARP == 0) partial[turn][threadIdx.x / WARP] = make_float2(a, b);
            __syncthreads();
            a = b = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; w++) {
                a += partial[turn][w].x;
                b += partial[turn][w].y;
            }
            turn ^= 1;
        }
    }
};

MEMBER float reciprocal_rms(float squares, u32 cols, float eps) {
    return __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(squares, (float)cols), eps)));
}

struct Forward {
    const u16* x;
    const u16* residual;
    u16* sum;
    const float* gain;
    u16* y;
    u32 x_stride, y_stride, rows, cols;
    float eps;
};

// Out is where the normalised row goes beside y.
template <u32 TEAM, class Out>
DEV void forward(const Forward& f, const Out& out) {
    const u32 lane = threadIdx.x % TEAM, row = blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM;
    if (row >= f.rows) return;
    const u16* x = f.x + (u64)row * f.x_stride;
    const bool x_wide = is_wide(f.x, f.x_stride), y_wide = is_wide(f.y, f.y_stride);
    const bool packed_wide = is_wide(f.sum, f.cols);

    uint4 chunk[CHUNKS];
    float squares = 0.0f, unused = 0.0f;
#pragma unroll
    for (u32 i = 0; i < CHUNKS; i++) {
        const u32 col = (i * TEAM + lane) * CHUNK;
        chunk[i] = load8(x, col, f.cols, x_wide);
        float v[CHUNK];
        unpack(chunk[i], v);
        if (f.residual != nullptr) {
            float other[CHUNK];
            unpack(load8(f.residual + (u64)row * f.cols, col, f.cols, is_wide(f.residual, f.cols)), other);
#pragma unroll
            for (u32 j = 0; j < CHUNK; j++) v[j] += other[j];
            chunk[i] = pack(v);
            store8(f.sum + (u64)row * f.cols, col, f.cols, packed_wide, chunk[i]);
            unpack(chunk[i], v);
        }
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) squares = __fmaf_rn(v[j], v[j], squares);
    }
    Sums<TEAM>().add(squares, unused);
    const float r = reciprocal_rms(squares, f.cols, f.eps);

#pragma unroll
    for (u32 i = 0; i < CHUNKS; i++) {
        if (i * TEAM * CHUNK >= f.cols) break;
        const u32 col = (i * TEAM + lane) * CHUNK;
        float v[CHUNK], gain[CHUNK];
        unpack(chunk[i], v);
        load8(f.gain, col, f.cols, true, gain);
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) v[j] = __fmul_rn(__fmul_rn(v[j], r), gain[j]);
        const uint4 y = pack(v);
        if (f.y != nullptr) store8(f.y + (u64)row * f.y_stride, col, f.cols, y_wide, y);
        out.store(row, col, f.cols, y);
    }
}

struct NoTiles {
    MEMBER void store(u64, u32, u32, const uint4&) const {}
};

#define FORWARD_ARGUMENTS                                                                                   \
    const u16 *x, const u16 *residual, u16 *sum, const float *gain, u16 *y, u32 x_stride, u32 y_stride, u32 rows, \
        u32 cols, float eps
#define FORWARD {x, residual, sum, gain, y, x_stride, y_stride, rows, cols, eps}

KERNEL(2) rmsnorm_forward_warp(FORWARD_ARGUMENTS) { forward<WARP, NoTiles>(FORWARD, {}); }
KERNEL(2) rmsnorm_forward_block(FORWARD_ARGUMENTS) { forward<THREADS, NoTiles>(FORWARD, {}); }

#define QUANTISED(FORMAT, SCALE)                                                                           \
    KERNEL(2) rmsnorm_forward_warp_##FORMAT(FORWARD_ARGUMENTS, u8* codes, SCALE::Stored* scales) {        \
        forward<WARP, TilesOut<SCALE>>(FORWARD, {codes, scales});                                          \
    }                                                                                                      \
    KERNEL(2) rmsnorm_forward_block_##FORMAT(FORWARD_ARGUMENTS, u8* codes, SCALE::Stored* scales) {       \
        forward<THREADS, TilesOut<SCALE>>(FORWARD, {codes, scales});                                       \
    }

QUANTISED(pow2, Pow2Scale)
QUANTISED(fp32, Fp32Scale)

struct Backward {
    const u16* x;
    const float* gain;
    const u16* dy;
    const u16* residual;
    u16* dx;
    float* partials;
    u32 x_stride, dy_stride, dx_stride, rows, cols;
    float eps;
};

template <u32 TEAM>
DEV void backward(const Backward& b) {
    const u32 lane = threadIdx.x % TEAM, team = blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM;
    if (team * TEAM_ROWS >= b.rows) return;
    const bool x_wide = is_wide(b.x, b.x_stride), dy_wide = is_wide(b.dy, b.dy_stride);
    const bool dx_wide = is_wide(b.dx, b.dx_stride), residual_wide = is_wide(b.residual, b.cols);
    const u32 end = min(b.rows, (team + 1) * TEAM_ROWS);

    Sums<TEAM> sums;
    float partial[CHUNKS][CHUNK];
#pragma unroll
    for (u32 i = 0; i < CHUNKS; i++) {
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) partial[i][j] = 0.0f;
    }
#pragma unroll 1
    for (u32 row = team * TEAM_ROWS; row < end; row++) {
        uint4 x_chunk[CHUNKS], dy_chunk[CHUNKS];
        float squares = 0.0f, along = 0.0f;
#pragma unroll
        for (u32 i = 0; i < CHUNKS; i++) {
            const u32 col = (i * TEAM + lane) * CHUNK;
            x_chunk[i] = load8(b.x + (u64)row * b.x_stride, col, b.cols, x_wide);
            dy_chunk[i] = load8(b.dy + (u64)row * b.dy_stride, col, b.cols, dy_wide);
        }
#pragma unroll
        for (u32 i = 0; i < CHUNKS; i++) {
            float x[CHUNK], dy[CHUNK], gain[CHUNK];
            unpack(x_chunk[i], x);
            unpack(dy_chunk[i], dy);
            load8(b.gain, (i * TEAM + lane) * CHUNK, b.cols, true, gain);
#pragma unroll
            for (u32 j = 0; j < CHUNK; j++) {
                squares = __fmaf_rn(x[j], x[j], squares);
                along = __fmaf_rn(__fmul_rn(dy[j], gain[j]), x[j], along);
            }
        }
        sums.add(squares, along);
        const float r = reciprocal_rms(squares, b.cols, b.eps);
        along = __fdiv_rn(along * r * r, (float)b.cols);
#pragma unroll
        for (u32 i = 0; i < CHUNKS; i++) {
            const u32 col = (i * TEAM + lane) * CHUNK;
            float x[CHUNK], dy[CHUNK], gain[CHUNK];
            unpack(x_chunk[i], x);
            unpack(dy_chunk[i], dy);
            load8(b.gain, col, b.cols, true, gain);
#pragma unroll
            for (u32 j = 0; j < CHUNK; j++) {
                partial[i][j] = __fadd_rn(partial[i][j], __fmul_rn(__fmul_rn(dy[j], x[j]), r));
                dy[j] = __fmul_rn(r, __fsub_rn(__fmul_rn(dy[j], gain[j]), __fmul_rn(x[j], along)));
            }
            if (b.residual != nullptr) {
                unpack(load8(b.residual + (u64)row * b.cols, col, b.cols, residual_wide), x);
#pragma unroll
                for (u32 j = 0; j < CHUNK; j++) dy[j] += x[j];
            }
            store8(b.dx + (u64)row * b.dx_stride, col, b.cols, dx_wide, pack(dy));
        }
    }
#pragma unroll
    for (u32 i = 0; i < CHUNKS; i++) {
        store8(b.partials + (u64)team * b.cols, (i * TEAM + lane) * CHUNK, b.cols, b.cols % 4 == 0, partial[i]);
    }
}

#define BACKWARD_ARGUMENTS                                                                              \
    const u16 *x, const float *gain, const u16 *dy, const u16 *residual, u16 *dx, float *partials, u32 x_stride, \
        u32 dy_stride, u32 dx_stride, u32 rows, u32 cols, float eps
#define BACKWARD {x, gain, dy, residual, dx, partials, x_stride, dy_stride, dx_stride, rows, cols, eps}

// Two blocks on a multiprocessor where the registers allow it without a spill. One is enough to keep the memory busy:
// a thread waits for 128 bytes at a time.
#if __CUDA_ARCH__ >= 1200
#define BACKWARD_BLOCKS 1
#else
#define BACKWARD_BLOCKS 2
#endif

KERNEL(BACKWARD_BLOCKS) rmsnorm_backward_warp(BACKWARD_ARGUMENTS) { backward<WARP>(BACKWARD); }
KERNEL(BACKWARD_BLOCKS) rmsnorm_backward_block(BACKWARD_ARGUMENTS) { backward<THREADS>(BACKWARD); }

// d_gain += the partial sums. A block has 32 columns; each of its warps adds every eighth row, and the first warp the
// warps' sums.
KERNEL(2) rmsnorm_gain_grad(const float* __restrict__ partials, float* __restrict__ d_gain, u32 rows, u32 cols) {
    __shared__ float sums[WARPS][WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, col = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (col < cols) {
#pragma unroll 4
        for (u32 row = warp; row < rows; row += WARPS) sum += partials[(u64)row * cols + col];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || col >= cols) return;
#pragma unroll
    for (u32 w = 1; w < WARPS; w++) sum += sums[w][lane];
    d_gain[col] += sum;
}
