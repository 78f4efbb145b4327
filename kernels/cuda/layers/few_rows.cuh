// Products of a few rows with matrices, x W^T: what the kernels for 16-bit types (few_rows_mma.cu, of more than 16 rows
// few_rows_tile.cu) and for the others (few_rows.cu) share.
//
// So few rows that reading W takes the time. The kernels read it once, 16 bytes a load and many loads under way, and add
// in an order that the matrix alone decides: a row gives the same bits beside any others. What stands before and behind
// a product is done on the way:
//
//   before   an RMSNorm of x: every block finds it anew, x is small and in the L2 cache
//   several  up to MOST_WEIGHTS matrices that multiply the same x share a launch; a block works on one of them
//   gated    two matrices, G and U: y = silu(x G^T) * (x U^T); a block works on the same rows of both
//   behind   a bias, and with one matrix an array like y (a residual) is added before y is rounded
//
// A block asks for its matrices before the launch before it has ended: see runtime/overlap.py.
#pragma once
#include "layers/element.cuh"
#include "runtime/overlap.cuh"

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

// Which matrix block number ``block`` works on, and its first row there. ``each``: rows of a block.
struct Place {
    int which = 0, first;

    DEVICE Place(const FewRowsParams& p, int each, int block) {
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
        if (k < width) pack = *reinterpret_cast<const Pack<ELEMENT, VECTOR>*>(row + k);
    } else {
#pragma unroll
        for (int j = 0; j < VECTOR; j++)
            if (k + j < width) pack.element[j] = row[k + j];
    }
    return pack;
}

// The same of what no launch writes: weights.
DEVICE Pack<ELEMENT, VECTOR> constant_at(const ELEMENT* row, int k, int width) {
    Pack<ELEMENT, VECTOR> pack = {};
    if (WIDE && k < width) pack = load_read_only(reinterpret_cast<const Pack<ELEMENT, VECTOR>*>(row + k));
    return WIDE ? pack : vector_at(row, k, width);
}

// Output ``e`` of row ``n``: whether there is one, what is added to it, as it is stored, and its place in y.
DEVICE bool there(const FewRowsParams& p, int which, int n, int e) { return n < p.rows && e < p.outputs[which]; }
DEVICE ELEMENT bias_of(const FewRowsParams& p, int which, int e) {
    return p.bias[which] && e < p.outputs[which] ? p.bias[which][e] : ELEMENT{};
}
DEVICE ELEMENT added(const FewRowsParams& p, int which, int n, int e) {
    return p.add && there(p, which, n, e) ? p.add[(long long)(n) * p.outputs[which] + e] : ELEMENT{};
}
DEVICE void put(const FewRowsParams& p, int which, int n, int e, Acc y) {
    p.y[which][(long long)(n) * p.outputs[which] + e] = narrowed(y);
}
DEVICE Acc gated(Acc gate, Acc up) { return gate / (1 + exp_(-gate)) * up; }
