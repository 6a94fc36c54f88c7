// Rows as a thread sees them: chunks of 8 neighbouring columns, moved 16 bytes at a time where they lie at multiples
// of 16 and element by element elsewhere; and sums of the threads of a row, in a fixed order.
#pragma once
#include "dev.cuh"

// As DEV, for what belongs to a struct.
#define MEMBER __device__ __forceinline__

// Elements of a chunk. Enumerators: a constexpr variable would become a word of the module.
enum : u32 { CHUNK = 8 };

// Whether rows that begin `stride` elements of T apart may be moved 16 bytes at a time.
template <class T>
DEV bool is_wide(const T* x, u32 stride) {
  return (((u64)x | (u64)stride * sizeof(T)) & 15u) == 0;
}

DEV float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
DEV float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

DEV void unpack(const uint4& chunk, float (&v)[CHUNK]) {
  const u32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    v[2 * i] = low_bf16(words[i]);
    v[2 * i + 1] = high_bf16(words[i]);
  }
}

// Rounded to the nearest even.
DEV uint4 pack(const float (&v)[CHUNK]) {
  return make_uint4(to_bf16x2(v[0], v[1]), to_bf16x2(v[2], v[3]), to_bf16x2(v[4], v[5]), to_bf16x2(v[6], v[7]));
}

// Columns col .. col + 8 of a row of BF16; zeros beyond its end.
DEV uint4 load8(const u16* row, u32 col, u32 cols, bool wide) {
  if (wide && col + CHUNK <= cols) return *reinterpret_cast<const uint4*>(row + col);
  u32 words[4];
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const u32 at = col + 2 * i;
    const u32 low = at < cols ? row[at] : 0u, high = at + 1 < cols ? row[at + 1] : 0u;
    words[i] = low | (high << 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

DEV void store8(u16* row, u32 col, u32 cols, bool wide, const uint4& chunk) {
  if (wide && col + CHUNK <= cols) {
    *reinterpret_cast<uint4*>(row + col) = chunk;
    return;
  }
  const u32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const u32 at = col + 2 * i;
    if (at < cols) row[at] = (u16)words[i];
    if (at + 1 < cols) row[at + 1] = (u16)(words[i] >> 16);
  }
}

// The same of FP32.
DEV void load8(const float* row, u32 col, u32 cols, bool wide, float (&v)[CHUNK]) {
  if (wide && col + CHUNK <= cols) {
    const float4 low = *reinterpret_cast<const float4*>(row + col);
    const float4 high = *reinterpret_cast<const float4*>(row + col + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    return;
  }
#pragma unroll
  for (u32 j = 0; j < CHUNK; j++) v[j] = col + j < cols ? row[col + j] : 0.0f;
}

DEV void store8(float* row, u32 col, u32 cols, bool wide, const float (&v)[CHUNK]) {
  if (wide && col + CHUNK <= cols) {
    *reinterpret_cast<float4*>(row + col) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(row + col + 4) = make_float4(v[4], v[5], v[6], v[7]);
    return;
  }
#pragma unroll
  for (u32 j = 0; j < CHUNK; j++) {
    if (col + j < cols) row[col + j] = v[j];
  }
}

// Every lane gets the same bits: an exchange adds the same two numbers on both sides.
DEV float warp_sum(float x) {
#pragma unroll
  for (u32 step = 1; step < WARP; step *= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}
