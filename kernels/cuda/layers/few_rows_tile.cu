// Products of more than 16 rows with matrices of 16-bit numbers, on the tensor cores: see few_rows.cuh.
//
// Here x is no longer small: what a multiprocessor reads of x and of the matrix together takes the time. A block takes ROWS
// rows of x and TILES times 8 rows of the matrix (gated: of G and U by turns), and the SPLIT blocks of a cluster share out
// D. A block goes through its share in slices of SLICE numbers. STAGES slices of x and of the matrix are on their way to
// shared memory at a time; those of the matrix are asked for before the launch before has ended.
//
// The warps share out the rows of x (WARPS_M), the tiles (WARPS_N) and the two halves of a slice. In the end each block of
// a cluster adds the sums of all of them for its share of the rows. The order of a sum depends on D and SPLIT alone.
//
// A row of a slice is 128 bytes, 8 chunks of 16. Chunk c of row r stands at place c ^ r % 8: eight rows of one chunk,
// which ldmatrix takes at once, lie in different banks.
//
//   blockIdx.x / SPLIT   8 * TILES rows of one matrix        blockIdx.y   ROWS rows of x
#include "layers/few_rows.cuh"
#include "layers/mma.cuh"
#include "runtime/cluster.cuh"

#if !defined(ROWS) || !defined(TILES) || !defined(SPLIT) || !defined(STAGES) || !defined(NORM)
#error "ROWS of x, a multiple of 64, TILES, of 8 rows of the matrix, SPLIT, STAGES, and NORM, 1 for one, must be defined"
#endif

constexpr int WARPS_M = 4, WARPS_N = ROWS / 64, HALVES = 2, THREADS = 32 * WARPS_M * WARPS_N * HALVES;
constexpr int PARTS = ROWS / 16 / WARPS_M, OWN = TILES / WARPS_N;  // of a warp: 16 rows of x, and 8 of the matrix
constexpr int SLICE = 64, CHUNKS = SLICE / VECTOR;
constexpr int COLUMNS = 8 * TILES, EACH = COLUMNS / (1 + GATED);  // of a block: rows of the matrices, outputs
constexpr int SHARED_ROWS = ROWS + COLUMNS + NORM;                // of a stage; twin: _tile_shape of few_rows.py
constexpr int SHARE = ROWS / SPLIT;                               // rows that a block finishes
constexpr int OUTPUTS = (SHARE * EACH + THREADS - 1) / THREADS;   // numbers of y that a thread finishes

static_assert(ROWS % 64 == 0 && ROWS % SPLIT == 0 && TILES % (2 * WARPS_N) == 0, "whole parts, and tiles by twos");

// Where a thread stands: its warp's share, and its lane's place in a product.
struct Member {
    int warp = warp_of_thread(), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = warp % WARPS_M * PARTS * 16, tile = warp / WARPS_M % WARPS_N * OWN, half = warp / (WARPS_M * WARPS_N);
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

struct Sums {
    float of[PARTS][OWN][4] = {}, squares[PARTS][2] = {};

    // Adds the products of the warp's half of a slice.
    DEVICE void multiply(const Stages& stages, const Member& me, int slice) {
        const int matrix = me.lane / 8;
#pragma unroll
        for (int step = 0; step < 2; step++) {
            const int chunk = 4 * me.half + 2 * step;
            unsigned x[PARTS][4];
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                const int row = me.first + 16 * part + matrix % 2 * 8 + me.lane % 8;
                load_matrices(stages.place(slice, row, chunk + matrix / 2), x[part]);
                if constexpr (NORM) weigh(stages, me, slice, chunk, x[part], squares[part]);
            }
#pragma unroll
            for (int tile = 0; tile < OWN; tile += 2) {
                unsigned weight[4];
                const int row = ROWS + 8 * (me.tile + tile + matrix / 2) + me.lane % 8;
                load_matrices(stages.place(slice, row, chunk + matrix % 2), weight);
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    multiply_add(of[part][tile], x[part], weight[0], weight[1], ELEMENT());
                    multiply_add(of[part][tile + 1], x[part], weight[2], weight[3], ELEMENT());
                }
            }
        }
    }

    // x times the norm's weight; its squares are added.
    DEVICE static void weigh(
        const Stages& stages, const Member& me, int slice, int chunk, unsigned (&x)[4], float (&squares)[2]
    ) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned norm;
            const unsigned place = stages.place(slice, ROWS + COLUMNS, chunk + i / 2) + 4 * me.t;
            memcpy(&norm, dynamic_shared() + (place - stages.base), 4);
            ELEMENT two[2];
            memcpy(two, &x[i], 4);
            squares[i % 2] += widen(two[0]) * widen(two[0]);
            squares[i % 2] += widen(two[1]) * widen(two[1]);
            x[i] = multiply_pairs(x[i], norm, ELEMENT());
        }
    }
};

// The sums of a block, where the slices were.
struct Partial {
    float sums[ROWS][COLUMNS + 8], squares[HALVES][ROWS];  // 8 more, so that a warp's rows lie in different banks

    // The second halves come first; the first ones add theirs.
    DEVICE void put(const Member& me, const Sums& own) {
        if (me.half > 0) put_half(me, own, false);
        __syncthreads();
        if (me.half == 0) put_half(me, own, true);
    }

    DEVICE void put_half(const Member& me, const Sums& own, bool add) {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                const int row = me.first + 16 * part + 8 * side + me.g;
                float square = own.squares[part][side];
                square += __shfl_xor_sync(~0u, square, 1);
                square += __shfl_xor_sync(~0u, square, 2);
                if (NORM && me.tile == 0 && me.t == 0) squares[me.half][row] = square;
#pragma unroll
                for (int tile = 0; tile < OWN; tile++) {
                    float2* const place = reinterpret_cast<float2*>(&sums[row][8 * (me.tile + tile) + 2 * me.t]);
                    float2 sum = make_float2(own.of[part][tile][2 * side], own.of[part][tile][2 * side + 1]);
                    if (add) sum.x += place->x, sum.y += place->y;
                    *place = sum;
                }
            }
    }

    DEVICE float total(int row, int column) const {
        float sum = 0;
#pragma unroll
        for (int rank = 0; rank < SPLIT; rank++) sum += of_block(rank, &sums[row][column]);
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

DEVICE void synchronise_cluster() {
    if (SPLIT > 1) cluster_sync();
    else __syncthreads();
}

// The numbers of y that a thread finishes: row ``n`` of the block's share and output ``e`` of the block's.
struct Finish {
    ELEMENT bias[OUTPUTS], add[OUTPUTS];  // widened when they are used: until then nothing waits for them
    int first_row;                        // of the block's share, in x

    DEVICE static int n(int o) { return (threadIdx.x + o * THREADS) / EACH; }
    DEVICE static int e(int o) { return (threadIdx.x + o * THREADS) % EACH; }

    DEVICE Finish(const FewRowsParams& p, const Place& place, int first_row) : first_row(first_row) {
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            bias[o] = GATED ? ELEMENT{} : bias_of(p, place.which, place.first + e(o));
            add[o] = GATED ? ELEMENT{} : added(p, place.which, first_row + n(o), place.first + e(o));
        }
    }

    // ``share``: the first row of the block's share; ``rstd``: of each of its rows.
    DEVICE void run(const FewRowsParams& p, const Place& place, const Partial& partial, int share, const float* rstd) {
#pragma unroll(OUTPUTS <= 8 ? OUTPUTS : 4)
        for (int o = 0; o < OUTPUTS; o++) {
            if (n(o) >= SHARE || !there(p, place.which, first_row + n(o), place.first + e(o))) continue;
            const float scale = NORM ? rstd[n(o)] : 1;
            float y;
            if constexpr (GATED) {
                const int column = e(o) / 8 * 16 + e(o) % 8;  // tiles of G and of U by turns
                y = gated(scale * partial.total(share + n(o), column), scale * partial.total(share + n(o), column + 8));
            } else {
                y = scale * partial.total(share + n(o), e(o)) + widen(bias[o]) + widen(add[o]);
            }
            put(p, place.which, first_row + n(o), place.first + e(o), y);
        }
    }
};

extern "C" CLUSTER_OF(SPLIT) __global__ void __launch_bounds__(THREADS, 512 / THREADS) few_rows(
    const __grid_constant__ FewRowsParams p
) {
    __shared__ float rstd[SHARE];
    const Member me;
    const Place place(p, EACH, blockIdx.x / SPLIT);
    const Stages stages;
    const int rank = SPLIT > 1 ? cluster_rank() : 0, first_row = blockIdx.y * ROWS;
    const int slices = (p.width + SLICE - 1) / SLICE, share = (slices + SPLIT - 1) / SPLIT;
    const int begin = rank * share, end = smaller_of(slices, begin + share);
    // 1. what no launch before this one writes
#pragma unroll 1
    for (int slice = begin; slice < begin + STAGES - 1 && slice < end; slice++) stages.copy_weights(p, place, slice);
    let_next_launch_begin();
    wait_for_launch_before();
    // 2. products
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
    // 3. sums of the cluster
    Partial& partial = *reinterpret_cast<Partial*>(dynamic_shared());
    partial.put(me, sums);
    Finish finish(p, place, first_row + rank * SHARE);
    synchronise_cluster();
    if (NORM) {
        if (threadIdx.x < SHARE) rstd[threadIdx.x] = partial.rstd(p, rank * SHARE + threadIdx.x);
        __syncthreads();
    }
    finish.run(p, place, partial, rank * SHARE, rstd);
    if (SPLIT > 1) cluster_sync();  // until then the others read
}
