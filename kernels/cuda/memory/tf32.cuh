// A product on the tensor cores that keeps the digits of float32: a float is the sum of two numbers of 11 bits (TF32), and
// three products of those are all that a float32 product would keep.
#pragma once
#include "runtime/common.cuh"

// c += a b: 16 x 8 by 8 x 8. With g = lane / 4 and t = lane % 4 a lane has (PTX ISA, "Matrix Fragments for mma.m16n8k8")
//
//   a  rows g, g + 8, g, g + 8; columns t, t, t + 4, t + 4
//   b  rows t, t + 4; column g
//   c  rows g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1
DEVICE void multiply_add(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// The first 11 bits of each number, and what is left of it.
template <int N> DEVICE void split(const float (&x)[N], float (&high)[N], float (&low)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) high[i] = __uint_as_float(__float_as_uint(x[i]) & 0xffffe000u), low[i] = x[i] - high[i];
}

// c += a b with the digits of float32; ``small``: what is added to c at the end. EXACT: a has no more than 11 bits.
template <bool EXACT> DEVICE void multiply_add_float32(float (&c)[4], float (&small)[4], const float (&a)[4], const float (&b)[2]) {
    float high_a[4], low_a[4], high_b[2], low_b[2];
    split(b, high_b, low_b);
    if (EXACT) {
        multiply_add(c, a, high_b);
        multiply_add(small, a, low_b);
    } else {
        split(a, high_a, low_a);
        multiply_add(c, high_a, high_b);
        multiply_add(small, high_a, low_b);
        multiply_add(small, low_a, high_b);
    }
}
