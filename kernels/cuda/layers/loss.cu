// Softmax cross-entropy: loss, how many labels are ranked first, and the gradient of the logits.
//
//   count_labels        one block: how many labels count
//   cross_entropy       one block a row of logits
//   add_losses          one block: the mean of the rows' losses
//
// Same mathematics as ramnet_np/layers/loss.py. A row is read once, into shared memory if it fits, and its gradient may be
// written over it. A label that does not count (``ignored``) gives no loss and a gradient of zeros; one that no row of
// the head has gives NaN.
#include "runtime/reduce.cuh"

#ifndef LOGIT
#error "LOGIT must be defined: the type of the logits, one of float, double, float16, bfloat16"
#endif

using Sum = AccOf<LOGIT>::type;

extern "C" __global__ void count_labels(const int* labels, long long rows, int ignored, int* count) {
    __shared__ int scratch[32];
    int mine = 0;
    for (long long row = threadIdx.x; row < rows; row += blockDim.x) mine += labels[row] != ignored;
    mine = block_sum(mine, scratch);
    if (threadIdx.x == 0) *count = mine;
}

// loss = log(sum_i exp(x_i - max)) - (x_label - max);  dlogits = (softmax(x) - onehot(label)) * scale / count
extern "C" __global__ void cross_entropy(
    const LOGIT* logits,  // (N, V)
    const int* labels,    // (N,)
    const int* count, int width, int ignored, int in_shared, Sum scale,
    Sum* losses,    // (N,)
    int* right,     // (N,), 1 if the largest logit, the first of them, is the label's
    LOGIT* dlogits  // (N, V): fresh, or the logits again, or null
) {
    extern __shared__ double shared[];
    __shared__ Sum scratch[32];
    __shared__ Largest<Sum> largest_scratch[32];
    const long long row = blockIdx.x;
    const int label = labels[row];
    logits += row * width;
    if (dlogits) dlogits += row * width;
    if (label == ignored) {
        if (dlogits) {
            for (int i = threadIdx.x; i < width; i += blockDim.x) narrow(Sum(0), dlogits[i]);
        }
        if (threadIdx.x == 0) {
            losses[row] = 0;
            right[row] = 0;
        }
        return;
    }
    // A thread comes back to the elements that it read itself: nothing to wait for in between.
    Sum* kept = reinterpret_cast<Sum*>(shared);
    Largest<Sum> mine{-infinity(Sum()), 2147483647};
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const Sum x = widen(logits[i]);
        if (in_shared) kept[i] = x;
        mine.take(x, i);
    }
    const Largest<Sum> top = block_largest(mine, largest_scratch);
    const bool known = 0 <= label && label < width;
    const Sum at_label = known ? widen(logits[label]) - top.value : infinity(Sum()) - infinity(Sum());
    Sum total = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const Sum e = exp_((in_shared ? kept[i] : widen(logits[i])) - top.value);
        if (in_shared) kept[i] = e;
        total += e;
    }
    total = block_sum(total, scratch);  // and all have read the label's logit
    if (threadIdx.x == 0) {
        losses[row] = log(total) - at_label;
        right[row] = top.index == label;
    }
    if (!dlogits) return;
    const Sum share = scale / *count, factor = share / total;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const Sum e = in_shared ? kept[i] : exp_(widen(logits[i]) - top.value);
        narrow(e * factor - (i == label ? share : Sum(0)), dlogits[i]);
    }
}

extern "C" __global__ void add_losses(
    const Sum* losses, const int* right, const int* count, long long rows,
    LOGIT* loss,  // their sum over the labels that count, divided by these
    int* correct  // how many were right
) {
    __shared__ double scratch[32];
    __shared__ int int_scratch[32];
    double total = 0;
    int hits = 0;
    for (long long row = threadIdx.x; row < rows; row += blockDim.x) {
        total += losses[row];
        hits += right[row];
    }
    total = block_sum(total, scratch);
    hits = block_sum(hits, int_scratch);
    if (threadIdx.x) return;
    narrow(Sum(total / (*count ? *count : 1)), *loss);
    *correct = hits;
}
