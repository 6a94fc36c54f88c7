// E4M3 matrix products. contract: gemm.rs
#include "gemm_run.cuh"

// Below sm_89 no tensor core takes E4M3: codes are widened to FP16, in which they are exact. sm_90 and sm_100
// take E4M3 in `mma.sync`, but unpack it to FP16 for each product again: there it is unpacked once.
#ifndef FP8_MATH
#if __CUDA_ARCH__ < 890
#define FP8_MATH E4M3_WIDENED
#elif __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
#define FP8_MATH E4M3_CONVERTED
#else
#define FP8_MATH E4M3
#endif
#endif

// Scales of either format, promoted to FP32 every 128.
GEMM_KERNELS(fp8, FP8_MATH)

// UE8M0 scales inside the tensor core: sm_120a.
#ifdef __CUDA_ARCH_FEAT_SM120_ALL
GEMM_KERNELS(fp8_scaled, E4M3_SCALED)
#endif
