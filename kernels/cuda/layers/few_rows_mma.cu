// Products of a few rows with matrices of 16-bit numbers, on the tensor cores: see few_rows.cuh.
//
// Who computes what: a block takes TILES times 8 rows of the matrix (gated: of G and U by turns) and 16 rows of x. Its
// WARPS share out D, CHUNK numbers at a time: a step. Their sums are added in the end, from first warp to last.
//
// A tensor core multiplies 16 rows of x by 8 rows of the matrix over 16 places of D. Which 16 is free, as long as both
// sides agree: lane (g, t) takes the 16 bytes from number 8 t on, of 32 numbers of row g, and gives four of the eight to
// each of two products. So a thread multiplies what it has loaded itself, and shared memory is a thread's own store: it
// copies DEPTH steps of its matrix rows there before anything else, all of them if they fit, and waits for nobody. Most of
// a product is empty for one row of x; memory is what it waits for.
//
// The norm needs no pass of its own: x times the norm's weight is multiplied, and the sum of squares, found on the way,
// scales the results.
//
//   blockIdx.x   8 * TILES rows of one matrix        blockIdx.y   16 rows of x
#include "layers/few_rows.cuh"
#include "layers/mma.cuh"
#include "runtime/shared.cuh"

#if !defined(TILES) || !defined(STEPS) || !defined(DEPTH) || !defined(NORM)
#error "TILES, of 8 rows of a matrix, STEPS through D, DEPTH of these in shared memory, NORM, 1 for one, must be defined"
#endif

constexpr int ROWS = 16, WARPS = 8, THREADS = 32 * WARPS;
constexpr int CHUNK = 64, STEP = WARPS * CHUNK;             // numbers of a row: of a warp, and of all
constexpr int COPIES = 2 * (TILES + NORM);                  // of a thread for a step; twin: STEP_BYTES of few_rows.py
constexpr int EACH = 8 * TILES / (1 + GATED);               // outputs of a block
constexpr int OWN = (ROWS * EACH + THREADS - 1) / THREADS;  // numbers of y that a thread finishes

static_assert(TILES % (1 + GATED) == 0, "as many rows of U as of G");

union Vector {
    Pack<ELEMENT, 8> pack;
    unsigned pair[4];
};

// Where a lane stands in a product, and the first number of D that its thread takes.
struct Lane {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    int start = threadIdx.x / 32 * CHUNK + 8 * t;
};

// The thread's rows of the matrix, one a tile, and behind them the norm's weight; in shared memory, step by step.
struct Weights {
    Pack<ELEMENT, 8>* store = reinterpret_cast<Pack<ELEMENT, 8>*>(dynamic_shared()) + threadIdx.x;

    DEVICE Pack<ELEMENT, 8>* place(int step, int vector) const {
        return store + (step % DEPTH * COPIES + vector) * THREADS;
    }

    DEVICE void copy(const FewRowsParams& p, Place at, Lane lane, int step) const {
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            const int tile = i / 2, k = step * STEP + lane.start + i % 2 * (CHUNK / 2);
            const int e = at.first + tile / (1 + GATED) * 8 + lane.g;
            const ELEMENT* row = tile < TILES ? weight_row(p, at.which, tile % 2, e) : p.norm;
            if constexpr (WIDE) copy_16_bytes(shared_address(place(step, i)), row + (k < p.width ? k : 0), k < p.width);
            else *place(step, i) = constant_at(row, k, p.width);
        }
    }

    DEVICE Vector at(int step, int tile, int half) const {
        return {*place(step, 2 * tile + half)};
    }
};

// A step of x: rows g and g + 8, the lane's 8 numbers of each half of a chunk.
struct Rows {
    Vector low[2], high[2];

    DEVICE void load(const FewRowsParams& p, int first_row, Lane lane, int step) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int k = step * STEP + lane.start + half * (CHUNK / 2);
            low[half].pack = vector_at(x_row(p, first_row + lane.g), k, p.width);
            high[half].pack = vector_at(x_row(p, first_row + lane.g + 8), k, p.width);
        }
    }
};

// x times the norm's weight; its squares are added.
DEVICE void weigh(Vector& x, const Vector& norm, float& squares) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float number = widen(x.pack.element[j]);
        squares += number * number;
        x.pack.element[j] = narrowed(number * widen(norm.pack.element[j]));
    }
}

// Adds the products of a step.
DEVICE void multiply(const Weights& weights, Rows& x, int step, float (&sums)[TILES][4], float (&squares)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Vector &low = x.low[half], &high = x.high[half];
        if constexpr (NORM) {
            const Vector norm = weights.at(step, TILES, half);
            weigh(low, norm, squares[0]);
            weigh(high, norm, squares[1]);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const Vector weight = weights.at(step, tile, half);
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const unsigned pairs[4] = {low.pair[i], high.pair[i], low.pair[i + 1], high.pair[i + 1]};
                multiply_add(sums[tile], pairs, weight.pair[i], weight.pair[i + 1], ELEMENT());
            }
        }
    }
}

// What the warps have added up.
struct Partial {
    float sums[WARPS][ROWS][8 * TILES], squares[WARPS][ROWS];

    DEVICE void put(Lane lane, const float (&of_tile)[TILES][4], float (&of_row)[2]) {
        const int warp = threadIdx.x / 32;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[warp][lane.g + i / 2 * 8][8 * tile + 2 * lane.t + i % 2] = of_tile[tile][i];
#pragma unroll
        for (int side = 0; NORM && side < 2; side++) {
            of_row[side] += __shfl_xor_sync(~0u, of_row[side], 1);
            of_row[side] += __shfl_xor_sync(~0u, of_row[side], 2);
            if (lane.t == 0) squares[warp][lane.g + 8 * side] = of_row[side];
        }
    }

    DEVICE float total(int n, int column) const {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += sums[w][n][column];
        return sum;
    }

    DEVICE float rstd(const FewRowsParams& p, int n) const {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += squares[w][n];
        return NORM ? reciprocal_root(sum / p.width + p.eps) : 1;
    }
};

// The numbers of y that a thread finishes: row ``n`` of 16 and output ``e`` of the block's.
struct Own {
    ELEMENT bias[OWN], add[OWN];  // widened when they are used: until then nothing waits for them

    DEVICE static int n(int o) { return (threadIdx.x + o * THREADS) / EACH; }
    DEVICE static int e(int o) { return (threadIdx.x + o * THREADS) % EACH; }

    DEVICE void finish(const FewRowsParams& p, Place place, int first_row, const Partial& partial) const {
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            if (!there(p, place.which, first_row + n(o), place.first + e(o)) || n(o) >= ROWS) continue;
            const float rstd = partial.rstd(p, n(o));
            float y;
            if constexpr (GATED) {
                const int column = e(o) / 8 * 16 + e(o) % 8;  // tiles of G and of U by turns
                y = gated(rstd * partial.total(n(o), column), rstd * partial.total(n(o), column + 8));
            } else {
                y = rstd * partial.total(n(o), e(o)) + widen(bias[o]) + widen(add[o]);
            }
            put(p, place.which, first_row + n(o), place.first + e(o), y);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 2) few_rows(const __grid_constant__ FewRowsParams p) {
    __shared__ Partial partial;
    const Lane lane;
    const Place place(p, EACH, blockIdx.x);
    const int first_row = blockIdx.y * ROWS;
    // 1. what no launch before this one writes
    const Weights weights;
#pragma unroll
    for (int step = 0; step < DEPTH; step++) {
        weights.copy(p, place, lane, step);
        end_group_of_copies();
    }
    Own own;
#pragma unroll
    for (int o = 0; !GATED && o < OWN; o++) own.bias[o] = bias_of(p, place.which, place.first + Own::e(o));
    let_next_launch_begin();
    wait_for_launch_before();
    // 2. products, two steps of x under way
    Rows even, odd;
    even.load(p, first_row, lane, 0);
    odd.load(p, first_row, lane, 1);
#pragma unroll
    for (int o = 0; !GATED && o < OWN; o++) own.add[o] = added(p, place.which, first_row + Own::n(o), place.first + Own::e(o));
    float sums[TILES][4] = {}, squares[2] = {};
    const auto take = [&](Rows& x, int step) {
        wait_for_copies<DEPTH - 1>();
        multiply(weights, x, step, sums, squares);
        x.load(p, first_row, lane, step + 2);
        if (step + DEPTH < STEPS) weights.copy(p, place, lane, step + DEPTH);
        end_group_of_copies();
    };
#pragma unroll(STEPS <= 8 ? STEPS : 1)
    for (int step = 0; step < STEPS; step += 2) {
        take(even, step);
        if (step + 1 < STEPS) take(odd, step + 1);
    }
    // 3. sums of the warps
    partial.put(lane, sums, squares);
    __syncthreads();
    own.finish(p, place, first_row, partial);
}
