// Columns of one matrix become columns of another; bytes are moved, never changed.
#include "dev.cuh"

// Moves `units` neighbouring units of each of `rows` rows. Rows are `to_row` and `from_row` units apart. Each thread
// moves one unit at a time: neighbours in a row are moved by neighbours in a block.
template <typename T>
DEV void move(T* to, const T* from, u32 rows, u32 units, u32 to_row, u32 from_row) {
    const u64 all = (u64)rows * units;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += (u64)gridDim.x * blockDim.x) {
        const u32 row = (u32)(i / units);
        const u32 unit = (u32)(i - (u64)row * units);
        to[(u64)row * to_row + unit] = from[(u64)row * from_row + unit];
    }
}

extern "C" __global__ void window_16(uint4* to, const uint4* from, u32 rows, u32 units, u32 to_row, u32 from_row) {
    move(to, from, rows, units, to_row, from_row);
}

extern "C" __global__ void window_2(u16* to, const u16* from, u32 rows, u32 units, u32 to_row, u32 from_row) {
    move(to, from, rows, units, to_row, from_row);
}
