// y += x, where x is like y (a residual) or one row of it (a bias).
//
//   add_in_place   one thread EACH elements: 16 bytes where the size of x allows it, else one
//
// Same mathematics as add_in_place in ramnet_np/layers/linear.py.
#include "layers/element.cuh"

template <int EACH> DEVICE void add_at(ELEMENT* y, const ELEMENT* x, long long size, long long period) {
    const long long i = EACH * (blockIdx.x * (long long)(blockDim.x) + threadIdx.x);
    if (i >= size) return;
    Acc ys[EACH], xs[EACH];
    load<EACH>(y + i, ys);
    load<EACH>(x + (period == size ? i : i % period), xs);
#pragma unroll
    for (int j = 0; j < EACH; j++) ys[j] += xs[j];
    store<EACH>(ys, y + i);
}

extern "C" __global__ void add_in_place(
    ELEMENT* y,        // size elements
    const ELEMENT* x,  // period elements, which repeat
    long long size, long long period
) {
    if (period % VECTOR == 0) add_at<VECTOR>(y, x, size, period);
    else add_at<1>(y, x, size, period);
}
