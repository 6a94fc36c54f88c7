// How operands lie in shared memory, and how they get there.
//
// A stage holds 128 bytes of the contraction for each row of A and of B: 128 E4M3 codes or 64 BF16. An
// operand whose contraction is contiguous in memory ("along") lies in rows of 128 bytes, one for each of
// its own rows; one whose contraction is not ("across") lies as in memory too, a row for each step of the
// contraction. Nothing is transposed on the way.
//
// The 16-byte chunks of a tile are numbered row by row, and chunk u of row r is kept at place
// u ^ swizzle(r), which permutes chunks within 128 bytes. All 8 rows of one `ldmatrix` matrix then fall
// on different banks; so do 8 neighbouring chunks of a copy. The rows of one matrix are
// - every second row (along; across with 8-bit elements): swizzle by r / 2;
// - neighbours (across with 16-bit elements): swizzle by r.
#pragma once
#include "dev.cuh"

// Bytes of the contraction in one stage, and in one step of the tensor core.
constexpr u32 STAGE_BYTES = 128;
constexpr u32 STEP_BYTES = 32;
constexpr u32 STEPS = STAGE_BYTES / STEP_BYTES;

enum Role { LEFT, RIGHT };
enum Side { ALONG, ACROSS };

// A's or B's tile: `ROWS` of its own rows (m or n), elements of `ELEMENT` bytes.
template <Role ROLE_, Side SIDE_, u32 ROWS, u32 ELEMENT_> struct Operand {
    static constexpr Role ROLE = ROLE_;
    static constexpr Side SIDE = SIDE_;
    static constexpr u32 ELEMENT = ELEMENT_;
    static constexpr u32 BYTES = ROWS * STAGE_BYTES;
    static constexpr u32 LINES = SIDE == ALONG ? ROWS : STAGE_BYTES / ELEMENT;
    static constexpr u32 CHUNKS = BYTES / LINES / 16;
    // Row 2 c + h of 16 goes to half h, place c of a fragment; otherwise row 8 h + c does.
    static constexpr bool PAIRED = SIDE == ALONG || ELEMENT == 1;

    // Where a chunk lies, in bytes from the tile's start.
    static __device__ __forceinline__ u32 place(u32 line, u32 chunk) {
        u32 swizzle = (PAIRED ? line >> 1 : line) & 7;
        return ((line * CHUNKS + chunk) ^ swizzle) * 16;
    }
};

// A matrix in memory, row-major and without gaps, seen in bytes.
struct Matrix {
    const u8* base;
    u32 row_bytes;

    // Whether rows may be copied 16 bytes at a time.
    __device__ __forceinline__ bool is_aligned() const { return (((u64)base | row_bytes) & 15) == 0; }
};

// Sixteen bytes of a row that need not be aligned, zeros past the end of the row.
template <u32 ELEMENT> DEV void load_chunk_slowly(u32 (&words)[4], const u8* row, u32 byte, u32 byte_end) {
#pragma unroll
    for (u32 w = 0; w < 4; w++) {
        words[w] = 0;
#pragma unroll
        for (u32 i = 0; i < 4; i += ELEMENT) {
            u32 at = byte + w * 4 + i;
            if (at < byte_end) {
                u32 value = ELEMENT == 1 ? (u32)row[at] : (u32) * (const u16*)(row + at);
                words[w] |= value << (8 * i);
            }
        }
    }
}

// Starts the copy of a tile whose first line is `line` of the matrix and whose first byte in it is `byte`.
// Lines from `line_end` and bytes from the row's end on become zeros. Rows that are not 16-byte aligned
// are read element by element, which is correct and slow.
template <class OPERAND, u32 THREADS>
DEV void load_tile(u32 shared, const Matrix& from, u32 line, u32 line_end, u32 byte, bool aligned) {
    constexpr u32 CHUNKS = OPERAND::CHUNKS, LINES = OPERAND::LINES, LINES_AT_ONCE = THREADS / CHUNKS;
    const u32 chunk = threadIdx.x % CHUNKS, own = threadIdx.x / CHUNKS, own_byte = byte + chunk * 16;
    // How many lines from this thread's first on exist.
    const u32 lines = line + own < line_end ? line_end - line - own : 0;
    const u8* row = from.base + (u64)(line + own) * from.row_bytes;
    if (aligned) {
        const u32 lines_in_row = own_byte < from.row_bytes ? lines : 0;
#pragma unroll
        for (u32 first = 0; first < LINES; first += LINES_AT_ONCE) {
            const u8* source = row + (u64)first * from.row_bytes + own_byte;
            copy16_async(shared + OPERAND::place(own + first, chunk), source, first < lines_in_row);
        }
    } else {
#pragma unroll 1
        for (u32 first = 0; first < LINES; first += LINES_AT_ONCE) {
            u32 words[4] = {0, 0, 0, 0};
            if (first < lines) load_chunk_slowly<OPERAND::ELEMENT>(words, row, own_byte, from.row_bytes);
            store16_shared(shared + OPERAND::place(own + first, chunk), words);
            row += (u64)LINES_AT_ONCE * from.row_bytes;
        }
    }
}
