// E4M3 matrix products with scales of either format, promoted to FP32 every 128. contract: gemm.rs
#include "gemm/run.cuh"

// Below sm_89 no tensor core takes E4M3: codes are widened to FP16, in which they and their products' sums
// are exact. sm_90 and sm_100 have `mma.sync` for E4M3, but unpack it to FP16 for each product again.
#ifndef FP8_MATH
#if __CUDA_ARCH__ < 890
#define FP8_MATH E4M3_WIDENED
#elif __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
#define FP8_MATH E4M3_CONVERTED
#else
#define FP8_MATH E4M3
#endif
#endif

GEMM_KERNELS(fp8, FP8_MATH)
