// Products of a few rows with matrices of float or double: see few_rows.cuh.
//
// Who computes what: a warp takes two rows of the matrix (gated: one of G and the same of U) and all of D, 16 bytes a
// lane at a time; its lanes add in a tree. So a number of y is one warp's, and nothing waits but for the norm.
//
//   blockIdx.x   WARPS * OUTPUTS rows of one matrix        blockIdx.y   ROWS rows of x
#include "layers/few_rows.cuh"

#ifndef ROWS
#error "ROWS must be defined: the rows of x that a warp multiplies its rows of the matrix with, at most 16"
#endif

constexpr int WARPS = 4, OUTPUTS = 2;
constexpr int EACH = WARPS * OUTPUTS / (1 + GATED);  // outputs of a block
constexpr int AHEAD = 4;                             // loads of a row of the matrix that are under way

struct Weights {
    Pack<ELEMENT, VECTOR> part[AHEAD][OUTPUTS];

    DEVICE Weights(const ELEMENT* const (&row)[OUTPUTS], int k, int width) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++) part[a][o] = constant_at(row[o], k + a * 32 * VECTOR, width);
    }
};

// rstd = 1 / sqrt(mean(x^2) + eps) of COUNT rows of x from ``first`` on, one warp a row.
template <int COUNT> DEVICE void find_rstd(const FewRowsParams& p, int first, Acc (&rstd)[COUNT]) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int n = threadIdx.x / 32; n < COUNT && first + n < p.rows; n += warps) {
        const ELEMENT* row = x_row(p, first + n);
        Acc squares = 0;
#pragma unroll 4
        for (int k = VECTOR * lane; k < p.width; k += VECTOR * 32) {
            const Pack<ELEMENT, VECTOR> pack = vector_at(row, k, p.width);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) squares += widen(pack.element[j]) * widen(pack.element[j]);
        }
        squares = warp_sum(squares);
        if (lane == 0) rstd[n] = reciprocal_root(squares / p.width + p.eps);
    }
}

// Adds the products of one vector of x with those of the matrix, which stand at the same place.
DEVICE void multiply(
    const FewRowsParams& p, int first_row, int k, const Acc* rstd, const Pack<ELEMENT, VECTOR> (&weight)[OUTPUTS],
    Acc (&sums)[OUTPUTS][ROWS]
) {
    Pack<ELEMENT, VECTOR> norm;
    if (p.norm) norm = constant_at(p.norm, k, p.width);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        Pack<ELEMENT, VECTOR> x = vector_at(x_row(p, first_row + r), k, p.width);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            if (p.norm) x.element[j] = x.element[j] * rstd[r] * norm.element[j];
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++) sums[o][r] += weight[o].element[j] * x.element[j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) few_rows(const __grid_constant__ FewRowsParams p) {
    __shared__ Acc rstd[ROWS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first_row = blockIdx.y * ROWS;
    const Place place(p, EACH, blockIdx.x);
    const int first = place.first + warp * OUTPUTS / (1 + GATED);
    const ELEMENT* row[OUTPUTS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) row[o] = weight_row(p, place.which, o, first + (GATED ? 0 : o));

    Acc sums[OUTPUTS][ROWS] = {};
    Weights weights(row, VECTOR * lane, p.width);  // under way while the norm is found
    let_next_launch_begin();
    wait_for_launch_before();
    if (p.norm) {
        find_rstd(p, first_row, rstd);
        __syncthreads();
    }
    for (int k = VECTOR * lane; k < p.width; k += VECTOR * 32 * AHEAD) {
        const Weights next(row, k + VECTOR * 32 * AHEAD, p.width);
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            if (k + a * 32 * VECTOR < p.width)
                multiply(p, first_row, k + a * 32 * VECTOR, rstd, weights.part[a], sums);
        weights = next;
    }
    // lane r finishes row r
    Acc own[OUTPUTS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            const Acc sum = warp_sum(sums[o][r]);
            if (lane == r) own[o] = sum;
        }
    if (lane >= ROWS) return;
    const int n = first_row + lane;
    if constexpr (GATED) {
        if (there(p, 0, n, first)) put(p, 0, n, first, gated(own[0], own[1]));
    } else {
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            const int e = first + o, which = place.which;
            if (there(p, which, n, e)) put(p, which, n, e, own[o] + bias_of(p, which, e) + added(p, which, n, e));
        }
    }
}
