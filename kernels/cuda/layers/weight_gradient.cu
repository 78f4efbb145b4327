// The gradient of a weight, dW = A^T B with A (N, E), B (N, D): a product whose sums run over all tokens while the
// result is small. A product made for large results would leave most of the GPU idle.
//
//   weight_gradient_splitk   one block a share of the tokens and a tile of TILE by TILE results, four by four a thread;
//                            leaves one part a share, which add_parts (token_sums.cu) adds up in order
#include "runtime/common.cuh"

#ifndef ELEMENT
#error "ELEMENT must be defined: the type of the arrays, float or double"
#endif
#ifndef TILE
#error "TILE must be defined: the results a side of a block"
#endif
#ifndef DEPTH
#error "DEPTH must be defined: the tokens of a round"
#endif
#ifndef THREADS
#error "THREADS must be defined: the threads of a block"
#endif

constexpr int EACH = DEPTH * TILE / THREADS;  // elements of one matrix that a thread fetches a round
constexpr int THREADS_A_SIDE = TILE / 4;      // with four by four results each
static_assert(THREADS_A_SIDE * THREADS_A_SIDE == THREADS, "a thread has four by four results of a tile");

// Loads a thread's elements of the tokens from ``row`` on, zero where there are none.
DEVICE void fetch(const ELEMENT* x, long long row, long long end, int width, int first, ELEMENT (&fetched)[EACH]) {
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const int i = threadIdx.x + j * THREADS, c = first + i % TILE;
        const long long r = row + i / TILE;
        fetched[j] = r < end && c < width ? x[r * width + c] : ELEMENT(0);
    }
}

// Stores them to the tile in shared memory.
DEVICE void store_to_tile(const ELEMENT (&fetched)[EACH], ELEMENT (&tile)[DEPTH][TILE]) {
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const int i = threadIdx.x + j * THREADS;
        tile[i / TILE][i % TILE] = fetched[j];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) weight_gradient_splitk(
    const ELEMENT* a,  // (N, E)
    const ELEMENT* b,  // (N, D)
    long long rows, int outputs, int width,
    ELEMENT* parts  // (shares, E, D)
) {
    __shared__ alignas(16) ELEMENT a_tile[DEPTH][TILE];
    __shared__ alignas(16) ELEMENT b_tile[DEPTH][TILE];
    const long long each = (rows + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * each;
    const long long end = begin + each < rows ? begin + each : rows;
    const int e = blockIdx.y * TILE, d = blockIdx.z * TILE;
    const int down = threadIdx.x / THREADS_A_SIDE * 4, across = threadIdx.x % THREADS_A_SIDE * 4;
    ELEMENT sums[4][4] = {}, next_a[EACH], next_b[EACH];
    fetch(a, begin, end, outputs, e, next_a);
    fetch(b, begin, end, width, d, next_b);
    for (long long row = begin; row < end; row += DEPTH) {
        __syncthreads();  // the last round has been read
        store_to_tile(next_a, a_tile);
        store_to_tile(next_b, b_tile);
        __syncthreads();
        fetch(a, row + DEPTH, end, outputs, e, next_a);
        fetch(b, row + DEPTH, end, width, d, next_b);
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            ELEMENT as[4], bs[4];
            load<4>(&a_tile[k][down], as);
            load<4>(&b_tile[k][across], bs);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] += as[i] * bs[j];
            }
        }
    }
    parts += blockIdx.x * (long long)(outputs) * width;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int row = e + down + i, column = d + across + j;
            if (row < outputs && column < width) parts[row * (long long)(width) + column] = sums[i][j];
        }
    }
}
