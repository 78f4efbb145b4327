// What all kernels share: element types, accumulators, and wide loads and stores.
//
// No header is included, so that NVRTC needs no CUDA toolkit beside it.
#pragma once

#define DEVICE __device__ __forceinline__

// The block counted from the last. One after another, the kernels of a call go through the batch from first to last and
// from last to first, so that each starts with what the one before it left last: that is still in the L2 cache.
DEVICE unsigned block_from_last() { return gridDim.x - 1 - blockIdx.x; }

// ---- element types: 16-bit floats are stored as bits. Accumulators (Acc) are float, those of double double ----

struct float16 {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

template <class T> struct AccOf {
    using type = float;
};
template <> struct AccOf<double> {
    using type = double;
};

DEVICE int widen(int x) { return x; }
DEVICE unsigned widen(unsigned x) { return x; }
DEVICE float widen(float x) { return x; }
DEVICE double widen(double x) { return x; }
DEVICE float widen(bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
DEVICE float widen(float16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

DEVICE void narrow(int x, int& y) { y = x; }
DEVICE void narrow(float x, float& y) { y = x; }
DEVICE void narrow(double x, double& y) { y = x; }
DEVICE void narrow(float x, float16& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
DEVICE void narrow(float x, bfloat16& y) {  // to nearest, ties to even; NaN stays NaN
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    unsigned bits = __float_as_uint(x);
    y.bits = x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
#endif
}

template <class T> DEVICE constexpr T smaller_of(T a, T b) { return b < a ? b : a; }
DEVICE constexpr unsigned whole_power(unsigned base, int exponent) {
    return exponent ? base * whole_power(base, exponent - 1) : 1;
}

DEVICE float exp_(float x) { return expf(x); }
DEVICE double exp_(double x) { return exp(x); }
DEVICE float max_(float a, float b) { return fmaxf(a, b); }
DEVICE double max_(double a, double b) { return fmax(a, b); }

// ---- N consecutive elements at once, in the widest accesses that their alignment allows ----

// Bytes of one access: the largest power of two that divides the bytes of N elements, at most 16.
template <class T, int N> DEVICE constexpr int access_bytes() {
    int bytes = 16;
    while (N * int(sizeof(T)) % bytes) bytes /= 2;
    return bytes;
}

template <class T, int N> struct alignas(access_bytes<T, N>()) Pack {
    static constexpr int WIDTH = access_bytes<T, N>() / sizeof(T);
    T element[WIDTH];
};

// Widened to accumulators. ``from`` is a multiple of N elements behind an address aligned to 16 bytes; so is ``to`` of
// store.
template <int N, class T, class S> DEVICE void load(const T* from, S (&to)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += Pack<T, N>::WIDTH) {
        const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from + i);
#pragma unroll
        for (int lane = 0; lane < Pack<T, N>::WIDTH; lane++) to[i + lane] = widen(pack.element[lane]);
    }
}

// What a load of so many bytes asks for.
template <int BYTES> struct WordOf;
template <> struct WordOf<1> {
    using type = unsigned char;
};
template <> struct WordOf<2> {
    using type = unsigned short;
};
template <> struct WordOf<4> {
    using type = unsigned;
};
template <> struct WordOf<8> {
    using type = unsigned long long;
};
template <> struct WordOf<16> {
    using type = uint4;
};

// N elements as they lie in memory, in registers. Where a branch loads them, those of 16 bits are widened behind it, into
// ``room``: to widen is to use, and the thread would wait for the load within the branch.
template <class T, int N> struct Stored {
    static constexpr int BYTES = access_bytes<T, N>(), WORDS = N * sizeof(T) / BYTES;
    typename WordOf<BYTES>::type word[WORDS];

    DEVICE void load_from(const T* from) {  // aligned as of load
#pragma unroll
        for (int i = 0; i < WORDS; i++) word[i] = reinterpret_cast<const typename WordOf<BYTES>::type*>(from)[i];
    }
    template <class S> DEVICE auto widened(S (&room)[N]) const -> S (&)[N] {
        T element[N];
        memcpy(element, word, sizeof element);
#pragma unroll
        for (int i = 0; i < N; i++) room[i] = widen(element[i]);
        return room;
    }
};
// Accumulators are wide already: they are worked on where they are.
template <class T, int N> struct StoredWide {
    T element[N];

    DEVICE void load_from(const T* from) { load(from, element); }
    DEVICE auto widened(T (&)[N]) -> T (&)[N] { return element; }
};
template <int N> struct Stored<float, N> : StoredWide<float, N> {};
template <int N> struct Stored<double, N> : StoredWide<double, N> {};

// Loads of what nothing writes while the kernel runs, through the read-only path (ld.global.nc). The compiler finds it by
// itself for kernel parameters that are ``const T* __restrict__``; the members of a struct of parameters cannot be that.
template <class T> DEVICE T load_read_only(const T* from) {
    constexpr int BYTES = sizeof(T) < 16 ? sizeof(T) : 16;
    typename WordOf<BYTES>::type words[sizeof(T) / BYTES];
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / BYTES); i++)
        words[i] = __ldg(reinterpret_cast<const typename WordOf<BYTES>::type*>(from) + i);
    T value;
    memcpy(&value, words, sizeof value);
    return value;
}
template <int N, class T, class S> DEVICE void load_read_only(const T* from, S (&to)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += Pack<T, N>::WIDTH) {
        const Pack<T, N> pack = load_read_only(reinterpret_cast<const Pack<T, N>*>(from + i));
#pragma unroll
        for (int lane = 0; lane < Pack<T, N>::WIDTH; lane++) to[i + lane] = widen(pack.element[lane]);
    }
}

template <int N, class T, class S> DEVICE void store(const S (&from)[N], T* to) {
#pragma unroll
    for (int i = 0; i < N; i += Pack<T, N>::WIDTH) {
        Pack<T, N> pack;
#pragma unroll
        for (int lane = 0; lane < Pack<T, N>::WIDTH; lane++) narrow(from[i + lane], pack.element[lane]);
        *reinterpret_cast<Pack<T, N>*>(to + i) = pack;
    }
}
