// Products of a few rows with matrices of 16-bit numbers, on the tensor cores: see few_rows.cuh.
//
// Who computes what: a block takes TILES times 8 rows of the matrix (gated: of G and U by turns) and ROWS rows of x. Its
// WARPS share out D, CHUNK numbers at a time, and their sums are added in the end, from first warp to last.
//
// A tensor core multiplies 16 rows of x by 8 rows of the matrix over 16 places of D. Which 16 is free, as long as both
// sides agree: lane (g, t) takes the 16 bytes from number 8 t on, of 32 numbers of row g, and gives four of the eight to
// each of two products. So the numbers go from memory to the tensor core as they were loaded, in accesses of 16 bytes,
// with no way through shared memory. Most of a product is empty for one row of x; memory is what it waits for.
//
//   blockIdx.x   8 * TILES rows of one matrix        blockIdx.y   ROWS rows of x
#include "layers/few_rows.cuh"
#include "layers/mma.cuh"

#if !defined(ROWS) || !defined(TILES)
#error "ROWS, a multiple of 16, and TILES must be defined: 16 rows of x and 8 rows of the matrix are one product"
#endif

constexpr int WARPS = 8, CHUNK = 64;  // numbers of a row: 128 bytes
constexpr int PARTS = ROWS / 16;
constexpr int DEPTH = TILES == 1 ? 4 : 2;      // chunks of a warp whose loads are under way
constexpr int STEP = WARPS * CHUNK;            // from one chunk of a warp to its next
constexpr int EACH = 8 * TILES / (1 + GATED);  // outputs of a block

static_assert(ROWS % 16 == 0 && TILES % (1 + GATED) == 0, "whole products");

union Vector {
    Pack<ELEMENT, 8> pack;
    unsigned pair[4];
};

// Where a lane stands in a product.
struct Lane {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
};

// A chunk of the lane's rows of the matrix, one row a tile.
struct Weights {
    Vector part[2][TILES];

    DEVICE void load(const ELEMENT* const (&row)[TILES], int k, int width) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            part[0][tile].pack = vector_at(row[tile], k, width);
            part[1][tile].pack = vector_at(row[tile], k + CHUNK / 2, width);
        }
    }
};

DEVICE void normalise(Vector& x, const Vector& norm, float rstd) {
#pragma unroll
    for (int j = 0; j < 8; j++)
        x.pack.element[j] = narrowed(widen(x.pack.element[j]) * rstd * widen(norm.pack.element[j]));
}

// Adds the products of 32 places of D, the lane's from ``k`` on.
DEVICE void multiply(
    const FewRowsParams& p, int first_row, Lane lane, int k, const float* rstd, const Vector (&weight)[TILES],
    float (&sums)[PARTS][TILES][4]
) {
    Vector norm;
    if (p.norm) norm.pack = vector_at(p.norm, k, p.width);
#pragma unroll
    for (int m = 0; m < PARTS; m++) {
        const int row = 16 * m + lane.g;
        Vector low, high;  // of rows g and g + 8
        low.pack = vector_at(x_row(p, first_row + row), k, p.width);
        high.pack = vector_at(x_row(p, first_row + row + 8), k, p.width);
        if (p.norm) {
            normalise(low, norm, rstd[row]);
            normalise(high, norm, rstd[row + 8]);
        }
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const unsigned x[4] = {low.pair[i], high.pair[i], low.pair[i + 1], high.pair[i + 1]};
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                multiply_add(sums[m][tile], x, weight[tile].pair[i], weight[tile].pair[i + 1], ELEMENT());
        }
    }
}

// Adds the sums of the warps for 16 rows of x, and finishes them.
DEVICE void add_warps(
    const FewRowsParams& p, Place place, int first_row, Lane lane, const float (&sums)[TILES][4],
    float (&partial)[WARPS][16][8 * TILES]
) {
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) partial[warp][lane.g + i / 2 * 8][8 * tile + 2 * lane.t + i % 2] = sums[tile][i];
    __syncthreads();
    const auto total = [&](int n, int column) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += partial[w][n][column];
        return sum;
    };
    for (int i = threadIdx.x; i < 16 * EACH; i += 32 * WARPS) {
        const int n = i / EACH, e = i % EACH;
        if constexpr (GATED) {
            const int column = e / 8 * 16 + e % 8;  // tiles of G and of U by turns
            finish_gated(p, first_row + n, place.first + e, total(n, column), total(n, column + 8));
        } else {
            finish(p, place.which, first_row + n, place.first + e, total(n, e));
        }
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, PARTS == 1 ? 2 : 1) few_rows(const __grid_constant__ FewRowsParams p) {
    __shared__ float partial[WARPS][16][8 * TILES], rstd[ROWS];
    const Lane lane;
    const int first_row = blockIdx.y * ROWS, start = threadIdx.x / 32 * CHUNK + 8 * lane.t;
    const Place place(p, EACH);
    const ELEMENT* row[TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
        row[tile] = weight_row(p, place.which, tile % 2, place.first + tile / (1 + GATED) * 8 + lane.g);

    float sums[PARTS][TILES][4] = {};
    Weights weights[DEPTH];  // under way while the norm is found
#pragma unroll
    for (int d = 0; d < DEPTH; d++) weights[d].load(row, start + d * STEP, p.width);
    if (p.norm) {
        find_rstd(p, first_row, rstd);
        __syncthreads();
    }
#pragma unroll(PARTS * TILES < 4 ? 2 : 1)
    for (int k = start; k - 8 * lane.t < p.width; k += STEP) {
        multiply(p, first_row, lane, k, rstd, weights[0].part[0], sums);
        multiply(p, first_row, lane, k + CHUNK / 2, rstd, weights[0].part[1], sums);
#pragma unroll
        for (int d = 1; d < DEPTH; d++) weights[d - 1] = weights[d];
        weights[DEPTH - 1].load(row, k + DEPTH * STEP, p.width);
    }
#pragma unroll
    for (int m = 0; m < PARTS; m++) add_warps(p, place, first_row + 16 * m, lane, sums[m], partial);
}
