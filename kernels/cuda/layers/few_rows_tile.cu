// Products of more than 16 rows with matrices of 16-bit numbers, on the tensor cores: see few_rows.cuh.
//
// Here x is no longer small: what a multiprocessor reads of x and of the matrix together takes the time. A block takes ROWS
// rows of x and TILES times 8 rows of the matrix (gated: of G and U by turns), and the SPLIT blocks of a cluster share out
// D. A block goes through its share in slices of SLICE numbers, SLICES of them. STAGES slices of x and of the matrix are on
// their way to shared memory at a time; those of the matrix are asked for before the launch before has ended. Few warps
// hide little latency, so all that a place in memory depends on is known when compiling, but for one sum in the beginning.
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

#if !defined(INPUTS) || !defined(ROWS) || !defined(TILES) || !defined(SPLIT) || !defined(STAGES) || !defined(NORM)
#error "INPUTS, that is D, ROWS of x, TILES, of 8 rows of the matrix, SPLIT, STAGES, and NORM, 1 for one, must be defined"
#endif

constexpr int WARPS_M = 4, WARPS_N = ROWS / 64, HALVES = 2, THREADS = 32 * WARPS_M * WARPS_N * HALVES;
constexpr int PARTS = ROWS / 16 / WARPS_M, OWN = TILES / WARPS_N;  // of a warp: 16 rows of x, and 8 of the matrix
constexpr int SLICE = 64, CHUNKS = SLICE / VECTOR, ROW_BYTES = 2 * SLICE;
constexpr int SLICES = ((INPUTS + SLICE - 1) / SLICE + SPLIT - 1) / SPLIT;  // of a block; behind D's end they are zeros
constexpr bool WHOLE = SLICES * SPLIT * SLICE == INPUTS;                   // there are none behind the end
constexpr int COLUMNS = 8 * TILES, EACH = COLUMNS / (1 + GATED);          // of a block: rows of the matrices, outputs
constexpr int STAGE = (ROWS + COLUMNS + NORM) * ROW_BYTES;                // twin: _tile_shape of few_rows.py
constexpr int SHARE = ROWS / SPLIT;                               // rows that a block finishes
constexpr int OUTPUTS = (SHARE * EACH + THREADS - 1) / THREADS;   // numbers of y that a thread finishes

static_assert(ROWS % 64 == 0 && ROWS % SPLIT == 0 && TILES % (2 * WARPS_N) == 0, "whole parts, and tiles by twos");
static_assert(2 <= STAGES && STAGES <= SLICES + 1, "a slice on its way beside the one that is multiplied, none for nothing");

// Where a thread stands: its warp's share, and its lane's place in a product.
struct Member {
    int warp = warp_of_thread(), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = warp % WARPS_M * PARTS * 16, tile = warp / WARPS_M % WARPS_N * OWN, half = warp / (WARPS_M * WARPS_N);
};

// What a thread copies: 16 bytes of every slice of some rows of x and of the matrix, RISE rows apart. A block whose
// rows go beyond those of x reads the first rows again. If all blocks read the last one, they would wait for one another.
struct Copies {
    static constexpr int RISE = THREADS / CHUNKS, OF_X = ROWS / RISE, OF_WEIGHTS = (COLUMNS + RISE - 1) / RISE;

    const ELEMENT *x[OF_X], *weight[OF_WEIGHTS], *norm;
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS, begin, left;  // begin: in D; left: numbers from there on
    unsigned place = shared_address(dynamic_shared()) + row * ROW_BYTES + (chunk ^ row % 8) * 16;

    DEVICE Copies(const FewRowsParams& p, Place at, int first_row, int rank) {
        begin = rank * SLICES * SLICE + chunk * VECTOR;
        left = INPUTS - begin;
        begin = left > 0 ? begin : 0;
#pragma unroll
        for (int c = 0; c < OF_X; c++) x[c] = x_row(p, (first_row + row + c * RISE) % p.rows) + begin;
#pragma unroll
        for (int c = 0; c < OF_WEIGHTS; c++) {
            const int column = row + c * RISE, tile = column / 8, e = at.first + tile / (1 + GATED) * 8 + column % 8;
            weight[c] = weight_row(p, at.which, tile % 2, e) + begin;
        }
        norm = p.norm + begin;
    }

    template <bool CONSTANT> DEVICE void copy(int slice, int row_of_stage, const ELEMENT* from) const {
        const unsigned to = place + slice % STAGES * STAGE + row_of_stage * ROW_BYTES;
        if constexpr (WIDE) {
            const bool there = WHOLE || slice * SLICE < left;
            copy_16_bytes(to, from + (there ? slice * SLICE : 0), there);
        } else {
            const auto pack = CONSTANT ? constant_at(from, slice * SLICE, left) : vector_at(from, slice * SLICE, left);
            memcpy(dynamic_shared() + (to - shared_address(dynamic_shared())), &pack, 16);
        }
    }

    DEVICE void copy_weights(int slice) const {
#pragma unroll
        for (int c = 0; c < OF_WEIGHTS; c++)
            if (COLUMNS % RISE == 0 || row + c * RISE < COLUMNS) copy<true>(slice, ROWS + c * RISE, weight[c]);
        if (NORM && row == 0) copy<true>(slice, ROWS + COLUMNS, norm);
    }

    DEVICE void copy_x(int slice) const {
#pragma unroll
        for (int c = 0; c < OF_X; c++) copy<false>(slice, c * RISE, x[c]);
    }
};

// What a lane hands to ldmatrix, of stage 0: its row of x and of the matrix, for each step of 16 numbers.
struct Sources {
    unsigned x[2], weight[2];
    const unsigned* norm;  // pairs of numbers

    DEVICE explicit Sources(const Member& me) {
        const unsigned base = shared_address(dynamic_shared());
        const int matrix = me.lane / 8, row = me.lane % 8;
#pragma unroll
        for (int step = 0; step < 2; step++) {
            const int chunk = 4 * me.half + 2 * step;
            x[step] = base + (me.first + matrix % 2 * 8 + row) * ROW_BYTES + (chunk + matrix / 2 ^ row) * 16;
            weight[step] = base + (ROWS + 8 * (me.tile + matrix / 2) + row) * ROW_BYTES + (chunk + matrix % 2 ^ row) * 16;
        }
        norm = reinterpret_cast<const unsigned*>(dynamic_shared()) + (ROWS + COLUMNS) * ROW_BYTES / 4 + 16 * me.half + me.t;
    }
};

struct Sums {
    float of[PARTS][OWN][4] = {}, squares[PARTS][2] = {};

    // Adds the products of the warp's half of a slice.
    DEVICE void multiply(const Sources& from, const Member& me, int stage) {
#pragma unroll
        for (int step = 0; step < 2; step++) {
            unsigned x[PARTS][4];
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                load_matrices(from.x[step] + stage * STAGE + 16 * part * ROW_BYTES, x[part]);
                if constexpr (NORM) weigh(from.norm + stage * STAGE / 4 + 8 * step, me, x[part], squares[part]);
            }
#pragma unroll
            for (int tile = 0; tile < OWN; tile += 2) {
                unsigned weight[4];
                load_matrices(from.weight[step] + stage * STAGE + 8 * tile * ROW_BYTES, weight);
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    multiply_add(of[part][tile], x[part], weight[0], weight[1], ELEMENT());
                    multiply_add(of[part][tile + 1], x[part], weight[2], weight[3], ELEMENT());
                }
            }
        }
    }

    // x times the norm's weight. The warps with the first tiles add the squares.
    DEVICE static void weigh(const unsigned* norm, const Member& me, unsigned (&x)[4], float (&squares)[2]) {
#pragma unroll
        for (int i = 0; me.tile == 0 && i < 4; i++) {
            ELEMENT two[2];
            memcpy(two, &x[i], 4);
            squares[i % 2] += widen(two[0]) * widen(two[0]);
            squares[i % 2] += widen(two[1]) * widen(two[1]);
        }
        const unsigned weight[2] = {norm[0], norm[4]};
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = multiply_pairs(x[i], weight[i / 2], ELEMENT());
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

#if __CUDA_ARCH__ >= 900  // elsewhere there are no clusters, and SPLIT is 1
extern "C" __cluster_dims__(SPLIT, 1, 1)
#else
extern "C"
#endif
__global__ void __launch_bounds__(THREADS, 512 / THREADS) few_rows(
    const __grid_constant__ FewRowsParams p
) {
    __shared__ float rstd[SHARE];
    const Member me;
    const Place place(p, EACH, blockIdx.x / SPLIT);
    const int rank = SPLIT > 1 ? cluster_rank() : 0, first_row = blockIdx.y * ROWS;
    const Copies copies(p, place, first_row, rank);
    // 1. what no launch before this one writes
#pragma unroll
    for (int slice = 0; slice < STAGES - 1; slice++) copies.copy_weights(slice);
    let_next_launch_begin();
    wait_for_launch_before();
    // 2. products
#pragma unroll
    for (int slice = 0; slice < STAGES - 1; slice++) {
        copies.copy_x(slice);
        end_group_of_copies();
    }
    const Sources sources(me);
    Sums sums;
#pragma unroll(SLICES <= 16 ? SLICES : 1)
    for (int slice = 0; slice < SLICES; slice++) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // the slice is there, and the one before it is no longer needed
        const int next = slice + STAGES - 1;
        if (next < SLICES) {
            copies.copy_weights(next);
            copies.copy_x(next);
        }
        end_group_of_copies();
        sums.multiply(sources, me, slice % STAGES);
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
