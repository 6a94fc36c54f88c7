// The sigmoid, to the bit what exp.rs computes: its steps in its order, none contracted to an FMA.
#pragma once
#include "dev.cuh"

// 1 / (1 + e^-x); beyond 87 on either side the value at 87; NaN for NaN.
DEV float sigmoid(float x) {
    const float end = 87.0f, rounder = 12582912.0f;
    x = x > end ? end : x;
    x = x < -end ? -end : x;
    x = -x;
    // e^x = e^r 2^n, |r| <= ln 2 / 2 (Cody and Waite), e^r by Taylor's polynomial of degree 7.
    const float rounded = __fadd_rn(__fmul_rn(x, 1.44269504088896340736f), rounder);
    const float n = __fsub_rn(rounded, rounder);
    const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, -2.1219444e-4f));
    const float r2 = __fmul_rn(r, r);
    const float low = __fadd_rn(0.5f, __fmul_rn(r, 1.0f / 6.0f));
    const float middle = __fadd_rn(1.0f / 24.0f, __fmul_rn(r, 1.0f / 120.0f));
    const float high = __fadd_rn(1.0f / 720.0f, __fmul_rn(r, 1.0f / 5040.0f));
    const float poly = __fadd_rn(low, __fmul_rn(r2, __fadd_rn(middle, __fmul_rn(r2, high))));
    const float value = __fadd_rn(1.0f, __fadd_rn(r, __fmul_rn(r2, poly)));
    const u32 power = (__float_as_uint(rounded) - __float_as_uint(rounder) + 127u) << 23;
    return __frcp_rn(__fadd_rn(1.0f, __fmul_rn(value, __uint_as_float(power))));
}
