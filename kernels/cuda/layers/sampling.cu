// One token of each row of logits, marks of the tokens that were there, and random numbers.
//
//   likeliest    one block a row: the largest logit, the first of equals
//   draw         one block a row, one thread a bin: a draw from the likeliest
//   mark_seen    one thread a row
//   uniform      one thread a row
//
// Same mathematics as ramnet_np/layers/sampling.py and uniform.py. A draw rounds every weight to a whole number, of
// which the largest weight is 2**40: sums of whole numbers have no order, so nothing depends on which thread adds first.
// Nothing is sorted either. The n likeliest tokens are those above some weight and the first few of those that equal it;
// that weight is found digit by digit, the highest first, from how much each of the BINS values of a digit holds.
#include "layers/element.cuh"
#include "runtime/overlap.cuh"
#include "runtime/shared.cuh"

using Whole = unsigned long long;

constexpr int DIGITS = 4, BITS = 10, BINS = 1 << BITS;  // of a weight
constexpr Whole LARGEST = (Whole(1) << DIGITS * BITS) - 1;
constexpr int NO_TOKEN = -1;  // of logits whose largest is NaN or infinite; any NaN counts as the largest

struct SamplingParams {
    const ELEMENT* logits;  // (B, V)
    const bool* seen;       // (B, V), or null
    const double* u;        // (B,)
    Acc* weights;           // (B, V), scratch, or null: a row of it in dynamic shared memory
    long long* tokens;      // (B,)
    double temperature, top_p, min_p, penalty;
    int width;  // V
    int top_k;  // V or less
};

// The likeliest tokens that stay: all that weigh more than ``least``, and the first ``level`` of those that weigh as much.
struct Kept {
    Whole least, level;
};

struct Shared {
    Whole bins[BINS], scratch[32], level[32], above;
    Largest<double> largest[32];
    int found;
};

DEVICE Whole whole(Acc weight) { return smaller_of(Whole(weight * Acc(LARGEST + 1)), LARGEST); }

// 1. A logit behind the repetition penalty.
DEVICE double penalised(const SamplingParams& p, long long at) {
    const double logit = widen(p.logits[at]);
    if (!p.seen || !p.seen[at]) return logit;
    return logit > 0 ? logit / p.penalty : logit * p.penalty;
}

DEVICE bool is_finite(double x) { return fabs(x) < infinity(double()); }

DEVICE Largest<double> largest_of_row(const SamplingParams& p, Largest<double>* scratch) {
    const long long row = blockIdx.x * (long long)(p.width);
    Largest<double> largest{-infinity(double()), 2147483647};
#pragma unroll 4
    for (int i = threadIdx.x; i < p.width; i += blockDim.x) largest.take(penalised(p, row + i), i);
    return block_largest(largest, scratch);
}

extern "C" __global__ void likeliest(const __grid_constant__ SamplingParams p) {
    __shared__ Largest<double> scratch[32];
    let_next_launch_begin();
    wait_for_launch_before();
    const Largest<double> largest = largest_of_row(p, scratch);
    if (threadIdx.x == 0) p.tokens[blockIdx.x] = is_finite(largest.value) ? largest.index : NO_TOKEN;
}

// The sum over the lanes up to this one.
DEVICE Whole warp_scan(Whole x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const Whole before = __shfl_up_sync(~0u, x, distance);
        if (lane >= distance) x += before;
    }
    return x;
}

// The sum over the threads up to this one.
DEVICE Whole block_scan(Whole x, Whole* scratch) {
    const int warp = threadIdx.x / 32;
    x = warp_scan(x);
    if (threadIdx.x % 32 == 31) scratch[warp] = x;
    __syncthreads();
    for (int before = 0; before < warp; before++) x += scratch[before];
    __syncthreads();
    return x;
}

// Adds to a sum in shared memory. An atomic addition of 64 bits would be a loop there, which tries again where another
// thread came between; those of 32 bits are one instruction each. Whoever makes the lower half overflow adds the carry.
DEVICE void add_shared(Whole* sum, Whole x) {
    unsigned* const halves = reinterpret_cast<unsigned*>(sum);
    const unsigned low = unsigned(x), before = atomicAdd(halves, low);
    const unsigned high = unsigned(x >> 32) + (before + low < before);
    if (high) atomicAdd(halves + 1, high);
}

// Of the tokens whose higher digits are ``prefix``: how many, or how much weight, has each value of the digit at ``shift``.
DEVICE void fill_bins(const Acc* weights, int width, Whole prefix, int shift, bool by_number, Shared& shared) {
    shared.bins[threadIdx.x] = 0;
    if (threadIdx.x == 0) shared.found = shared.above = 0;  // where rounding lets no bin reach
    __syncthreads();
    Whole lowest = 0;  // where most tokens are: in registers, as atomics on one address queue
#pragma unroll 4
    for (int i = threadIdx.x; i < width; i += BINS) {
        const Whole weight = whole(weights[i]), measure = by_number ? 1 : weight;
        if (weight >> (shift + BITS) != prefix) continue;
        const int bin = weight >> shift & (BINS - 1);
        if (bin) add_shared(shared.bins + bin, measure);
        else lowest += measure;
    }
    lowest = block_sum(lowest, shared.scratch);
    if (threadIdx.x == 0) shared.bins[0] = lowest;
    __syncthreads();
}

// The fewest likeliest tokens that reach ``target`` by their number, or by their weights together.
DEVICE Kept fewest(const Acc* weights, int width, Whole target, bool by_number, Shared& shared) {
    Whole prefix = 0, above = 0;  // the digits of the last of them that are known, and what weighs more than these say
    for (int shift = (DIGITS - 1) * BITS; shift >= 0; shift -= BITS) {
        fill_bins(weights, width, prefix, shift, by_number, shared);
        const int bin = BINS - 1 - threadIdx.x;
        const Whole own = shared.bins[bin], reached = above + block_scan(own, shared.scratch);
        if (reached >= target && reached - own < target) {
            shared.found = bin;
            shared.above = reached - own;
        }
        __syncthreads();
        prefix = prefix << BITS | shared.found;
        above = shared.above;
        __syncthreads();
    }
    const Whole left = target - above, each = by_number || !prefix ? 1 : prefix;
    return {prefix, (left + each - 1) / each};
}

DEVICE Kept fewer(Kept a, Kept b) {
    return a.least > b.least || (a.least == b.least && a.level < b.level) ? a : b;
}

DEVICE Whole sum_of(const Acc* weights, int width, Kept kept, Shared& shared) {
    Whole above = 0, level = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < width; i += BINS) {
        const Whole weight = whole(weights[i]);
        above += weight > kept.least ? weight : 0;
        level += weight == kept.least;
    }
    above = block_sum(above, shared.scratch);
    level = block_sum(level, shared.scratch);
    return above + kept.least * smaller_of(level, kept.level);
}

// 3. to 5. The likeliest tokens that stay.
DEVICE Kept filtered(const SamplingParams& p, const Acc* weights, Shared& shared) {
    Kept kept{0, Whole(p.width)};
    if (p.top_k < p.width) kept = fewest(weights, p.width, p.top_k, true, shared);
    if (p.top_p < 1) {
        const Whole total = sum_of(weights, p.width, kept, shared), target = ceil(p.top_p * double(total));
        kept = fewer(kept, fewest(weights, p.width, target ? target : 1, false, shared));
    }
    const Kept likely{Whole(ceil(p.min_p * double(LARGEST))), Whole(p.width)};
    return p.min_p > 0 ? fewer(kept, likely) : kept;
}

// 6. The first token up to which the kept weights reach ``target``: a warp looks through tokens that lie side by side,
// first all warps for what theirs hold, then the one that reaches it 32 at a time.
DEVICE void find(const Acc* weights, int width, Kept kept, Whole target, Shared& shared, long long& token) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int share = (width + BINS - 1) / BINS * 32, first = warp * share, end = smaller_of(first + share, width);
    Whole above = 0, level = 0;
    for (int i = first + lane; i < end; i += 32) {
        const Whole weight = whole(weights[i]);
        above += weight > kept.least ? weight : 0;
        level += weight == kept.least;
    }
    above = warp_sum(above);
    level = warp_sum(level);
    if (lane == 0) {
        shared.scratch[warp] = above;
        shared.level[warp] = level;
    }
    __syncthreads();
    Whole so_far = 0, level_before = 0;
    for (int before = 0; before < warp; before++) {
        so_far += shared.scratch[before];
        level_before += shared.level[before];
    }
    above += so_far + kept.least * smaller_of(level_before + level, kept.level);
    so_far += kept.least * smaller_of(level_before, kept.level);
    if (so_far >= target || above < target) return;
    for (int begin = first; begin < end; begin += 32) {
        const int i = begin + lane;
        const Whole weight = i < end ? whole(weights[i]) : 0;
        const bool is_level = i < end && weight == kept.least;
        const unsigned levels = __ballot_sync(~0u, is_level);
        const Whole rank = level_before + __popc(levels & ((1u << lane) - 1));
        const bool stays = weight > kept.least || (is_level && rank < kept.level);
        const Whole reached = so_far + warp_scan(stays ? weight : 0);
        const unsigned reach = __ballot_sync(~0u, reached >= target);
        if (reach) {
            if (lane == 0) token = begin + __ffs(reach) - 1;
            return;
        }
        so_far = __shfl_sync(~0u, reached, 31);
        level_before += __popc(levels);
    }
}

extern "C" __global__ void __launch_bounds__(BINS) draw(const __grid_constant__ SamplingParams p) {
    __shared__ Shared shared;
    let_next_launch_begin();
    wait_for_launch_before();
    const long long row = blockIdx.x * (long long)(p.width);
    Acc* const weights = p.weights ? p.weights + row : reinterpret_cast<Acc*>(dynamic_shared());
    if (threadIdx.x == 0) p.tokens[blockIdx.x] = NO_TOKEN;
    // 2. temperature
    const double largest = largest_of_row(p, shared.largest).value;
    if (!is_finite(largest)) return;  // a weight of NaN would be made the largest whole number, not 0
#pragma unroll 4
    for (int i = threadIdx.x; i < p.width; i += BINS)
        weights[i] = exp_(Acc((penalised(p, row + i) - largest) / p.temperature));
    __syncthreads();
    const Kept kept = filtered(p, weights, shared);
    const Whole sum = sum_of(weights, p.width, kept, shared);
    find(weights, p.width, kept, Whole(p.u[blockIdx.x] * double(sum)) + 1, shared, p.tokens[blockIdx.x]);
}

extern "C" __global__ void mark_seen(
    bool* seen,               // (B, V)
    const long long* tokens,  // (B,)
    int rows, int width
) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const long long token = tokens[row];
    if (0 <= token && token < width) seen[row * (long long)(width) + token] = true;
}

// The finaliser of SplitMix64.
DEVICE Whole mix(Whole z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

extern "C" __global__ void uniform(
    const Whole* seeds,          // (B,)
    const long long* positions,  // (B,)
    int rows,
    double* numbers  // (B,)
) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const Whole counted = mix(seeds[row]) + (Whole(positions[row]) + 1) * 0x9E3779B97F4A7C15ull;
    numbers[row] = double(mix(counted) >> 12) * 0x1p-52;
}
