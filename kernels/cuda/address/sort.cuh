// Addresses in order: a slot and its penalty as one number, and networks that sort those in registers.
#pragma once
#include "runtime/common.cuh"

// ---- arithmetic that ranks: CuPy compiles with -ftz=true, under which tiny differences would become ties ----

DEVICE float add_no_ftz(float a, float b) {
    asm("add.rn.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
}
DEVICE float sub_no_ftz(float a, float b) {
    asm("sub.rn.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
}
DEVICE float max_no_ftz(float a, float b) {  // of +0 and -0: +0; of NaN and a number: the number
    asm("max.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
}
DEVICE double add_no_ftz(double a, double b) { return a + b; }
DEVICE double sub_no_ftz(double a, double b) { return a - b; }
DEVICE double max_no_ftz(double a, double b) {
    asm("max.f64 %0, %0, %1;" : "+d"(a) : "d"(b));
    return a;
}

// ---- keys: a slot and its penalty as one number, so that one comparison settles score and tie ----

// penalty = -score >= +0, whose bits order like the number itself. The smaller key is the better one: the smaller
// penalty, then the smaller slot. A NaN penalty is the worst.
template <class Acc> struct Key;

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
template <class Acc> DEVICE Key<Acc> operator+(Key<Acc> a, Key<Acc> b) {
    return Key<Acc>(add_no_ftz(a.penalty(), b.penalty()), a.slot() + b.slot());
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
template <int A, int B, int STRIDE = 1, class Acc>
DEVICE void merge(const Key<Acc>* a, const Key<Acc>* b, Key<Acc>* merged) {
    if constexpr (A == 0 || B == 0) {
#pragma unroll
        for (int i = 0; i < A + B; i++) merged[i] = (A ? a : b)[i * STRIDE];
    } else if constexpr (A == 1 && B == 1) {
        merged[0] = a[0];
        merged[1] = b[0];
        exchange(merged[0], merged[1]);
    } else {
        constexpr int EVEN = (A + 1) / 2 + (B + 1) / 2, ODD = A / 2 + B / 2;
        Key<Acc> even[EVEN], odd[ODD];
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

template <int N, class Acc> DEVICE void sort(Key<Acc>* keys) {
    if constexpr (N > 1) {
        Key<Acc> sorted[N];
        sort<N / 2>(keys);
        sort<N - N / 2>(keys + N / 2);
        merge<N / 2, N - N / 2>(keys, keys + N / 2, sorted);
#pragma unroll
        for (int i = 0; i < N; i++) keys[i] = sorted[i];
    }
}
