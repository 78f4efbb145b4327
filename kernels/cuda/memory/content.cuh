// What the passes over the contents are made of: where a lane stands, its slice of the state, the accesses of a chunk.
// content.cu says who computes what, and what this is compiled with.
#pragma once
#include "memory/chunk.cuh"

constexpr int LANES = 4, GROUPS = THREADS / LANES;     // lanes of a group; groups of a block
constexpr int VECTOR = CHANNELS / LANES;               // channels of a lane
constexpr int OWN_W = W / SPREAD, OWN_R = R / SPREAD;  // accesses of a group
static_assert(GROUPS == EACH_ROUND);

struct alignas(VECTOR * sizeof(Sum)) Vector {
    Sum at[VECTOR];

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) at[i] = 0;
    }
    DEVICE void add(Sum a, const Vector& x) {  // += a x
#pragma unroll
        for (int i = 0; i < VECTOR; i++) at[i] += a * x.at[i];
    }
    DEVICE void arrive() {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) at[i] = arrived(at[i]);
    }
    DEVICE void scale(Sum a) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) at[i] *= a;
    }
    DEVICE void approach(Sum eta, const Vector& v) {  // += eta (v - this)
#pragma unroll
        for (int i = 0; i < VECTOR; i++) at[i] += eta * (v.at[i] - at[i]);
    }
    DEVICE Sum dot(const Vector& x) const {
        Sum sum = 0;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sum += at[i] * x.at[i];
        return sum;
    }
};

// Of a long sequence, segments: pieces of whole chunks, each with a state of its own to start from (segments.cu).
struct Segments {
    int count, chunks;      // of the sequence; of each, where the last may have fewer
    int first, launched;    // those that the launch works through
};

// Sizes of one call, and which part of it this lane computes. Chunks and tokens are counted from where the segment begins.
struct Place {
    int tokens, channels, rows;  // of the segment; C; rows of the state
    int chunks, slice, slices;
    int segment, unit;    // unit: (batch * H + head) * segments + segment
    int group, lane;      // lane of the group
    int token, part;      // of a chunk: the group's token, and which of its accesses
    long long first_chunk;  // in arrays (B*H, chunks)
    long long before_slice;  // chunks of other slices, in arrays (slices, B*H, chunks)
    long long first;      // the lane's first element of the group's token of chunk 0, in arrays (B, T, H, C)
    unsigned stride;      // from chunk to chunk there
    bool inside[VECTOR];  // channels that C has

    DEVICE Place(unsigned block, int all_tokens, int heads, int channels, int rows, const Segments& segments)
        : channels(channels), rows(rows), slices((channels + CHANNELS - 1) / CHANNELS), group(threadIdx.x / LANES),
          lane(threadIdx.x % LANES), token(group / SPREAD), part(group % SPREAD), stride(CHUNK * heads * channels) {
        const int number = block / slices, all_chunks = chunks_of(all_tokens);
        const int batch_head = number / segments.launched;
        slice = block % slices, segment = segments.first + number % segments.launched;
        unit = batch_head * segments.count + segment;
        const int begin = segment * segments.chunks;
        chunks = smaller_of(segments.chunks, all_chunks - begin);
        tokens = smaller_of(chunks * CHUNK, all_tokens - begin * CHUNK);
        first_chunk = (long long)(batch_head)*all_chunks + begin;
        before_slice = (long long)(gridDim.x / slices / segments.launched) * all_chunks * slice;
        const int channel = slice * CHANNELS + lane * VECTOR;
        const long long row = (long long)(batch_head / heads) * all_tokens + begin * CHUNK + token;
        first = (row * heads + batch_head % heads) * channels + channel;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) inside[i] = channel + i < channels;
    }
    // Whether the group has a token; known to the compiler where all do.
    DEVICE bool takes_part() const { return CHUNK * SPREAD >= GROUPS || token < CHUNK; }
    DEVICE bool has(int chunk) const { return chunk >= 0 && takes_part() && chunk * CHUNK + token < tokens; }
    DEVICE long long chunk_at(int chunk) const { return first_chunk + chunk; }
    DEVICE long long row_of(int chunk) const { return first + (unsigned long long)(unsigned(chunk)) * stride; }
    DEVICE long long row_of(int chunk, int other) const {  // of another token of the chunk
        return row_of(chunk) + (long long)(other - token) * (stride / CHUNK);
    }
    // The group's first access in chunk 0, in arrays (B*H, chunks, CHUNK, SPREAD * own).
    DEVICE long long access_of(int own) const { return chunk_at(0) * (CHUNK * SPREAD * own) + group * own; }
};

// A lane's channels in an array whose rows it has ``inside``. ALIGNED: all of them or none, and at their alignment.
template <class T> DEVICE Vector load_channels(const Place& place, const T* from) {
    Vector x;
    x.clear();
    if (ALIGNED) {
        if (place.inside[0]) load<VECTOR>(from, x.at);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (place.inside[i]) x.at[i] = widen(from[i]);
    }
    return x;
}

// A lane's channels of an input, from when they are asked for to when they are used. Two of 16 bits stay together until
// then: to widen them is to wait for them.
template <class T, bool PAIRS = sizeof(T) == 2 && VECTOR % 2 == 0> struct Channels {
    Vector x;

    DEVICE void clear() { x.clear(); }
    DEVICE void fetch(const Place& place, const T* from) { x = load_channels(place, from); }
    DEVICE Vector widened() const { return x; }
};
template <class T> struct Channels<T, true> {
    static constexpr int N = (VECTOR + 1) / 2;  // of an even VECTOR; the compiler looks at this for others too
    unsigned pair[N];

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < N; i++) pair[i] = 0;
    }
    DEVICE void fetch(const Place& place, const T* from) {
        clear();
        if (ALIGNED) {
            if (place.inside[0]) load<N>(reinterpret_cast<const unsigned*>(from), pair);
        } else {
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                if (place.inside[i]) pair[i / 2] |= unsigned(from[i].bits) << 16 * (i % 2);
        }
    }
    DEVICE Vector widened() const {
        Vector x;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) x.at[i] = widen(T{(unsigned short)(pair[i / 2] >> 16 * (i % 2))});
        return x;
    }
};

template <class T> DEVICE void store_whole(const Sum (&x)[VECTOR], T* to) { store<VECTOR>(x, to); }
DEVICE void store_whole(const float (&x)[4], float* to) {  // in a chain, compilers make four stores of it
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]) : "memory");
}
template <class T> DEVICE void store_channels(const Place& place, const Vector& x, T* to) {
    if (ALIGNED) {
        if (place.inside[0]) store_whole(x.at, to);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (place.inside[i]) narrow(x.at[i], to[i]);
    }
}

// Where a chunk begins in a list that has so many a chunk; unsigned, which takes one instruction.
DEVICE unsigned long long at_chunk(int chunk, unsigned each) { return (unsigned long long)(unsigned(chunk)) * each; }

// The headers of two chunks' first two rounds of chains come to shared memory chunks ahead: registers that wait for them
// would be moved, and so waited for, too early. In the second round groups take chains in the opposite order: chains with
// writes, which are longer, come first.
constexpr int HEADERS = CHUNK > 1 ? 2 * 2 * GROUPS : 0;
DEVICE Chain& header_of(const Place& place, int chunk, int round = 0) {
    return reinterpret_cast<Chain*>(on_chip())[((chunk & 1) * 2 + round) * GROUPS + place.group];
}
// ``chains``: the group's first of chunk 0; of so many rounds.
template <int SURE> DEVICE void fetch_headers(const Place& place, const Chain* chains, int chunk) {
    const int round = place.lane;
    if (round < SURE && chunk >= 0 && chunk < place.chunks)
        copy_async<sizeof(Chain)>(
            &header_of(place, chunk, round),
            chains + at_chunk(chunk, CHAINS) + (round ? 2 * GROUPS - 1 - 2 * place.group : 0));
    end_group_of_copies();
}

// Places in shared memory (chunk.cuh), rows of CHANNELS, as a lane sees them:
//
//     zeros | the slice's state | a row for each token of the chunk | room for versions
//
// The state is in device memory instead, (B*H, rows, C), if it does not fit; so are versions that find no room.
struct Rows {
    unsigned at;       // the lane's part of zeros, in shared memory
    Vector* spare;     // (blocks, versions of a chunk, CHANNELS) in device memory, from this block's on
    long long origin;  // the lane's first element in arrays (B*H, rows, C)
    Sum* state;        // there, if the state is in device memory
    int fresh;         // of those, rows from this one on are still 0, whatever their memory holds

    DEVICE Rows(const Place& place, Sum* spare, Sum* working)
        : at(address_on_chip(on_chip() + HEADERS * sizeof(Chain) + place.lane * sizeof(Vector))),
          spare(reinterpret_cast<Vector*>(spare) + (long long)(blockIdx.x) * CHUNK * (W > R ? W : R) * LANES + place.lane),
          origin((long long)(place.unit) * place.rows * place.channels + place.slice * CHANNELS + place.lane * VECTOR),
          state(working + origin), fresh(place.rows) {}

    DEVICE Vector& operator[](int code) const {  // the product drops the flags
        return *reinterpret_cast<Vector*>(__cvta_shared_to_generic(at + unsigned(code) * unsigned(LANES * sizeof(Vector))));
    }

    // What is at a place of shared memory if it is wanted, else zeros. Lanes that want nothing leave the banks to others.
    DEVICE Vector get_if(bool wanted, int code) const {
        Vector x;
        x.clear();
        if (wanted) x = (*this)[code];
        return x;
    }

    // Shared memory starts from (B*H, rows, C), or from 0 if there is none; device memory was set by the caller.
    DEVICE void start(const Place& place, const Sum* given) const {
        Vector x;
        x.clear();
        if (place.group == 0) (*this)[0] = x;
        if (!IN_SHARED) return;
        const Sum* from = given ? given + origin : nullptr;
        for (int row = place.group; row < place.rows; row += GROUPS)
            (*this)[place_of_row(row)] = from ? load_channels(place, from + (long long)(row)*place.channels) : x;
    }
    DEVICE void finish(const Place& place, Sum* to) const {
        if (!IN_SHARED || !to) return;
        to += origin;
        for (int row = place.group; row < place.rows; row += GROUPS)
            store_channels(place, (*this)[place_of_row(row)], to + (long long)(row)*place.channels);
    }

    // Of a slot in place; code 0: zeros.
    DEVICE Vector load(const Place& place, int code) const {
        if (IN_SHARED) return get_if(code, code);
        Vector x;
        x.clear();
        const int row = row_at(code);
        return row >= 0 && row < fresh ? load_channels(place, state + (long long)(row)*place.channels) : x;
    }
    DEVICE void store(const Place& place, int code, const Vector& x) const {
        if (IN_SHARED)
            (*this)[code] = x;
        else
            store_channels(place, x, state + (long long)(row_at(code)) * place.channels);
    }
    // What accesses find that are alone; others find zeros, and their codes become 0.
    template <int N> DEVICE void find_alone(const Place& place, int (&codes)[N], Vector (&found)[N]) const {
#pragma unroll
        for (int e = 0; e < N; e++) {
            codes[e] = max(codes[e], 0);
            found[e] = load(place, codes[e]);
        }
    }
    // What accesses find: slots, versions, or zeros; ``spared``: any_spared of them.
    template <int N> DEVICE void find(const Place& place, const int (&codes)[N], bool spared, Vector (&found)[N]) const {
#pragma unroll
        for (int e = 0; e < N; e++)
            found[e] = IN_SHARED || !in_place(codes[e]) ? (*this)[codes[e] & ELSEWHERE ? 0 : codes[e]] : load(place, codes[e]);
        if (!spared) return;
#pragma unroll
        for (int e = 0; e < N; e++) {
            if (codes[e] & ELSEWHERE) found[e] = spare[(codes[e] & PLACE) * LANES];
            found[e].arrive();
        }
    }
    // Has rows before ``end`` brought to the L2 cache, if they are in device memory.
    DEVICE void ask(const Place& place, int code, int end) const {
        const int row = row_at(code);
        if (!IN_SHARED && in_place(code) && row >= 0 && row < end) prefetch(state + (long long)(row)*place.channels);
    }
    DEVICE void store_version(int version, const Vector& x) const {
        if (version & ENTRY_ELSEWHERE)
            spare[(version - ENTRY_ELSEWHERE) * LANES] = x;
        else
            (*this)[version] = x;
    }
};

// A group's accesses of one side of a token: in registers, or, if they are too many for that, where they are.
template <int OWN> struct Accesses {
    static constexpr bool HELD = OWN <= 8;
    static constexpr int BATCH = HELD ? OWN : 4;  // so many at a time
    static constexpr int EACH = 16 / sizeof(TokenEvent);

    TokenEvent event[HELD ? OWN : 1];
    const TokenEvent* from;

    struct alignas(16) Pack {
        TokenEvent event[EACH];
    };
    DEVICE void fetch(const TokenEvent* events) {
        from = events;
        if constexpr (HELD) {
#pragma unroll
            for (int e = 0; e < OWN; e += EACH) {
                const Pack pack = *reinterpret_cast<const Pack*>(from + e);
#pragma unroll
                for (int i = 0; i < EACH; i++) event[e + i] = pack.event[i];
            }
        }
    }
    DEVICE TokenEvent get(int e) const { return HELD ? event[HELD ? e : 0] : from[e]; }
    DEVICE void codes(const Place& place, int first, int (&codes)[BATCH]) const {
#pragma unroll
        for (int e = 0; e < BATCH; e++) codes[e] = place.takes_part() ? int(get(first + e).row) : NOTHING;
    }
};

// Whether any of a warp's accesses is of a version that found no room in shared memory.
template <int N> DEVICE bool any_spared(const int (&codes)[N]) {
    int all = 0;
#pragma unroll
    for (int e = 0; e < N; e++) all |= codes[e];
    return __any_sync(~0u, all & ELSEWHERE);
}

template <int OWN> DEVICE void ask_for(const Place& place, const Rows& rows, const Accesses<OWN>& accesses, int end) {
    if constexpr (!IN_SHARED) {
#pragma unroll
        for (int e = 0; e < OWN && place.takes_part(); e++) rows.ask(place, int(accesses.get(e).row), end);
    }
}

// A group's chain in a chunk, with the next of its entries: entry i of four in lane i of the group.
//
// A wait for one load is a wait for all that are on their way by then, as these share a counter. So the entries of the
// next chunk come with its other inputs, into registers of their own, and entries further on are waited for at once.
struct Link {
    Chain chain;
    TokenEvent entry, coming, second;  // second: of the second round

    // Of ``chain``, the first four, or with STEP -1 the last.
    template <int STEP> DEVICE static void fetch(const Place& place, const Chain& chain, const TokenEvent* entries, TokenEvent& to) {
        const int i = STEP > 0 ? place.lane : chain.count() - 1 - place.lane;
        if (i >= 0 && i < chain.count()) to = entries[chain.begin() + i];
    }
    // Those from place ``from`` among the chunk's entries on.
    DEVICE void fetch_further(const Place& place, const TokenEvent* entries, int from, int step) {
        const int i = from + step * place.lane;
        if (i >= chain.begin() && i < chain.begin() + chain.count()) entry = entries[i];
    }
    // Of a later round: header and entries, here and now.
    template <int STEP> DEVICE void fetch_round(const Place& place, const Chain* header, const TokenEvent* entries) {
        chain = *header;
        fetch<STEP>(place, chain, entries, entry);
        entry = {arrived(entry.row), arrived(entry.coefficient)};
    }
    // Entry i of four, in all lanes of the group.
    DEVICE TokenEvent get(int i) const {
        TokenEvent e;
        e.row = __shfl_sync(~0u, entry.row, i, LANES);
        e.coefficient = __shfl_sync(~0u, entry.coefficient, i, LANES);
        return e;
    }
};

// follow(what, coefficient, the token's row) for every entry of a chain, from its first (STEP 1) or last (STEP -1) on.
// Groups of a warp stay together: those with shorter chains, or with none (count 0), do nothing meanwhile.
template <int STEP, class Follow>
DEVICE void follow_chain(const Place& place, const Rows& rows, const TokenEvent* entries, Link& link, int count, const Follow& follow) {
    const int most = __reduce_max_sync(~0u, count), first = link.chain.begin() + (STEP > 0 ? 0 : count - 1);
    if (most == 0) return;
    TokenEvent entry = link.get(0);
    Vector value = rows.get_if(count, entry_token(int(entry.row)));
#pragma unroll 2
    for (int i = 1; i <= most; i++) {
        TokenEvent next;
        if (i & 3 || i == most) {
            next = link.get(i & 3);
        } else {
            link.fetch_further(place, entries, first + STEP * i, STEP);
            next = link.get(0);
        }
        const Vector next_value = rows.get_if(i < count, entry_token(int(next.row)));
        if (i <= count) follow(int(entry.row), entry.coefficient, value);
        entry = next, value = next_value;
    }
}

// The sum over the groups that share a token.
DEVICE Vector sum_over_parts(Vector x) {
#pragma unroll
    for (int distance = LANES; distance < LANES * SPREAD; distance *= 2)
#pragma unroll
        for (int i = 0; i < VECTOR; i++) x.at[i] += __shfl_xor_sync(~0u, x.at[i], distance);
    return x;
}

DEVICE Sum sum_over_lanes(Sum x) {
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// The sums over a group's lanes of N numbers a lane (N a multiple of 4), of which lane l gets those from l N / 4 on.
template <int N> DEVICE void add_over_lanes(const Sum (&x)[N], Sum (&sums)[N / 4]) {
    const bool upper = threadIdx.x & 2, odd = threadIdx.x & 1;
    Sum half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const Sum got = __shfl_xor_sync(~0u, upper ? x[i] : x[i + N / 2], 2);
        half[i] = (upper ? x[i + N / 2] : x[i]) + got;
    }
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        const Sum got = __shfl_xor_sync(~0u, odd ? half[i] : half[i + N / 4], 1);
        sums[i] = (odd ? half[i + N / 4] : half[i]) + got;
    }
}

// Sums over the lanes of a batch of a group's dots, to where the batch's first goes.
template <int N> DEVICE void store_dots(const Place& place, const Sum (&dots)[N], Sum* to) {
    Sum sums[N / 4];
    add_over_lanes(dots, sums);
    if (place.takes_part()) store<N / 4>(sums, to + place.lane * (N / 4));
}
