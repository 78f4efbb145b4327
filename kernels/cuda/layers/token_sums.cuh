// Sums over tokens, first step: every block sums its share of the tokens and leaves one part, (blocks, columns) in all;
// add_parts (token_sums.cu) adds the parts. Tokens are split the same way on every GPU, and added in a fixed order.
#pragma once
#include "layers/element.cuh"

// The tokens of this block, [begin, end): tokens are dealt out to the blocks of the grid evenly.
struct TokenRange {
    long long begin, end;

    DEVICE explicit TokenRange(long long rows) {
        const long long each = (rows + gridDim.x - 1) / gridDim.x;
        begin = smaller_of(blockIdx.x * each, rows);
        end = smaller_of(begin + each, rows);
    }
};

// Adds the sums of the block's warps, (warps, columns) in shared memory, and stores them as this block's part.
DEVICE void store_part(const Acc* warp_sums, int columns, Acc* parts) {
    __syncthreads();
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
        Acc total = 0;
        for (int warp = 0; warp < blockDim.x / 32; warp++) total += warp_sums[warp * columns + c];
        parts[blockIdx.x * (long long)(columns) + c] = total;
    }
}
