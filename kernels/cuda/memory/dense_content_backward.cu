// The contents of few slots once more, for <dy, s>, and their adjoint (dense_pass.cuh).
//
// Compiled with: what chunk.cuh, dense.cuh and dense_state.cuh ask for, RECOMPUTE_BYTES and BACKWARD_BYTES.
#include "memory/dense_pass.cuh"

#if !defined(RECOMPUTE_BYTES) || !defined(BACKWARD_BYTES)
#error "RECOMPUTE_BYTES and BACKWARD_BYTES of shared memory must be defined as dense.py counts them"
#endif

using Recompute = DensePass<false, false, true>;
using Backward = DensePass<true, true, true>;
static_assert(sizeof(Recompute::Shared) == RECOMPUTE_BYTES && sizeof(Backward::Shared) == BACKWARD_BYTES,
              "dense.py and this file count the same bytes");

extern "C" __global__ void __launch_bounds__(DENSE_THREADS, BLOCKS)
dense_content_backward_recompute(const __grid_constant__ DenseParams p) {
    Recompute(p, blockIdx.x).run();
}

extern "C" __global__ void __launch_bounds__(DENSE_THREADS, BLOCKS)
dense_content_backward(const __grid_constant__ DenseParams p) {
    Backward(p, p.memory.spans ? blockIdx.x : block_from_last()).run();
}
