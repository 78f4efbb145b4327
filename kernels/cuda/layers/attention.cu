// What attention does between its matrix products.
//
//   rotate                 one thread a pair of channels
//   softmax_rows           one warp a row of scores
//   softmax_rows_backward  the same
//
// Same mathematics as ramnet_np/layers/rotary.py and softmax_attention.py. A row is a query's scores with the keys of
// its block; it sees the keys first <= j < end. A lane of a warp has EACH keys at a time: 16 bytes where the number of keys
// allows it, else one. It always has the same ones, so that it reads only what it wrote itself.
#include "layers/element.cuh"

extern "C" __global__ void rotate(
    const ELEMENT* x,    // (N, H, d) for N tokens
    const Acc* cos,      // (angles, d/2): token n has row n % angles
    const Acc* sin,
    long long pairs,  // N H d/2
    int heads, int half, long long angles,
    ELEMENT* y  // (N, H, d)
) {
    const long long pair = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (pair >= pairs) return;
    const int i = pair % half;
    const long long row = pair / half, angle = row / heads % angles * half + i, at = row * 2 * half + i;
    const Acc a = widen(x[at]), b = widen(x[at + half]), c = cos[angle], s = sin[angle];
    y[at] = narrowed(a * c - b * s);
    y[at + half] = narrowed(a * s + b * c);
}

// The keys that the query of a row sees.
struct Seen {
    int first, end;

    DEVICE Seen(long long row, int queries, int keys, int diagonal, int window) {
        const int newest = int(row % queries) + diagonal;
        end = smaller_of(newest + 1, keys);
        first = newest + 1 > window ? newest + 1 - window : 0;
    }

    DEVICE bool has(int key) const { return first <= key && key < end; }
};

struct SoftmaxParams {
    ELEMENT* scores;    // (rows, keys)
    ELEMENT* dweights;  // (rows, keys); null in the forward
    Acc* log_sums;      // (rows,)
    long long rows;
    int queries, keys, diagonal, window;
    Acc scale;
};

// The keys of a lane, EACH at a time, from the first that the row sees.
template <int EACH, class Visit> DEVICE void for_seen(const Seen& seen, const Visit& visit) {
    for (int j = seen.first / (32 * EACH) * (32 * EACH) + EACH * int(threadIdx.x % 32); j < seen.end; j += 32 * EACH) visit(j);
}

// scores become weights, exp(scale * score) over its sum, and 0 where nothing is seen
template <int EACH> DEVICE void soften(const SoftmaxParams& p, long long row, const Seen& seen) {
    ELEMENT* scores = p.scores + row * p.keys;
    Acc x[EACH], largest = -infinity(Acc(0)), total = 0;
    for_seen<EACH>(seen, [&](int j) {
        load<EACH>(scores + j, x);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (seen.has(j + i)) largest = max_(largest, x[i] * p.scale);
    });
    for (int distance = 16; distance; distance /= 2) largest = max_(largest, __shfl_xor_sync(~0u, largest, distance));
    for_seen<EACH>(seen, [&](int j) {
        load<EACH>(scores + j, x);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (seen.has(j + i)) total += exp_(x[i] * p.scale - largest);
    });
    total = warp_sum(total);
    for (int j = EACH * int(threadIdx.x % 32); j < p.keys; j += 32 * EACH) {
        load<EACH>(scores + j, x);
#pragma unroll
        for (int i = 0; i < EACH; i++) x[i] = seen.has(j + i) ? exp_(x[i] * p.scale - largest) / total : Acc(0);
        store<EACH>(x, scores + j);
    }
    if (threadIdx.x % 32 == 0) p.log_sums[row] = largest + log(total);
}

extern "C" __global__ void softmax_rows(const __grid_constant__ SoftmaxParams p) {
    const long long row = (blockIdx.x * (long long)(blockDim.x) + threadIdx.x) / 32;
    if (row >= p.rows) return;
    const Seen seen(row, p.queries, p.keys, p.diagonal, p.window);
    if (p.keys % VECTOR == 0) soften<VECTOR>(p, row, seen);
    else soften<1>(p, row, seen);
}

// scores become weights p again, and dweights the gradient of the scores, p (dweight - sum of p dweight) scale
template <int EACH> DEVICE void soften_backward(const SoftmaxParams& p, long long row, const Seen& seen) {
    ELEMENT* scores = p.scores + row * p.keys;
    ELEMENT* dweights = p.dweights + row * p.keys;
    const Acc log_sum = p.log_sums[row];
    Acc x[EACH], d[EACH], weighted_sum = 0;
    for_seen<EACH>(seen, [&](int j) {
        load<EACH>(scores + j, x);
        load<EACH>(dweights + j, d);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (seen.has(j + i)) weighted_sum += exp_(x[i] * p.scale - log_sum) * d[i];
    });
    weighted_sum = warp_sum(weighted_sum);
    for (int j = EACH * int(threadIdx.x % 32); j < p.keys; j += 32 * EACH) {
        load<EACH>(scores + j, x);
        load<EACH>(dweights + j, d);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            x[i] = seen.has(j + i) ? exp_(x[i] * p.scale - log_sum) : Acc(0);
            d[i] = seen.has(j + i) ? x[i] * (d[i] - weighted_sum) * p.scale : Acc(0);
        }
        store<EACH>(x, scores + j);
        store<EACH>(d, dweights + j);
    }
}

extern "C" __global__ void softmax_rows_backward(const __grid_constant__ SoftmaxParams p) {
    const long long row = (blockIdx.x * (long long)(blockDim.x) + threadIdx.x) / 32;
    if (row >= p.rows) return;
    const Seen seen(row, p.queries, p.keys, p.diagonal, p.window);
    if (p.keys % VECTOR == 0) soften_backward<VECTOR>(p, row, seen);
    else soften_backward<1>(p, row, seen);
}
