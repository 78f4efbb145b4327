// Softmax cross-entropy: loss, how many labels are ranked first, and the gradient of the logits.
//
//   count_labels        one block: how many labels count
//   cross_entropy       one block a row of logits
//   add_losses          one block: the mean of the rows' losses
//
// Same mathematics as ramnet_np/layers/loss.py. A row is read once, into shared memory if it fits, and its gradient may
// be written over it. A thread has EACH elements at a time: 16 bytes where V allows it, else one. A label that does not count (``ignored``) gives no loss and a gradient of zeros; one that no row of
// the head has gives NaN.
#include "layers/element.cuh"


struct LossParams {
    const ELEMENT* logits;  // (N, V)
    const int* labels;      // (N,)
    ELEMENT* dlogits;       // (N, V): new memory, or the logits again, or null
    Acc* losses;            // (N,)
    int* hits;              // (N,), 1 if the largest logit, the first of them, is the label's
    Acc* loss;              // the sum of losses over the labels that count, divided by these
    int* correct;           // the sum of hits
    int* count;             // how many labels count, or by how many to divide
    long long rows;         // N
    int width;              // V
    int ignored;            // the label that does not count
    int in_shared;          // whether a row fits in shared memory
    Acc scale;              // of the gradient
};

extern "C" __global__ void count_labels(const __grid_constant__ LossParams p) {
    __shared__ int scratch[32];
    int total = 0;
    for (long long row = threadIdx.x; row < p.rows; row += blockDim.x) total += p.labels[row] != p.ignored;
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) *p.count = total;
}

// A label that does not count: no loss, and a gradient of zeros.
DEVICE void skip_row(const LossParams& p, long long row, ELEMENT* dlogits) {
    if (dlogits) {
        for (int i = threadIdx.x; i < p.width; i += blockDim.x) narrow(Acc(0), dlogits[i]);
    }
    if (threadIdx.x == 0) {
        p.losses[row] = 0;
        p.hits[row] = 0;
    }
}

// loss = log(sum_i exp(x_i - max)) - (x_label - max);  dlogits = (softmax(x) - onehot(label)) * scale / count
template <int EACH> DEVICE void row_loss(const LossParams& p, long long row, int label, ELEMENT* dlogits, ELEMENT* kept) {
    __shared__ Acc scratch[32];
    __shared__ Largest<Acc> largest_scratch[32];
    const int width = p.width, first = EACH * threadIdx.x, step = EACH * blockDim.x;
    const ELEMENT* logits = p.logits + row * width;
    Acc xs[EACH];
    // 1. max. A thread comes back to the elements that it read itself: nothing to wait for in between.
    Largest<Acc> largest{-infinity(Acc()), 2147483647};
    for (int i = first; i < width; i += step) {
        load<EACH>(logits + i, xs);
        if (p.in_shared) store<EACH>(xs, kept + i);
#pragma unroll
        for (int j = 0; j < EACH; j++) largest.take(xs[j], i + j);
    }
    largest = block_largest(largest, largest_scratch);
    const ELEMENT* again = p.in_shared ? kept : logits;
    const bool known = 0 <= label && label < width;
    const Acc at_label = known ? widen(logits[label]) - largest.value : infinity(Acc()) - infinity(Acc());
    // 2. sum of exponentials
    Acc total = 0;
    for (int i = first; i < width; i += step) {
        load<EACH>(again + i, xs);
#pragma unroll
        for (int j = 0; j < EACH; j++) total += exp_(xs[j] - largest.value);
    }
    total = block_sum(total, scratch);  // and all have read the label's logit
    if (threadIdx.x == 0) {
        p.losses[row] = log(total) - at_label;
        p.hits[row] = largest.index == label;
    }
    // 3. gradient
    if (!dlogits) return;
    const Acc share = p.scale / *p.count, factor = share / total;
    for (int i = first; i < width; i += step) {
        load<EACH>(again + i, xs);
#pragma unroll
        for (int j = 0; j < EACH; j++) xs[j] = exp_(xs[j] - largest.value) * factor - (i + j == label ? share : Acc(0));
        store<EACH>(xs, dlogits + i);
    }
}

extern "C" __global__ void cross_entropy(const __grid_constant__ LossParams p) {
    extern __shared__ __align__(16) double shared[];
    const long long row = blockIdx.x;
    const int label = p.labels[row];
    ELEMENT* const dlogits = p.dlogits ? p.dlogits + row * p.width : p.dlogits;
    ELEMENT* const kept = reinterpret_cast<ELEMENT*>(shared);
    if (label == p.ignored) skip_row(p, row, dlogits);
    else if (p.width % VECTOR == 0) row_loss<VECTOR>(p, row, label, dlogits, kept);
    else row_loss<1>(p, row, label, dlogits, kept);
}

extern "C" __global__ void add_losses(const __grid_constant__ LossParams p) {
    __shared__ double scratch[32];
    __shared__ int int_scratch[32];
    double total = 0;
    int hits = 0;
    for (long long row = threadIdx.x; row < p.rows; row += blockDim.x) {
        total += p.losses[row];
        hits += p.hits[row];
    }
    total = block_sum(total, scratch);
    hits = block_sum(hits, int_scratch);
    if (threadIdx.x) return;
    *p.loss = total / (*p.count ? *p.count : 1);
    *p.correct = hits;
}
