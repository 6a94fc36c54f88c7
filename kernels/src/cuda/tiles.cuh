// A chunk of 8 columns quantised to, or read from, tiles of 1 x 128: the sixteen lanes that hold a tile's chunks agree
// on its scale. Codes and scales are those of quantise.cu for the same BF16 numbers.
#pragma once
#include "e4m3.cuh"
#include "rows.cuh"

// Lanes of one tile.
enum : u32 { TILE_LANES = BLOCK / CHUNK };

// A quantised matrix that is written.
template <class Scale>
struct TilesOut {
  u8* codes;
  typename Scale::Stored* scales;

  // All lanes of a warp take part; `col` of a lane is 8 times its number beyond a multiple of 128. Beyond the end of
  // the row the chunk is zero and nothing is written.
  MEMBER void store(u64 row, u32 col, u32 cols, const uint4& chunk) const {
    float v[CHUNK];
    unpack(chunk, v);
    u32 largest = 0;
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) largest = max(largest, magnitude_bits(v[j]));
#pragma unroll
    for (u32 step = 1; step < TILE_LANES; step *= 2) largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    const typename Scale::Stored scale = Scale::of(largest);
    const float inverse = Scale::inverse(scale);
    u32 words[2];
#pragma unroll
    for (u32 w = 0; w < 2; w++) {
      words[w] = encode4_e4m3(__fmul_rn(v[4 * w], inverse), __fmul_rn(v[4 * w + 1], inverse),
                              __fmul_rn(v[4 * w + 2], inverse), __fmul_rn(v[4 * w + 3], inverse));
    }
    if (col >= cols) return;
    u8* at = codes + row * cols + col;
    if (cols % CHUNK == 0) {
      *reinterpret_cast<uint2*>(at) = make_uint2(words[0], words[1]);
    } else {
#pragma unroll
      for (u32 j = 0; j < CHUNK; j++) {
        if (col + j < cols) at[j] = (u8)(words[j / 4] >> (j % 4 * 8));
      }
    }
    if (col % BLOCK == 0) scales[row * ((cols + BLOCK - 1) / BLOCK) + col / BLOCK] = scale;
  }
};

// A quantised matrix that is read: the BF16 numbers nearest to what the codes stand for.
template <class Scale>
struct TilesIn {
  const u8* codes;
  const typename Scale::Stored* scales;

  MEMBER uint4 load(u64 row, u32 col, u32 cols) const {
    if (col >= cols) return make_uint4(0, 0, 0, 0);
    const u8* at = codes + row * cols + col;
    u32 words[2] = {0, 0};
    if (cols % CHUNK == 0) {
      const uint2 both = *reinterpret_cast<const uint2*>(at);
      words[0] = both.x, words[1] = both.y;
    } else {
#pragma unroll
      for (u32 j = 0; j < CHUNK; j++) {
        if (col + j < cols) words[j / 4] |= (u32)at[j] << (j % 4 * 8);
      }
    }
    const float scale = Scale::value(scales[row * ((cols + BLOCK - 1) / BLOCK) + col / BLOCK]);
    float v[CHUNK];
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) {
      v[j] = __fmul_rn(decode_e4m3((words[j / 4] >> (j % 4 * 8)) & 0xffu), scale);
    }
    return pack(v);
  }
};

// The same of a matrix that is not quantised.
struct PlainOut {
  u16* x;
  MEMBER void store(u64 row, u32 col, u32 cols, const uint4& chunk) const {
    store8(x + row * cols, col, cols, is_wide(x, cols), chunk);
  }
};

struct PlainIn {
  const u16* x;
  MEMBER uint4 load(u64 row, u32 col, u32 cols) const { return load8(x + row * cols, col, cols, is_wide(x, cols)); }
};
