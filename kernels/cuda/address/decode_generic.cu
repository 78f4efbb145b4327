// The address decoder (decode.cu) for any U, P and K. What a row needs lies in shared memory if it fits, else in global
// memory.
//
// Who computes what: one block a row, a token and head. Blocks are a power of two of threads, at least a warp.
//
// Compiled with: ELEMENT, the type of the logits; MAX_SELECTED, the most keys that a warp selects (more are sorted);
// MAX_HELD, the most slots that the backward looks at together.
#include "address/cape.cuh"
#include "address/sort.cuh"

#ifndef ELEMENT
#error "ELEMENT must be defined as the type of the logits"
#endif
#if !defined(MAX_SELECTED) || !defined(MAX_HELD)
#error "MAX_SELECTED and MAX_HELD must be defined"
#endif

using Acc = AccOf<ELEMENT>::type;
using SlotKey = Key<Acc>;

// Twin: GENERIC_DECODE_PARAMS of decode.py.
struct GenericDecodeParams {
    const ELEMENT* logits;                 // (rows, U, P)
    const Acc* dweight;                    // (rows, K): the backward's input
    ELEMENT* dlogits;                      // (rows, U, P): the backward's output
    int* index;                            // (rows, K): the forward's output, which the backward reads
    Acc* weight;                           // (rows, K), likewise
    SlotKey* scratch;                      // (blocks, 2 * capacity + P), or null: shared memory holds one of these
    const long long* positions;            // (B, T), or null: counted from 0
    long long batch_stride, token_stride;  // of positions
    unsigned tokens, heads, cape_heads, rows;
    int renorm, order, radix, top_k;  // U, P, K
    unsigned slots;                   // P**U
    int capacity;                     // the most candidates of one digit, at least P

    DEVICE unsigned shift(unsigned row) const {
        return Cape{positions, batch_stride, token_stride, tokens, heads, cape_heads}.shift(row, slots);
    }
};

// The sum (or the maximum) of every thread's number, by a tree in shared memory, so in a fixed order.
template <class Combine> DEVICE Acc reduce(Acc mine, Acc* shared, Combine combine) {
    shared[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + half]);
        __syncthreads();
    }
    const Acc result = shared[0];
    __syncthreads();
    return result;
}
DEVICE Acc tree_sum(Acc mine, Acc* shared) {
    return reduce(mine, shared, [](Acc a, Acc b) { return a + b; });
}
DEVICE Acc maximum_of(const ELEMENT* logits, int count, Acc* shared) {
    Acc top = widen(load_read_only(logits));
    for (int p = threadIdx.x; p < count; p += blockDim.x) top = max_no_ftz(top, widen(load_read_only(logits + p)));
    return reduce(top, shared, [](Acc a, Acc b) { return max_no_ftz(a, b); });
}

// Bitonic sort. Every exchange puts the better key first, so one can think of worse keys behind the last, which never
// move.
DEVICE void bitonic_sort(SlotKey* keys, unsigned count) {
    for (unsigned size = 2; size / 2 < count; size *= 2) {  // sorted runs of size / 2 become sorted runs of size
        for (unsigned span = size; span > 1; span /= 2) {
            const unsigned half = span / 2;
            for (unsigned pair = threadIdx.x; pair < (count + span - 1) / span * half; pair += blockDim.x) {
                const unsigned start = pair / half * span, first = pair % half;
                // first against the mirror image, which joins the two runs; then against the other half
                const unsigned other = span == size ? size - 1 - first : first + half;
                if (start + other < count) exchange(keys[start + first], keys[start + other]);
            }
            __syncthreads();
        }
    }
}

// The best ``count`` of ``size`` keys, best first, at the front; the others are lost. For a block of one warp, whose lane l
// looks after keys l, l + 32, ..: in each of ``count`` rounds the lane with the best gives it up and looks for its next.
DEVICE void select(SlotKey* keys, int size, int count) {
    const int lane = threadIdx.x;
    SlotKey mine = SlotKey::worst(), kept[MAX_SELECTED / 32];
    for (int i = lane; i < size; i += 32)
        if (keys[i] < mine) mine = keys[i];
#pragma unroll 1
    for (int round = 0; round < count; round++) {
        SlotKey best = mine;
#pragma unroll
        for (int other = 16; other > 0; other /= 2) {
            const SlotKey theirs = best.of_lane(lane ^ other);
            if (theirs < best) best = theirs;
        }
#pragma unroll
        for (int i = 0; i < MAX_SELECTED / 32; i++)
            if (round == lane + 32 * i) kept[i] = best;
        if (mine < best || best < mine) continue;
        mine = SlotKey::worst();
        for (int i = lane; i < size; i += 32) {
            if (!(keys[i] < best || best < keys[i])) keys[i] = SlotKey::worst();
            if (keys[i] < mine) mine = keys[i];
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MAX_SELECTED / 32; i++)
        if (lane + 32 * i < count) keys[lane + 32 * i] = kept[i];
    __syncthreads();
}

// ``count`` best of ``size``, sorted, at the front: a warp selects them, larger blocks sort all.
DEVICE void best_first(SlotKey* keys, int size, int count) {
    if (blockDim.x == 32 && count <= MAX_SELECTED)
        select(keys, size, count);
    else
        bitonic_sort(keys, size);
}

// ---- forward ----

// One digit of a row: its values as keys, the min(P, K) best first, and what its softmax divides by. ``stride``: P**u.
DEVICE Acc rank_digit(const GenericDecodeParams& p, const ELEMENT* x, unsigned stride, SlotKey* digit, Acc* shared) {
    const Acc top = maximum_of(x, p.radix, shared);
    Acc mine = 0;
    for (int value = threadIdx.x; value < p.radix; value += blockDim.x) {
        digit[value] = SlotKey(sub_no_ftz(top, widen(load_read_only(x + value))), value * stride);
        mine += exp_(-digit[value].penalty());
    }
    const Acc total = tree_sum(mine, shared);
    best_first(digit, p.radix, p.radix < p.top_k ? p.radix : p.top_k);
    return total;
}

// From the n best addresses so far to those with one more digit, the best first. Returns how many. The staircase: ranks
// (i, j), i of a partial address and j of the digit's value, with (i+1)*(j+1) <= K.
DEVICE int extend(const GenericDecodeParams& p, const SlotKey* best, int n, const SlotKey* digit, SlotKey* candidates) {
    int count = 0;
    for (int j = 0; j < p.radix && j < p.top_k; j++) {
        const int length = n < p.top_k / (j + 1) ? n : p.top_k / (j + 1);
        for (int i = threadIdx.x; i < length; i += blockDim.x) candidates[count + i] = best[i] + digit[j];
        count += length;
    }
    __syncthreads();
    const int kept = count < p.top_k ? count : p.top_k;
    best_first(candidates, count, kept);
    return kept;
}

// 3. the weights of the best addresses, 4. optionally divided by their sum, and 5. where they are at this position.
DEVICE void write_address(const GenericDecodeParams& p, unsigned row, const SlotKey* best, Acc total, Acc* shared) {
    Acc mine = 0;
    for (int j = threadIdx.x; j < p.top_k; j += blockDim.x) mine += exp_(-best[j].penalty()) / total;
    const Acc kept = p.renorm ? tree_sum(mine, shared) : Acc(1);
    const unsigned shift = p.shift(row);
    for (int j = threadIdx.x; j < p.top_k; j += blockDim.x) {
        p.index[(long long)(row) * p.top_k + j] = cape_shift(best[j].slot(), shift, p.slots);
        p.weight[(long long)(row) * p.top_k + j] = exp_(-best[j].penalty()) / total / kept;
    }
}

extern "C" __global__ void decode_forward_generic(const __grid_constant__ GenericDecodeParams p) {
    extern __shared__ double shared_memory[];
    Acc* shared = reinterpret_cast<Acc*>(shared_memory);  // one a thread, for ``reduce``
    const long long block_keys = 2LL * p.capacity + p.radix;
    SlotKey* best =
        p.scratch ? p.scratch + blockIdx.x * block_keys : reinterpret_cast<SlotKey*>(shared_memory + blockDim.x);
    SlotKey *candidates = best + p.capacity, *digit = candidates + p.capacity;

    for (unsigned row = blockIdx.x; row < p.rows; row += gridDim.x) {
        // 1. softmax of every digit, and 2. the K best content slots
        Acc total = 1;
        unsigned stride = 1;  // P**u
        int n = 1;            // partial addresses
        if (threadIdx.x == 0) best[0] = SlotKey(Acc(0), 0);
        for (int u = 0; u < p.order; u++, stride *= p.radix) {
            total *= rank_digit(p, p.logits + ((long long)(row) * p.order + u) * p.radix, stride, digit, shared);
            n = extend(p, best, n, digit, candidates);
            SlotKey* before = best;
            best = candidates;
            candidates = before;
        }
        // 3., 4. and 5.
        write_address(p, row, best, total, shared);
        __syncthreads();
    }
}

// ---- backward ----

// dL/dlog rho_j of a row's addresses. weight = rho / sum(rho): g_j - weight_j * sum_i g_i, with g = dL/dlog weight.
struct LogGradients {
    const Acc *dweight, *weight;  // (K,)
    Acc given;                    // sum_i g_i if weights were divided by their sum, else 0
    Acc total;                    // the sum of these gradients

    DEVICE LogGradients(const GenericDecodeParams& p, unsigned row, Acc* shared)
        : dweight(p.dweight + (long long)(row) * p.top_k), weight(p.weight + (long long)(row) * p.top_k) {
        Acc mine = 0;
        for (int j = threadIdx.x; j < p.top_k; j += blockDim.x)
            mine += load_read_only(dweight + j) * load_read_only(weight + j);
        total = tree_sum(mine, shared);
        given = p.renorm ? total : Acc(0);
        if (!p.renorm) return;
        mine = 0;
        for (int j = threadIdx.x; j < p.top_k; j += blockDim.x) mine += (*this)[j];
        total = tree_sum(mine, shared);
    }
    DEVICE Acc operator[](int j) const {
        const Acc w = load_read_only(weight + j);
        return load_read_only(dweight + j) * w - w * given;
    }
};

// MAX_HELD addresses at once in shared memory: their gradients, and their values of the digit in question.
struct HeldAddresses {
    Acc* g;
    unsigned* digit;

    DEVICE HeldAddresses(Acc* memory, int top_k)
        : g(memory), digit(reinterpret_cast<unsigned*>(memory + (top_k < MAX_HELD ? top_k : MAX_HELD))) {}
    DEVICE void fill(
        const LogGradients& gradients, const int* slot, int first, int count, unsigned shift, unsigned slots,
        unsigned stride, int radix
    ) {
        __syncthreads();  // the ones before have been looked at
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            g[i] = gradients[first + i];
            digit[i] = cape_unshift(load_read_only(slot + first + i), shift, slots) / stride % radix;
        }
        __syncthreads();
    }
};

// The gradient of one digit's logits x: what the addresses with each value receive, less p_u * sum_j g_j.
DEVICE void digit_gradient(
    const GenericDecodeParams& p, unsigned row, unsigned shift, int u, unsigned stride, const LogGradients& gradients,
    HeldAddresses& held, Acc* shared
) {
    const long long first = ((long long)(row) * p.order + u) * p.radix;
    const ELEMENT* x = p.logits + first;
    const int* slot = p.index + (long long)(row) * p.top_k;
    const Acc top = maximum_of(x, p.radix, shared);
    Acc mine = 0;
    for (int value = threadIdx.x; value < p.radix; value += blockDim.x)
        mine += exp_(sub_no_ftz(widen(load_read_only(x + value)), top));
    const Acc share = gradients.total / tree_sum(mine, shared);
    for (int before = 0; before < p.radix; before += blockDim.x) {
        const int value = before + threadIdx.x;
        Acc received = 0;
        for (int begin = 0; begin < p.top_k; begin += MAX_HELD) {
            const int count = smaller_of(MAX_HELD, p.top_k - begin);
            held.fill(gradients, slot, begin, count, shift, p.slots, stride, p.radix);
            for (int i = 0; i < count; i++)
                if (held.digit[i] == value) received += held.g[i];
        }
        if (value < p.radix)
            narrow(received - exp_(sub_no_ftz(widen(load_read_only(x + value)), top)) * share, p.dlogits[first + value]);
    }
}

// dL/dlogits_u[p] = sum_j g_j * (digit_u(a_j) == p) - p_u[p] * sum_j g_j, g_j = dL/dlog rho_j.
extern "C" __global__ void decode_backward_generic(const __grid_constant__ GenericDecodeParams p) {
    extern __shared__ double shared_memory[];
    Acc* shared = reinterpret_cast<Acc*>(shared_memory);  // one a thread, for ``reduce``
    HeldAddresses held(shared + blockDim.x, p.top_k);
    for (unsigned row = blockIdx.x; row < p.rows; row += gridDim.x) {
        // 5. CAPE moved slots, not weights
        const unsigned shift = p.shift(row);
        // 4. the gradients of log rho
        const LogGradients gradients(p, row, shared);
        // 3., 2., 1. rho_j = prod_u p_u[digit_u(a_j)], digit by digit
        unsigned stride = 1;  // P**u
        for (int u = 0; u < p.order; u++, stride *= p.radix)
            digit_gradient(p, row, shift, u, stride, gradients, held, shared);
    }
}
