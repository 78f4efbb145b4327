// Sums over tokens: the gradient of a bias, and the second step of every such sum.
//
//   column_sums   a lane has EACH columns at a time (16 bytes where the width allows it, else one); the warps of a block
//                 take its tokens in turn; leaves one part a block
//   add_parts     one block COLUMNS columns: adds up the parts of all blocks
//
// Same mathematics as sum_over_tokens in ramnet_np/layers/linear.py.
#include "layers/token_sums.cuh"

#ifndef ADDERS
#error "ADDERS must be defined: how many threads share the parts of a column"
#endif
#ifndef COLUMNS
#error "COLUMNS must be defined: how many columns a block adds up"
#endif

template <int EACH>
DEVICE void sum_columns(const ELEMENT* x, const TokenRange& tokens, int warp, int warps, int width, Acc* sums) {
    for (int c = EACH * (threadIdx.x % 32); c < width; c += EACH * 32) {
        Acc total[EACH] = {}, xs[EACH];
#pragma unroll 4
        for (long long row = tokens.begin + warp; row < tokens.end; row += warps) {
            load<EACH>(x + row * width + c, xs);
#pragma unroll
            for (int j = 0; j < EACH; j++) total[j] += xs[j];
        }
        store<EACH>(total, sums + c);
    }
}

extern "C" __global__ void column_sums(
    const ELEMENT* x,  // (N, D)
    long long rows, int width,
    Acc* parts  // (blocks, D)
) {
    extern __shared__ __align__(16) double shared[];
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    Acc* warp_sums = reinterpret_cast<Acc*>(shared);
    const TokenRange tokens(rows);
    Acc* sums = warp_sums + warp * width;  // of this warp
    if (width % VECTOR == 0) sum_columns<VECTOR>(x, tokens, warp, warps, width, sums);
    else sum_columns<1>(x, tokens, warp, warps, width, sums);
    store_part(warp_sums, width, parts);
}

// A block of COLUMNS by ADDERS threads: ADDERS threads share the parts of a column, then one adds their sums.
extern "C" __global__ void add_parts(
    const Acc* parts,  // (count, columns)
    int count, int columns,
    Acc* sums  // (columns,)
) {
    __shared__ Acc partials[ADDERS][COLUMNS];
    const int lane = threadIdx.x % COLUMNS, adder = threadIdx.x / COLUMNS, c = blockIdx.x * COLUMNS + lane;
    Acc total = 0;
    if (c < columns) {
        for (int part = adder; part < count; part += ADDERS) total += parts[part * (long long)(columns) + c];
    }
    partials[adder][lane] = total;
    __syncthreads();
    if (adder || c >= columns) return;
    for (int other = 1; other < ADDERS; other++) total += partials[other][lane];
    sums[c] = total;
}
