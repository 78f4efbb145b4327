// RMSNorm and LayerNorm.
//
//   norm_forward    one warp a token
//   norm_backward   one warp a token after another; leaves the gradients of weight and bias as one part a block
//
// A lane has EACH channels at a time: a whole access of 16 bytes where D allows it, else one.
//
// Same mathematics as ramnet_np/layers/norm.py. LAYERNORM is 1 for LayerNorm and 0 for RMSNorm, which has no mean and
// no bias.
#include "layers/token_sums.cuh"
#include "runtime/overlap.cuh"

#ifndef LAYERNORM
#error "LAYERNORM must be defined: 1 for LayerNorm, 0 for RMSNorm"
#endif

struct NormParams {
    const ELEMENT* x;       // (N, D)
    const ELEMENT* weight;  // (D,)
    const ELEMENT* bias;    // (D,), or null
    ELEMENT* y;             // (N, D)
    Acc* mean;              // (N,), or null
    Acc* rstd;              // (N,)
    const ELEMENT* dy;      // (N, D)
    const ELEMENT* add;     // (N, D): a gradient of x from elsewhere, or null
    ELEMENT* dx;            // (N, D)
    Acc* parts;             // (blocks, columns): columns = D, with LayerNorm 2 D
    long long rows;         // N
    int width;              // D
    Acc eps;
};

// y = weight * (x - mean) * rstd + bias; mean and bias with LayerNorm only
template <int EACH> DEVICE void normalise(const NormParams& p, long long row, int lane) {
    const int width = p.width, first = EACH * lane, step = EACH * 32;
    const ELEMENT* x = p.x + row * width;
    Acc xs[EACH], weights[EACH], biases[EACH], mean = 0, squares = 0;
    if (LAYERNORM) {
        for (int c = first; c < width; c += step) {
            load<EACH>(x + c, xs);
#pragma unroll
            for (int j = 0; j < EACH; j++) mean += xs[j];
        }
        mean = warp_sum(mean) / width;
    }
    for (int c = first; c < width; c += step) {
        load<EACH>(x + c, xs);
#pragma unroll
        for (int j = 0; j < EACH; j++) squares += (xs[j] - mean) * (xs[j] - mean);
    }
    const Acc rstd = reciprocal_root(warp_sum(squares) / width + p.eps);
    for (int c = first; c < width; c += step) {
        load<EACH>(x + c, xs);
        load<EACH>(p.weight + c, weights);
        if (LAYERNORM) load<EACH>(p.bias + c, biases);
#pragma unroll
        for (int j = 0; j < EACH; j++) xs[j] = (xs[j] - mean) * rstd * weights[j] + (LAYERNORM ? biases[j] : Acc(0));
        store<EACH>(xs, p.y + row * width + c);
    }
    if (lane) return;
    p.rstd[row] = rstd;
    if (LAYERNORM) p.mean[row] = mean;
}

extern "C" __global__ void norm_forward(const __grid_constant__ NormParams p) {
    let_next_launch_begin();
    wait_for_launch_before();
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const long long row = blockIdx.x * (long long)(warps) + threadIdx.x / 32;
    if (row >= p.rows) return;
    if (p.width % VECTOR == 0) normalise<VECTOR>(p, row, lane);
    else normalise<1>(p, row, lane);
}

// With n = (x - mean) * rstd and dn = dy * weight:  dx = rstd * (dn - mean(dn) - n * mean(dn * n)) + add;  mean(dn) with
// LayerNorm only. To ``sums``, of the lane's own columns, are added dy * n and, with LayerNorm, dy behind them.
template <int EACH> DEVICE void normalise_backward(const NormParams& p, long long row, int lane, Acc* sums) {
    const int width = p.width, first = EACH * lane, step = EACH * 32;
    const long long at = row * width;
    const Acc mean = LAYERNORM ? p.mean[row] : Acc(0), rstd = p.rstd[row];
    Acc d[EACH], n[EACH], dn[EACH], sum[EACH], mean_dn_n = 0, mean_dn = 0;
    const auto load_row = [&](int c) {
        load<EACH>(p.dy + at + c, d);
        load<EACH>(p.x + at + c, n);
        load<EACH>(p.weight + c, dn);
#pragma unroll
        for (int j = 0; j < EACH; j++) n[j] = (n[j] - mean) * rstd, dn[j] *= d[j];
    };
    for (int c = first; c < width; c += step) {
        load_row(c);
        load<EACH>(sums + c, sum);
#pragma unroll
        for (int j = 0; j < EACH; j++) mean_dn_n += dn[j] * n[j], mean_dn += dn[j], sum[j] += d[j] * n[j];
        store<EACH>(sum, sums + c);
        if (!LAYERNORM) continue;
        load<EACH>(sums + width + c, sum);
#pragma unroll
        for (int j = 0; j < EACH; j++) sum[j] += d[j];
        store<EACH>(sum, sums + width + c);
    }
    mean_dn_n = warp_sum(mean_dn_n) / width;
    mean_dn = LAYERNORM ? warp_sum(mean_dn) / width : Acc(0);
    for (int c = first; c < width; c += step) {
        load_row(c);
        Acc added[EACH] = {};
        if (p.add) load<EACH>(p.add + at + c, added);
#pragma unroll
        for (int j = 0; j < EACH; j++) added[j] += (dn[j] - mean_dn - n[j] * mean_dn_n) * rstd;
        store<EACH>(added, p.dx + at + c);
    }
}

extern "C" __global__ void norm_backward(const __grid_constant__ NormParams p) {
    extern __shared__ __align__(16) double shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int columns = (1 + LAYERNORM) * p.width;
    Acc* warp_sums = reinterpret_cast<Acc*>(shared);
    Acc* sums = warp_sums + warp * columns;  // of this warp
    for (int c = lane; c < columns; c += 32) sums[c] = 0;
    __syncwarp();
    const TokenRange tokens(p.rows);
    for (long long row = tokens.begin + warp; row < tokens.end; row += warps) {
        if (p.width % VECTOR == 0) normalise_backward<VECTOR>(p, row, lane, sums);
        else normalise_backward<1>(p, row, lane, sums);
    }
    store_part(warp_sums, columns, p.parts);
}
