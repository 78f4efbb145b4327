// Loads through the read-only path (ld.global.nc), for what nothing writes during the launch.
//
// The compiler chooses that path by itself for a kernel's own parameters that are ``const T* __restrict__``. It does not
// for pointers in a struct, and the kernels here take one struct each; so they say it at the load.
#pragma once
#include "runtime/common.cuh"

template <int BYTES> struct WordOf;
template <> struct WordOf<2> {
    using type = unsigned short;
};
template <> struct WordOf<4> {
    using type = unsigned;
};
template <> struct WordOf<8> {
    using type = uint2;
};
template <> struct WordOf<16> {
    using type = uint4;
};

template <class T> DEVICE T load_read_only(const T* from) {
    using Word = typename WordOf<(alignof(T) < 16 ? alignof(T) : 16)>::type;
    struct alignas(alignof(T)) Words {
        Word at[sizeof(T) / sizeof(Word)];
    } words;
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / sizeof(Word)); i++) words.at[i] = __ldg(reinterpret_cast<const Word*>(from) + i);
    return __builtin_bit_cast(T, words);
}
