// Rows of a linear map, and elements of its bias, times exp(a) / tau: one scale a for every ``group`` rows.
//
//   scale_forward, scale_backward   one block the rows of one scale
//
// Same mathematics as ramnet_np/layers/scale.py.
#include "layers/element.cuh"


struct ScaleParams {
    const ELEMENT* weight;  // (groups * group, D)
    const ELEMENT* bias;    // (groups * group,), or null
    const ELEMENT* scale;   // (groups,)
    ELEMENT* scaled;        // like weight; the backward reads it
    ELEMENT* scaled_bias;   // like bias, or null
    const Acc* dscaled;
    const Acc* dscaled_bias;  // or null
    Acc* dweight;
    Acc* dbias;   // or null
    Acc* dscale;  // (groups,)
    int group, width;
    Acc tau;
};

extern "C" __global__ void scale_forward(const __grid_constant__ ScaleParams p) {
    const Acc factor = exp_(widen(p.scale[blockIdx.x])) / p.tau;
    const long long size = p.group * (long long)(p.width), first = blockIdx.x * size;
    for (long long i = threadIdx.x; i < size; i += blockDim.x) {
        p.scaled[first + i] = narrowed(widen(p.weight[first + i]) * factor);
    }
    if (!p.bias) return;
    for (int i = blockIdx.x * p.group + threadIdx.x; i < (blockIdx.x + 1) * p.group; i += blockDim.x) {
        p.scaled_bias[i] = narrowed(widen(p.bias[i]) * factor);
    }
}

// From the gradients of what was scaled; dscale is the sum of their products with it.
extern "C" __global__ void scale_backward(const __grid_constant__ ScaleParams p) {
    __shared__ Acc scratch[32];
    const Acc factor = exp_(widen(p.scale[blockIdx.x])) / p.tau;
    const long long size = p.group * (long long)(p.width), first = blockIdx.x * size;
    Acc total = 0;
    for (long long i = threadIdx.x; i < size; i += blockDim.x) {
        const Acc d = p.dscaled[first + i];
        total += d * widen(p.scaled[first + i]);
        p.dweight[first + i] = d * factor;
    }
    if (p.dscaled_bias) {
        for (int i = blockIdx.x * p.group + threadIdx.x; i < (blockIdx.x + 1) * p.group; i += blockDim.x) {
            const Acc d = p.dscaled_bias[i];
            total += d * widen(p.scaled_bias[i]);
            p.dbias[i] = d * factor;
        }
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) p.dscale[blockIdx.x] = total;
}
