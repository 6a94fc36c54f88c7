// Kernels for the tests of the stand-in: small, and with everything that our real ones do.
// `tile.ptx` beside this file was made from it, without optimisation flags of our own, by
//   nvcc -std=c++17 -arch=compute_89 -ptx tile.cu -o tile.ptx
// (CUDA 13.0) and is mutated by the tests; it is made anew whenever this file changes.

typedef unsigned int u32;

constexpr int TILE_M = 32, TILE_N = 16, TILE_K = 32, THREADS = 64;
// A row of a tile is 64 bytes of BF16 and 16 bytes that keep ldmatrix free of bank conflicts.
constexpr int PITCH = TILE_K * 2 + 16, STAGE = (TILE_M + TILE_N) * PITCH;

static __device__ __forceinline__ u32 shared_address(const void *p) {
    return (u32)__cvta_generic_to_shared(p);
}

// 16 bytes of a row, or zeros where there is no row.
static __device__ __forceinline__ void copy16(u32 to, const void *from, bool exists) {
    int bytes = exists ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// C[m, n] (f32) = A[m, k] B[n, k]^T, both BF16 in row order; k is a multiple of 8.
extern "C" __global__ void __launch_bounds__(THREADS)
tile_product(const unsigned short *a, const unsigned short *b, float *c, int m, int n, int k) {
    extern __shared__ __align__(16) unsigned char stages[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int m0 = blockIdx.y * TILE_M, n0 = blockIdx.x * TILE_N;
    const u32 base = shared_address(stages);
    float acc[2][4] = {};

    auto load = [&](int step) {
        const u32 to = base + step % 2 * STAGE;
        for (int i = threadIdx.x; i < (TILE_M + TILE_N) * 4; i += THREADS) {
            const int row = i / 4, column = step * TILE_K + i % 4 * 8;
            const bool is_a = row < TILE_M;
            const int at = is_a ? m0 + row : n0 + row - TILE_M;
            const bool exists = at < (is_a ? m : n) && column < k;
            const unsigned short *from = is_a ? a : b;
            copy16(to + row * PITCH + i % 4 * 16, exists ? from + (size_t)at * k + column : from, exists);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    const int steps = (k + TILE_K - 1) / TILE_K;
    load(0);
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) {
            load(step + 1);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        const u32 at = base + step % 2 * STAGE;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 x[4], y[4];
            const u32 rows_a = at + (warp * 16 + lane % 16) * PITCH + half * 32 + lane / 16 * 16;
            const u32 rows_b = at + (TILE_M + lane % 8 + lane / 16 * 8) * PITCH + half * 32 + lane / 8 % 2 * 16;
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(rows_a) : "memory");
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3]) : "r"(rows_b) : "memory");
#pragma unroll
            for (int j = 0; j < 2; j++)
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                             "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                             : "+f"(acc[j][0]), "+f"(acc[j][1]), "+f"(acc[j][2]), "+f"(acc[j][3])
                             : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[2 * j]), "r"(y[2 * j + 1]));
        }
        __syncthreads();
    }
    for (int j = 0; j < 2; j++)
        for (int e = 0; e < 4; e++) {
            const int row = m0 + warp * 16 + lane / 4 + e / 2 * 8, column = n0 + j * 8 + lane % 4 * 2 + e % 2;
            if (row < m && column < n) c[(size_t)row * n + column] = acc[j][e];
        }
}

// y[row] = 1 / sqrt(mean of squares + eps): one block a row, warps meet in shared memory.
extern "C" __global__ void __launch_bounds__(128)
row_scale(const float *x, float *y, int width, float eps) {
    __shared__ float parts[4];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += 128) {
        const float v = x[(size_t)blockIdx.x * width + i];
        sum += v * v;
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) parts[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) y[blockIdx.x] = rsqrtf((parts[0] + parts[1] + parts[2] + parts[3]) / width + eps);
}

// A table that the compiler cannot keep in registers, and constants at module scope.
__device__ int seen[4] = {10, 20, 30, 40};
__constant__ float weights[3] = {0.5f, 1.5f, -2.0f};
struct Job { const int *order; float *out; int count; unsigned char shift; };

// out[i] = a local table read in the given order, plus a constant, plus a module variable.
extern "C" __global__ void lookup(Job job) {
    int table[8];
    for (int i = 0; i < 8; i++) table[i] = i * i + job.shift;
    if (threadIdx.x == 0) table[job.order[0] & 7] += 100;
    const int i = threadIdx.x;
    if (i < job.count) job.out[i] = table[job.order[i] & 7] + weights[i % 3] + seen[i % 4];
}
