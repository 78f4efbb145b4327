// What the delta rule does within a chunk of N tokens, beside its matrix products.
//
//   apply_decay            one thread an element of the (N, N) matrices
//   apply_decay_backward   one block a matrix
//   unit_lower_inverse     one block a matrix, one thread a column
//
// Same mathematics as ramnet_np/layers/delta_rule.py and triangular.py. g_t / g_s, the decay from token s to token t,
// comes from the running sums log_g.
#include "runtime/reduce.cuh"

#ifndef ELEMENT
#error "ELEMENT must be defined: the type of the arrays, float or double"
#endif
#ifndef THREADS
#error "THREADS must be defined: the threads of a block of the first two kernels"
#endif
#ifndef MAX_TOKENS
#error "MAX_TOKENS must be defined: the most tokens of a chunk, a multiple of 32"
#endif

DEVICE ELEMENT decay_between(const ELEMENT* log_g, int t, int s) {
    const ELEMENT change = log_g[t] - log_g[s];
    return exp(change < 0 ? change : ELEMENT(0));
}

// A = k.k g_t / g_s below the diagonal, P = q.k g_t / g_s on it too, L = beta_t A
extern "C" __global__ void apply_decay(
    ELEMENT* kk,           // (count, N, N) -> A
    ELEMENT* qk,           // (count, N, N) -> P
    const ELEMENT* beta,   // (count, N)
    const ELEMENT* log_g,  // (count, N)
    long long elements, int tokens,
    ELEMENT* below  // (count, N, N): L
) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (i >= elements) return;
    const int s = i % tokens, t = i / tokens % tokens;
    const long long row = i / tokens;  // of token t
    ELEMENT a = 0, p = 0;
    if (s <= t) {
        const ELEMENT decay = decay_between(log_g + (row - t), t, s);
        p = qk[i] * decay;
        if (s < t) a = kk[i] * decay;
    }
    kk[i] = a;
    qk[i] = p;
    below[i] = beta[row] * a;
}

struct DecayBackwardParams {
    ELEMENT* dL;           // (count, N, N) -> gradient of k.k
    ELEMENT* dP;           // (count, N, N) -> gradient of q.k
    const ELEMENT* A;      // (count, N, N)
    const ELEMENT* P;      // (count, N, N)
    const ELEMENT* beta;   // (count, N)
    const ELEMENT* log_g;  // (count, N)
    ELEMENT* dbeta;        // (count, N)
    ELEMENT* dlog_g;       // (count, N)
    int tokens;            // N
};

// With F = dL * L + dP * P:  dlog_g_t = sum_s F_ts - sum_s F_st. A warp takes every WARPS-th row; its lanes have the
// columns.
extern "C" __global__ void apply_decay_backward(const __grid_constant__ DecayBackwardParams p) {
    constexpr int WARPS = THREADS / 32, EACH = MAX_TOKENS / 32;
    __shared__ ELEMENT column_sums[WARPS][MAX_TOKENS], row_sums[MAX_TOKENS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tokens = p.tokens;
    const long long first = blockIdx.x * (long long)(tokens);
    const ELEMENT* beta = p.beta + first;
    const ELEMENT* log_g = p.log_g + first;
    ELEMENT column[EACH] = {};
    for (int t = warp; t < tokens; t += WARPS) {
        ELEMENT through_A = 0, through = 0;
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            const int s = lane + 32 * j;
            if (s >= tokens) break;
            const long long i = (first + t) * tokens + s;
            const ELEMENT a = p.dL[i] * p.A[i], f = p.dP[i] * p.P[i] + beta[t] * a;
            through_A += a;
            through += f;
            column[j] += f;
            const ELEMENT decay = s <= t ? decay_between(log_g, t, s) : ELEMENT(0);
            p.dP[i] *= decay;
            p.dL[i] = s < t ? p.dL[i] * decay * beta[t] : ELEMENT(0);
        }
        through_A = warp_sum(through_A);
        through = warp_sum(through);
        if (lane == 0) {
            p.dbeta[first + t] = through_A;
            row_sums[t] = through;
        }
    }
#pragma unroll
    for (int j = 0; j < EACH; j++) column_sums[warp][lane + 32 * j] = column[j];
    __syncthreads();
    for (int s = threadIdx.x; s < tokens; s += blockDim.x) {
        ELEMENT total = 0;
        for (int w = 0; w < WARPS; w++) total += column_sums[w][s];
        p.dlog_g[first + s] = row_sums[s] - total;
    }
}

// R = (I + L)^-1, column by column from the top: R_tj = -sum of L_ts R_sj over j <= s < t
extern "C" __global__ void unit_lower_inverse(
    const ELEMENT* below,  // (count, N, N): L, of which only what lies below the diagonal is used
    int size,
    ELEMENT* inverse  // (count, N, N)
) {
    extern __shared__ double shared[];
    ELEMENT* L = reinterpret_cast<ELEMENT*>(shared);  // (N, N)
    ELEMENT* R = L + size * size;                     // (N, N)
    const long long at = blockIdx.x * (long long)(size) * size;
    const int column = threadIdx.x;
    for (int t = 0; t < size; t++) L[t * size + column] = below[at + t * size + column];
    __syncthreads();
    for (int t = 0; t < size; t++) {
        ELEMENT sum = t == column ? 1 : 0;
        for (int s = 0; s < t; s++) sum -= L[t * size + s] * R[s * size + column];
        R[t * size + column] = sum;
        inverse[at + t * size + column] = sum;
    }
}
