// Every PTX instruction that the kernels spell by hand, once each. A kernel has no assembly of its own.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEV static __device__ __forceinline__

// Lanes of a warp, all of which take part in every collective here.
constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

DEV u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Copies 16 bytes from global to shared memory behind the back of the thread; both addresses are
// multiples of 16. Without `valid` zeros are written, and nothing is read wherever the address points.
DEV void copy16_async(u32 shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}

DEV void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most `PENDING` of this thread's groups of copies are under way.
template <int PENDING> DEV void copies_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

DEV void store16_shared(u32 shared, const u32 (&v)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(shared), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}

// Four 8x8 matrices of 16-bit elements. Lane l names row l % 8 of matrix l / 8, 16 bytes; it receives of
// each matrix the elements (l / 4, 2 (l % 4)) and the next.
DEV void load_matrices(u32 (&r)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

// The same, transposed: lane l receives of each matrix the elements (2 (l % 4), l / 4) and the one below.
DEV void load_matrices_turned(u32 (&r)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

// The tensor core. Fragments of A (16 x k), B (k x 8), C and D (16 x 8); g = lane / 4, t = lane % 4:
// A: a[0] row g, a[1] row g + 8, first half of k; a[2], a[3] the same rows, second half.
// B: b[0] column g, first half of k; b[1] second half. Each register holds neighbouring k's from
// 4 t (8-bit) or 2 t (16-bit) on. C, D: [0], [1] row g, columns 2 t, 2 t + 1; [2], [3] row g + 8.

// d = a b + c, k = 32, E4M3.
DEV void mma_e4m3(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, const float (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                   "f"(c[3]));
}

// d = a b + d, k = 32, E4M3, with UE8M0 scales in the lowest byte: of rows g and g + 8 from lanes t = 0
// and 1, of column g from lanes t = 0.
DEV void mma_e4m3_scaled(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, u32 a_scale, u32 b_scale) {
    asm volatile("mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e4m3.e4m3.f32.ue8m0 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {0, 0}, {%11}, {0, 0};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(a_scale), "r"(b_scale));
}

// d = a b + c, k = 16, FP16.
DEV void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, const float (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                   "f"(c[3]));
}

// d = a b + d, k = 16, BF16.
DEV void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two FP32 to BF16, rounded to the nearest even; `low` goes to the lower half.
DEV u32 to_bf16x2(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// 2^x: within 2 ulp, subnormal results included; 0 of minus infinity.
DEV float exp2_approx(float x) {
    float r;
    asm("ex2.approx.f32 %0, %1;\n" : "=f"(r) : "f"(x));
    return r;
}

// The four bytes of `low` (0 to 3) and `high` (4 to 7) that the nibbles of `which` name.
DEV u32 pick_bytes(u32 low, u32 high, u32 which) { return __byte_perm(low, high, which); }

// Two E4M3 codes, the lower byte to the lower half, to FP16: exact, a NaN stays one.
DEV u32 e4m3x2_to_f16x2(u16 codes) {
    u32 r = 0;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;\n" : "=r"(r) : "h"(codes));
#endif
    return r;
}
