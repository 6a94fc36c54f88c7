// E4M3 numbers and their scales on the device, to the bit what e4m3.rs and fp8/scale.rs compute.
//
// Products that are rounded again are written __fmul_rn, which is never contracted to an FMA. Subnormals
// count: this must not be compiled with -ftz=true or --use_fast_math.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Constants are enumerators: a constexpr variable would become a word of the module.
// Elements that share a scale, along each tiled direction.
enum : u32 { BLOCK = 128 };

// A magnitude as an integer that orders like it, with infinity and NaN on top.
__device__ __forceinline__ u32 magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

enum : u32 { INFINITY_BITS = 0x7f800000u, NAN_BITS = 0x7fc00000u };

// Exact.
__device__ __forceinline__ float decode_e4m3(u32 code) {
  // Where FP32 keeps exponent and mantissa, a code is its value times 2^-120.
  const u32 magnitude = code & 0x7fu;
  const float value = __fmul_rn(__uint_as_float(magnitude << 20), 0x1p120f);
  const u32 bits = __float_as_uint(value) | ((code & 0x80u) << 24);
  return __uint_as_float(magnitude == 0x7fu ? (u32)NAN_BITS : bits);
}

#if __CUDA_ARCH__ >= 890

// Two codes, `low` in the low byte: nearest, ties to even; NaN is 0x7f. For numbers that a scale has brought
// within 448, up to rounding.
__device__ __forceinline__ u32 encode2_e4m3(float low, float high) {
  u16 codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

#else

// Of a number that a scale has brought within 448 (up to rounding), or a NaN.
__device__ __forceinline__ u32 encode_e4m3(float x) {
  const u32 bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
  // 2^20 times the number's own power of two, or that of the subnormals: adding it leaves eighths of that
  // power in the last bits, rounded to even.
  const u32 exponent = max(magnitude & 0x7f800000u, 121u << 23);
  const u32 rounder = exponent + (20u << 23);
  const u32 eighths = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), __uint_as_float(rounder)));
  const u32 code = eighths - rounder + (exponent >> 20) - (121u << 3);
  return magnitude > INFINITY_BITS ? 0x7fu : code | ((bits >> 24) & 0x80u);
}

__device__ __forceinline__ u32 encode2_e4m3(float low, float high) {
  return encode_e4m3(low) | (encode_e4m3(high) << 8);
}

#endif

// Four codes, the first in the lowest byte.
__device__ __forceinline__ u32 encode4_e4m3(float a, float b, float c, float d) {
  return encode2_e4m3(a, b) | (encode2_e4m3(c, d) << 16);
}

// A scale as one UE8M0 byte: the smallest power of two that brings a tile within 448.
struct Pow2Scale {
  typedef u8 Stored;

  static __device__ __forceinline__ u8 of(u32 amax_bits) {
    // 448 = 1.75 * 2^8: the exponent less 8, and one more for a significand above 1.75.
    const int exponent = (int)((amax_bits + 0x1fffffu) >> 23) - 8;
    u32 byte = exponent < 1 ? 1u : (u32)exponent;
    byte = amax_bits == 0u ? 127u : byte;
    return (u8)(amax_bits >= INFINITY_BITS ? 255u : byte);
  }

  static __device__ __forceinline__ float value(u8 byte) {
    const u32 bits = byte == 0 ? 0x00400000u : (u32)byte << 23;
    return __uint_as_float(byte == 255 ? (u32)NAN_BITS : bits);
  }

  static __device__ __forceinline__ float inverse(u8 byte) {
    return __uint_as_float(byte == 255 ? (u32)NAN_BITS : (254u - byte) << 23);
  }
};

// A scale as FP32: the tile's largest magnitude / 448, at least 2^-126, so that its inverse is finite.
struct Fp32Scale {
  typedef float Stored;

  static __device__ __forceinline__ float of(u32 amax_bits) {
    float scale = __fdiv_rn(__uint_as_float(amax_bits), 448.0f);
    scale = scale < 0x1p-126f ? 0x1p-126f : scale;
    scale = amax_bits == 0u ? 1.0f : scale;
    return amax_bits >= INFINITY_BITS ? __uint_as_float(NAN_BITS) : scale;
  }

  static __device__ __forceinline__ float value(float scale) { return scale; }

  static __device__ __forceinline__ float inverse(float scale) { return __frcp_rn(scale); }
};
