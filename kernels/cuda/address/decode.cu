// The address decoder: logits (B, T, H, U, P) to the K best slots and their weights (B, T, H, K), and its backward.
//
// Same mathematics as ramnet_np/core/decoder.py, and the same selection to the bit: slots are ranked by the sum of
// their digits' scores, logit - max, added in the order of the digits; ties go to the smaller slot before CAPE. Here
// scores are negated into penalties, so that better is smaller (sort.cuh). B, T and H are one axis of rows.
//
// Who computes what: one thread a row, all in registers. A launch decodes one side, writes or reads, or both: then even
// blocks decode writes and odd ones reads. decode_generic.cu serves sizes that are too large for registers.
//
// Compiled with: ELEMENT, the type of the logits; ORDER, RADIX and TOP_K, the sizes U, P and K; THREADS of a block.
#include "address/cape.cuh"
#include "address/sort.cuh"

#ifndef ELEMENT
#error "ELEMENT must be defined as the type of the logits"
#endif
#if !defined(ORDER) || !defined(RADIX) || !defined(TOP_K) || !defined(THREADS)
#error "ORDER, RADIX, TOP_K and THREADS must be defined"
#endif

using Acc = AccOf<ELEMENT>::type;
using SlotKey = Key<Acc>;

constexpr int U = ORDER, P = RADIX, K = TOP_K;

constexpr unsigned M = whole_power(P, U);

// A few digits are laid out one after the other; with a large K the code of one digit is long enough for a loop.
constexpr int UNROLLED = K <= 8 ? U : 1;

// The arrays of both sides; a launch for one side has it in the writes, and nulls in the reads. Twin: DECODE_PARAMS of
// decode.py.
struct DecodeParams {
    const ELEMENT *write_logits, *read_logits;  // (rows, U, P)
    const Acc *dwrite_weight, *dread_weight;    // (rows, K): the backward's input
    ELEMENT *dwrite_logits, *dread_logits;      // (rows, U, P): the backward's output
    int *write_index, *read_index;              // (rows, K): the forward's output, which the backward reads
    Acc *write_weight, *read_weight;            // (rows, K), likewise
    const long long* positions;                 // (B, T), or null: counted from 0
    long long batch_stride, token_stride;       // of positions
    unsigned tokens, heads, cape_heads, rows;
    int write_renorm, read_renorm;
    unsigned both_sides;

    DEVICE unsigned shift(unsigned row) const {
        return Cape{positions, batch_stride, token_stride, tokens, heads, cape_heads}.shift(row, M);
    }
};

// What a thread works on: one row of one side.
struct Side {
    unsigned row;
    bool reads;

    DEVICE Side(unsigned block, unsigned both) : row((block >> both) * THREADS + threadIdx.x), reads(block & both) {}
    template <class T> DEVICE T pick(T write, T read) const { return reads ? read : write; }
};

// A row of logits. Short rows are loaded whole, first: digits share cache lines, which L1 would have evicted by the time
// later digits are read.
struct Row {
    static constexpr bool WHOLE = UNROLLED == U && U * P * sizeof(Acc) <= 128;

    const ELEMENT* at;
    Acc held[WHOLE ? U * P : 1];

    DEVICE Row(const ELEMENT* logits, unsigned row) : at(logits + (long long)(row) * (U * P)) {
        if constexpr (WHOLE) load(at, held);
    }
    DEVICE void digit(int u, Acc (&x)[P]) const {
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

// How many of rows j = J ... END - 1 may be among the K - 1 best: one better slot is in row 0.
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

// One digit of a row: its values as keys, best first, and what its softmax divides by. ``stride``: P**u, what 1 more in
// this digit adds to the slot.
DEVICE Acc rank_digit(const Row& row, int u, unsigned stride, SlotKey (&digit)[P]) {
    Acc x[P];
    row.digit(u, x);
    Acc top = x[0];
#pragma unroll
    for (int p = 1; p < P; p++) top = max_no_ftz(top, x[p]);
#pragma unroll
    for (int p = 0; p < P; p++) digit[p] = SlotKey(sub_no_ftz(top, x[p]), p * stride);
    sort<P>(&digit[0]);
    Acc total = 1 + digit[0].penalty();  // exp(0), and the penalty is 0, or NaN if all are
#pragma unroll
    for (int p = 1; p < P; p++) total += exp_(-digit[p].penalty());
    return total;
}

// Digits u = FIRST ... U - 1, while the N best addresses so far grow to K; then in a loop. Returns the product of the
// softmax denominators.
template <int FIRST, int N> DEVICE Acc search(const Row& row, SlotKey (&best)[K]) {
    constexpr int NEXT = smaller_of(N * P, K);
    Acc total = 1;
    SlotKey digit[P];
    if constexpr (FIRST < U && N < NEXT) {
        total = rank_digit(row, FIRST, whole_power(P, FIRST), digit);
        extend<N>(best, digit);
        total *= search<FIRST + 1, NEXT>(row, best);
    } else {
        unsigned stride = whole_power(P, FIRST);
#pragma unroll UNROLLED
        for (int u = FIRST; u < U; u++, stride *= P) {
            total *= rank_digit(row, u, stride, digit);
            extend<N>(best, digit);
        }
    }
    return total;
}

// ---- forward ----

// 3. weights of the best addresses, 4. optionally divided by their sum. ``total``: the product of the digits' softmax
// denominators.
DEVICE void weigh(const SlotKey (&best)[K], Acc total, bool renorm, Acc (&rho)[K]) {
    const Acc scale = 1 / total;
    Acc kept = scale;
    rho[0] = scale;  // the best value in every digit: its penalty is 0
#pragma unroll
    for (int j = 1; j < K; j++) {
        rho[j] = exp_(-best[j].penalty()) * scale;
        kept += rho[j];
    }
    if (renorm)
#pragma unroll
        for (int j = 0; j < K; j++) rho[j] /= kept;  // for K = 1: exactly 1
}

extern "C" __global__ void __launch_bounds__(THREADS) decode_forward(const __grid_constant__ DecodeParams p) {
    const Side side(blockIdx.x, p.both_sides);
    const unsigned row = side.row;
    if (row >= p.rows) return;
    // 1. softmax of every digit, and 2. the K best content slots
    SlotKey best[K];
    best[0] = SlotKey(Acc(0), 0);
    const Acc total = search<0, 1>(Row(side.pick(p.write_logits, p.read_logits), row), best);
    // 3. and 4. their weights
    Acc rho[K];
    weigh(best, total, side.pick(p.write_renorm, p.read_renorm), rho);
    // 5. where they are at this position
    const unsigned shift = p.shift(row);
    int slot[K];
#pragma unroll
    for (int j = 0; j < K; j++) slot[j] = cape_shift(best[j].slot(), shift, M);
    store(slot, side.pick(p.write_index, p.read_index) + (long long)(row) * K);
    store(rho, side.pick(p.write_weight, p.read_weight) + (long long)(row) * K);
}

// ---- backward ----

// Logits x of one digit become exp(x - max). Returns 1 / their sum.
DEVICE Acc softmax_numerators(Acc (&x)[P]) {
    Acc top = x[0], total = 0;
#pragma unroll
    for (int p = 1; p < P; p++) top = max_no_ftz(top, x[p]);
#pragma unroll
    for (int p = 0; p < P; p++) {
        x[p] = exp_(sub_no_ftz(x[p], top));
        total += x[p];
    }
    return 1 / total;
}

// The softmax of a row's digits, computed again: exp(x - max), and 1 / their sum. That of whole rows comes first, so that
// compilers put off none of the loads; other rows take one digit at a time.
struct RowSoftmax {
    const Row row;
    Acc numerators[Row::WHOLE ? U : 1][P], scales[Row::WHOLE ? U : 1];

    DEVICE RowSoftmax(const ELEMENT* logits, unsigned number) : row(logits, number) {
#pragma unroll
        for (int u = 0; Row::WHOLE && u < U; u++) compute(u);
    }
    DEVICE void compute(int u) {
        const int held = Row::WHOLE ? u : 0;
        row.digit(u, numerators[held]);
        scales[held] = softmax_numerators(numerators[held]);
    }
};

// 4. weight = rho / sum(rho): dL/dlog rho_j = g_j - weight_j * sum_i g_i, with g = dL/dlog weight. Turns g from dL/dweight
// into dL/dlog rho, and returns its sum.
DEVICE Acc log_gradients(const Acc (&rho)[K], bool renorm, Acc (&g)[K]) {
    Acc total = 0;
#pragma unroll
    for (int j = 0; j < K; j++) {
        g[j] *= rho[j];
        total += g[j];
    }
    if (renorm) {
        const Acc given = total;
        total = 0;
#pragma unroll
        for (int j = 0; j < K; j++) {
            g[j] -= rho[j] * given;
            total += g[j];
        }
    }
    return total;
}

// The gradient of one digit's logits: what the addresses with each value receive, less p_u * sum_j g_j, p_u = x * scale.
// Takes the digit off the addresses.
DEVICE void digit_gradient(
    const Acc (&x)[P], Acc scale, const Acc (&g)[K], Acc total, unsigned (&content)[K], Acc (&dx)[P]
) {
#pragma unroll
    for (int p = 0; p < P; p++) dx[p] = 0;
#pragma unroll
    for (int j = 0; j < K; j++) {
        const unsigned digit = content[j] % P;
        content[j] /= P;
#pragma unroll
        for (int p = 0; p < P; p++) dx[p] += digit == p ? g[j] : Acc(0);
    }
    const Acc share = total * scale;
#pragma unroll
    for (int p = 0; p < P; p++) dx[p] -= x[p] * share;
}

// dL/dlogits_u = sum_j g_j * (onehot(digit_u(a_j)) - p_u), g_j = dL/dlog rho_j.
extern "C" __global__ void __launch_bounds__(THREADS) decode_backward(const __grid_constant__ DecodeParams p) {
    const Side side(block_from_last(), p.both_sides);
    const unsigned row = side.row;
    if (row >= p.rows) return;
    Acc g[K], rho[K];
    int slot[K];
    unsigned content[K];
    load(side.pick(p.dwrite_weight, p.dread_weight) + (long long)(row) * K, g);
    load(side.pick(p.write_weight, p.read_weight) + (long long)(row) * K, rho);
    load(side.pick(p.write_index, p.read_index) + (long long)(row) * K, slot);
    RowSoftmax softmax(side.pick(p.write_logits, p.read_logits), row);
    // 5. CAPE moved slots, not weights
    const unsigned shift = p.shift(row);
#pragma unroll
    for (int j = 0; j < K; j++) content[j] = cape_unshift(slot[j], shift, M);
    // 4. the gradients of log rho
    const Acc total = log_gradients(rho, side.pick(p.write_renorm, p.read_renorm), g);
    // 3., 2., 1. rho_j = prod_u p_u[digit_u(a_j)], digit by digit
    ELEMENT* dlogits = side.pick(p.dwrite_logits, p.dread_logits) + (long long)(row) * (U * P);
#pragma unroll UNROLLED
    for (int u = 0; u < U; u++) {
        const int held = Row::WHOLE ? u : 0;
        if constexpr (!Row::WHOLE) softmax.compute(u);
        Acc dx[P];
        digit_gradient(softmax.numerators[held], softmax.scales[held], g, total, content, dx);
        store(dx, dlogits + u * P);
    }
}
