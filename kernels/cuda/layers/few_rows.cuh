// Products of a few rows with matrices, x W^T: what the kernels for 16-bit types (few_rows_mma.cu) and for the others
// (few_rows.cu) share.
//
// So few rows that reading W takes the time. The kernels read it once, 16 bytes a load and many loads under way, and add
// in an order that the width D alone decides: a row gives the same bits beside any others. What stands before and behind
// a product is done on the way:
//
//   before   an RMSNorm of x: every block computes it anew, x is small and in the L2 cache
//   several  up to MOST_WEIGHTS matrices that multiply the same x share a launch; a block works on one of them
//   gated    two matrices, G and U: y = silu(x G^T) * (x U^T); a block works on the same rows of both
//   behind   a bias, and with one matrix an array like y (a residual) is added before y is rounded
#pragma once
#include "layers/element.cuh"

#if !defined(GATED) || !defined(WIDE)
#error "GATED, 1 for the gated product of two matrices, and WIDE, 1 where VECTOR divides D, must be defined; else they are 0"
#endif

constexpr int MOST_WEIGHTS = 8;

// Twin: few_rows_params of few_rows.py.
struct FewRowsParams {
    const ELEMENT* x;                     // (N, D)
    const ELEMENT* norm;                  // (D,): the weight of the norm, or null: there is none
    const ELEMENT* add;                   // (N, E), or null
    const ELEMENT* weight[MOST_WEIGHTS];  // (E_i, D); with GATED G and U
    const ELEMENT* bias[MOST_WEIGHTS];    // (E_i,), or null
    ELEMENT* y[MOST_WEIGHTS];             // (N, E_i); with GATED the first alone
    int outputs[MOST_WEIGHTS];            // E_i
    int rows, width;                      // N, D
    Acc eps;
};

// Which matrix a block works on, and its first row there. ``each``: rows of a block.
struct Place {
    int which = 0, first;

    DEVICE Place(const FewRowsParams& p, int each) {
        int block = blockIdx.x;
        const auto blocks = [&](int matrix) { return (p.outputs[matrix] + each - 1) / each; };
        while (!GATED && block >= blocks(which)) block -= blocks(which++);
        first = block * each;
    }
};

// A row of the matrix: output ``e`` of the block's matrix or, gated, of the one that ``side`` says. There is a last one.
DEVICE const ELEMENT* weight_row(const FewRowsParams& p, int which, int side, int e) {
    const int matrix = GATED ? side : which;
    return p.weight[matrix] + (long long)(smaller_of(e, p.outputs[matrix] - 1)) * p.width;
}

// Row ``n`` of x; there is a last one.
DEVICE const ELEMENT* x_row(const FewRowsParams& p, int n) {
    return p.x + (long long)(smaller_of(n, p.rows - 1)) * p.width;
}

// 16 bytes of a row of D numbers from number ``k`` on, zeros behind its end.
DEVICE Pack<ELEMENT, VECTOR> vector_at(const ELEMENT* row, int k, int width) {
    Pack<ELEMENT, VECTOR> pack = {};
    if constexpr (WIDE) {
        if (k < width) pack = load_read_only(reinterpret_cast<const Pack<ELEMENT, VECTOR>*>(row + k));
    } else {
#pragma unroll
        for (int j = 0; j < VECTOR; j++)
            if (k + j < width) pack.element[j] = row[k + j];
    }
    return pack;
}

// rstd = 1 / sqrt(mean(x^2) + eps) of COUNT rows of x from ``first`` on, one warp a row.
template <int COUNT> DEVICE void find_rstd(const FewRowsParams& p, int first, Acc (&rstd)[COUNT]) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int n = threadIdx.x / 32; n < COUNT && first + n < p.rows; n += warps) {
        const ELEMENT* row = x_row(p, first + n);
        Acc squares = 0;
#pragma unroll 4
        for (int k = VECTOR * lane; k < p.width; k += VECTOR * 32) {
            const Pack<ELEMENT, VECTOR> pack = vector_at(row, k, p.width);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) squares += widen(pack.element[j]) * widen(pack.element[j]);
        }
        squares = warp_sum(squares);
        if (lane == 0) rstd[n] = reciprocal_root(squares / p.width + p.eps);
    }
}

// The last step of one number of y: output ``e`` of row ``n``.
DEVICE void finish(const FewRowsParams& p, int which, int n, int e, Acc sum) {
    if (n >= p.rows || e >= p.outputs[which]) return;
    const long long at = (long long)(n) * p.outputs[which] + e;
    if (p.bias[which]) sum += widen(p.bias[which][e]);
    if (p.add) sum += widen(p.add[at]);
    p.y[which][at] = narrowed(sum);
}
DEVICE void finish_gated(const FewRowsParams& p, int n, int e, Acc gate, Acc up) {
    if (n >= p.rows || e >= p.outputs[0]) return;
    p.y[0][(long long)(n) * p.outputs[0] + e] = narrowed(gate / (1 + exp_(-gate)) * up);
}
