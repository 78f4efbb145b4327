// The dot products that the masses need, as couplings_backward.cu, where slots are few (dense.cuh): from those with contents
// before the chunk and adjoints after it, through all tokens between, whether they use the slot or not.
//
// Who computes what: one block a chunk, whose accesses threads have as dense_accesses.cuh says.
//
// Compiled with: what chunk.cuh and dense.cuh ask for.
#include "memory/dense_accesses.cuh"
#include "memory/token_dots.cuh"

struct DenseBackwardShared {
    AccessMatrices accesses;
    alignas(16) Acc d_dot_v[MATRIX], dy_dot_s[MATRIX];  // where there is a write, or a read: as dense_content.cu left them
    TokenDots tokens;
};

// <x, content after write ``last``> of a slot, for an x of which all dots are known: ``dot_s`` with the content before the
// chunk, ``dot_v(j)`` with the values.
template <class DotV> DEVICE Acc dot_with_content(const Acc* eta, int slot, int last, Acc dot_s, const DotV& dot_v) {
    Acc sum = 0, kept = 1;
    eta += place_of(last, slot);
#pragma unroll 4
    for (int j = last; j >= 0; j--, eta -= STRIDE) {
        sum += kept * *eta * dot_v(j), kept = forgotten(kept, *eta);
    }
    return sum + kept * dot_s;
}

// <adjoint after write ``token``, v of it>.
DEVICE Acc dot_with_adjoint(const DenseBackwardShared& shared, int slot, int token, Acc dot_d) {
    const Acc *eta = shared.accesses.eta + place_of(token, slot), *weight = shared.accesses.weight + place_of(token, slot);
    Acc kept = 1, sum = *weight * shared.tokens.dy_dot_v[token][token];
#pragma unroll 4
    for (int t = token + 1; t < CHUNK; t++) {
        eta += STRIDE, weight += STRIDE, kept = forgotten(kept, *eta);
        sum += kept * *weight * shared.tokens.dy_dot_v[t][token];
    }
    return sum + kept * dot_d;
}

// <adjoint after write ``token``, content before it>, the part of it that lane k of ``lanes`` has: the adjoint is a sum over
// later reads and, last, of the adjoint after the chunk.
DEVICE Acc dot_of_both(const DenseBackwardShared& shared, int slot, int token, int k, int lanes, Acc dot_d_s) {
    const Acc* const eta = shared.accesses.eta;
    Acc sum = 0, kept = 1;
    for (int t = token; t < CHUNK; t++) {
        if (t > token) kept = forgotten(kept, eta[place_of(t, slot)]);
        const Acc weight = shared.accesses.weight[place_of(t, slot)];
        if (t % lanes != k || weight == 0) continue;
        const auto dot_v = [&](int j) { return shared.tokens.dy_dot_v[t][j]; };
        sum += kept * weight * dot_with_content(eta, slot, token - 1, shared.dy_dot_s[place_of(t, slot)], dot_v);
    }
    if (k) return sum;
    const auto dot_v = [&](int j) { return shared.d_dot_v[place_of(j, slot)]; };
    return sum + kept * dot_with_content(eta, slot, token - 1, dot_d_s, dot_v);
}

DEVICE Acc sum_over_write_lanes(Acc x) {
#pragma unroll
    for (int distance = 1; distance < W; distance *= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// Stores the dot of a token's first write, if that write is heavy. All lanes of the token take part.
DEVICE void store_dot_before(const DenseCouplingParams& p, const DenseBackwardShared& shared, const DenseThread& thread) {
    const DenseAccess& write = thread.write;
    const int first_lane = threadIdx.x % 32 - write.k;
    const int slot = __shfl_sync(~0u, thread.heavy ? write.row : -1, first_lane);
    const bool heavy = slot >= 0;
    const long long row = thread.sequence.token(thread.chunk * CHUNK + write.token) * p.channels;
    Acc sum = 0;
    for (int c = write.k; heavy && c < p.channels; c += W) sum += p.after_heavy[row + c] * p.before_heavy[row + c];
    const Acc dot = sum_over_write_lanes(sum);
    sum = sum_over_write_lanes(heavy ? dot_of_both(shared, slot, write.token, write.k, W, dot) : Acc(0));
    if (write.k == 0) p.d_dot_before[thread.number * CHUNK + write.token] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, 6)
dense_couple_backward(const __grid_constant__ DenseCouplingParams p) {
    __shared__ DenseBackwardShared shared;
    const DenseThread thread(p);
    const RowsOfChunk rows{thread.sequence, thread.chunk, p.channels, p.dy, p.values};
    copy_channels(shared.tokens, rows, 0);
    const DenseAccess &write = thread.write, &read = thread.read;
    Acc* const d_dot_v = p.d_dot_v + thread.number * (CHUNK * W) + threadIdx.x;
    Acc* const dy_dot_s = p.dy_dot_s + thread.number * (CHUNK * R) + threadIdx.x;
    Acc dot_v = *d_dot_v, dot_s = *dy_dot_s;
    if (!write.live) dot_v = 0;
    if (!read.live) dot_s = 0;
    clear(shared.d_dot_v);
    thread.enter(shared.accesses);
    if (write.live) shared.d_dot_v[write.place] = dot_v;
    if (read.live) shared.dy_dot_s[read.place] = dot_s;
    multiply_channels(shared.tokens, rows);
    if (write.live) dot_v = dot_with_adjoint(shared, write.row, write.token, dot_v);
    if (read.live) {
        const auto dot_with_value = [&](int j) { return shared.tokens.dy_dot_v[read.token][j]; };
        dot_s = dot_with_content(shared.accesses.eta, read.row, read.token, dot_s, dot_with_value);
    }
    *d_dot_v = dot_v, *dy_dot_s = dot_s;
    store_dot_before(p, shared, thread);
}
