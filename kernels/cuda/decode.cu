// The address decoder: logits (B, T, H, U, P) to the K best slots and their weights (B, T, H, K), and its backward.
//
//   decode_forward_any, decode_backward_any   one block a token and head, any U, P, K
//   decode_forward, decode_backward           one thread a token and head, all in registers; with ORDER, RADIX, TOP_K
//                                             and THREADS, the size of a block, defined. Writes are blocks y = 0,
//                                             reads are blocks y = 1, of a launch of one side or both
//
// Same mathematics as ramnet_np/core/decoder.py, and the same selection to the bit: slots are ranked by the sum of
// their digits' scores, logit - max, added in the order of the digits; ties go to the smaller slot before CAPE. Here
// scores are negated into penalties, so that better is smaller (common.cuh: keys). B, T and H are one axis of rows.
#include "common.cuh"

#ifndef LOGIT
#error "LOGIT must be defined: the type of the logits, one of float, double, float16, bfloat16"
#endif

using Sum = SumOf<LOGIT>::type;
using SlotKey = Key<Sum>;

#ifdef TOP_K

constexpr int U = ORDER, P = RADIX, K = TOP_K;

constexpr unsigned M = whole_power(P, U);

// A few digits are laid out one after the other; with a large K the code of one digit is long enough for a loop.
constexpr int UNROLLED = K <= 8 ? U : 1;

// ---- beam search ----

// Adding a penalty to sorted keys keeps their order, but rounding may turn it into a tie: then slots decide anew. That
// is rare, so the cost is one look.
template <int N> DEVICE void settle_ties(SlotKey (&keys)[N]) {
    for (;;) {
        bool sorted = true;
#pragma unroll
        for (int i = 0; i + 1 < N; i++) sorted &= !(keys[i + 1] < keys[i]);
        if (sorted) return;
#pragma unroll
        for (int i = 0; i + 1 < N; i++) exchange(keys[i], keys[i + 1]);
    }
}

// The staircase: of N partial addresses and the digit's values, both best first, ranks (i, j) with (i+1)*(j+1) <= K.
// Row j of it has this many i.
DEVICE constexpr int row_length(int n, int j) { return smaller_of(n, K / (j + 1)); }

// Of rows j = J ... END - 1, this many may be among the K - 1 best: one better slot is in row 0.
DEVICE constexpr int rows_kept(int n, int j, int end) {
    int count = 0;
    for (; j < end; j++) count += row_length(n, j);
    return smaller_of(count, K - 1);
}

// Those, sorted.
template <int N, int J, int END> DEVICE void merge_rows(const SlotKey* best, const SlotKey* digit, SlotKey* kept) {
    if constexpr (END - J == 1) {
        SlotKey row[row_length(N, J)];
#pragma unroll
        for (int i = 0; i < row_length(N, J); i++) row[i] = best[i] + digit[J];
        settle_ties(row);
#pragma unroll
        for (int i = 0; i < rows_kept(N, J, END); i++) kept[i] = row[i];
    } else {
        constexpr int MIDDLE = (J + END) / 2, A = rows_kept(N, J, MIDDLE), B = rows_kept(N, MIDDLE, END);
        SlotKey a[A], b[B], merged[A + B];
        merge_rows<N, J, MIDDLE>(best, digit, a);
        merge_rows<N, MIDDLE, END>(best, digit, b);
        merge<A, B>(a, b, merged);
#pragma unroll
        for (int i = 0; i < rows_kept(N, J, END); i++) kept[i] = merged[i];
    }
}

// From the N best addresses of the digits so far to the min(N*P, K) best with one more digit, both best first.
template <int N> DEVICE void extend(SlotKey (&best)[K], const SlotKey (&digit)[P]) {
    constexpr int ROWS = smaller_of(P, K);
    if constexpr (N == 1) {
#pragma unroll
        for (int j = ROWS - 1; j >= 0; j--) best[j] = best[0] + digit[j];
    } else if constexpr (ROWS == 1) {
#pragma unroll
        for (int i = 0; i < N; i++) best[i] = best[i] + digit[0];
    } else {
        // Row 0 adds a penalty of 0: it stays sorted. Its first, the best value in every digit, stays ahead of all.
        constexpr int REST = rows_kept(N, 1, ROWS);
        SlotKey rest[REST], merged[N - 1 + REST];
        merge_rows<N, 1, ROWS>(best, digit, rest);
#pragma unroll
        for (int i = 0; i < N; i++) best[i] = SlotKey(best[i].penalty(), best[i].slot() + digit[0].slot());
        merge<N - 1, REST>(best + 1, rest, merged);
#pragma unroll
        for (int i = 1; i < smaller_of(N * P, K); i++) best[i] = merged[i - 1];
    }
}

// One digit of a row: its values as keys, best first, and what its softmax divides by.
DEVICE Sum rank_digit(const LOGIT* logits, unsigned place, SlotKey (&digit)[P]) {
    Sum x[P];
    load(logits, x);
    Sum top = x[0];
#pragma unroll
    for (int p = 1; p < P; p++) top = larger(top, x[p]);
#pragma unroll
    for (int p = 0; p < P; p++) digit[p] = SlotKey(minus(top, x[p]), p * place);
    sort<P>(&digit[0]);
    Sum total = 1 + digit[0].penalty();  // exp(0), and the penalty is 0, or NaN if all are
#pragma unroll
    for (int p = 1; p < P; p++) total += exponential(-digit[p].penalty());
    return total;
}

// Digits u = FIRST ... U - 1, while the N best addresses so far grow to K; then in a loop. Returns the product of the
// softmax denominators.
template <int FIRST, int N> DEVICE Sum search(const LOGIT* row, SlotKey (&best)[K]) {
    constexpr int NEXT = smaller_of(N * P, K);
    Sum total = 1;
    SlotKey digit[P];
    if constexpr (FIRST < U && N < NEXT) {
        total = rank_digit(row + FIRST * P, whole_power(P, FIRST), digit);
        extend<N>(best, digit);
        total *= search<FIRST + 1, NEXT>(row, best);
    } else {
        unsigned place = whole_power(P, FIRST);
#pragma unroll UNROLLED
        for (int u = FIRST; u < U; u++, place *= P) {
            total *= rank_digit(row + u * P, place, digit);
            extend<N>(best, digit);
        }
    }
    return total;
}

// Of one digit: logits x become exp(x - max). Returns their sum.
DEVICE Sum softmax_numerators(Sum (&x)[P]) {
    Sum top = x[0], total = 0;
#pragma unroll
    for (int p = 1; p < P; p++) top = larger(top, x[p]);
#pragma unroll
    for (int p = 0; p < P; p++) {
        x[p] = exponential(minus(x[p], top));
        total += x[p];
    }
    return total;
}

// Of the two sides, the one that this block works for.
template <class T> DEVICE T of_side(T write, T read) { return blockIdx.y ? read : write; }

extern "C" __global__ void __launch_bounds__(THREADS) decode_forward(
    const LOGIT* write_logits, const LOGIT* read_logits,  // (rows, U, P)
    const long long* positions,                           // (B, T), or null: counted from 0
    int* write_index, int* read_index,                    // (rows, K)
    Sum* write_weight, Sum* read_weight,                  // (rows, K)
    long long batch_stride, long long token_stride,       // of positions
    unsigned tokens, unsigned heads, unsigned cape_heads, unsigned rows, int write_renorm, int read_renorm
) {
    const LOGIT* __restrict__ logits = of_side(write_logits, read_logits);
    int* __restrict__ index = of_side(write_index, read_index);
    Sum* __restrict__ weight = of_side(write_weight, read_weight);
    const int renorm = of_side(write_renorm, read_renorm);
    const unsigned row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= rows) return;
    // 1. softmax of every digit, and 2. the K best content slots
    SlotKey best[K];
    best[0] = SlotKey(Sum(0), 0);
    const Sum total = search<0, 1>(logits + (long long)(row) * (U * P), best);
    // 3. their weights
    const Sum scale = 1 / total;
    Sum rho[K], kept = scale;
    rho[0] = scale;  // of the best value in every digit: its penalty is 0
#pragma unroll
    for (int j = 1; j < K; j++) {
        rho[j] = exponential(-best[j].penalty()) * scale;
        kept += rho[j];
    }
    // 4. optionally divided by their sum
    if (renorm)
#pragma unroll
        for (int j = 0; j < K; j++) rho[j] /= kept;  // of K = 1: exactly 1
    // 5. where they are at this position
    const unsigned shift = Cape{positions, batch_stride, token_stride, tokens, heads, cape_heads}.shift(row, M);
    int slot[K];
#pragma unroll
    for (int j = 0; j < K; j++) slot[j] = moved(best[j].slot(), shift, M);
    store(slot, index + (long long)(row) * K);
    store(rho, weight + (long long)(row) * K);
}

// dL/dlogits_u = sum_j g_j * (onehot(digit_u(a_j)) - p_u), g_j = dL/dlog rho_j; the softmax is computed again.
extern "C" __global__ void __launch_bounds__(THREADS) decode_backward(
    const Sum* dwrite_weight, const Sum* dread_weight,    // (rows, K)
    const LOGIT* write_logits, const LOGIT* read_logits,  // (rows, U, P)
    const long long* positions,                           // (B, T), or null: counted from 0
    const int* write_index, const int* read_index,        // (rows, K), as the forward returned them, and weights
    const Sum* write_weight, const Sum* read_weight,      // (rows, K)
    LOGIT* dwrite_logits, LOGIT* dread_logits,            // (rows, U, P)
    long long batch_stride, long long token_stride,       // of positions
    unsigned tokens, unsigned heads, unsigned cape_heads, unsigned rows, int write_renorm, int read_renorm
) {
    const Sum* __restrict__ dweight = of_side(dwrite_weight, dread_weight);
    const LOGIT* __restrict__ logits = of_side(write_logits, read_logits);
    const int* __restrict__ index = of_side(write_index, read_index);
    const Sum* __restrict__ weight = of_side(write_weight, read_weight);
    LOGIT* __restrict__ dlogits = of_side(dwrite_logits, dread_logits);
    const int renorm = of_side(write_renorm, read_renorm);
    const unsigned row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= rows) return;
    Sum g[K], rho[K];
    int slot[K];
    unsigned content[K];
    load(dweight + (long long)(row) * K, g);
    load(weight + (long long)(row) * K, rho);
    load(index + (long long)(row) * K, slot);
    // 5. CAPE moved slots, not weights
    const unsigned shift = Cape{positions, batch_stride, token_stride, tokens, heads, cape_heads}.shift(row, M);
#pragma unroll
    for (int j = 0; j < K; j++) content[j] = moved_back(slot[j], shift, M);
    // 4. weight = rho / sum(rho): dL/dlog rho_j = g_j - weight_j * sum_i g_i, with g = dL/dlog weight
    Sum total = 0;
#pragma unroll
    for (int j = 0; j < K; j++) {
        g[j] *= rho[j];
        total += g[j];
    }
    if (renorm) {
        const Sum given = total;
        total = 0;
#pragma unroll
        for (int j = 0; j < K; j++) {
            g[j] -= rho[j] * given;
            total += g[j];
        }
    }
    // 3., 2., 1. rho_j = prod_u p_u[digit_u(a_j)], digit by digit. Short rows are asked for as a whole: neighbouring
    // digits share lines of memory, which would be gone from the L1 cache when their turn comes
    constexpr bool WHOLE = UNROLLED == U && U * P <= 32;
    Sum row_logits[WHOLE ? U * P : P];
    if constexpr (WHOLE) load(logits + (long long)(row) * (U * P), row_logits);
#pragma unroll UNROLLED
    for (int u = 0; u < U; u++) {
        const long long first = (long long)(row) * (U * P) + u * P;
        Sum x[P], received[P];
        if constexpr (WHOLE) {
#pragma unroll
            for (int p = 0; p < P; p++) x[p] = row_logits[u * P + p];
        } else {
            load(logits + first, x);
        }
        const Sum denominator = softmax_numerators(x);
#pragma unroll
        for (int p = 0; p < P; p++) received[p] = 0;
#pragma unroll
        for (int j = 0; j < K; j++) {
            const unsigned digit = content[j] % P;
            content[j] /= P;
#pragma unroll
            for (int p = 0; p < P; p++) received[p] += digit == p ? g[j] : Sum(0);
        }
        const Sum share = total / denominator;
#pragma unroll
        for (int p = 0; p < P; p++) received[p] -= x[p] * share;
        store(received, dlogits + first);
    }
}

#else  // any U, P, K

// ---- one block a row; what a row needs lies in shared memory if it fits, else in global memory ----

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
            sort(digit, radix);
            // the staircase: ranks (i, j), i of a partial address and j of the digit's value, with (i+1)*(j+1) <= K
            int count = 0;
            for (int j = 0; j < radix && j < top_k; j++) {
                const int length = n < top_k / (j + 1) ? n : top_k / (j + 1);
                for (int i = threadIdx.x; i < length; i += blockDim.x) candidates[count + i] = best[i] + digit[j];
                count += length;
            }
            __syncthreads();
            sort(candidates, count);
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
            for (int p = threadIdx.x; p < radix; p += blockDim.x) {
                Sum received = 0;
                for (int j = 0; j < top_k; j++) {
                    if (moved_back(slot[j], shift, slots) / place % radix == p) received += dw[j] * w[j] - w[j] * given;
                }
                narrow(received - exponential(minus(widen(x[p]), top)) * share, dlogits[first + p]);
            }
        }
    }
}

#endif
