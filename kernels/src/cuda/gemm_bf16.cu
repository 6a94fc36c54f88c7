// BF16 matrix products. contract: gemm.rs
#include "gemm_run.cuh"

GEMM_KERNELS(bf16, BF16)
