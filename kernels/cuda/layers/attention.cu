// What attention does between its matrix products.
//
//   rotate                 one thread a pair of channels
//   softmax_rows           one warp a row of scores
//   softmax_rows_backward  the same
//
// Same mathematics as ramnet_np/layers/rotary.py and softmax_attention.py. A row is a query's scores with the keys of
// its block; it sees the keys first <= j < end. Lane l of a warp always has the keys l, l + 32, ..., so that it reads
// only what it wrote itself.
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

// scores become weights, exp(scale * score) over its sum, and 0 where nothing is seen
extern "C" __global__ void softmax_rows(const __grid_constant__ SoftmaxParams p) {
    const int lane = threadIdx.x % 32;
    const long long row = (blockIdx.x * (long long)(blockDim.x) + threadIdx.x) / 32;
    if (row >= p.rows) return;
    ELEMENT* scores = p.scores + row * p.keys;
    const Seen seen(row, p.queries, p.keys, p.diagonal, p.window);
    const int begin = seen.first / 32 * 32 + lane;
    Acc largest = -infinity(Acc(0));
    for (int j = begin; j < seen.end; j += 32)
        if (seen.has(j)) largest = max_(largest, widen(scores[j]) * p.scale);
    for (int distance = 16; distance; distance /= 2)
        largest = max_(largest, __shfl_xor_sync(~0u, largest, distance));
    Acc total = 0;
    for (int j = begin; j < seen.end; j += 32)
        if (seen.has(j)) total += exp_(widen(scores[j]) * p.scale - largest);
    total = warp_sum(total);
    for (int j = lane; j < p.keys; j += 32)
        scores[j] = narrowed(seen.has(j) ? exp_(widen(scores[j]) * p.scale - largest) / total : Acc(0));
    if (lane == 0) p.log_sums[row] = largest + log(total);
}

// scores become weights p again, and dweights the gradient of the scores, p (dweight - sum of p dweight) scale
extern "C" __global__ void softmax_rows_backward(const __grid_constant__ SoftmaxParams p) {
    const int lane = threadIdx.x % 32;
    const long long row = (blockIdx.x * (long long)(blockDim.x) + threadIdx.x) / 32;
    if (row >= p.rows) return;
    ELEMENT* scores = p.scores + row * p.keys;
    ELEMENT* dweights = p.dweights + row * p.keys;
    const Seen seen(row, p.queries, p.keys, p.diagonal, p.window);
    const Acc log_sum = p.log_sums[row];
    Acc weighted_sum = 0;
    for (int j = seen.first / 32 * 32 + lane; j < seen.end; j += 32)
        if (seen.has(j)) weighted_sum += exp_(widen(scores[j]) * p.scale - log_sum) * widen(dweights[j]);
    weighted_sum = warp_sum(weighted_sum);
    for (int j = lane; j < p.keys; j += 32) {
        const Acc weight = seen.has(j) ? exp_(widen(scores[j]) * p.scale - log_sum) : Acc(0);
        dweights[j] = narrowed(seen.has(j) ? weight * (widen(dweights[j]) - weighted_sum) * p.scale : Acc(0));
        scores[j] = narrowed(weight);
    }
}
