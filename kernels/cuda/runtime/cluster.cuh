// A cluster: blocks that run at once, close to one another, and read each other's shared memory. From compute capability
// 9.0 on; elsewhere a cluster is a single block.
#pragma once
#include "runtime/shared.cuh"

#if __CUDA_ARCH__ >= 900
#define CLUSTER_OF(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTER_OF(blocks)
#endif

// The number of this block in its cluster.
DEVICE int cluster_rank() {
    unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}

// Waits for all threads of the cluster; what they wrote before, the others can read behind it.
DEVICE void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
    __syncthreads();
#endif
}

// What block ``rank`` has where this one has ``own``, in shared memory.
DEVICE float load_of_block(int rank, const float* own) {
    float x;
#if __CUDA_ARCH__ >= 900
    unsigned place;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place) : "r"(unsigned(__cvta_generic_to_shared(own))), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(place) : "memory");
#else
    x = *own;
#endif
    return x;
}
