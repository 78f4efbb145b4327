// What the fast layers share: ELEMENT, the type of their arrays, and Acc, that of sums.
#pragma once
#include "runtime/reduce.cuh"

#ifndef ELEMENT
#error "ELEMENT must be defined: the type of the arrays, one of float, double, float16, bfloat16"
#endif

using Acc = AccOf<ELEMENT>::type;

constexpr int VECTOR = 16 / sizeof(ELEMENT);  // elements of the widest access; kernels use it where rows allow it

DEVICE ELEMENT narrowed(Acc x) {
    ELEMENT y;
    narrow(x, y);
    return y;
}

DEVICE float reciprocal_root(float x) { return 1 / sqrtf(x); }
DEVICE double reciprocal_root(double x) { return 1 / sqrt(x); }
