// CAPE: where a content slot of a token lies at the token's position.
#pragma once
#include "runtime/common.cuh"

// CAPE: content slot j of a token at position t lies at (j - t) mod M, in the first cape_heads heads.
struct Cape {
    const long long* positions;  // (B, T), of any strides; null: counted from 0
    long long batch_stride, token_stride;
    unsigned tokens, heads, cape_heads;  // T, H

    // A row's t, 0 in a head without CAPE. By a plain load: step.cu may begin before the positions are written.
    DEVICE long long position(unsigned row) const {
        if (row % heads >= cape_heads) return 0;
        const long long* at = of_token(row / heads);
        return at ? *at : row / heads % tokens;
    }
    // The same mod 2**32, of which M is a divisor: a load without a half that nobody uses.
    DEVICE unsigned low_half(unsigned row) const {
        if (row % heads >= cape_heads) return 0;
        const long long* at = of_token(row / heads);
        return at ? *reinterpret_cast<const unsigned*>(at) : row / heads % tokens;
    }
    DEVICE const long long* of_token(unsigned token) const {
        return positions ? positions + (token / tokens * batch_stride + token % tokens * token_stride) : nullptr;
    }
    DEVICE static unsigned shift_at(long long position, unsigned slots) {  // t mod M
        const long long rest = position % (long long)(slots);
        return unsigned(rest < 0 ? rest + slots : rest);
    }
    DEVICE unsigned shift(unsigned row, unsigned slots) const { return shift_at(position(row), slots); }
};

DEVICE int cape_shift(unsigned content, unsigned shift, unsigned slots) {
    return int(content < shift ? content - shift + slots : content - shift);
}
DEVICE unsigned cape_unshift(int index, unsigned shift, unsigned slots) {
    const unsigned content = unsigned(index) + shift;
    return content < slots ? content : content - slots;
}
