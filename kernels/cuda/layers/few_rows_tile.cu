// Products of 17 to 64 rows with matrices of 16-bit numbers, on the tensor cores: see few_rows.cuh.
//
// Here x is no longer small, and each warp reads a part of it alone. A block takes ROWS rows of x and TILES times 8 rows of
// the matrix (gated: of G and U by turns), and goes through D in slices of SLICE numbers. STAGES slices of both are on
// their way to shared memory at a time; those of the matrix are asked for before the launch before has ended.
//
// Four warps share out the rows of x, and so do four others for the second half of every slice. The sums of the halves are
// added in the end. So the order of a sum depends on D alone.
//
// A row of a slice is 128 bytes, 8 chunks of 16. Chunk c of row r stands at place c ^ r % 8: eight rows of one chunk,
// which ldmatrix takes at once, lie in different banks.
//
//   blockIdx.x   8 * TILES rows of one matrix        blockIdx.y   ROWS rows of x
#include "layers/few_rows.cuh"
#include "layers/mma.cuh"
#include "runtime/shared.cuh"

#if !defined(TILES) || !defined(STAGES) || !defined(NORM)
#error "TILES, of 8 rows of the matrix, STAGES, slices under way, and NORM, 1 for a norm of x, must be defined"
#endif

constexpr int ROWS = 64, HALVES = 2, WARPS = ROWS / 16 * HALVES, THREADS = 32 * WARPS;
constexpr int SLICE = 64, CHUNKS = SLICE / VECTOR;
constexpr int COLUMNS = 8 * TILES, EACH = COLUMNS / (1 + GATED);  // of a block: rows of the matrices, outputs
constexpr int SHARED_ROWS = ROWS + COLUMNS + NORM;                // of a stage; twin: _tile_shape of few_rows.py

static_assert(TILES % (1 + GATED) == 0, "as many rows of U as of G");

// Where a thread stands: its warp's first row of x and half of a slice, and its lane's place in a product.
struct Member {
    int warp = warp_of_thread(), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = warp % (ROWS / 16) * 16, half = warp / (ROWS / 16);
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
    float of[TILES][4] = {}, squares[2] = {};

    // Adds the products of the warp's half of a slice.
    DEVICE void multiply(const Stages& stages, const Member& me, int slice) {
        unsigned x[2][4];
#pragma unroll
        for (int step = 0; step < 2; step++) {
            const int chunk = 4 * me.half + 2 * step, matrix = me.lane / 8;
            const int row = me.first + matrix % 2 * 8 + me.lane % 8;
            load_matrices(stages.place(slice, row, chunk + matrix / 2), x[step]);
            if constexpr (NORM) scale(stages, me, slice, chunk, x[step]);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            unsigned weight[4];
            load_matrices(stages.place(slice, ROWS + 8 * tile + me.lane % 8, 4 * me.half + me.lane / 8), weight);
#pragma unroll
            for (int step = 0; step < 2; step++)
                multiply_add(of[tile], x[step], weight[2 * step], weight[2 * step + 1], ELEMENT());
        }
    }

    DEVICE void scale(const Stages& stages, const Member& me, int slice, int chunk, unsigned (&x)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned norm;
            const unsigned place = stages.place(slice, ROWS + COLUMNS, chunk + i / 2) + 4 * me.t;
            memcpy(&norm, dynamic_shared() + (place - stages.base), 4);
            weigh(x[i], norm, squares[i % 2]);
        }
    }
};

// What the second halves leave for the first.
struct Partial {
    float sums[ROWS][COLUMNS + 1], squares[HALVES][ROWS];

    DEVICE void put(const Member& me, const Sums& own) {
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const int row = me.first + 8 * side + me.g;
            float square = own.squares[side];
            square += __shfl_xor_sync(~0u, square, 1);
            square += __shfl_xor_sync(~0u, square, 2);
            squares[me.half][row] = square;  // the same from all four
            if (me.half == 0) continue;
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                for (int i = 0; i < 2; i++) sums[row][8 * tile + 2 * me.t + i] = own.of[tile][2 * side + i];
        }
    }
};

// The last steps, by the first halves, of number ``at`` of the four that a lane has in each tile.
DEVICE void finish(
    const FewRowsParams& p, const Place& place, const Member& me, const Partial& partial, int first_row,
    const float (&own)[TILES][4], int at
) {
    const int row = me.first + at / 2 * 8 + me.g, n = first_row + row;
    const float squares = partial.squares[0][row] + partial.squares[1][row];
    const float rstd = NORM ? reciprocal_root(squares / p.width + p.eps) : 1;
#pragma unroll
    for (int tile = 0; tile < TILES; tile += 1 + GATED) {
        const int within = 2 * me.t + at % 2, column = 8 * tile + within;
        const int e = place.first + tile / (1 + GATED) * 8 + within;
        if (!there(p, place.which, n, e)) continue;
        const float sum = rstd * (own[tile][at] + partial.sums[row][column]);
        float y;
        if constexpr (GATED) y = gated(sum, rstd * (own[tile + 1][at] + partial.sums[row][column + 8]));
        else y = sum + widen(bias_of(p, place.which, e)) + widen(added(p, place.which, n, e));
        put(p, place.which, n, e, y);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) few_rows(const __grid_constant__ FewRowsParams p) {
    const Member me;
    const Place place(p, EACH);
    const Stages stages;
    const int first_row = blockIdx.y * ROWS, slices = (p.width + SLICE - 1) / SLICE;
#pragma unroll 1
    for (int slice = 0; slice < STAGES - 1 && slice < slices; slice++) stages.copy_weights(p, place, slice);
    if (!GATED && p.bias[place.which] && threadIdx.x < 1 + COLUMNS / 64)
        prefetch(p.bias[place.which] + smaller_of(place.first + 64 * int(threadIdx.x), p.outputs[place.which] - 1));
    let_next_launch_begin();
    wait_for_launch_before();
#pragma unroll 1
    for (int slice = 0; slice < STAGES - 1; slice++) {
        if (slice < slices) stages.copy_x(p, first_row, slice);
        end_group_of_copies();
    }
    Sums sums;
#pragma unroll 1
    for (int slice = 0; slice < slices; slice++) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // the slice is there, and the one before it is no longer needed
        const int next = slice + STAGES - 1;
        if (next < slices) {
            stages.copy_weights(p, place, next);
            stages.copy_x(p, first_row, next);
        }
        end_group_of_copies();
        sums.multiply(stages, me, slice);
    }
    __syncthreads();
    Partial& partial = *reinterpret_cast<Partial*>(dynamic_shared());  // where the slices were
    partial.put(me, sums);
    __syncthreads();
    if (me.half > 0) return;
#pragma unroll
    for (int at = 0; at < 4; at++) finish(p, place, me, partial, first_row, sums.of, at);
}
