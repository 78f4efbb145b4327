// Products with the couplings of a chunk (chunk.cuh), from shared memory: what other tokens add to the warp's.
//
// A group of the warp takes every eighth of those tokens, so that a row is loaded once for all tokens of the warp. Then
// the groups' sums are added, and each token's groups are left with parts of its sum.
#pragma once
#include "memory/state_slice.cuh"

DEVICE Acc* shared_couplings() { return reinterpret_cast<Acc*>(dynamic_shared() + HEADER_BYTES); }

// Copies ``count`` numbers, of at most MOST, to shared memory.
template <int MOST, class T> DEVICE void copy_to_shared(T* to, const T* from, int count) {
    constexpr int EACH = 16 / sizeof(T);
#pragma unroll
    for (int first = 0; first < MOST; first += THREADS * EACH) {
        const int i = first + threadIdx.x * EACH;
        if (i < count) copy_async<16>(to + i, from + i);
    }
    end_group_of_copies();
}

// The sums of the token of this group, of which other groups of the warp have parts; the token's groups still share it.
template <int N> DEVICE Tile sum_of_own_token(const Tile (&sums)[N]) {
    if constexpr (N == 1) {
        return sums[0];
    } else {
        constexpr int DISTANCE = LANES * GROUPS_PER_TOKEN * N / 2;
        const bool upper = threadIdx.x & DISTANCE;
        Tile half[N / 2];
#pragma unroll
        for (int n = 0; n < N / 2; n++)
#pragma unroll
            for (int i = 0; i < TILE; i++) {
                const Acc got = __shfl_xor_sync(~0u, upper ? sums[n].at[i] : sums[n + N / 2].at[i], DISTANCE);
                half[n].at[i] = (upper ? sums[n + N / 2].at[i] : sums[n].at[i]) + got;
            }
        return sum_of_own_token(half);
    }
}

// A group's part of sum over j <= t of A_tj v_j (TRANSPOSED: over t >= j, of A_tj dy_t, for its token j). The rows of
// tokens hold v (dy). A row that no token of the warp needs is not loaded, so what it holds does not matter.
template <bool TRANSPOSED> DEVICE Tile sum_of_coupled(const Lane& lane, const StateSlice& state, int chunk) {
    constexpr int N = TOKENS_OF_WARP, STEPS = (CHUNK + 7) / 8;
    const int warp = lane.group / 8, place = lane.group % 8, own = warp * N;  // own: the warp's first token
    const Acc* const couplings = shared_couplings();
    Tile sums[N];
#pragma unroll
    for (int n = 0; n < N; n++) sums[n].clear();
    const int begin = TRANSPOSED ? own / 8 : 0, end = TRANSPOSED ? STEPS : coupling_steps(warp);
#pragma unroll 1
    for (int step = begin; step < end; step++) {
        const int other = 8 * step + place;
        Acc a[N];
        bool needed = false;
        if (!TRANSPOSED) {
            load<N>(couplings + coupling_begin(warp) + other * N, a);
        } else {
            const Acc* const of_other = couplings + (other < CHUNK ? coupling_index(other, own) : 0);
#pragma unroll
            for (int n = 0; n < N; n++) a[n] = other < CHUNK ? of_other[n * N] : Acc(0);
        }
#pragma unroll
        for (int n = 0; n < N; n++) needed |= a[n] != 0;
        const Tile row = state.get_if(needed, state.token_row(lane, chunk, other));
#pragma unroll
        for (int n = 0; n < N; n++) sums[n].add(a[n], row);
    }
    return sum_of_own_token(sums);
}
