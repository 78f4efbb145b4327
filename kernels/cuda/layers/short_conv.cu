// The short causal convolution: token t under the last of the weights, those before it under the ones before.
//
//   conv_forward, conv_backward   one thread an element
//   conv_weights                  the gradient of the weights: lanes have channels, warps take tokens in turn; one part
//                                 a block, which add_parts (token_sums.cu) adds up
//
// Same mathematics as ramnet_np/layers/short_conv.py.
#include "layers/token_sums.cuh"


extern "C" __global__ void conv_forward(
    const ELEMENT* x,       // (B, T, D)
    const ELEMENT* weight,  // (D, reach)
    long long elements, int tokens, int width, int reach,
    ELEMENT* y  // (B, T, D)
) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (i >= elements) return;
    const int c = i % width, t = i / width % tokens;
    Acc sum = 0;
    for (int ago = 0; ago < reach && ago <= t; ago++)
        sum += widen(weight[c * reach + reach - 1 - ago]) * widen(x[i - (long long)(ago) * width]);
    y[i] = narrowed(sum);
}

extern "C" __global__ void conv_backward(
    const ELEMENT* dy,      // (B, T, D)
    const ELEMENT* weight,  // (D, reach)
    long long elements, int tokens, int width, int reach,
    ELEMENT* dx  // (B, T, D)
) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (i >= elements) return;
    const int c = i % width, t = i / width % tokens;
    Acc sum = 0;
    for (int later = 0; later < reach && t + later < tokens; later++)
        sum += widen(weight[c * reach + reach - 1 - later]) * widen(dy[i + (long long)(later) * width]);
    dx[i] = narrowed(sum);
}

extern "C" __global__ void conv_weights(
    const ELEMENT* dy,  // (B, T, D)
    const ELEMENT* x,   // (B, S + T, D)
    long long rows, int tokens, int before, int width, int reach,
    Acc* parts  // (blocks, D, reach)
) {
    extern __shared__ double shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    Acc* warp_sums = reinterpret_cast<Acc*>(shared);
    const TokenRange range(rows);
    for (int c = lane; c < width; c += 32) {
        for (int ago = 0; ago < reach; ago++) {
            Acc total = 0;
            for (long long row = range.begin + warp; row < range.end; row += warps) {
                const long long sequence = row / tokens, place = before + row % tokens - ago;
                if (place < 0) continue;
                total += widen(dy[row * width + c]) * widen(x[(sequence * (before + tokens) + place) * width + c]);
            }
            warp_sums[warp * width * reach + c * reach + reach - 1 - ago] = total;
        }
    }
    store_part(warp_sums, width * reach, parts);
}
