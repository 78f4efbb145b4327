// Sums and maxima over the threads of a warp and of a block, in a fixed order: the same bits every time.
#pragma once
#include "runtime/common.cuh"

DEVICE float infinity(float) { return __int_as_float(0x7f800000); }
DEVICE double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }

// The sum over the threads of a block of at most 1024, a multiple of 32; all of them get it. ``scratch``: 32 elements
// shared by the block, free again after the call.
template <class Sum> DEVICE Sum block_sum(Sum x, Sum* scratch) {
    const int warps = blockDim.x / 32;
    x = sum_over_warp(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    Sum total = 0;
    for (int warp = 0; warp < warps; warp++) total += scratch[warp];
    __syncthreads();
    return total;
}

// The largest number and the first place that holds it. A NaN is larger than any number.
template <class Sum> struct Largest {
    Sum value;
    int place;

    DEVICE void take(Sum other, int where) {
        const bool wins = other > value || (other != other && value == value);
        const bool ties = other == value || (other != other && value != value);
        if (wins || (ties && where < place)) {
            value = other;
            place = where;
        }
    }
};

template <class Sum> DEVICE Largest<Sum> block_largest(Largest<Sum> x, Largest<Sum>* scratch) {
    const int warps = blockDim.x / 32;
    for (int distance = 16; distance; distance /= 2) {
        const Sum value = __shfl_xor_sync(~0u, x.value, distance);
        const int place = __shfl_xor_sync(~0u, x.place, distance);
        x.take(value, place);
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = scratch[0];
    for (int warp = 1; warp < warps; warp++) x.take(scratch[warp].value, scratch[warp].place);
    __syncthreads();
    return x;
}
