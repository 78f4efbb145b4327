// Sums and maxima over the threads of a warp and of a block, in a fixed order: the same bits every time.
#pragma once
#include "runtime/common.cuh"

DEVICE float infinity(float) { return __int_as_float(0x7f800000); }
DEVICE double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }

// The sum over all 32 lanes, to all of them.
template <class Acc> DEVICE Acc warp_sum(Acc x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// The sum over all threads of a block of at most 1024, a multiple of 32, to all of them. ``scratch``: 32 elements shared
// by the block, free again after the call.
template <class Acc> DEVICE Acc block_sum(Acc x, Acc* scratch) {
    const int warps = blockDim.x / 32;
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    Acc total = 0;
    for (int warp = 0; warp < warps; warp++) total += scratch[warp];
    __syncthreads();
    return total;
}

// The largest number and the first index that holds it. A NaN is larger than any number.
template <class Acc> struct Largest {
    Acc value;
    int index;

    DEVICE void take(Acc other, int where) {
        const bool wins = other > value || (other != other && value == value);
        const bool ties = other == value || (other != other && value != value);
        if (wins || (ties && where < index)) {
            value = other;
            index = where;
        }
    }
};

template <class Acc> DEVICE Largest<Acc> block_largest(Largest<Acc> x, Largest<Acc>* scratch) {
    const int warps = blockDim.x / 32;
    for (int distance = 16; distance; distance /= 2) {
        const Acc value = __shfl_xor_sync(~0u, x.value, distance);
        const int index = __shfl_xor_sync(~0u, x.index, distance);
        x.take(value, index);
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = scratch[0];
    for (int warp = 1; warp < warps; warp++) x.take(scratch[warp].value, scratch[warp].index);
    __syncthreads();
    return x;
}
