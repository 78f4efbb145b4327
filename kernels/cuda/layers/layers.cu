// The layers of a model that are not matrix products: RMSNorm, LayerNorm, gates, sums over tokens.
//
//   norm_forward       one warp a token
//   norm_backward      one warp a token after another; leaves the gradient of the weight as one part a block
//   column_sums        the same walk over the tokens, for the gradient of a bias
//   add_parts          one block 32 columns: adds up the parts of all blocks
//   gate_forward, gate_backward     one thread four elements
//   scale_forward, scale_backward   one block the rows of one scale
//   conv_forward, conv_backward     one thread an element; conv_weights walks over the tokens as column_sums does
//
// Same mathematics as ramnet_np/layers/norm.py, gate.py, short_conv.py and model/address.py. ELEMENT is what arrays hold,
// LAYERNORM is 1 for LayerNorm and 0 for RMSNorm. Sums over tokens are split the same way on every GPU, and added in a
// fixed order.
#include "runtime/reduce.cuh"

#ifndef ELEMENT
#error "ELEMENT must be defined: the type of the arrays, one of float, double, float16, bfloat16"
#endif

using Sum = AccOf<ELEMENT>::type;

DEVICE Sum reciprocal_root(float x) { return 1 / sqrtf(x); }
DEVICE Sum reciprocal_root(double x) { return 1 / sqrt(x); }

DEVICE ELEMENT narrowed(Sum x) {
    ELEMENT y;
    narrow(x, y);
    return y;
}

// ---- norms ----

// y = weight * (x - mean) * rstd + bias; mean and bias with LayerNorm only
extern "C" __global__ void norm_forward(
    const ELEMENT* x,       // (N, D)
    const ELEMENT* weight,  // (D,)
    const ELEMENT* bias,    // (D,), or null
    long long rows, int width, Sum eps,
    ELEMENT* y,   // (N, D)
    Sum* mean,    // (N,), or null
    Sum* rstd     // (N,)
) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const long long row = blockIdx.x * (long long)(warps) + threadIdx.x / 32;
    if (row >= rows) return;
    x += row * width;
    y += row * width;
    Sum center = 0;
    if (LAYERNORM) {
        for (int c = lane; c < width; c += 32) center += widen(x[c]);
        center = warp_sum(center) / width;
    }
    Sum squares = 0;
    for (int c = lane; c < width; c += 32) {
        const Sum away = widen(x[c]) - center;
        squares += away * away;
    }
    const Sum scale = reciprocal_root(warp_sum(squares) / width + eps);
    for (int c = lane; c < width; c += 32) {
        Sum out = (widen(x[c]) - center) * scale * widen(weight[c]);
        if (LAYERNORM) out += widen(bias[c]);
        y[c] = narrowed(out);
    }
    if (lane) return;
    rstd[row] = scale;
    if (LAYERNORM) mean[row] = center;
}

// The tokens of this block, [begin, end): tokens are dealt out to the blocks of the grid evenly.
struct Share {
    long long begin, end;

    DEVICE explicit Share(long long rows) {
        const long long each = (rows + gridDim.x - 1) / gridDim.x;
        begin = smaller(blockIdx.x * each, rows);
        end = smaller(begin + each, rows);
    }

  private:
    DEVICE static long long smaller(long long a, long long b) { return b < a ? b : a; }
};

// Adds what each warp has gathered, (warps, columns) in shared memory, into this block's part.
DEVICE void leave_part(const Sum* gathered, int columns, Sum* parts) {
    __syncthreads();
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
        Sum total = 0;
        for (int warp = 0; warp < blockDim.x / 32; warp++) total += gathered[warp * columns + c];
        parts[blockIdx.x * (long long)(columns) + c] = total;
    }
}

// With n = (x - mean) * rstd and dn = dy * weight:  dx = rstd * (dn - mean(dn) - n * mean(dn * n));  mean(dn) with
// LayerNorm only. Parts hold the sums over tokens of dy * n and, with LayerNorm, of dy behind them.
extern "C" __global__ void norm_backward(
    const ELEMENT* dy,      // (N, D)
    const ELEMENT* x,       // (N, D)
    const ELEMENT* weight,  // (D,)
    const Sum* mean,        // (N,), or null
    const Sum* rstd,        // (N,)
    long long rows, int width,
    ELEMENT* dx,  // (N, D)
    Sum* parts    // (blocks, columns): columns = D, with LayerNorm 2 D
) {
    extern __shared__ double shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int columns = (1 + LAYERNORM) * width;
    Sum* gathered = reinterpret_cast<Sum*>(shared);
    Sum* mine = gathered + warp * columns;  // a lane's columns are its own: c = lane, lane + 32, ...
    for (int c = lane; c < width; c += 32) {
        mine[c] = 0;
        if (LAYERNORM) mine[width + c] = 0;
    }
    const Share share(rows);
    for (long long row = share.begin + warp; row < share.end; row += warps) {
        const long long at = row * width;
        const Sum center = LAYERNORM ? mean[row] : Sum(0), scale = rstd[row];
        Sum along = 0, level = 0;
        for (int c = lane; c < width; c += 32) {
            const Sum d = widen(dy[at + c]), n = (widen(x[at + c]) - center) * scale, dn = d * widen(weight[c]);
            along += dn * n;
            level += dn;
            mine[c] += d * n;
            if (LAYERNORM) mine[width + c] += d;
        }
        along = warp_sum(along) / width;
        level = LAYERNORM ? warp_sum(level) / width : Sum(0);
        for (int c = lane; c < width; c += 32) {
            const Sum n = (widen(x[at + c]) - center) * scale, dn = widen(dy[at + c]) * widen(weight[c]);
            dx[at + c] = narrowed((dn - level - n * along) * scale);
        }
    }
    leave_part(gathered, columns, parts);
}

// ---- sums over tokens ----

extern "C" __global__ void column_sums(
    const ELEMENT* x,  // (N, D)
    long long rows, int width,
    Sum* parts  // (blocks, D)
) {
    extern __shared__ double shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    Sum* gathered = reinterpret_cast<Sum*>(shared);
    const Share share(rows);
    for (int c = lane; c < width; c += 32) {
        Sum total = 0;
        for (long long row = share.begin + warp; row < share.end; row += warps) total += widen(x[row * width + c]);
        gathered[warp * width + c] = total;
    }
    leave_part(gathered, width, parts);
}

// A block of 32 by 8 threads: 8 threads add every eighth part of a column, then one adds the eight.
extern "C" __global__ void add_parts(
    const Sum* parts,  // (count, columns)
    int count, int columns,
    ELEMENT* sums  // (columns,)
) {
    __shared__ Sum eighths[8][32];
    const int lane = threadIdx.x % 32, eighth = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    Sum total = 0;
    if (c < columns) {
        for (int part = eighth; part < count; part += 8) total += parts[part * (long long)(columns) + c];
    }
    eighths[eighth][lane] = total;
    __syncthreads();
    if (eighth || c >= columns) return;
    for (int other = 1; other < 8; other++) total += eighths[other][lane];
    sums[c] = narrowed(total);
}

// ---- gates: out = act(a) * b, act the sigmoid s or, with ``silu``, a * s(a) ----

DEVICE Sum sigmoid(Sum a) { return 1 / (1 + exp_(-a)); }

DEVICE Sum gated(Sum a, Sum b, bool silu) { return (silu ? a * sigmoid(a) : sigmoid(a)) * b; }

DEVICE void gated_slopes(Sum dout, Sum a, Sum b, bool silu, Sum& da, Sum& db) {
    const Sum s = sigmoid(a), slope = s * (1 - s);
    da = dout * b * (silu ? s + a * slope : slope);
    db = dout * (silu ? a * s : s);
}

extern "C" __global__ void gate_forward(const ELEMENT* a, const ELEMENT* b, long long size, int silu, ELEMENT* out) {
    const long long i = 4 * (blockIdx.x * (long long)(blockDim.x) + threadIdx.x);
    if (i + 4 <= size) {
        Sum as[4], bs[4];
        load<4>(a + i, as);
        load<4>(b + i, bs);
#pragma unroll
        for (int j = 0; j < 4; j++) bs[j] = gated(as[j], bs[j], silu);
        store<4>(bs, out + i);
        return;
    }
    for (long long j = i; j < size; j++) out[j] = narrowed(gated(widen(a[j]), widen(b[j]), silu));
}

extern "C" __global__ void gate_backward(
    const ELEMENT* dout, const ELEMENT* a, const ELEMENT* b, long long size, int silu, ELEMENT* da, ELEMENT* db
) {
    const long long i = 4 * (blockIdx.x * (long long)(blockDim.x) + threadIdx.x);
    if (i + 4 <= size) {
        Sum ds[4], as[4], bs[4], das[4], dbs[4];
        load<4>(dout + i, ds);
        load<4>(a + i, as);
        load<4>(b + i, bs);
#pragma unroll
        for (int j = 0; j < 4; j++) gated_slopes(ds[j], as[j], bs[j], silu, das[j], dbs[j]);
        store<4>(das, da + i);
        store<4>(dbs, db + i);
        return;
    }
    for (long long j = i; j < size; j++) {
        Sum da_j, db_j;
        gated_slopes(widen(dout[j]), widen(a[j]), widen(b[j]), silu, da_j, db_j);
        da[j] = narrowed(da_j);
        db[j] = narrowed(db_j);
    }
}

// ---- rows of a matrix, and elements of a bias, times exp(a) / tau: one scale a for every ``group`` rows ----

extern "C" __global__ void scale_forward(
    const ELEMENT* matrix,  // (groups * group, D)
    const ELEMENT* bias,    // (groups * group,), or null
    const ELEMENT* scales,  // (groups,)
    int group, int width, Sum tau, ELEMENT* scaled, ELEMENT* scaled_bias
) {
    const Sum factor = exp_(widen(scales[blockIdx.x])) / tau;
    const long long size = group * (long long)(width), first = blockIdx.x * size;
    for (long long i = threadIdx.x; i < size; i += blockDim.x) {
        scaled[first + i] = narrowed(widen(matrix[first + i]) * factor);
    }
    if (!bias) return;
    for (int i = blockIdx.x * group + threadIdx.x; i < (blockIdx.x + 1) * group; i += blockDim.x) {
        scaled_bias[i] = narrowed(widen(bias[i]) * factor);
    }
}

// From the gradients of what was scaled; da is the sum of their products with it.
extern "C" __global__ void scale_backward(
    const ELEMENT* dscaled, const ELEMENT* dscaled_bias, const ELEMENT* scaled, const ELEMENT* scaled_bias,
    const ELEMENT* scales, int group, int width, Sum tau,
    ELEMENT* dmatrix, ELEMENT* dbias, ELEMENT* dscales
) {
    __shared__ Sum scratch[32];
    const Sum factor = exp_(widen(scales[blockIdx.x])) / tau;
    const long long size = group * (long long)(width), first = blockIdx.x * size;
    Sum total = 0;
    for (long long i = threadIdx.x; i < size; i += blockDim.x) {
        const Sum d = widen(dscaled[first + i]);
        total += d * widen(scaled[first + i]);
        dmatrix[first + i] = narrowed(d * factor);
    }
    if (dscaled_bias) {
        for (int i = blockIdx.x * group + threadIdx.x; i < (blockIdx.x + 1) * group; i += blockDim.x) {
            const Sum d = widen(dscaled_bias[i]);
            total += d * widen(scaled_bias[i]);
            dbias[i] = narrowed(d * factor);
        }
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) dscales[blockIdx.x] = narrowed(total);
}

// ---- the short convolution: token t under the last of the weights, those before it under the ones before ----

extern "C" __global__ void conv_forward(
    const ELEMENT* x,       // (B, T, D)
    const ELEMENT* weight,  // (D, reach)
    long long elements, int tokens, int width, int reach,
    ELEMENT* y  // (B, T, D)
) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (i >= elements) return;
    const int c = i % width, t = i / width % tokens;
    Sum sum = 0;
    for (int ago = 0; ago < reach && ago <= t; ago++)
        sum += widen(weight[c * reach + reach - 1 - ago]) * widen(x[i - (long long)(ago) * width]);
    y[i] = narrowed(sum);
}

extern "C" __global__ void conv_backward(
    const ELEMENT* dy,      // (B, T, D)
    const ELEMENT* weight,  // (D, reach)
    long long elements, int tokens, int width, int reach,
    ELEMENT* dx  // (B, T, D)
) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (i >= elements) return;
    const int c = i % width, t = i / width % tokens;
    Sum sum = 0;
    for (int later = 0; later < reach && t + later < tokens; later++)
        sum += widen(weight[c * reach + reach - 1 - later]) * widen(dy[i + (long long)(later) * width]);
    dx[i] = narrowed(sum);
}

extern "C" __global__ void conv_weights(
    const ELEMENT* dy,  // (B, T, D)
    const ELEMENT* x,   // (B, S + T, D)
    long long rows, int tokens, int before, int width, int reach,
    Sum* parts  // (blocks, D, reach)
) {
    extern __shared__ double shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    Sum* gathered = reinterpret_cast<Sum*>(shared);
    const Share share(rows);
    for (int c = lane; c < width; c += 32) {
        for (int ago = 0; ago < reach; ago++) {
            Sum total = 0;
            for (long long row = share.begin + warp; row < share.end; row += warps) {
                const long long sequence = row / tokens, place = before + row % tokens - ago;
                if (place < 0) continue;
                total += widen(dy[row * width + c]) * widen(x[(sequence * (before + tokens) + place) * width + c]);
            }
            gathered[warp * width * reach + c * reach + reach - 1 - ago] = total;
        }
    }
    leave_part(gathered, width * reach, parts);
}
