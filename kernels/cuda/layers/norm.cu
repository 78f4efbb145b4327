// RMSNorm and LayerNorm.
//
//   norm_forward    one warp a token
//   norm_backward   one warp a token after another; leaves the gradients of weight and bias as one part a block
//
// Same mathematics as ramnet_np/layers/norm.py. LAYERNORM is 1 for LayerNorm and 0 for RMSNorm, which has no mean and
// no bias.
#include "layers/token_sums.cuh"

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
    ELEMENT* dx;            // (N, D)
    Acc* parts;             // (blocks, columns): columns = D, with LayerNorm 2 D
    long long rows;         // N
    int width;              // D
    Acc eps;
};

DEVICE Acc reciprocal_root(float x) { return 1 / sqrtf(x); }
DEVICE Acc reciprocal_root(double x) { return 1 / sqrt(x); }

// y = weight * (x - mean) * rstd + bias; mean and bias with LayerNorm only
extern "C" __global__ void norm_forward(const __grid_constant__ NormParams p) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32, width = p.width;
    const long long row = blockIdx.x * (long long)(warps) + threadIdx.x / 32;
    if (row >= p.rows) return;
    const ELEMENT* x = p.x + row * width;
    ELEMENT* y = p.y + row * width;
    Acc mean = 0;
    if (LAYERNORM) {
        for (int c = lane; c < width; c += 32) mean += widen(x[c]);
        mean = warp_sum(mean) / width;
    }
    Acc squares = 0;
    for (int c = lane; c < width; c += 32) {
        const Acc centred = widen(x[c]) - mean;
        squares += centred * centred;
    }
    const Acc rstd = reciprocal_root(warp_sum(squares) / width + p.eps);
    for (int c = lane; c < width; c += 32) {
        Acc out = (widen(x[c]) - mean) * rstd * widen(p.weight[c]);
        if (LAYERNORM) out += widen(p.bias[c]);
        y[c] = narrowed(out);
    }
    if (lane) return;
    p.rstd[row] = rstd;
    if (LAYERNORM) p.mean[row] = mean;
}

// With n = (x - mean) * rstd and dn = dy * weight:  dx = rstd * (dn - mean(dn) - n * mean(dn * n));  mean(dn) with
// LayerNorm only. Parts hold the sums over tokens of dy * n and, with LayerNorm, of dy behind them.
extern "C" __global__ void norm_backward(const __grid_constant__ NormParams p) {
    extern __shared__ double shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, width = p.width;
    const int columns = (1 + LAYERNORM) * width;
    Acc* warp_sums = reinterpret_cast<Acc*>(shared);
    Acc* sums = warp_sums + warp * columns;  // of this warp; a lane's columns are its own: c = lane, lane + 32, ...
    for (int c = lane; c < width; c += 32) {
        sums[c] = 0;
        if (LAYERNORM) sums[width + c] = 0;
    }
    const TokenRange tokens(p.rows);
    for (long long row = tokens.begin + warp; row < tokens.end; row += warps) {
        const long long at = row * width;
        const Acc mean = LAYERNORM ? p.mean[row] : Acc(0), rstd = p.rstd[row];
        Acc mean_dn_n = 0, mean_dn = 0;
        for (int c = lane; c < width; c += 32) {
            const Acc d = widen(p.dy[at + c]), n = (widen(p.x[at + c]) - mean) * rstd, dn = d * widen(p.weight[c]);
            mean_dn_n += dn * n;
            mean_dn += dn;
            sums[c] += d * n;
            if (LAYERNORM) sums[width + c] += d;
        }
        mean_dn_n = warp_sum(mean_dn_n) / width;
        mean_dn = LAYERNORM ? warp_sum(mean_dn) / width : Acc(0);
        for (int c = lane; c < width; c += 32) {
            const Acc n = (widen(p.x[at + c]) - mean) * rstd, dn = widen(p.dy[at + c]) * widen(p.weight[c]);
            p.dx[at + c] = narrowed((dn - mean_dn - n * mean_dn_n) * rstd);
        }
    }
    store_part(warp_sums, columns, p.parts);
}
