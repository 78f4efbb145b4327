// The address decoder (decode.cu) for any U, P and K: one block a token and head. What a row needs lies in shared memory if
// it fits, else in global memory.
//
// Compiled with: LOGIT, the type of the logits, one of float, double, float16, bfloat16.
#include "runtime/common.cuh"

using Sum = SumOf<LOGIT>::type;
using SlotKey = Key<Sum>;

constexpr int MOST_SELECTED = 64;  // more are sorted
constexpr int MOST_HELD = 1024;    // slots that the backward looks at together

// The sum (or the maximum) of every thread's number, in a fixed order; the block's size is a power of two.
template <class Combine> DEVICE Sum reduce(Sum mine, Sum* shared, Combine combine) {
    shared[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + half]);
        __syncthreads();
    }
    const Sum result = shared[0];
    __syncthreads();
    return result;
}
DEVICE Sum sum(Sum mine, Sum* shared) {
    return reduce(mine, shared, [](Sum a, Sum b) { return a + b; });
}
DEVICE Sum maximum_of(const LOGIT* logits, int count, Sum* shared) {
    Sum top = widen(logits[0]);
    for (int p = threadIdx.x; p < count; p += blockDim.x) top = larger(top, widen(logits[p]));
    return reduce(top, shared, [](Sum a, Sum b) { return larger(a, b); });
}

// Bitonic sort. Every exchange puts the better key at the lower place, so places beyond ``count`` can be thought of as
// filled with worse keys that never move.
DEVICE void sort(SlotKey* keys, unsigned count) {
    for (unsigned size = 2; size / 2 < count; size *= 2) {  // sorted runs of size / 2 become sorted runs of size
        for (unsigned span = size; span > 1; span /= 2) {
            const unsigned half = span / 2;
            for (unsigned pair = threadIdx.x; pair < (count + span - 1) / span * half; pair += blockDim.x) {
                const unsigned start = pair / half * span, place = pair % half;
                // first against the mirror image, which joins the two runs; then against the other half
                const unsigned other = span == size ? size - 1 - place : place + half;
                if (start + other < count) exchange(keys[start + place], keys[start + other]);
            }
            __syncthreads();
        }
    }
}

// The best ``count`` of ``size`` keys, best first, at the front; the others are lost. For a block of one warp, whose lane l
// looks after keys l, l + 32, ..: in each of ``count`` rounds the lane with the best gives it up and looks for its next.
DEVICE void select(SlotKey* keys, int size, int count) {
    const int lane = threadIdx.x;
    SlotKey mine = SlotKey::worst(), kept[MOST_SELECTED / 32];
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
        for (int i = 0; i < MOST_SELECTED / 32; i++)
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
    for (int i = 0; i < MOST_SELECTED / 32; i++)
        if (lane + 32 * i < count) keys[lane + 32 * i] = kept[i];
    __syncthreads();
}

// ``count`` best of ``size``, sorted, at the front: a warp selects them, larger blocks sort all.
DEVICE void best_first(SlotKey* keys, int size, int count) {
    if (blockDim.x == 32 && count <= MOST_SELECTED)
        select(keys, size, count);
    else
        sort(keys, size);
}

extern "C" __global__ void decode_forward_any(
    const LOGIT* __restrict__ logits,                // (rows, U, P)
    const long long* positions,                      // (B, T), or null: counted from 0
    int* __restrict__ index,                         // (rows, K)
    Sum* __restrict__ weight,                        // (rows, K)
    SlotKey* global,                                 // (blocks, 2 * capacity + P), or null: shared memory holds one of these
    long long batch_stride, long long token_stride,  // of positions
    unsigned tokens, unsigned heads, unsigned cape_heads, unsigned rows, int renorm,
    int order, int radix, int top_k, unsigned slots,
    int capacity  // candidates of one digit, at most; and at least P
) {
    extern __shared__ double shared_memory[];
    Sum* shared = reinterpret_cast<Sum*>(shared_memory);  // one a thread, for ``reduce``
    const long long block_keys = 2LL * capacity + radix;
    SlotKey* best = global ? global + blockIdx.x * block_keys : reinterpret_cast<SlotKey*>(shared_memory + blockDim.x);
    SlotKey *candidates = best + capacity, *digit = candidates + capacity;

    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        // 1. softmax of every digit, and 2. the K best content slots
        Sum total = 1;
        unsigned place = 1;  // P**u
        int n = 1;  // partial addresses
        if (threadIdx.x == 0) best[0] = SlotKey(Sum(0), 0);
        for (int u = 0; u < order; u++, place *= radix) {
            const LOGIT* x = logits + ((long long)(row) * order + u) * radix;
            const Sum top = maximum_of(x, radix, shared);
            Sum mine = 0;
            for (int p = threadIdx.x; p < radix; p += blockDim.x) {
                digit[p] = SlotKey(minus(top, widen(x[p])), p * place);
                mine += exponential(-digit[p].penalty());
            }
            total *= sum(mine, shared);
            best_first(digit, radix, radix < top_k ? radix : top_k);
            // the staircase: ranks (i, j), i of a partial address and j of the digit's value, with (i+1)*(j+1) <= K
            int count = 0;
            for (int j = 0; j < radix && j < top_k; j++) {
                const int length = n < top_k / (j + 1) ? n : top_k / (j + 1);
                for (int i = threadIdx.x; i < length; i += blockDim.x) candidates[count + i] = best[i] + digit[j];
                count += length;
            }
            __syncthreads();
            best_first(candidates, count, count < top_k ? count : top_k);
            SlotKey* previous = best;
            best = candidates;
            candidates = previous;
            n = count < top_k ? count : top_k;
        }
        // 3. their weights
        Sum mine = 0;
        for (int j = threadIdx.x; j < top_k; j += blockDim.x) mine += exponential(-best[j].penalty()) / total;
        // 4. optionally divided by their sum
        const Sum kept = renorm ? sum(mine, shared) : Sum(1);
        // 5. where they are at this position
        const unsigned shift = Cape{positions, batch_stride, token_stride, tokens, heads, cape_heads}.shift(row, slots);
        for (int j = threadIdx.x; j < top_k; j += blockDim.x) {
            index[(long long)(row) * top_k + j] = moved(best[j].slot(), shift, slots);
            weight[(long long)(row) * top_k + j] = exponential(-best[j].penalty()) / total / kept;
        }
        __syncthreads();
    }
}

// dL/dlogits_u[p] = sum_j g_j * (digit_u(a_j) == p) - p_u[p] * sum_j g_j, g_j = dL/dlog rho_j.
extern "C" __global__ void decode_backward_any(
    const Sum* __restrict__ dweight,                 // (rows, K)
    const LOGIT* __restrict__ logits,                // (rows, U, P)
    const long long* positions,                      // (B, T), or null: counted from 0
    const int* __restrict__ index,                   // (rows, K), as the forward returned it, and weight
    const Sum* __restrict__ weight,                  // (rows, K)
    LOGIT* __restrict__ dlogits,                     // (rows, U, P)
    long long batch_stride, long long token_stride,  // of positions
    unsigned tokens, unsigned heads, unsigned cape_heads, unsigned rows, int renorm,
    int order, int radix, int top_k, unsigned slots
) {
    extern __shared__ double shared_memory[];
    Sum* shared = reinterpret_cast<Sum*>(shared_memory);  // one a thread, for ``reduce``
    Sum* g = shared + blockDim.x;                         // dL/dlog rho, of MOST_HELD slots at once
    unsigned* digit = reinterpret_cast<unsigned*>(g + (top_k < MOST_HELD ? top_k : MOST_HELD));  // of the same, u by u
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        const Sum *w = weight + (long long)(row) * top_k, *dw = dweight + (long long)(row) * top_k;
        const int* slot = index + (long long)(row) * top_k;
        // 5. CAPE moved slots, not weights
        const unsigned shift = Cape{positions, batch_stride, token_stride, tokens, heads, cape_heads}.shift(row, slots);
        // 4. weight = rho / sum(rho): dL/dlog rho_j = g_j - weight_j * sum_i g_i, with g = dL/dlog weight
        Sum mine = 0;
        for (int j = threadIdx.x; j < top_k; j += blockDim.x) mine += dw[j] * w[j];
        Sum total = sum(mine, shared);
        const Sum given = renorm ? total : Sum(0);
        if (renorm) {
            mine = 0;
            for (int j = threadIdx.x; j < top_k; j += blockDim.x) mine += dw[j] * w[j] - w[j] * given;
            total = sum(mine, shared);
        }
        // 3., 2., 1. rho_j = prod_u p_u[digit_u(a_j)], digit by digit
        unsigned place = 1;  // P**u
        for (int u = 0; u < order; u++, place *= radix) {
            const long long first = ((long long)(row) * order + u) * radix;
            const LOGIT* x = logits + first;
            const Sum top = maximum_of(x, radix, shared);
            mine = 0;
            for (int p = threadIdx.x; p < radix; p += blockDim.x) mine += exponential(minus(widen(x[p]), top));
            const Sum share = total / sum(mine, shared);
            for (int before = 0; before < radix; before += blockDim.x) {
                const int p = before + threadIdx.x;
                Sum received = 0;
                for (int first_slot = 0; first_slot < top_k; first_slot += MOST_HELD) {
                    const int held = smaller_of(MOST_HELD, top_k - first_slot);
                    __syncthreads();  // the ones before have been looked at
                    for (int i = threadIdx.x; i < held; i += blockDim.x) {
                        const int j = first_slot + i;
                        g[i] = dw[j] * w[j] - w[j] * given;
                        digit[i] = moved_back(slot[j], shift, slots) / place % radix;
                    }
                    __syncthreads();
                    for (int i = 0; i < held; i++)
                        if (digit[i] == p) received += g[i];
                }
                if (p < radix) narrow(received - exponential(minus(widen(x[p]), top)) * share, dlogits[first + p]);
            }
        }
    }
}
