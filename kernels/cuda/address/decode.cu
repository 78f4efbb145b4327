// The address decoder: logits (B, T, H, U, P) to the K best slots and their weights (B, T, H, K), and its backward.
//
// One thread a token and head, all in registers; with LOGIT, ORDER, RADIX, TOP_K and THREADS, the size of a block, defined.
// A launch is of one side or both: of both, even blocks work for writes and odd ones for reads. decode_any.cu serves what is
// too large for that.
//
// Same mathematics as ramnet_np/core/decoder.py, and the same selection to the bit: slots are ranked by the sum of
// their digits' scores, logit - max, added in the order of the digits; ties go to the smaller slot before CAPE. Here
// scores are negated into penalties, so that better is smaller (common.cuh: keys). B, T and H are one axis of rows.
#include "runtime/common.cuh"

using Sum = SumOf<LOGIT>::type;
using SlotKey = Key<Sum>;

constexpr int U = ORDER, P = RADIX, K = TOP_K;

constexpr unsigned M = whole_power(P, U);

// A few digits are laid out one after the other; with a large K the code of one digit is long enough for a loop.
constexpr int UNROLLED = K <= 8 ? U : 1;

// A row of logits. A short one is asked for as a whole and before all else: neighbouring digits share lines of memory, which
// would be gone from the L1 cache when their turn comes.
struct Row {
    static constexpr bool WHOLE = UNROLLED == U && U * P * sizeof(Sum) <= 128;

    const LOGIT* at;
    Sum held[WHOLE ? U * P : 1];

    DEVICE Row(const LOGIT* logits, unsigned row) : at(logits + (long long)(row) * (U * P)) {
        if constexpr (WHOLE) load(at, held);
    }
    DEVICE void digit(int u, Sum (&x)[P]) const {
        if constexpr (WHOLE) {
#pragma unroll
            for (int p = 0; p < P; p++) x[p] = held[u * P + p];
        } else {
            load(at + u * P, x);
        }
    }
};

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
DEVICE Sum rank_digit(const Row& row, int u, unsigned place, SlotKey (&digit)[P]) {
    Sum x[P];
    row.digit(u, x);
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
template <int FIRST, int N> DEVICE Sum search(const Row& row, SlotKey (&best)[K]) {
    constexpr int NEXT = smaller_of(N * P, K);
    Sum total = 1;
    SlotKey digit[P];
    if constexpr (FIRST < U && N < NEXT) {
        total = rank_digit(row, FIRST, whole_power(P, FIRST), digit);
        extend<N>(best, digit);
        total *= search<FIRST + 1, NEXT>(row, best);
    } else {
        unsigned place = whole_power(P, FIRST);
#pragma unroll UNROLLED
        for (int u = FIRST; u < U; u++, place *= P) {
            total *= rank_digit(row, u, place, digit);
            extend<N>(best, digit);
        }
    }
    return total;
}

// Of one digit: logits x become exp(x - max). Returns 1 / their sum.
DEVICE Sum softmax_numerators(Sum (&x)[P]) {
    Sum top = x[0], total = 0;
#pragma unroll
    for (int p = 1; p < P; p++) top = larger(top, x[p]);
#pragma unroll
    for (int p = 0; p < P; p++) {
        x[p] = exponential(minus(x[p], top));
        total += x[p];
    }
    return 1 / total;
}

// What a thread works for: which row, and of the two sides, which one.
struct Work {
    unsigned row, side;

    DEVICE Work(unsigned block, unsigned both) : row((block >> both) * THREADS + threadIdx.x), side(block & both) {}
    template <class T> DEVICE T of_side(T write, T read) const { return side ? read : write; }
};

extern "C" __global__ void __launch_bounds__(THREADS) decode_forward(
    const LOGIT* write_logits, const LOGIT* read_logits,  // (rows, U, P)
    const long long* positions,                           // (B, T), or null: counted from 0
    int* write_index, int* read_index,                    // (rows, K)
    Sum* write_weight, Sum* read_weight,                  // (rows, K)
    long long batch_stride, long long token_stride,       // of positions
    unsigned tokens, unsigned heads, unsigned cape_heads, unsigned rows, int write_renorm, int read_renorm, unsigned both
) {
    const Work work(blockIdx.x, both);
    const LOGIT* __restrict__ logits = work.of_side(write_logits, read_logits);
    int* __restrict__ index = work.of_side(write_index, read_index);
    Sum* __restrict__ weight = work.of_side(write_weight, read_weight);
    const int renorm = work.of_side(write_renorm, read_renorm);
    const unsigned row = work.row;
    if (row >= rows) return;
    // 1. softmax of every digit, and 2. the K best content slots
    SlotKey best[K];
    best[0] = SlotKey(Sum(0), 0);
    const Sum total = search<0, 1>(Row(logits, row), best);
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
    unsigned tokens, unsigned heads, unsigned cape_heads, unsigned rows, int write_renorm, int read_renorm, unsigned both
) {
    const Work work(block_from_last(), both);
    const Sum* __restrict__ dweight = work.of_side(dwrite_weight, dread_weight);
    const LOGIT* __restrict__ logits = work.of_side(write_logits, read_logits);
    const int* __restrict__ index = work.of_side(write_index, read_index);
    const Sum* __restrict__ weight = work.of_side(write_weight, read_weight);
    LOGIT* __restrict__ dlogits = work.of_side(dwrite_logits, dread_logits);
    const int renorm = work.of_side(write_renorm, read_renorm);
    const unsigned row = work.row;
    if (row >= rows) return;
    Sum g[K], rho[K];
    int slot[K];
    unsigned content[K];
    load(dweight + (long long)(row) * K, g);
    load(weight + (long long)(row) * K, rho);
    load(index + (long long)(row) * K, slot);
    const Row row_logits(logits, row);
    // The softmax of whole rows is first, so that compilers put off none of the loads
    constexpr bool WHOLE = Row::WHOLE;
    Sum numerators[WHOLE ? U : 1][P], scales[WHOLE ? U : 1];
#pragma unroll
    for (int u = 0; WHOLE && u < U; u++) {
        row_logits.digit(u, numerators[u]);
        scales[u] = softmax_numerators(numerators[u]);
    }
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
    // 3., 2., 1. rho_j = prod_u p_u[digit_u(a_j)], digit by digit
#pragma unroll UNROLLED
    for (int u = 0; u < U; u++) {
        const long long first = (long long)(row) * (U * P) + u * P;
        Sum(&x)[P] = numerators[WHOLE ? u : 0];
        Sum& scale = scales[WHOLE ? u : 0];
        Sum received[P];
        if constexpr (!WHOLE) {
            row_logits.digit(u, x);
            scale = softmax_numerators(x);
        }
#pragma unroll
        for (int p = 0; p < P; p++) received[p] = 0;
#pragma unroll
        for (int j = 0; j < K; j++) {
            const unsigned digit = content[j] % P;
            content[j] /= P;
#pragma unroll
            for (int p = 0; p < P; p++) received[p] += digit == p ? g[j] : Sum(0);
        }
        const Sum share = total * scale;
#pragma unroll
        for (int p = 0; p < P; p++) received[p] -= x[p] * share;
        store(received, dlogits + first);
    }
}
