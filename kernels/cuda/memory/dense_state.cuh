// The part of a head's state that a warp holds, and its products (dense.cuh): SLOTS_OF_WARP slots by 16 channels.
//
// It stays in registers from chunk to chunk, as the result of products: of every 8 slots a lane has four numbers, of
// channels g and g + 8 at slots 2 t and 2 t + 1, with g = lane / 4 and t = lane % 4 as in tf32.cuh. A product that sums over
// slots takes them as they are: it may call slots 2 t and 2 t + 1 its columns t and t + 4, if its other matrix does so too.
// One that sums over channels needs them by other lanes, so the warp passes them through shared memory.
//
// Every product begins at 0 and is then added to what it changes. Tensor cores round down, and so a content that many
// chunks change would drift.
#pragma once
#include "memory/dense.cuh"
#include "memory/tf32.cuh"

#if !defined(CHANNELS) || !defined(SLOTS_OF_WARP)
#error "CHANNELS (C) and SLOTS_OF_WARP (in steps of 8) must be defined"
#endif

constexpr int PARTS = SLOTS_PADDED / SLOTS_OF_WARP;  // of the slots, one a warp
static_assert(PARTS * SLOTS_OF_WARP == SLOTS_PADDED && SLOTS_OF_WARP % 8 == 0, "all warps have as many slots");
constexpr int SLICE = 16, SLICES = (CHANNELS + SLICE - 1) / SLICE;  // channels of a warp
constexpr int WARPS = SLICES * PARTS, DENSE_THREADS = 32 * WARPS;
constexpr int ROW = apart(SLICES * SLICE);      // numbers of a token's row
constexpr int TILES = SLOTS_OF_WARP / 8, TOKEN_TILES = CHUNK / 8;

using TokenRows = ELEMENT[CHUNK][ROW];
constexpr bool EXACT = sizeof(ELEMENT) == 2;  // whether its numbers have no more than 11 bits

struct alignas(8) Pair {
    Acc at[2];
};
DEVICE Pair& pair_at(Acc* matrix, int place) { return *reinterpret_cast<Pair*>(matrix + place); }
DEVICE Pair pair_at(const Acc* matrix, int place) { return *reinterpret_cast<const Pair*>(matrix + place); }

// Which part of everything a lane has.
struct DenseLane {
    const int part, slice, slot, channel, g, t;  // ``slot``, ``channel``: the warp's first

    DEVICE DenseLane()
        : part(warp_of_thread() % PARTS), slice(warp_of_thread() / PARTS), slot(part * SLOTS_OF_WARP), channel(slice * SLICE),
          g(threadIdx.x % 32 / 4), t(threadIdx.x % 4) {}
};

// The warp's channels of a chunk's rows, as products take them that sum over tokens.
struct RowsOfWarp {
    float at[TOKEN_TILES][4];

    DEVICE RowsOfWarp(const DenseLane& lane, const TokenRows& rows) {
#pragma unroll
        for (int k = 0; k < TOKEN_TILES; k++)
#pragma unroll
            for (int i = 0; i < 4; i++) at[k][i] = widen(rows[8 * k + lane.t + i / 2 * 4][lane.channel + lane.g + i % 2 * 8]);
    }
};

// Sums for the chunk's tokens: of channels g and g + 8 at tokens 2 t and 2 t + 1 of every 8.
struct TokenSums {
    float sum[TOKEN_TILES][4] = {}, small[TOKEN_TILES][4] = {};

    // += A rows, or A^T rows
    template <bool TRANSPOSED> DEVICE void add_coupled(const DenseLane& lane, const Acc* coupling, const RowsOfWarp& rows) {
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++)
#pragma unroll
            for (int k = TRANSPOSED ? n : 0; k < (TRANSPOSED ? TOKEN_TILES : n + 1); k++) {
                float b[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int own = 8 * n + lane.g, other = 8 * k + lane.t + 4 * i;
                    b[i] = coupling[TRANSPOSED ? other * COUPLING_STRIDE + own : own * COUPLING_STRIDE + other];
                }
                multiply_add_float32<EXACT>(sum[n], small[n], rows.at[k], b);
            }
    }
    // Leaves them for the lane of another warp that has the same tokens and channels.
    DEVICE void leave(Four* to) const {
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) to[32 * n + threadIdx.x % 32].at[i] = sum[n][i] + small[n][i];
    }
    DEVICE void add(const Four* from) {
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[n][i] += from[32 * n + threadIdx.x % 32].at[i];
    }
    // visit(token, channel, sum) of the tokens and channels that the lane has.
    template <class Visit> DEVICE void for_each(const DenseLane& lane, const Visit& visit) const {
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                visit(8 * n + 2 * lane.t + i % 2, lane.channel + lane.g + i / 2 * 8, sum[n][i] + small[n][i]);
    }
};

struct DenseState {
    float at[TILES][4] = {};

    // sums += matrix state
    DEVICE void look_up(const DenseLane& lane, const Acc* matrix, TokenSums& sums) const {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const float a[4] = {at[tile][0], at[tile][2], at[tile][1], at[tile][3]};
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; n++) {
                const Pair b = pair_at(matrix, place_of(8 * n + lane.g, lane.slot + 8 * tile + 2 * lane.t));
                multiply_add_float32<false>(sums.sum[n], sums.small[n], a, b.at);
            }
        }
    }
    // = kept state + matrix^T rows
    DEVICE void change(const DenseLane& lane, const Acc* matrix, const Acc* kept, const RowsOfWarp& rows) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            float sum[4] = {}, small[4] = {};
            const int first = lane.slot + 8 * tile;
#pragma unroll
            for (int k = 0; k < TOKEN_TILES; k++) {
                float b[2];
#pragma unroll
                for (int i = 0; i < 2; i++) b[i] = matrix[place_of(8 * k + lane.t + 4 * i, first + lane.g)];
                multiply_add_float32<EXACT>(sum, small, rows.at[k], b);
            }
            const Pair own = pair_at(kept, first + 2 * lane.t);
#pragma unroll
            for (int i = 0; i < 4; i++) at[tile][i] = own.at[i % 2] * at[tile][i] + (sum[i] + small[i]);
        }
    }
    // Leaves the state in ``room``, channels by slots, for the lanes of this warp.
    DEVICE void leave(const DenseLane& lane, Acc* room) const {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                pair_at(room, place_of(lane.g + 8 * half, lane.slot + 8 * tile + 2 * lane.t)) = {
                    at[tile][2 * half], at[tile][2 * half + 1]};
        __syncwarp();
    }
};

// rows state^T of the warp's channels, all tokens by slots: from the state that ``room`` has, and in its place.
DEVICE void multiply_in_place(const DenseLane& lane, Acc* room, const TokenRows& rows) {
    constexpr int HALVES = CHUNK / 16, STEPS = SLICE / 8;  // of 16 tokens; of 8 channels
    float a[HALVES][STEPS][4];
#pragma unroll
    for (int half = 0; half < HALVES; half++)
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[half][k][i] = widen(rows[16 * half + lane.g + i % 2 * 8][lane.channel + 8 * k + lane.t + i / 2 * 4]);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        float sum[HALVES][4] = {}, small[HALVES][4] = {};
        const int first = lane.slot + 8 * tile;
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            float b[2];
#pragma unroll
            for (int i = 0; i < 2; i++) b[i] = room[place_of(8 * k + lane.t + 4 * i, first + lane.g)];
#pragma unroll
            for (int half = 0; half < HALVES; half++) multiply_add_float32<EXACT>(sum[half], small[half], a[half][k], b);
        }
        __syncwarp();
#pragma unroll
        for (int half = 0; half < HALVES; half++)
#pragma unroll
            for (int i = 0; i < 4; i += 2)
                pair_at(room, place_of(16 * half + lane.g + i / 2 * 8, first + 2 * lane.t)) = {
                    sum[half][i] + small[half][i], sum[half][i + 1] + small[half][i + 1]};
    }
}
