// What the kernels share: element types, arithmetic that never rounds small numbers away, wide loads and stores.
//
// No header is included, so that NVRTC needs no CUDA toolkit beside it.
#pragma once

#define DEVICE __device__ __forceinline__

// The block counted from the last. One after another, the kernels of a call go through the batch from first to last and
// from last to first, so that each starts with what the one before it left last: that is still in the L2 cache.
DEVICE unsigned block_from_last() { return gridDim.x - 1 - blockIdx.x; }

// ---- element types: 16-bit floats are stored as bits; sums run in float, those of double in double ----

struct float16 {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

template <class T> struct SumOf {
    using type = float;
};
template <> struct SumOf<double> {
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

DEVICE constexpr int smaller_of(int a, int b) { return b < a ? b : a; }
DEVICE constexpr unsigned whole_power(unsigned base, int exponent) {
    return exponent ? base * whole_power(base, exponent - 1) : 1;
}

// ---- arithmetic that ranks: CuPy compiles with -ftz=true, under which tiny differences would become ties ----

DEVICE float plus(float a, float b) {
    asm("add.rn.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
}
DEVICE float minus(float a, float b) {
    asm("sub.rn.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
}
DEVICE float larger(float a, float b) {  // of +0 and -0: +0; of NaN and a number: the number
    asm("max.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
}
DEVICE double plus(double a, double b) { return a + b; }
DEVICE double minus(double a, double b) { return a - b; }
DEVICE double larger(double a, double b) {
    asm("max.f64 %0, %0, %1;" : "+d"(a) : "d"(b));
    return a;
}

DEVICE float exponential(float x) { return expf(x); }
DEVICE double exponential(double x) { return exp(x); }

template <class Sum> DEVICE Sum sum_over_warp(Sum mine) {  // every lane gets it, the same bits
#pragma unroll
    for (int other = 16; other > 0; other /= 2) mine += __shfl_xor_sync(~0u, mine, other);
    return mine;
}

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

// Widened to sums. ``from`` is a multiple of N elements behind an address aligned to 16 bytes; so is ``to`` of store.
template <int N, class T, class S> DEVICE void load(const T* from, S (&to)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += Pack<T, N>::WIDTH) {
        const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from + i);
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

// ---- slots ----

// CAPE: content slot j of a token at position t lies at (j - t) mod M, in the first cape_heads heads.
struct Cape {
    const long long* positions;  // (B, T), of any strides; null: counted from 0
    long long batch_stride, token_stride;
    unsigned tokens, heads, cape_heads;  // T, H

    // A row's t, 0 in a head without CAPE.
    DEVICE long long position(unsigned row) const {
        if (row % heads >= cape_heads) return 0;
        const unsigned token = row / heads, batch = token / tokens, number = token % tokens;
        return positions ? positions[batch * batch_stride + number * token_stride] : number;
    }
    DEVICE static unsigned shift_at(long long position, unsigned slots) {  // t mod M
        const long long rest = position % (long long)(slots);
        return unsigned(rest < 0 ? rest + slots : rest);
    }
    DEVICE unsigned shift(unsigned row, unsigned slots) const { return shift_at(position(row), slots); }
};

DEVICE int moved(unsigned content, unsigned shift, unsigned slots) {
    return int(content < shift ? content - shift + slots : content - shift);
}
DEVICE unsigned moved_back(int index, unsigned shift, unsigned slots) {
    const unsigned content = unsigned(index) + shift;
    return content < slots ? content : content - slots;
}

// ---- keys: a slot and its penalty as one number, so that one comparison settles score and tie ----

// penalty = -score >= +0, whose bits order like the number itself. The smaller key is the better one: the smaller
// penalty, then the smaller slot. A NaN penalty is the worst.
template <class Sum> struct Key;

template <> struct Key<float> {
    unsigned long long bits;

    Key() = default;
    DEVICE Key(float penalty, unsigned slot) : bits((unsigned long long)(__float_as_uint(penalty)) << 32 | slot) {}
    DEVICE float penalty() const { return __uint_as_float(unsigned(bits >> 32)); }
    DEVICE unsigned slot() const { return unsigned(bits); }
    DEVICE static Key worst() {  // behind every address
        Key key;
        key.bits = ~0ull;
        return key;
    }
    DEVICE bool operator<(Key other) const { return bits < other.bits; }
    DEVICE Key of_lane(int lane) const {
        Key key;
        key.bits = __shfl_sync(~0u, bits, lane);
        return key;
    }
};

template <> struct Key<double> {
    unsigned long long bits;
    unsigned low;

    Key() = default;
    DEVICE Key(double penalty, unsigned slot) : bits(__double_as_longlong(penalty)), low(slot) {}
    DEVICE double penalty() const { return __longlong_as_double(bits); }
    DEVICE unsigned slot() const { return low; }
    DEVICE static Key worst() {
        Key key;
        key.bits = ~0ull, key.low = ~0u;
        return key;
    }
    DEVICE bool operator<(Key other) const { return bits < other.bits || (bits == other.bits && low < other.low); }
    DEVICE Key of_lane(int lane) const {
        Key key;
        key.bits = __shfl_sync(~0u, bits, lane), key.low = __shfl_sync(~0u, low, lane);
        return key;
    }
};

// One more digit: penalties add, and so do the digits' shares of the slot.
template <class Sum> DEVICE Key<Sum> operator+(Key<Sum> a, Key<Sum> b) {
    return Key<Sum>(plus(a.penalty(), b.penalty()), a.slot() + b.slot());
}

// Puts the better key first. In PTX, and by halves: else the compiler compares twice, once for each of the two.
DEVICE void exchange(Key<float>& a, Key<float>& b) {
    unsigned a_low = unsigned(a.bits), a_high = unsigned(a.bits >> 32);
    unsigned b_low = unsigned(b.bits), b_high = unsigned(b.bits >> 32);
    asm("{\n\t"
        ".reg .pred swap;\n\t"
        ".reg .b32 low, high;\n\t"
        ".reg .b64 a, b;\n\t"
        "mov.b64 a, {%0, %1};\n\t"
        "mov.b64 b, {%2, %3};\n\t"
        "setp.lt.u64 swap, b, a;\n\t"
        "selp.b32 low, %2, %0, swap;\n\t"
        "selp.b32 high, %3, %1, swap;\n\t"
        "selp.b32 %2, %0, %2, swap;\n\t"
        "selp.b32 %3, %1, %3, swap;\n\t"
        "mov.b32 %0, low;\n\t"
        "mov.b32 %1, high;\n\t"
        "}"
        : "+r"(a_low), "+r"(a_high), "+r"(b_low), "+r"(b_high));
    a.bits = (unsigned long long)(a_high) << 32 | a_low;
    b.bits = (unsigned long long)(b_high) << 32 | b_low;
}
DEVICE void exchange(Key<double>& a, Key<double>& b) {
    const bool swap = b < a;
    const Key<double> first = swap ? b : a, second = swap ? a : b;
    a = first;
    b = second;
}

// ---- sorting networks over registers: the compiler knows every index, and drops what nothing kept depends on ----

// Merges a[0], a[STRIDE], ... (A keys) with b[0], b[STRIDE], ... (B keys), both sorted: Batcher's odd-even merge.
template <int A, int B, int STRIDE = 1, class Sum>
DEVICE void merge(const Key<Sum>* a, const Key<Sum>* b, Key<Sum>* merged) {
    if constexpr (A == 0 || B == 0) {
#pragma unroll
        for (int i = 0; i < A + B; i++) merged[i] = (A ? a : b)[i * STRIDE];
    } else if constexpr (A == 1 && B == 1) {
        merged[0] = a[0];
        merged[1] = b[0];
        exchange(merged[0], merged[1]);
    } else {
        constexpr int EVEN = (A + 1) / 2 + (B + 1) / 2, ODD = A / 2 + B / 2;
        Key<Sum> even[EVEN], odd[ODD];
        merge<(A + 1) / 2, (B + 1) / 2, 2 * STRIDE>(a, b, even);
        merge<A / 2, B / 2, 2 * STRIDE>(a + STRIDE, b + STRIDE, odd);
        merged[0] = even[0];
#pragma unroll
        for (int i = 0; i < ODD; i++) {
            merged[2 * i + 1] = odd[i];
            if (i + 1 < EVEN) {
                merged[2 * i + 2] = even[i + 1];
                exchange(merged[2 * i + 1], merged[2 * i + 2]);
            }
        }
        if constexpr (EVEN == ODD + 2) merged[A + B - 1] = even[EVEN - 1];
    }
}

template <int N, class Sum> DEVICE void sort(Key<Sum>* keys) {
    if constexpr (N > 1) {
        Key<Sum> sorted[N];
        sort<N / 2>(keys);
        sort<N - N / 2>(keys + N / 2);
        merge<N / 2, N - N / 2>(keys, keys + N / 2, sorted);
#pragma unroll
        for (int i = 0; i < N; i++) keys[i] = sorted[i];
    }
}
