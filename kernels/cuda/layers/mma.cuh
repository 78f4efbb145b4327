// The instructions of the tensor cores: products of small matrices that a warp holds together, and what feeds them.
//
// A warp multiplies A (16 x 16) by B (16 x 8) and adds to C (16 x 8). Where a lane's numbers stand, with g = lane / 4 and
// t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//
//   A  four registers of two 16-bit numbers: rows g, g + 8, g, g + 8; columns 2t, 2t + 1 in the first two, those + 8 in
//      the last two
//   B  two registers: rows 2t, 2t + 1 in the first, those + 8 in the second; column g
//   C  four floats: row g, columns 2t and 2t + 1; then row g + 8
//
// So two C side by side, rounded to 16 bits, are an A as they lie: the result of one product is the left factor of the
// next without a word moved between lanes.
#pragma once
#include "runtime/common.cuh"

// c += a b
DEVICE void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, float16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 from shared memory. Lane 8 i + j says where row j of matrix i begins (16 bytes); a lane gets of
// each matrix row g, columns 2t and 2t + 1; from the transposed ones row 2t and 2t + 1 of column g.
DEVICE void load_matrices(unsigned address, unsigned (&x)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}
DEVICE void load_matrices_transposed(unsigned address, unsigned (&x)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

// Two numbers rounded to 16 bits in one register, ``low`` in its lower half.
DEVICE unsigned packed(float low, float high, bfloat16) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
DEVICE unsigned packed(float low, float high, float16) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// Two products, each rounded once: a fused multiply-add to minus zero, which every GPU with these types has.
DEVICE unsigned multiply_pairs(unsigned a, unsigned b, bfloat16) {
    unsigned pair;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(0x80008000u));
    return pair;
}
DEVICE unsigned multiply_pairs(unsigned a, unsigned b, float16) {
    unsigned pair;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(0x80008000u));
    return pair;
}

// Asynchronous copies to shared memory that write zeros, and read nothing, where ``there`` is false.
DEVICE void copy_16_bytes(unsigned shared, const void* global, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(there ? 16 : 0) : "memory");
}
DEVICE void copy_4_bytes(unsigned shared, const void* global, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(there ? 4 : 0) : "memory");
}

// 2 to the power x, in one instruction; 0 for minus infinity.
DEVICE float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
