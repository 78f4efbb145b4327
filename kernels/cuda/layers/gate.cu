// Gated products: y = act(a) * b, act the sigmoid s or, with ``silu``, a * s(a).
//
//   gate_forward, gate_backward   one thread EACH elements
//
// Same mathematics as ramnet_np/layers/gate.py.
#include "layers/element.cuh"

#ifndef EACH
#error "EACH must be defined: the elements of a thread"
#endif

DEVICE Acc sigmoid(Acc a) { return 1 / (1 + exp_(-a)); }

DEVICE Acc gated(Acc a, Acc b, bool silu) { return (silu ? a * sigmoid(a) : sigmoid(a)) * b; }

DEVICE void gated_slopes(Acc dy, Acc a, Acc b, bool silu, Acc& da, Acc& db) {
    const Acc s = sigmoid(a), slope = s * (1 - s);
    da = dy * b * (silu ? s + a * slope : slope);
    db = dy * (silu ? a * s : s);
}

extern "C" __global__ void gate_forward(
    const ELEMENT* a, const ELEMENT* b, long long size, int silu, ELEMENT* y
) {
    const long long i = EACH * (blockIdx.x * (long long)(blockDim.x) + threadIdx.x);
    if (i + EACH <= size) {
        Acc as[EACH], bs[EACH];
        load<EACH>(a + i, as);
        load<EACH>(b + i, bs);
#pragma unroll
        for (int j = 0; j < EACH; j++) bs[j] = gated(as[j], bs[j], silu);
        store<EACH>(bs, y + i);
        return;
    }
    for (long long j = i; j < size; j++) y[j] = narrowed(gated(widen(a[j]), widen(b[j]), silu));
}

extern "C" __global__ void gate_backward(
    const ELEMENT* dy, const ELEMENT* a, const ELEMENT* b, long long size, int silu, ELEMENT* da, ELEMENT* db
) {
    const long long i = EACH * (blockIdx.x * (long long)(blockDim.x) + threadIdx.x);
    if (i + EACH <= size) {
        Acc ds[EACH], as[EACH], bs[EACH], das[EACH], dbs[EACH];
        load<EACH>(dy + i, ds);
        load<EACH>(a + i, as);
        load<EACH>(b + i, bs);
#pragma unroll
        for (int j = 0; j < EACH; j++) gated_slopes(ds[j], as[j], bs[j], silu, das[j], dbs[j]);
        store<EACH>(das, da + i);
        store<EACH>(dbs, db + i);
        return;
    }
    for (long long j = i; j < size; j++) {
        Acc da_j, db_j;
        gated_slopes(widen(dy[j]), widen(a[j]), widen(b[j]), silu, da_j, db_j);
        da[j] = narrowed(da_j);
        db[j] = narrowed(db_j);
    }
}
