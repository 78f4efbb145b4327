// Shared memory, copies into it, prefetches to the L2 cache, and waiting for a load at a chosen point.
#pragma once
#include "runtime/common.cuh"

// The dynamic shared memory of the launch.
DEVICE char* dynamic_shared() {
    extern __shared__ double shared_memory[];
    return reinterpret_cast<char*>(shared_memory);
}

// The 32-bit address of something in shared memory, computed once: the compiler would redo the conversion at each use, and
// wait for a special register on the way.
DEVICE unsigned shared_address(const void* shared) {
    unsigned address = unsigned(__cvta_generic_to_shared(shared));
    asm volatile("" : "+r"(address));
    return address;
}
DEVICE void load_shared(unsigned address, float& x) {
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
}
DEVICE void load_shared(unsigned address, double& x) {
    asm volatile("ld.shared.f64 %0, [%1];" : "=d"(x) : "r"(address) : "memory");
}
DEVICE void store_shared(unsigned address, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(x) : "memory");
}
DEVICE void store_shared(unsigned address, double x) {
    asm volatile("st.shared.f64 [%0], %1;" ::"r"(address), "d"(x) : "memory");
}

// An address of device memory that the compiler would otherwise compute anew at each use. The assumption keeps its loads and
// stores from asking which memory it is.
template <class T> DEVICE T* computed_once(T* address) {
    asm volatile("" : "+l"(address));
    __builtin_assume(__isGlobal(address));
    return address;
}

// Something in shared memory, by such an address.
template <class T> DEVICE T& computed_once(T& shared) {
    return *reinterpret_cast<T*>(__cvta_shared_to_generic(shared_address(&shared)));
}

// Forces the wait for this load now, for the whole warp. Loads share a scoreboard counter, so waiting later would also
// wait for every load issued in between. Use it after a rare branch that loads.
template <class T> DEVICE T wait_for_load(T x) { return __shfl_sync(~0u, x, threadIdx.x % 32); }

// This thread's warp. Broadcast, so that the compiler knows that a warp stays together where it branches on this.
DEVICE int warp_of_thread() { return __shfl_sync(~0u, int(threadIdx.x) / 32, 0); }

template <int BYTES> DEVICE void copy_async(void* shared, const void* global) {
    const unsigned to = unsigned(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(BYTES) : "memory");
}
DEVICE void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups of asynchronous copies are under way.
template <int PENDING> DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// Starts to bring a line of device memory to the L2 cache.
DEVICE void prefetch(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }
