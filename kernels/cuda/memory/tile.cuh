// A tile: the channels of a slice that one lane holds, and where that lane stands in the arrays.
#pragma once
#include "memory/chunk.cuh"

#if !defined(CHANNELS) || !defined(WHOLE) || !defined(ALIGNED)
#error "CHANNELS of a slice, WHOLE (C has all channels of every slice) and ALIGNED (all of a tile, or none) must be defined"
#endif

constexpr int TILE = CHANNELS / LANES;                                   // channels of a lane
// A tile of 32 bytes is two pieces, half a row apart. Two groups that follow one another begin with different halves:
// shared memory gives eight lanes 16 bytes each at once, and these then never lie in the same banks.
constexpr bool TWO_PIECES = TILE * sizeof(Acc) == 32;
constexpr int PIECES = TWO_PIECES ? 2 : 1, PIECE = TILE / PIECES;
static_assert(!TWO_PIECES || (WHOLE && ALIGNED && GROUPS_PER_TOKEN > 1), "whole pieces; groups of a token begin with one half");
static_assert(GROUPS_PER_TOKEN * LANES <= 32, "the groups of a token are in one warp");
constexpr int OWN_WRITES = W / GROUPS_PER_TOKEN, OWN_READS = R / GROUPS_PER_TOKEN;  // accesses of a group
static_assert(OWN_WRITES <= 8 && OWN_READS <= 8, "a group's accesses are held in registers");

struct alignas(TILE * sizeof(Acc)) Tile {
    Acc at[TILE];

    using Piece = Acc[PIECE];
    DEVICE Piece& piece(int number) { return *reinterpret_cast<Piece*>(at + number * PIECE); }
    DEVICE const Piece& piece(int number) const { return *reinterpret_cast<const Piece*>(at + number * PIECE); }
    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < TILE; i++) at[i] = 0;
    }
    DEVICE void add(Acc a, const Tile& x) {  // += a x
#pragma unroll
        for (int i = 0; i < TILE; i++) at[i] += a * x.at[i];
    }
    DEVICE void wait_for_load() {
#pragma unroll
        for (int i = 0; i < TILE; i++) at[i] = ::wait_for_load(at[i]);
    }
    DEVICE void scale(Acc a) {
#pragma unroll
        for (int i = 0; i < TILE; i++) at[i] *= a;
    }
    DEVICE void approach(Acc eta, const Tile& v) {  // += eta (v - this)
#pragma unroll
        for (int i = 0; i < TILE; i++) at[i] += eta * (v.at[i] - at[i]);
    }
    DEVICE Acc dot(const Tile& x, int number) const {  // of a piece
        Acc sum = 0;
#pragma unroll
        for (int i = 0; i < PIECE; i++) sum += piece(number)[i] * x.piece(number)[i];
        return sum;
    }
};

// Which part of a call a lane computes. Chunks and tokens are counted from where the segment begins.
struct Lane {
    int tokens, channels, rows;  // of the segment; C; rows of the state
    int chunks, slice, slices;
    int segment;
    int group, lane;          // the block's group; the group's lane
    int channel, to_second;   // the lane's first channel, of the slice; and how many on its second piece is
    int token, part;          // of a chunk: the group's token, and which of its accesses
    long long first_row;      // in arrays (B*H, segments, rows)
    long long first_chunk;    // in arrays (B*H, chunks)
    long long before_slice;   // chunks of other slices, in arrays (slices * PIECES, B*H, chunks): dots are of half slices
    long long first;          // the lane's first channel of the group's token of chunk 0, in arrays (B, T, H, C)
    unsigned stride;          // from chunk to chunk there
    int chunks_with_token;    // chunks that have the group's token
    bool inside[TILE];        // channels that C has

    template <class Params>
    DEVICE Lane(const Params& p, unsigned block)
        : channels(p.channels), slices((p.channels + CHANNELS - 1) / CHANNELS), group(threadIdx.x / LANES),
          lane(threadIdx.x % LANES), channel(lane * PIECE + (second_half_first() ? CHANNELS / 2 : 0)),
          to_second(second_half_first() ? -(CHANNELS / 2) : CHANNELS / 2), token(token_of(group)), part(part_of(group)),
          stride(CHUNK * p.heads * p.channels) {
        const int number = block / slices;
        const unsigned span_head = number / p.launched_segments, heads = p.heads, head = span_head % heads;
        const Span span = span_of(p.spans, span_head / heads, p.tokens, chunks_of(p.tokens));
        const int all_chunks = chunks_of(span.tokens);
        slice = block % slices, segment = p.first_segment + number % p.launched_segments;
        const StateRows state(span, head, heads, p.rows, WRITES);
        rows = state.rows, first_row = p.one_state ? state.first : state.first * p.segments + (long long)(segment)*rows;
        const int begin = segment * p.chunks_of_segment;
        chunks = min(p.chunks_of_segment, all_chunks - begin);
        tokens = min(chunks * CHUNK, span.tokens - begin * CHUNK);
        chunks_with_token = takes_part() ? (tokens - token + CHUNK - 1) / CHUNK : 0;
        first_chunk = (unsigned long long)(unsigned(span.first_chunk)) * heads + head * unsigned(all_chunks) + unsigned(begin);
        before_slice = (long long)(p.all_chunks) * (slice * PIECES);
        const int of_slice = slice * CHANNELS + channel;
        first = (((long long)(span.begin) + begin * CHUNK + token) * heads + head) * channels + of_slice;
#pragma unroll
        for (int i = 0; i < TILE; i++) inside[i] = WHOLE || of_slice + i < channels;
    }
    DEVICE bool second_half_first() const { return TWO_PIECES && group % 2; }
    DEVICE int half_of(int piece) const { return piece ^ int(second_half_first()); }  // of the slice
    DEVICE static int token_of(int group) { return TOKENS_IN_PAIRS ? group / 4 * 2 + group % 2 : group / GROUPS_PER_TOKEN; }
    DEVICE static int part_of(int group) { return TOKENS_IN_PAIRS ? group / 2 % 2 : group % GROUPS_PER_TOKEN; }
    // How many lanes on are those of the part that differs by this power of two.
    DEVICE static constexpr int distance_to(int part) { return (TOKENS_IN_PAIRS ? 2 : 1) * LANES * part; }
    // Whether the group has a token; known to the compiler where all groups do.
    DEVICE bool takes_part() const { return CHUNK * GROUPS_PER_TOKEN >= GROUPS || token < CHUNK; }
    DEVICE bool has(int chunk) const { return chunk < chunks_with_token; }
    DEVICE bool leads(int chunk) const { return part == 0 && has(chunk); }  // one group for each token
    DEVICE long long at(int chunk) const { return first + (unsigned long long)(unsigned(chunk)) * stride; }
    DEVICE long long at(int chunk, int other_token) const {
        return at(chunk) + (long long)(other_token - token) * (stride / CHUNK);
    }
    // The first of the group's ``own`` accesses among those of a chunk; and of chunk 0 in arrays (B*H, chunks, ..).
    DEVICE int first_access(int own) const { return (token * GROUPS_PER_TOKEN + part) * own; }
    DEVICE long long access(int own) const { return first_chunk * (CHUNK * GROUPS_PER_TOKEN * own) + first_access(own); }
};

// Where a chunk begins in a list that has so many per chunk; unsigned, which takes one instruction.
DEVICE unsigned long long at_chunk(int chunk, unsigned each) { return (unsigned long long)(unsigned(chunk)) * each; }

// What a chunk has so many bytes behind what the chunk before it has, in one instruction.
template <class T> DEVICE T* of_chunk(T* of_first, int chunk, unsigned bytes) {
    return (T*)((const char*)(of_first) + at_chunk(chunk, bytes));
}

// Where a lane's channels of its group's token stand in an array (B, T, H, C): what does not depend on the chunk is added up
// once.
template <class T> struct TokenChannels {
    T* const of_first;
    const unsigned bytes;

    DEVICE TokenChannels(const Lane& lane, T* array, int beyond = 0)
        : of_first(computed_once(array + lane.first + beyond)), bytes(lane.stride * sizeof(T)) {}
    DEVICE T* at(int chunk) const { return of_chunk(of_first, chunk, bytes); }
};

// Where a group's accesses stand in the records of chunks, likewise.
struct OwnAccesses {
    const TokenEvent* const of_first;  // writes

    DEVICE OwnAccesses(const Lane& lane, const ChunkRecord* records)
        : of_first(computed_once(records->writes + lane.first_access(OWN_WRITES))) {}
    DEVICE const TokenEvent* writes(int chunk) const { return of_chunk(of_first, chunk, sizeof(ChunkRecord)); }
    DEVICE const TokenEvent* reads(const Lane& lane, int chunk) const {
        return writes(chunk) + (CHUNK * W + lane.first_access(OWN_READS) - lane.first_access(OWN_WRITES));
    }
};

// ---- a lane's channels in arrays whose rows it has ``inside`` ----

template <class T> DEVICE Tile load_channels(const Lane& lane, const T* from) {
    Tile x;
    x.clear();
    if (TWO_PIECES) {
        load<PIECE>(from, x.piece(0)), load<PIECE>(from + lane.to_second, x.piece(1));
    } else if (ALIGNED) {
        if (lane.inside[0]) load<TILE>(from, x.at);
    } else {
#pragma unroll
        for (int i = 0; i < TILE; i++)
            if (lane.inside[i]) x.at[i] = widen(from[i]);
    }
    return x;
}

// An input tile, from when its load is issued to when it is used. 16-bit inputs stay packed in pairs until used:
// converting a value would make the thread wait for its load there.
template <class T, bool PAIRS = sizeof(T) == 2 && TILE % 2 == 0> struct TileInput {
    Tile x;

    DEVICE void clear() { x.clear(); }
    DEVICE void load(const Lane& lane, const T* from) { x = load_channels(lane, from); }
    DEVICE Tile widened() const { return x; }
};
template <class T> struct TileInput<T, true> {
    static constexpr int N = (TILE + 1) / 2;  // pairs of an even TILE; the compiler looks at this for others too
    unsigned pair[N];

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < N; i++) pair[i] = 0;
    }
    DEVICE void load(const Lane& lane, const T* from) {
        clear();
        if (TWO_PIECES) {
            constexpr int HALF_OF_PAIRS = (N + 1) / 2;
            using Half = unsigned[HALF_OF_PAIRS];
            ::load<HALF_OF_PAIRS>(reinterpret_cast<const unsigned*>(from), *reinterpret_cast<Half*>(pair));
            ::load<HALF_OF_PAIRS>(reinterpret_cast<const unsigned*>(from + lane.to_second), *reinterpret_cast<Half*>(pair + N / 2));
        } else if (ALIGNED) {
            if (lane.inside[0]) ::load<N>(reinterpret_cast<const unsigned*>(from), pair);
        } else {
#pragma unroll
            for (int i = 0; i < TILE; i++)
                if (lane.inside[i]) pair[i / 2] |= unsigned(from[i].bits) << 16 * (i % 2);
        }
    }
    DEVICE Tile widened() const {
        Tile x;
#pragma unroll
        for (int i = 0; i < TILE; i++) x.at[i] = widen(T{(unsigned short)(pair[i / 2] >> 16 * (i % 2))});
        return x;
    }
};

// N numbers in one instruction; behind a branch the compiler would make N stores of it.
template <int N, class T> DEVICE void store_at_once(const Acc (&x)[N], T* to) {
    T element[N];
#pragma unroll
    for (int i = 0; i < N; i++) narrow(x[i], element[i]);
    constexpr int BYTES = sizeof(element);
    unsigned word[(BYTES + 3) / 4];
    memcpy(word, element, BYTES);
    if constexpr (BYTES == 16)
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]) : "memory");
    else if constexpr (BYTES == 8)
        asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(word[0]), "r"(word[1]) : "memory");
    else if constexpr (BYTES == 4)
        asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(word[0]) : "memory");
    else
        *to = element[0];
}
template <class T> DEVICE void store_channels(const Lane& lane, const Tile& x, T* to) {
    if (TWO_PIECES) {
        store_at_once(x.piece(0), to), store_at_once(x.piece(1), to + lane.to_second);
    } else if (ALIGNED) {
        if (lane.inside[0]) store_at_once(x.at, to);
    } else {
#pragma unroll
        for (int i = 0; i < TILE; i++)
            if (lane.inside[i]) narrow(x.at[i], to[i]);
    }
}

// ---- sums over lanes ----

// Where two groups share a token, each gives the other one half of its channels and adds up the other half.
constexpr bool SUMS_IN_HALVES = GROUPS_PER_TOKEN == 2 && ALIGNED && TILE % 2 == 0;
// Where more do, two that follow one another are of one token. Of a wide slice they begin with different halves, so each
// adds up the half that it begins with.
constexpr bool SUMS_OF_FIRST_HALVES = TWO_PIECES && !SUMS_IN_HALVES;
constexpr int HALF = (TILE + 1) / 2;  // the compiler looks at this for a TILE of 1, too
DEVICE int first_of_sum(const Lane& lane) {  // of a lane's channels
    return !SUMS_IN_HALVES || lane.part == 0 ? 0 : TWO_PIECES ? lane.to_second : HALF;
}

// Stores the sum over the groups that share a token. ``to``: the lane's channels from first_of_sum on.
template <class T> DEVICE void store_sum(const Lane& lane, int chunk, Tile x, T* to) {
    if constexpr (SUMS_IN_HALVES) {
        Acc own[HALF];
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            const Acc passed = lane.part ? x.at[i] : x.at[i + HALF];
            own[i] = (lane.part ? x.at[i + HALF] : x.at[i]) + __shfl_xor_sync(~0u, passed, lane.distance_to(1));
        }
        if (lane.has(chunk) && lane.inside[0]) store_at_once(own, to);
    } else if constexpr (SUMS_OF_FIRST_HALVES) {
        Acc own[PIECE];
#pragma unroll
        for (int i = 0; i < PIECE; i++) own[i] = x.piece(0)[i] + __shfl_xor_sync(~0u, x.piece(1)[i], lane.distance_to(1));
#pragma unroll
        for (int part = 2; part < GROUPS_PER_TOKEN; part *= 2)
#pragma unroll
            for (int i = 0; i < PIECE; i++) own[i] += __shfl_xor_sync(~0u, own[i], lane.distance_to(part));
        if (lane.part < 2 && lane.has(chunk)) store_at_once(own, to);
    } else {
#pragma unroll
        for (int part = 1; part < GROUPS_PER_TOKEN; part *= 2)
#pragma unroll
            for (int i = 0; i < TILE; i++) x.at[i] += __shfl_xor_sync(~0u, x.at[i], lane.distance_to(part));
        if (lane.leads(chunk)) store_channels(lane, x, to);
    }
}

DEVICE Acc sum_over_lanes(Acc x) {
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// The sums over a group's lanes of N numbers per lane (N a multiple of 4); lane l gets those from l N / 4 on.
template <int N> DEVICE void transpose_sum(const Acc (&x)[N], Acc (&sums)[N / 4]) {
    const bool upper = threadIdx.x & 2, odd = threadIdx.x & 1;
    Acc half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const Acc got = __shfl_xor_sync(~0u, upper ? x[i] : x[i + N / 2], 2);
        half[i] = (upper ? x[i + N / 2] : x[i]) + got;
    }
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        const Acc got = __shfl_xor_sync(~0u, odd ? half[i] : half[i + N / 4], 1);
        sums[i] = (odd ? half[i + N / 4] : half[i]) + got;
    }
}

// Stores the sums over the lanes of a group's dots, one for each of its N accesses and half of the slice. ``half``: how many
// numbers on the second half's are.
template <int N> DEVICE void store_dots(const Lane& lane, const Acc (&dots)[PIECES][N], Acc* to, long long half) {
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        Acc sums[N / 4];
        transpose_sum(dots[piece], sums);
        if (lane.takes_part()) store<N / 4>(sums, to + (TWO_PIECES ? lane.half_of(piece) * half : 0) + lane.lane * (N / 4));
    }
}
