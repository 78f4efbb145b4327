// Products with the couplings of a chunk (chunk.cuh), from shared memory: what other tokens add to the warp's.
//
// A group of the warp takes every eighth of those tokens, so that a row is loaded once for all tokens of the warp. Then
// the groups' sums are added, and each token's groups are left with parts of its sum.
#pragma once
#include "memory/state_slice.cuh"
#include "memory/tf32.cuh"

DEVICE Acc* shared_couplings() { return reinterpret_cast<Acc*>(dynamic_shared() + HEADER_BYTES); }

// The upper half of the warps copies: in phase 1 lower warps multiply on the tensor cores, in phase 2 they have the lists.
constexpr int COPIERS = THREADS / 2;
DEVICE int copier() { return int(threadIdx.x) - (THREADS - COPIERS); }  // below 0: none

// Copies ``count`` numbers, of at most MOST, to shared memory.
template <int MOST, class T> DEVICE void copy_to_shared(T* to, const T* from, int count) {
    constexpr int EACH = 16 / sizeof(T);
#pragma unroll
    for (int first = 0; first < MOST; first += COPIERS * EACH) {
        const int i = first + copier() * EACH;
        if (i < count) copy_async<16>(to + i, from + i);
    }
}

// Copies what a pass needs of a chunk's couplings: ``many``, or the lists ``few``.
DEVICE void copy_couplings(const Acc* many, const Acc* few, int coupled) {
    if (copier() < 0) return;
    const bool all = coupled == MANY;
    copy_to_shared<COUPLING_PART>(shared_couplings(), all ? many : few, all ? COUPLINGS : 2 * CHUNK * GROUPS_PER_TOKEN * coupled);
    end_group_of_copies();
}

// Adds the group's few couplings, times the other tokens' rows.
DEVICE void add_few(const Lane& lane, const StateSlice& state, int chunk, int coupled, Tile& sum) {
    struct alignas(FEW_AT_ONCE * sizeof(TokenEvent)) Some {
        TokenEvent event[FEW_AT_ONCE];
    };
    const TokenEvent* const events = reinterpret_cast<const TokenEvent*>(shared_couplings()) + lane.group * coupled;
#pragma unroll 1
    for (int first = 0; first < coupled; first += FEW_AT_ONCE) {
        const Some some = *reinterpret_cast<const Some*>(events + first);
#pragma unroll
        for (int e = 0; e < FEW_AT_ONCE; e++) {
            const int other = int(some.event[e].code);
            sum.add(some.event[e].coefficient, state[other ? state.token_row(chunk, other - 1) : 0]);
        }
    }
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
// tokens hold v (dy). A row that no token of the warp needs is not loaded.
template <bool TRANSPOSED> DEVICE Tile sum_of_coupled(const Lane& lane, const StateSlice& state, int chunk) {
    constexpr int N = TOKENS_OF_WARP;
    const int own = lane.group / 8 * N, last_block = (own + N - 1) / 8;  // own: the warp's first token
    const Acc* const couplings = shared_couplings();
    Tile sums[N];
#pragma unroll
    for (int n = 0; n < N; n++) sums[n].clear();
    const int begin = TRANSPOSED ? own / 8 : 0, end = TRANSPOSED ? (CHUNK + 7) / 8 : last_block + 1;
#pragma unroll 1
    for (int block = begin; block < end; block++) {
        const int other = 8 * block + lane.group % 8;
        Acc a[N];
        bool needed = false;
#pragma unroll
        for (int n = 0; n < N; n++) {
            a[n] = couplings[TRANSPOSED ? coupling_index(other, own + n) : coupling_index(own + n, other)];
            needed |= a[n] != 0;
        }
        const Tile row = state.get_if(needed, state.token_row(chunk, other));
#pragma unroll
        for (int n = 0; n < N; n++) sums[n].add(a[n], row);
    }
    return sum_of_own_token(sums);
}

// The same on the tensor cores, where they take the numbers: a warp for 8 tokens leaves their sums in the rows of tokens
// that wait for the next chunk. There a token's first group takes them after a barrier, before it stores the next chunk's.
constexpr bool TENSOR_CORES = sizeof(Acc) == 4 && CHUNK >= 8 && CHANNELS == 16;

template <bool TRANSPOSED> DEVICE void store_sums_of_coupled(int chunk) {
    constexpr int TOKEN_BLOCKS = CHUNK / 8, BLOCK = 8 * CHANNELS;  // numbers of a block of token rows
    const int own = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;  // own: the warp's block of tokens
    if (own >= TOKEN_BLOCKS) return;
    Acc* const rows = reinterpret_cast<Acc*>(dynamic_shared() + BYTES_BEFORE_ROWS);
    // Rows of tokens an even number apart have the same banks, half of them. So lanes of two rows take channels of the upper
    // half first: no bank is asked for twice.
    const bool lower = t < 2;
    const int begin = TRANSPOSED ? own : 0, end = TRANSPOSED ? TOKEN_BLOCKS : own + 1;
    int far = token_place(chunk) * CHANNELS + begin * BLOCK + t * CHANNELS + g + (lower ? 0 : 8);
    const int in_block = TRANSPOSED ? coupling_index(t, g) : coupling_index(g, t), step = TRANSPOSED ? coupling_index(4, 0) : coupling_index(0, 4);
    const Acc* block = shared_couplings() + (TRANSPOSED ? coupling_block(8 * own, 8 * own) : coupling_block(8 * own, 0)) + in_block;
    float sum[4] = {}, small[4] = {};
    for (int other = begin; other < end; other++) {
        const float x[4] = {rows[far], rows[far ^ 8], rows[far + 4 * CHANNELS], rows[(far ^ 8) + 4 * CHANNELS]};
        float a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = lower ? x[i] : x[i ^ 1];
        const float b[2] = {block[0], block[step]};
        multiply_add_float32<sizeof(ELEMENT) == 2>(sum, small, a, b);
        far += BLOCK, block += TRANSPOSED ? 64 * (other + 1) : 64;
    }
    // Of lane 4g + t: token 2t, channels g; token 2t + 1; channels g + 8 of both. Each of the four first stores another one.
    float all[4], of_token[4];
#pragma unroll
    for (int i = 0; i < 4; i++) all[i] = sum[i] + small[i];
#pragma unroll
    for (int i = 0; i < 4; i++) of_token[i] = t & 1 ? all[i ^ 1] : all[i];
    const int to = (token_place(chunk + 1) + 8 * own + 2 * t) * CHANNELS + g + (t & 1) * CHANNELS + (t >> 1) * 8;
#pragma unroll
    for (int i = 0; i < 4; i++) rows[to ^ ((i & 1) * CHANNELS | (i >> 1) * 8)] = lower ? of_token[i] : of_token[i ^ 2];
}
