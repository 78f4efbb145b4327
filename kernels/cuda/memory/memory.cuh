// What the kernels of the memory share: events, the retention, copies to shared memory.
#pragma once
#include "runtime/common.cuh"

// An integer as long as a number, so that an event has no unused bytes.
template <class S> struct RowOf {
    using type = int;
};
template <> struct RowOf<double> {
    using type = long long;
};

// An access: where it finds its slot (a code of chunk.cuh), and eta (a write) or the weight (a read).
template <class S> struct alignas(2 * sizeof(S)) Event {
    typename RowOf<S>::type row;
    S coefficient;
};

DEVICE float log_of_one_plus(float x) { return log1pf(x); }
DEVICE double log_of_one_plus(double x) { return log1p(x); }
DEVICE float greater_of(float a, float b) { return fmaxf(a, b); }
DEVICE double greater_of(double a, double b) { return fmax(a, b); }
DEVICE float reciprocal(float x) {  // to the last digit or so
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE double reciprocal(double x) { return 1 / x; }
DEVICE float absolute(float x) { return fabsf(x); }
DEVICE double absolute(double x) { return fabs(x); }
DEVICE bool signbit_of(float x) { return __float_as_int(x) < 0; }
DEVICE bool signbit_of(double x) { return __double_as_longlong(x) < 0; }

// What is left of a slot's mass when w is written to it, and its slopes: ramnet_np/core/retention.py.
template <class S> struct Retention {
    int gsu;
    S proxy_eps;
    S smallest;  // 1 - w is at least this for w < 1

    DEVICE S operator()(S w, S gamma) const {
        if (!gsu) {  // a power, through the logarithm that keeps the digits of a small w
            if (gamma == 1) return 1 - w;
            return w < 1 ? exp_(gamma * log_of_one_plus(-w)) : S(gamma == 0);
        }
        const S kept = (1 - w) * exp_(-greater_of(gamma, 0)), total = kept + w * exp_(-greater_of(-gamma, 0));
        return total > 0 ? kept / total : S(w == 0);
    }

    DEVICE void slopes(S w, S gamma, S alpha, S& dw, S& dgamma) const {
        if (!gsu) {
            const S lost = (1 - proxy_eps) * w, most = 1 - smallest, log_kept = log_of_one_plus(-(lost < most ? lost : most));
            const S kept = exp_(gamma * log_kept), base = 1 - lost;
            dw = -gamma * (1 - proxy_eps) * kept * reciprocal(greater_of(base, smallest));
            dgamma = (base > 0 ? kept : S(gamma == 0)) * log_kept;
            return;
        }
        S total = (1 - w) * exp_(-greater_of(gamma, 0)) + w * exp_(-greater_of(-gamma, 0));
        if (!(total > 0)) total = 1;
        dw = -(exp_(-(gamma < 0 ? -gamma : gamma)) / total) / total;
        dgamma = -alpha * (1 - alpha);
    }
};

// The shared memory that the launch asked for.
DEVICE char* on_chip() {
    extern __shared__ double shared_memory[];
    return reinterpret_cast<char*>(shared_memory);
}

// Numbers in shared memory whose address is computed once: compilers do so at every use, and on the way wait for a
// special register.
DEVICE unsigned address_on_chip(const void* shared) {
    unsigned at = unsigned(__cvta_generic_to_shared(shared));
    asm volatile("" : "+r"(at));
    return at;
}
DEVICE void load_on_chip(unsigned at, float& x) { asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory"); }
DEVICE void load_on_chip(unsigned at, double& x) { asm volatile("ld.shared.f64 %0, [%1];" : "=d"(x) : "r"(at) : "memory"); }
DEVICE void store_on_chip(unsigned at, float x) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory"); }
DEVICE void store_on_chip(unsigned at, double x) { asm volatile("st.shared.f64 [%0], %1;" ::"r"(at), "d"(x) : "memory"); }

// Waits for a number that may be on its way from device memory; for the whole warp. What is loaded where few threads come
// by is waited for there: later, a wait for it would be one for all loads under way, as these share a counter.
template <class T> DEVICE T arrived(T x) { return __shfl_sync(~0u, x, threadIdx.x % 32); }

// This thread's warp. Broadcast, so that the compiler knows that a warp stays together where it branches on this.
DEVICE int warp_of_thread() { return __shfl_sync(~0u, int(threadIdx.x) / 32, 0); }

// Waits until at most PENDING of this thread's groups of asynchronous copies are under way.
template <int PENDING> DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
DEVICE void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int BYTES> DEVICE void copy_async(void* shared, const void* global) {
    const unsigned to = unsigned(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(BYTES) : "memory");
}

// Has the line of device memory brought to the L2 cache.
DEVICE void prefetch(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }
