// E4M3 matrix products with UE8M0 scales, scaled inside the tensor core: sm_120a. contract: gemm.rs
#include "gemm/run.cuh"

GEMM_KERNELS(fp8_scaled, E4M3_SCALED)
