// Products of some rows, up to a few hundred, with matrices of 16-bit numbers, on the tensor cores: see few_rows.cuh.
//
// Here x is no longer small: a block that reads all of it must have many outputs. It takes ROWS rows of x and TILES times
// 8 rows of the matrix (gated: of G and U by turns), and goes through D in slices of SLICE numbers. STAGES slices of both
// are on their way to shared memory at a time; those of the matrix are asked for before the launch before has ended.
//
// The warps share out the rows of x (WARPS_M), the tiles (WARPS_N) and the two halves of a slice. Where few outputs would
// leave multiprocessors idle, the SPLIT blocks of a cluster share out the slices. In the end the sums of the halves and of
// the blocks are added, each block those of its share of the rows. The order of a sum depends on D and SPLIT alone.
//
// A row of a slice is 128 bytes, 8 chunks of 16. Chunk c of row r stands at place c ^ r % 8: eight rows of one chunk,
// which ldmatrix takes at once, lie in different banks.
//
//   blockIdx.x / SPLIT   8 * TILES rows of one matrix        blockIdx.y   ROWS rows of x
#include "layers/few_rows.cuh"
#include "layers/mma.cuh"
#include "runtime/cluster.cuh"

#if !defined(ROWS) || !defined(TILES) || !defined(WARPS_N) || !defined(STAGES) || !defined(NORM) || !defined(SPLIT)
#error "ROWS, a multiple of 64, TILES, WARPS_N that share these out, STAGES, NORM, 1 for one, SPLIT must be defined"
#endif

constexpr int WARPS_M = 4, HALVES = 2, THREADS = 32 * WARPS_M * WARPS_N * HALVES;
constexpr int PARTS = ROWS / 16 / WARPS_M, OWN = TILES / WARPS_N;  // of a warp: 16 rows of x, and 8 of the matrix
constexpr int SLICE = 64, CHUNKS = SLICE / VECTOR;
constexpr int COLUMNS = 8 * TILES, EACH = COLUMNS / (1 + GATED);  // of a block: rows of the matrices, outputs
constexpr int SHARED_ROWS = ROWS + COLUMNS + NORM;                // of a stage; twin: _tile_bytes of few_rows.py

static_assert(ROWS % (16 * WARPS_M) == 0 && TILES % WARPS_N == 0 && OWN % (1 + GATED) == 0, "whole tiles for each warp");

// Where a thread stands: its warp's share, and its lane's place in a product.
struct Member {
    int warp = warp_of_thread(), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int m = warp % WARPS_M * PARTS * 16, tile = warp / WARPS_M % WARPS_N * OWN, half = warp / (WARPS_M * WARPS_N);
};

// The stages in shared memory: rows of x, of the matrix, and the norm's weight.
struct Stages {
    unsigned base = shared_address(dynamic_shared());

    DEVICE unsigned place(int slice, int row, int chunk) const {
        return base + ((slice % STAGES * SHARED_ROWS + row) * CHUNKS + (chunk ^ row % 8)) * 16;
    }

    template <bool CONSTANT> DEVICE void copy(int slice, int row, int chunk, const ELEMENT* from, int width) const {
        const int k = slice * SLICE + chunk * VECTOR;
        if constexpr (WIDE) copy_16_bytes(place(slice, row, chunk), from + (k < width ? k : 0), k < width);
        else {
            const auto pack = CONSTANT ? constant_at(from, k, width) : vector_at(from, k, width);
            memcpy(dynamic_shared() + (place(slice, row, chunk) - base), &pack, 16);
        }
    }

    DEVICE void copy_weights(const FewRowsParams& p, Place at, int slice) const {
#pragma unroll
        for (int i = threadIdx.x; i < COLUMNS * CHUNKS; i += THREADS) {
            const int column = i / CHUNKS, tile = column / 8, e = at.first + tile / (1 + GATED) * 8 + column % 8;
            copy<true>(slice, ROWS + column, i % CHUNKS, weight_row(p, at.which, tile % 2, e), p.width);
        }
        if (NORM && threadIdx.x < CHUNKS) copy<true>(slice, ROWS + COLUMNS, threadIdx.x, p.norm, p.width);
    }

    DEVICE void copy_x(const FewRowsParams& p, int first_row, int slice) const {
#pragma unroll
        for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS)
            copy<false>(slice, i / CHUNKS, i % CHUNKS, x_row(p, first_row + i / CHUNKS), p.width);
    }
};

// Two numbers of x times those of the norm's weight; their squares are added.
DEVICE void weigh(unsigned& x, unsigned norm, float& squares) {
    ELEMENT two[2], weight[2];
    memcpy(two, &x, 4);
    memcpy(weight, &norm, 4);
    const float low = widen(two[0]), high = widen(two[1]);
    squares += low * low;
    squares += high * high;
    x = packed(low * widen(weight[0]), high * widen(weight[1]), ELEMENT());
}

struct Sums {
    float of[PARTS][OWN][4] = {}, squares[PARTS][2] = {};

    // Adds the products of the warp's half of a slice.
    DEVICE void multiply(const Stages& stages, const Member& me, int slice) {
        unsigned x[2][PARTS][4];
#pragma unroll
        for (int step = 0; step < 2; step++) {
            const int chunk = 4 * me.half + 2 * step, matrix = me.lane / 8;
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                const int row = me.m + 16 * part + matrix % 2 * 8 + me.lane % 8;
                load_matrices(stages.place(slice, row, chunk + matrix / 2), x[step][part]);
                if constexpr (NORM) scale(stages, me, slice, chunk, x[step][part], squares[part]);
            }
        }
#pragma unroll
        for (int tile = 0; tile < OWN; tile++) {
            unsigned weight[4];
            const int row = ROWS + 8 * (me.tile + tile) + me.lane % 8;
            load_matrices(stages.place(slice, row, 4 * me.half + me.lane / 8), weight);
#pragma unroll
            for (int step = 0; step < 2; step++)
#pragma unroll
                for (int part = 0; part < PARTS; part++)
                    multiply_add(of[part][tile], x[step][part], weight[2 * step], weight[2 * step + 1], ELEMENT());
        }
    }

    DEVICE static void scale(
        const Stages& stages, const Member& me, int slice, int chunk, unsigned (&x)[4], float (&squares)[2]
    ) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned norm;
            const unsigned place = stages.place(slice, ROWS + COLUMNS, chunk + i / 2) + 4 * me.t;
            memcpy(&norm, dynamic_shared() + (place - stages.base), 4);
            weigh(x[i], norm, squares[i % 2]);
        }
    }
};

// The sums of each half of the slices, where the slices were.
struct Partial {
    float sums[HALVES][ROWS][COLUMNS + 2], squares[HALVES][ROWS];

    DEVICE void put(const Member& me, const Sums& own) {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                const int row = me.m + 16 * part + 8 * side + me.g;
                float square = own.squares[part][side];
                square += __shfl_xor_sync(~0u, square, 1);
                square += __shfl_xor_sync(~0u, square, 2);
                squares[me.half][row] = square;  // the same from all that write it
#pragma unroll
                for (int tile = 0; tile < OWN; tile++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        sums[me.half][row][8 * (me.tile + tile) + 2 * me.t + i] = own.of[part][tile][2 * side + i];
            }
    }

    DEVICE float total(int row, int column) const {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < SPLIT * HALVES; i++) sum += of_block(i / HALVES, &sums[i % HALVES][row][column]);
        return sum;
    }

    DEVICE float rstd(const FewRowsParams& p, int row) const {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < SPLIT * HALVES; i++) sum += of_block(i / HALVES, &squares[i % HALVES][row]);
        return reciprocal_root(sum / p.width + p.eps);
    }

    DEVICE static float of_block(int rank, const float* own) { return SPLIT > 1 ? load_of_block(rank, own) : *own; }
};

DEVICE void synchronise() {
    if (SPLIT > 1) cluster_sync();
    else __syncthreads();
}

// The last steps, of the block's share of the rows.
DEVICE void finish(const FewRowsParams& p, const Place& place, const Partial& partial, int first_row, int rank) {
    constexpr int SHARE = ROWS / SPLIT;
#pragma unroll 2
    for (int i = threadIdx.x; i < SHARE * EACH; i += THREADS) {
        const int row = rank * SHARE + i / EACH, n = first_row + row, column = i % EACH, e = place.first + column;
        if (!there(p, place.which, n, e)) continue;
        const float rstd = NORM ? partial.rstd(p, row) : 1;
        float y;
        if constexpr (GATED) {
            const int gate = column / 8 * 16 + column % 8;  // tiles of G and of U by turns
            y = gated(rstd * partial.total(row, gate), rstd * partial.total(row, gate + 8));
        } else {
            const ELEMENT bias = bias_of(p, place.which, e), add = added(p, place.which, n, e);
            y = rstd * partial.total(row, column) + widen(bias) + widen(add);
        }
        put(p, place.which, n, e, y);
    }
}

extern "C" CLUSTER_OF(SPLIT) __global__ void __launch_bounds__(THREADS) few_rows(const __grid_constant__ FewRowsParams p) {
    const Member me;
    const Place place(p, EACH, blockIdx.x / SPLIT);
    const Stages stages;
    const int rank = SPLIT > 1 ? cluster_rank() : 0, first_row = blockIdx.y * ROWS;
    const int slices = (p.width + SLICE - 1) / SLICE, share = (slices + SPLIT - 1) / SPLIT;
    const int begin = rank * share, end = smaller_of(slices, begin + share);
#pragma unroll 1
    for (int slice = begin; slice < begin + STAGES - 1 && slice < end; slice++) stages.copy_weights(p, place, slice);
    if (!GATED && p.bias[place.which] && threadIdx.x < 1 + COLUMNS / 64)
        prefetch(p.bias[place.which] + smaller_of(place.first + 64 * int(threadIdx.x), p.outputs[place.which] - 1));
    let_next_launch_begin();
    wait_for_launch_before();
#pragma unroll 1
    for (int slice = begin; slice < begin + STAGES - 1; slice++) {
        if (slice < end) stages.copy_x(p, first_row, slice);
        end_group_of_copies();
    }
    Sums sums;
#pragma unroll 1
    for (int slice = begin; slice < end; slice++) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // the slice is there, and the one before it is no longer needed
        const int next = slice + STAGES - 1;
        if (next < end) {
            stages.copy_weights(p, place, next);
            stages.copy_x(p, first_row, next);
        }
        end_group_of_copies();
        sums.multiply(stages, me, slice);
    }
    __syncthreads();
    Partial& partial = *reinterpret_cast<Partial*>(dynamic_shared());
    partial.put(me, sums);
    synchronise();
    finish(p, place, partial, first_row, rank);
    if (SPLIT > 1) cluster_sync();  // until then the others read
}
