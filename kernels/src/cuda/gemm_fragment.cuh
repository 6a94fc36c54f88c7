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
#include "gemm_tile.cuh"

// The registers of a unit: of half h of its rows, half s of the contraction. The tensor core wants those of
// A's rows side by side, and those of one column of B.
template <class OPERAND> DEV constexpr u32 register_of(u32 h, u32 s) {
    return OPERAND::ROLE == LEFT ? h + 2 * s : 2 * h + s;
}

struct Unit {
    u32 q[4];
};

// What this lane names of the first unit and step of a warp's rows, in bytes from the tile's start. `row` is
// the warp's first, a multiple of 32.
template <class OPERAND> DEV u32 place_of_lane(u32 row) {
    const u32 lane = threadIdx.x % WARP, slot = lane % 8, matrix = lane / 8;
    const u32 low = matrix % 2, high = matrix / 2;
    const u32 h = OPERAND::ROLE == LEFT ? low : high, s = OPERAND::ROLE == LEFT ? high : low;
    if constexpr (OPERAND::SIDE == ALONG) return OPERAND::place(row + 2 * slot + h, s);
    if constexpr (OPERAND::ELEMENT == 1) return OPERAND::place(high * 16 + slot / 2 * 4 + slot % 2 * 2 + low, row / 16);
    return OPERAND::place(s * 8 + slot, row / 8 + h);
}

// Unit `unit` of the warp's rows, step `step` of the stage. Of an operand with 8-bit elements across, in the
// order of memory: each register has both halves of the rows, q[2 s] and q[2 s + 1] half s.
//
// To go on by a step along, or by a unit across, is to go on by a power of two of chunks within 128 bytes,
// from a multiple of it: swizzled, that flips a bit.
template <class OPERAND> DEV Unit load_unit(u32 shared, u32 lane_place, u32 unit, u32 step) {
    Unit loaded;
    if constexpr (OPERAND::SIDE == ALONG) {
        const u32 rows = unit * 16 * STAGE_BYTES;
        load_matrices(loaded.q, shared + (lane_place ^ (step * STEP_BYTES)) + rows);
    } else {
        const u32 lines = step * STEP_BYTES / OPERAND::ELEMENT * OPERAND::CHUNKS * 16;
        load_matrices_turned(loaded.q, shared + (lane_place ^ (unit * 16 * OPERAND::ELEMENT)) + lines);
    }
    return loaded;
}

// The unit with its bytes in the order of the tensor core.
template <class OPERAND> DEV Unit in_order(const Unit& unit) {
    if constexpr (OPERAND::SIDE == ALONG || OPERAND::ELEMENT == 2) {
        return unit;
    } else {
        Unit turned;
#pragma unroll
        for (u32 s = 0; s < 2; s++) {
            turned.q[register_of<OPERAND>(0, s)] = pick_bytes(unit.q[2 * s], unit.q[2 * s + 1], 0x6240);
            turned.q[register_of<OPERAND>(1, s)] = pick_bytes(unit.q[2 * s], unit.q[2 * s + 1], 0x7351);
        }
        return turned;
    }
}

// The codes in bytes 1 and 3, or 0 and 2, as FP16, divided by 256: sign, exponent and mantissa keep their
// order, and the exponent's bias is 15 instead of 7. Subnormal codes become subnormal. The code of NaN
// becomes 480 / 256.
DEV u32 widen_odd_bytes(u32 codes) { return (codes & 0x80008000u) | ((codes >> 1) & 0x3f803f80u); }
DEV u32 widen_even_bytes(u32 codes) { return ((codes << 8) & 0x80008000u) | ((codes << 7) & 0x3f803f80u); }
// What products of codes that were widened so are divided by.
constexpr float WIDENED_PRODUCT = 65536.0f;

// Half s of a unit's contraction in FP16, itself in two halves. Which steps of the contraction those hold is
// no matter, as long as A and B agree.
//
// By bits, on any architecture, of a unit as it was loaded: steps (4 t, 4 t + 2) and (4 t + 1, 4 t + 3),
// which across the contraction lie in one register, and along it are every second byte of one.
template <class OPERAND> DEV Unit widen_bits(const Unit& unit, u32 s) {
    Unit wide;
    if constexpr (OPERAND::SIDE == ALONG) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            wide.q[register_of<OPERAND>(h, 0)] = widen_even_bytes(unit.q[register_of<OPERAND>(h, s)]);
            wide.q[register_of<OPERAND>(h, 1)] = widen_odd_bytes(unit.q[register_of<OPERAND>(h, s)]);
        }
    } else {
#pragma unroll
        for (u32 part = 0; part < 2; part++) {
            wide.q[register_of<OPERAND>(0, part)] = widen_even_bytes(unit.q[2 * s + part]);
            wide.q[register_of<OPERAND>(1, part)] = widen_odd_bytes(unit.q[2 * s + part]);
        }
    }
    return wide;
}

// By the instruction, of a unit that is in order: steps (4 t, 4 t + 1) and (4 t + 2, 4 t + 3).
template <class OPERAND> DEV Unit widen_natively(const Unit& unit, u32 s) {
    Unit wide;
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        const u32 codes = unit.q[register_of<OPERAND>(h, s)];
        wide.q[register_of<OPERAND>(h, 0)] = e4m3x2_to_f16x2((u16)codes);
        wide.q[register_of<OPERAND>(h, 1)] = e4m3x2_to_f16x2((u16)(codes >> 16));
    }
    return wide;
}
