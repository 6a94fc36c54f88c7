// contract: quantise.rs
//
// A block of 256 threads (512 where more must be kept) quantises one tile of 128 x 128 elements and
// keeps all of it in registers: each thread reads 8 BF16, 4 FP32 (16 bytes) or 8 codes of every few rows, so a row
// of the tile is read by 16 or 32 neighbouring lanes in whole 128-byte lines, and the source is read once,
// whatever is written.
//
//   amax of a row:     over a thread's chunk, then over the row's lanes by shuffles;
//   amax of a column:  over a thread's rows, then over the warp's row groups by shuffles, then over the
//                      warps through shared memory (8 KiB);
//   amax of a tile:    over the warp by shuffles, then over the warps.
//
// What lies beyond the right or lower edge is read as zero and not written. Where the width is no multiple
// of a chunk, rows are not aligned and elements are read and written one by one.
#include "e4m3.cuh"

enum : u32 { THREADS = 256, THREADS_WIDE = 512, ALL_LANES = 0xffffffffu };

// A matrix, row-major, read a chunk at a time. T is the unsigned integer of an element's size.
template <class T, u32 CHUNK_ = 16 / sizeof(T)>
struct Matrix {
  enum : u32 { CHUNK = CHUNK_, BITS = 8 * sizeof(T) };

  const T* __restrict__ x;
  u32 rows, cols;

  // Elements col .. col + CHUNK of a row; zeros outside the matrix.
  __device__ __forceinline__ uint4 load(u32 row, u32 col) const {
    if (row >= rows || col >= cols) return make_uint4(0, 0, 0, 0);
    const T* at = x + (u64)row * cols + col;
    if (cols % CHUNK == 0) {
      if constexpr (CHUNK * sizeof(T) == 16) return *reinterpret_cast<const uint4*>(at);
      const uint2 half = *reinterpret_cast<const uint2*>(at);
      return make_uint4(half.x, half.y, 0, 0);
    }
    // The last element first, and the chunk moved up for each before it: no word is indexed by a variable, so
    // this rare path can be a loop.
    u32 a = 0, b = 0, c = 0, d = 0;
#pragma unroll 1
    for (u32 j = min((u32)CHUNK, cols - col); j-- > 0;) {
      d = __funnelshift_lc(c, d, BITS);
      c = __funnelshift_lc(b, c, BITS);
      b = __funnelshift_lc(a, b, BITS);
      a = __funnelshift_lc((u32)at[j] << (32 - BITS), a, BITS);
    }
    return make_uint4(a, b, c, d);
  }
};

__device__ __forceinline__ u32 word_of(const uint4& chunk, u32 i) {
  return i == 0 ? chunk.x : i == 1 ? chunk.y : i == 2 ? chunk.z : chunk.w;
}

struct Bf16Source : Matrix<u16> {
  struct Context {};
  __device__ __forceinline__ Context context(u32, u32) const { return Context(); }
  static __device__ __forceinline__ float value(const uint4& chunk, Context, u32 j) {
    const u32 pair = word_of(chunk, j / 2);
    return __uint_as_float(j % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
  }
  static __device__ __forceinline__ u32 magnitude(const uint4& chunk, Context, u32 j) {
    const u32 pair = word_of(chunk, j / 2);
    return j % 2 == 0 ? (pair & 0x7fffu) << 16 : pair & 0x7fff0000u;
  }
};

struct Fp32Source : Matrix<u32> {
  struct Context {};
  __device__ __forceinline__ Context context(u32, u32) const { return Context(); }
  static __device__ __forceinline__ float value(const uint4& chunk, Context, u32 j) {
    return __uint_as_float(word_of(chunk, j));
  }
  static __device__ __forceinline__ u32 magnitude(const uint4& chunk, Context context, u32 j) {
    return magnitude_bits(value(chunk, context, j));
  }
};

// Codes with a scale per 1 x 128: the values they stand for.
template <class Scale>
struct CodeSource : Matrix<u8, 8> {
  const typename Scale::Stored* __restrict__ scales;
  struct Context { float scale; };
  __device__ __forceinline__ Context context(u32 row, u32 col) const {
    Context context = {1.0f};
    if (row < rows && col < cols) {
      const u32 blocks = (cols + BLOCK - 1) / BLOCK;
      context.scale = Scale::value(scales[(u64)row * blocks + col / BLOCK]);
    }
    return context;
  }
  static __device__ __forceinline__ float value(const uint4& chunk, Context context, u32 j) {
    const u32 code = (word_of(chunk, j / 4) >> (j % 4 * 8)) & 0xffu;
    return __fmul_rn(decode_e4m3(code), context.scale);
  }
  static __device__ __forceinline__ u32 magnitude(const uint4& chunk, Context context, u32 j) {
    return magnitude_bits(value(chunk, context, j));
  }
};

// Where a quantised matrix goes.
template <class Scale>
struct Quantised {
  u8* __restrict__ codes;
  typename Scale::Stored* __restrict__ scales;
};

// Writes the codes of a chunk.
template <u32 CHUNK>
__device__ __forceinline__ void store(u8* __restrict__ codes, u32 row, u32 col, u32 rows, u32 cols,
                                      const u32 (&words)[CHUNK / 4]) {
  if (row >= rows || col >= cols) return;
  u8* at = codes + (u64)row * cols + col;
  if (cols % CHUNK == 0) {
    if constexpr (CHUNK == 4) *reinterpret_cast<u32*>(at) = words[0];
    if constexpr (CHUNK == 8) *reinterpret_cast<uint2*>(at) = make_uint2(words[0], words[1]);
    if constexpr (CHUNK == 16) *reinterpret_cast<uint4*>(at) = make_uint4(words[0], words[1], words[2], words[3]);
    return;
  }
  u32 a = words[0], b = 0, c = 0, d = 0;
  if constexpr (CHUNK > 4) b = words[1];
  if constexpr (CHUNK == 16) c = words[2], d = words[3];
  const u32 here = min(CHUNK, cols - col);
#pragma unroll 1
  for (u32 j = 0; j < here; j++) {
    at[j] = (u8)a;
    a = __funnelshift_r(a, b, 8);
    b = __funnelshift_r(b, c, 8);
    c = __funnelshift_r(c, d, 8);
    d >>= 8;
  }
}

// Which part of a tile a thread has: CHUNK columns from `col` on, rows `first_row + i * GROUPS`.
template <u32 CHUNK_, u32 THREADS_>
struct Share {
  enum : u32 {
    CHUNK = CHUNK_,
    THREADS = THREADS_,
    WARPS = THREADS / 32,
    LANES = BLOCK / CHUNK,     // of one row
    GROUPS = THREADS / LANES,  // rows at once
    ROWS = BLOCK / GROUPS,     // rows of a thread
  };
  u32 lane, warp, tile_row, tile_col, first_row, col;

  __device__ __forceinline__ explicit Share(u32 cols) {
    const u32 tiles = (cols + BLOCK - 1) / BLOCK;
    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;
    tile_row = blockIdx.x / tiles;
    tile_col = blockIdx.x % tiles;
    first_row = tile_row * BLOCK + threadIdx.x / LANES;
    col = tile_col * BLOCK + threadIdx.x % LANES * CHUNK;
  }

  __device__ __forceinline__ u32 row(u32 i) const { return first_row + i * GROUPS; }
};

// One scale per row of the tile.
template <class Scale, class Source, class S>
__device__ __forceinline__ void quantise_rows(const Source& x, const S& share, const uint4 (&chunk)[S::ROWS],
                                              const Quantised<Scale>& out) {
#pragma unroll
  for (u32 i = 0; i < S::ROWS; i++) {
    const typename Source::Context context = x.context(share.row(i), share.col);
    u32 largest = 0;
#pragma unroll
    for (u32 j = 0; j < S::CHUNK; j++) largest = max(largest, Source::magnitude(chunk[i], context, j));
#pragma unroll
    for (u32 step = 1; step < S::LANES; step *= 2) largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    const typename Scale::Stored scale = Scale::of(largest);
    const float inverse = Scale::inverse(scale);
    u32 words[S::CHUNK / 4];
#pragma unroll
    for (u32 w = 0; w < S::CHUNK / 4; w++) {
      words[w] = encode4_e4m3(__fmul_rn(Source::value(chunk[i], context, 4 * w), inverse),
                              __fmul_rn(Source::value(chunk[i], context, 4 * w + 1), inverse),
                              __fmul_rn(Source::value(chunk[i], context, 4 * w + 2), inverse),
                              __fmul_rn(Source::value(chunk[i], context, 4 * w + 3), inverse));
    }
    store<S::CHUNK>(out.codes, share.row(i), share.col, x.rows, x.cols, words);
    if (share.lane % S::LANES == 0 && share.row(i) < x.rows) {
      const u32 blocks = (x.cols + BLOCK - 1) / BLOCK;
      out.scales[(u64)share.row(i) * blocks + share.tile_col] = scale;
    }
  }
}

// One scale per column of the tile.
template <class Scale, class Source, class S>
__device__ __forceinline__ void quantise_columns(const Source& x, const S& share, const uint4 (&chunk)[S::ROWS],
                                                 const Quantised<Scale>& out) {
  __shared__ __align__(16) u32 partial[S::WARPS][BLOCK];
  __shared__ __align__(16) float inverses[BLOCK];

  u32 largest[S::CHUNK];
#pragma unroll
  for (u32 j = 0; j < S::CHUNK; j++) largest[j] = 0;
#pragma unroll
  for (u32 i = 0; i < S::ROWS; i++) {
    const typename Source::Context context = x.context(share.row(i), share.col);
#pragma unroll
    for (u32 j = 0; j < S::CHUNK; j++) largest[j] = max(largest[j], Source::magnitude(chunk[i], context, j));
  }
#pragma unroll
  for (u32 j = 0; j < S::CHUNK; j++) {
#pragma unroll
    for (u32 step = S::LANES; step < 32; step *= 2) {
      largest[j] = max(largest[j], __shfl_xor_sync(ALL_LANES, largest[j], step));
    }
  }
  const u32 first = threadIdx.x % S::LANES * S::CHUNK;
  if (share.lane < S::LANES) {
#pragma unroll
    for (u32 j = 0; j < S::CHUNK; j += 4) {
      *reinterpret_cast<uint4*>(&partial[share.warp][first + j]) =
          make_uint4(largest[j], largest[j + 1], largest[j + 2], largest[j + 3]);
    }
  }
  __syncthreads();

  // A thread for each column.
  if (threadIdx.x < BLOCK) {
    u32 whole = 0;
#pragma unroll 4
    for (u32 w = 0; w < S::WARPS; w++) whole = max(whole, partial[w][threadIdx.x]);
    const typename Scale::Stored scale = Scale::of(whole);
    inverses[threadIdx.x] = Scale::inverse(scale);
    const u32 col = share.tile_col * BLOCK + threadIdx.x;
    if (col < x.cols) out.scales[(u64)share.tile_row * x.cols + col] = scale;
  }
  __syncthreads();

  float inverse[S::CHUNK];
#pragma unroll
  for (u32 j = 0; j < S::CHUNK; j += 4) {
    const float4 quad = *reinterpret_cast<const float4*>(&inverses[first + j]);
    inverse[j] = quad.x;
    inverse[j + 1] = quad.y;
    inverse[j + 2] = quad.z;
    inverse[j + 3] = quad.w;
  }
#pragma unroll
  for (u32 i = 0; i < S::ROWS; i++) {
    const typename Source::Context context = x.context(share.row(i), share.col);
    u32 words[S::CHUNK / 4];
#pragma unroll
    for (u32 w = 0; w < S::CHUNK / 4; w++) {
      words[w] = encode4_e4m3(__fmul_rn(Source::value(chunk[i], context, 4 * w), inverse[4 * w]),
                              __fmul_rn(Source::value(chunk[i], context, 4 * w + 1), inverse[4 * w + 1]),
                              __fmul_rn(Source::value(chunk[i], context, 4 * w + 2), inverse[4 * w + 2]),
                              __fmul_rn(Source::value(chunk[i], context, 4 * w + 3), inverse[4 * w + 3]));
    }
    store<S::CHUNK>(out.codes, share.row(i), share.col, x.rows, x.cols, words);
  }
}

// One scale for the tile.
template <class Scale, class Source, class S>
__device__ __forceinline__ void quantise_block(const Source& x, const S& share, const uint4 (&chunk)[S::ROWS],
                                               const Quantised<Scale>& out) {
  __shared__ u32 partial[S::WARPS];

  u32 largest = 0;
#pragma unroll
  for (u32 i = 0; i < S::ROWS; i++) {
    const typename Source::Context context = x.context(share.row(i), share.col);
#pragma unroll
    for (u32 j = 0; j < S::CHUNK; j++) largest = max(largest, Source::magnitude(chunk[i], context, j));
  }
#pragma unroll
  for (u32 step = 1; step < 32; step *= 2) largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, step));
  if (share.lane == 0) partial[share.warp] = largest;
  __syncthreads();
#pragma unroll
  for (u32 w = 0; w < S::WARPS; w++) largest = max(largest, partial[w]);

  const typename Scale::Stored scale = Scale::of(largest);
  const float inverse = Scale::inverse(scale);
  if (threadIdx.x == 0) out.scales[blockIdx.x] = scale;
#pragma unroll
  for (u32 i = 0; i < S::ROWS; i++) {
    const typename Source::Context context = x.context(share.row(i), share.col);
    u32 words[S::CHUNK / 4];
#pragma unroll
    for (u32 w = 0; w < S::CHUNK / 4; w++) {
      words[w] = encode4_e4m3(__fmul_rn(Source::value(chunk[i], context, 4 * w), inverse),
                              __fmul_rn(Source::value(chunk[i], context, 4 * w + 1), inverse),
                              __fmul_rn(Source::value(chunk[i], context, 4 * w + 2), inverse),
                              __fmul_rn(Source::value(chunk[i], context, 4 * w + 3), inverse));
    }
    store<S::CHUNK>(out.codes, share.row(i), share.col, x.rows, x.cols, words);
  }
}

template <class Source, class S>
__device__ __forceinline__ void load_tile(const Source& x, const S& share, uint4 (&chunk)[S::ROWS]) {
#pragma unroll
  for (u32 i = 0; i < S::ROWS; i++) chunk[i] = x.load(share.row(i), share.col);
}

template <class Scale>
__device__ __forceinline__ void rows_of_bf16(const Bf16Source& x, Quantised<Scale> out) {
  const Share<Bf16Source::CHUNK, THREADS> share(x.cols);
  uint4 chunk[share.ROWS];
  load_tile(x, share, chunk);
  quantise_rows(x, share, chunk, out);
}

template <class Scale>
__device__ __forceinline__ void columns_of_bf16(const Bf16Source& x, Quantised<Scale> out) {
  const Share<Bf16Source::CHUNK, THREADS_WIDE> share(x.cols);
  uint4 chunk[share.ROWS];
  load_tile(x, share, chunk);
  quantise_columns(x, share, chunk, out);
}

template <class Scale>
__device__ __forceinline__ void both_of_bf16(const Bf16Source& x, Quantised<Scale> by_row, Quantised<Scale> by_column) {
  const Share<Bf16Source::CHUNK, THREADS_WIDE> share(x.cols);
  uint4 chunk[share.ROWS];
  load_tile(x, share, chunk);
  quantise_rows(x, share, chunk, by_row);
  quantise_columns(x, share, chunk, by_column);
}

template <class Scale>
__device__ __forceinline__ void columns_of_codes(const CodeSource<Scale>& x, Quantised<Scale> out) {
  const Share<CodeSource<Scale>::CHUNK, THREADS_WIDE> share(x.cols);
  uint4 chunk[share.ROWS];
  load_tile(x, share, chunk);
  quantise_columns(x, share, chunk, out);
}

template <class Scale>
__device__ __forceinline__ void blocks_of_fp32(const Fp32Source& x, Quantised<Scale> out) {
  const Share<Fp32Source::CHUNK, THREADS_WIDE> share(x.cols);
  uint4 chunk[share.ROWS];
  load_tile(x, share, chunk);
  quantise_block(x, share, chunk, out);
}

// BLOCKS of a multiprocessor are what keeps a kernel's registers without a spill on every card (`.ci/cuda`).
#define KERNEL(THREADS, BLOCKS) extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)

#define QUANTISERS(FORMAT, SCALE)                                                                      \
  KERNEL(THREADS, 2)                                                                                   \
  quantise_rows_##FORMAT(const u16* x, u8* codes, SCALE::Stored* scales, u32 rows, u32 cols) {         \
    rows_of_bf16<SCALE>({{x, rows, cols}}, {codes, scales});                                           \
  }                                                                                                    \
  KERNEL(THREADS_WIDE, 2)                                                                              \
  quantise_columns_##FORMAT(const u16* x, u8* codes, SCALE::Stored* scales, u32 rows, u32 cols) {      \
    columns_of_bf16<SCALE>({{x, rows, cols}}, {codes, scales});                                        \
  }                                                                                                    \
  KERNEL(THREADS_WIDE, 1)                                                                              \
  quantise_both_##FORMAT(const u16* x, u8* row_codes, SCALE::Stored* row_scales, u8* column_codes,     \
                         SCALE::Stored* column_scales, u32 rows, u32 cols) {                           \
    both_of_bf16<SCALE>({{x, rows, cols}}, {row_codes, row_scales}, {column_codes, column_scales});    \
  }                                                                                                    \
  KERNEL(THREADS_WIDE, 2)                                                                              \
  requantise_columns_##FORMAT(const u8* row_codes, const SCALE::Stored* row_scales, u8* codes,         \
                              SCALE::Stored* scales, u32 rows, u32 cols) {                             \
    columns_of_codes<SCALE>({{row_codes, rows, cols}, row_scales}, {codes, scales});                   \
  }                                                                                                    \
  KERNEL(THREADS_WIDE, 1)                                                                              \
  quantise_blocks_##FORMAT(const u32* w, u8* codes, SCALE::Stored* scales, u32 rows, u32 cols) {       \
    blocks_of_fp32<SCALE>({{w, rows, cols}}, {codes, scales});                                         \
  }

QUANTISERS(pow2, Pow2Scale)
QUANTISERS(fp32, Fp32Scale)

// Word `i` of the result is column `i` of the four words' bytes, seen as four rows of four.
__device__ __forceinline__ void transpose4(const u32 (&in)[4], u32 (&out)[4]) {
  const u32 low01 = __byte_perm(in[0], in[1], 0x5140), high01 = __byte_perm(in[0], in[1], 0x7362);
  const u32 low23 = __byte_perm(in[2], in[3], 0x5140), high23 = __byte_perm(in[2], in[3], 0x7362);
  out[0] = __byte_perm(low01, low23, 0x5410);
  out[1] = __byte_perm(low01, low23, 0x7632);
  out[2] = __byte_perm(high01, high23, 0x5410);
  out[3] = __byte_perm(high01, high23, 0x7632);
}

// y (cols, rows) = x (rows, cols) transposed, by tiles of 128 x 128 bytes. A thread moves a patch of 16 rows and
// 4 columns: it reads 16 words down a column of words (neighbouring lanes, neighbouring banks), transposes them
// four by four, and writes 4 chunks of 16 bytes. Chunks of a row are XORed with the row's number of fours, or
// all lanes of a store would meet in the same four banks.
KERNEL(THREADS, 2) transpose_bytes(const u8* __restrict__ x, u8* __restrict__ y, u32 rows, u32 cols) {
  __shared__ uint4 tile[BLOCK * BLOCK / 16];
  const Share<16, THREADS> from(cols);
  const Matrix<u8> source = {x, rows, cols};
#pragma unroll
  for (u32 i = 0; i < from.ROWS; i++) {
    const u32 row = from.row(i) - from.tile_row * BLOCK;
    tile[row * 8 + threadIdx.x % 8] = source.load(from.row(i), from.col);
  }
  __syncthreads();

  const u32* words = reinterpret_cast<const u32*>(tile);
  u32 moved[4][4];
#pragma unroll
  for (u32 q = 0; q < 4; q++) {
    u32 in[4], out[4];
#pragma unroll
    for (u32 r = 0; r < 4; r++) in[r] = words[(from.warp * 16 + q * 4 + r) * 32 + from.lane];
    transpose4(in, out);
#pragma unroll
    for (u32 c = 0; c < 4; c++) moved[c][q] = out[c];
  }
  __syncthreads();
#pragma unroll
  for (u32 c = 0; c < 4; c++) {
    tile[(from.lane * 4 + c) * 8 + (from.warp ^ (from.lane % 8))] =
        make_uint4(moved[c][0], moved[c][1], moved[c][2], moved[c][3]);
  }
  __syncthreads();

#pragma unroll
  for (u32 i = 0; i < from.ROWS; i++) {
    const u32 row = threadIdx.x / 8 + i * 32, chunk = threadIdx.x % 8;
    const uint4 bytes = tile[row * 8 + (chunk ^ (row / 4 % 8))];
    const u32 out[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
    store<16>(y, from.tile_col * BLOCK + row, from.tile_row * BLOCK + chunk * 16, cols, rows, out);
  }
}
