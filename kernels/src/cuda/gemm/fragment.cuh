// From shared memory to the registers of the tensor core.
//
// A unit is 16 of an operand's rows (m or n) and one step of the contraction: one 16-row fragment of A, or
// two 8-column fragments of B. `load_unit` fetches one in a single `ldmatrix`.
//
// `ldmatrix` transposes 16-bit elements only. E4M3 codes across the contraction are loaded as pairs of
// neighbouring rows (m, m + 1), and each lane is left with two contraction steps of two rows in a
// register. Lanes may name any row of shared memory, so the matrices are put together such that a lane
// has steps 4 t and 4 t + 2 in one register, 4 t + 1 and 4 t + 3 in the next: two byte permutations make
// from them the registers of row m and of row m + 1. Thus row 2 c + h of a unit is at place c of half h.
// Operands along the contraction follow the same order, by the rows that lanes name.
#pragma once
#include "tile.cuh"

// A unit, as it is loaded. Along, or across with 16-bit elements: q[h + 2 s] has rows of half h in half s
// of the step's bytes. Across with 8-bit elements: before the byte permutation.
struct Unit {
    u32 q[4];
};

// Rows from `row` (a multiple of 16) on, step `step` of the stage.
template <class OPERAND> DEV Unit load_unit(u32 shared, u32 row, u32 step) {
    const u32 lane = threadIdx.x % WARP, slot = lane % 8, matrix = lane / 8;
    const u32 odd = matrix % 2, half = matrix / 2;
    Unit unit;
    if constexpr (OPERAND::SIDE == ALONG) {
        load_matrices(unit.q, shared + OPERAND::place(row + 2 * slot + odd, 2 * step + half));
    } else if constexpr (OPERAND::ELEMENT == 1) {
        const u32 line = step * 32 + half * 16 + slot / 2 * 4 + slot % 2 * 2 + odd;
        load_matrices_turned(unit.q, shared + OPERAND::place(line, row / 16));
    } else {
        const u32 line = step * 16 + half * 8 + slot;
        load_matrices_turned(unit.q, shared + OPERAND::place(line, row / 8 + odd));
    }
    return unit;
}

// The unit with the bytes in the order of the tensor core.
template <class OPERAND> DEV Unit in_order(const Unit& unit) {
    if constexpr (OPERAND::SIDE == ALONG || OPERAND::ELEMENT == 2) {
        return unit;
    } else {
        Unit turned;
#pragma unroll
        for (u32 half = 0; half < 4; half += 2) {
            turned.q[half] = pick_bytes(unit.q[half], unit.q[half + 1], 0x6240);
            turned.q[half + 1] = pick_bytes(unit.q[half], unit.q[half + 1], 0x7351);
        }
        return turned;
    }
}

// Half a step (16 of the contraction) of a unit in FP16: w[h + 2 p] has rows of half h. Pairs p may be of
// any contraction steps, as long as A and B agree.
struct Widened {
    u32 w[4];
};

// The codes in bytes 1 and 3 as FP16, divided by 256: sign, exponent and mantissa keep their order, and
// the exponent's bias is 15 instead of 7. Subnormal codes become subnormal. The code of NaN becomes 480.
DEV u32 widen_odd_bytes(u32 codes) { return (codes & 0x80008000u) | ((codes >> 1) & 0x3f803f80u); }
DEV u32 widen_even_bytes(u32 codes) { return ((codes << 8) & 0x80008000u) | ((codes << 7) & 0x3f803f80u); }
// What products of codes that were widened by the two above are divided by.
constexpr float WIDENED_PRODUCT = 65536.0f;

// By bits, on any architecture. The pairs are of steps (4 t, 4 t + 2) and (4 t + 1, 4 t + 3): what lies in a
// register across the contraction, and every second byte of one along it.
template <class OPERAND> DEV Widened widen_bits(const Unit& unit, u32 half) {
    Widened out;
    const u32 x = unit.q[2 * half], y = unit.q[2 * half + 1];
    out.w[0] = widen_even_bytes(x);
    if constexpr (OPERAND::SIDE == ALONG) {
        out.w[1] = widen_even_bytes(y);
        out.w[2] = widen_odd_bytes(x);
    } else {
        out.w[1] = widen_odd_bytes(x);
        out.w[2] = widen_even_bytes(y);
    }
    out.w[3] = widen_odd_bytes(y);
    return out;
}

// By the instruction, of a unit that is in order.
DEV Widened widen_natively(const Unit& unit, u32 half) {
    Widened out;
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        out.w[h] = e4m3x2_to_f16x2((u16)unit.q[2 * half + h]);
        out.w[h + 2] = e4m3x2_to_f16x2((u16)(unit.q[2 * half + h] >> 16));
    }
    return out;
}
