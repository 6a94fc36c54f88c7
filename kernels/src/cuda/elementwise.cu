// contract: elementwise.rs
//
// A thread has 8 neighbouring elements.
#include "rows.cuh"

enum : u32 { THREADS = 256 };

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 4)

// Eight elements of a vector as a row of its own, since a vector may have more than 2^32 elements.
struct Part {
    u64 first;
    u32 here;
};

DEV Part own_part(u64 n) {
    const u64 first = ((u64)blockIdx.x * THREADS + threadIdx.x) * CHUNK;
    const u64 left = first < n ? n - first : 0;
    return {first, left < CHUNK ? (u32)left : (u32)CHUNK};
}

DEV void load(const float* x, const Part& part, float (&v)[CHUNK]) { load8(x + part.first, 0, part.here, true, v); }
DEV void load(const u16* x, const Part& part, float (&v)[CHUNK]) { unpack(load8(x + part.first, 0, part.here, true), v); }

DEV void store(float* x, const Part& part, const float (&v)[CHUNK]) { store8(x + part.first, 0, part.here, true, v); }
DEV void store(u16* x, const Part& part, const float (&v)[CHUNK]) {
    store8(x + part.first, 0, part.here, true, pack(v));
}

template <class From, class To>
DEV void cast(const From* x, To* y, u64 n) {
    const Part part = own_part(n);
    if (part.here == 0) return;
    float v[CHUNK];
    load(x, part, v);
    store(y, part, v);
}

template <class T, class U>
DEV void add(T* sum, const U* x, u64 n) {
    const Part part = own_part(n);
    if (part.here == 0) return;
    float a[CHUNK], b[CHUNK];
    load(sum, part, a);
    load(x, part, b);
#pragma unroll
    for (u32 j = 0; j < CHUNK; j++) a[j] = __fadd_rn(a[j], b[j]);
    store(sum, part, a);
}

KERNEL cast_f32_bf16(const float* x, u16* y, u64 n) { cast(x, y, n); }
KERNEL cast_bf16_f32(const u16* x, float* y, u64 n) { cast(x, y, n); }

KERNEL add_f32_f32(float* sum, const float* x, u64 n) { add(sum, x, n); }
KERNEL add_f32_bf16(float* sum, const u16* x, u64 n) { add(sum, x, n); }
KERNEL add_bf16_f32(u16* sum, const float* x, u64 n) { add(sum, x, n); }
KERNEL add_bf16_bf16(u16* sum, const u16* x, u64 n) { add(sum, x, n); }
