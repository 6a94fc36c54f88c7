// Sums of one block, the same whenever they are computed: over a warp by shuffles, then over the warps in order.
#pragma once
#include "dev.cuh"

DEV float sum_of_warp(float x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// total = factor * the sum of n FP32, in FP64: every thread adds up each `THREADS`-th number, then one the threads.
template <u32 THREADS> DEV void sum_in_order(const float* x, u32 n, double factor, double* total) {
    __shared__ double of_thread[THREADS];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < n; i += THREADS) sum += (double)x[i];
    of_thread[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    double all = 0.0;
    for (u32 i = 0; i < THREADS; i++) all += of_thread[i];
    *total = all * factor;
}
