// The contents of few slots, forward (dense_pass.cuh).
//
// Compiled with: what chunk.cuh, dense.cuh and dense_state.cuh ask for, and FORWARD_BYTES.
#include "memory/dense_pass.cuh"

#ifndef FORWARD_BYTES
#error "FORWARD_BYTES of shared memory must be defined as dense.py counts them"
#endif

using Forward = DensePass<false, true, false>;
static_assert(sizeof(Forward::Shared) == FORWARD_BYTES, "dense.py and this file count the same bytes");

extern "C" __global__ void __launch_bounds__(DENSE_THREADS, BLOCKS)
dense_content_forward(const __grid_constant__ DenseParams p) {
    Forward(p, p.memory.spans ? blockIdx.x : block_from_last()).run();
}
