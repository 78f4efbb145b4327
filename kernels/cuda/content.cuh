// What the passes over the contents are made of: where a lane stands, its slice of the state, the accesses of a chunk.
// content.cu says who computes what, and what this is compiled with.
#pragma once
#include "chunk.cuh"

constexpr int LANES = 4, GROUPS = THREADS / LANES;  // lanes of a group; groups of a block
constexpr int VECTOR = CHANNELS / LANES;            // channels of a lane
constexpr int OWN_W = W / SPREAD, OWN_R = R / SPREAD;  // accesses of a group

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

// Sizes of one call, and which part of it this lane computes.
struct Place {
    int tokens, channels, rows;  // T, C; rows of the state
    int chunks, slice, slices;
    int unit;             // batch * H + head
    int group, own;       // own: the lane's first channel in the slice
    int token, part;      // of a chunk: the group's token, and which of its accesses
    long long first;      // the lane's first element of token 0, in arrays (B, T, H, C)
    int stride;           // from token to token there
    bool inside[VECTOR];  // channels that C has

    DEVICE Place(int tokens, int heads, int channels, int rows)
        : tokens(tokens), channels(channels), rows(rows), chunks(chunks_of(tokens)),
          slices((channels + CHANNELS - 1) / CHANNELS), group(threadIdx.x / LANES), own(threadIdx.x % LANES * VECTOR),
          token(group / SPREAD), part(group % SPREAD), stride(heads * channels) {
        unit = blockIdx.x / slices, slice = blockIdx.x % slices;
        first = ((long long)(unit / heads) * tokens * heads + unit % heads) * channels + slice * CHANNELS + own;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) inside[i] = slice * CHANNELS + own + i < channels;
    }
    DEVICE bool has(int chunk) const { return chunk >= 0 && token < CHUNK && chunk * CHUNK + token < tokens; }
    DEVICE long long chunk_at(int chunk) const { return (long long)(unit)*chunks + chunk; }
    DEVICE long long row_of(int t) const { return first + (long long)(t)*stride; }
    // The group's first access of a chunk, in arrays (B*H, chunks, CHUNK, SPREAD * own).
    DEVICE long long first_of(int chunk, int own) const {
        return chunk_at(chunk) * (CHUNK * SPREAD * own) + group * own;
    }
    DEVICE int units() const { return gridDim.x / slices; }
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
template <class T> DEVICE void store_channels(const Place& place, const Vector& x, T* to) {
    if (ALIGNED) {
        if (place.inside[0]) store<VECTOR>(x.at, to);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (place.inside[i]) narrow(x.at[i], to[i]);
    }
}

// The slice's state: rows of CHANNELS in shared memory, or rows of (B*H, rows, C) in device memory.
struct State {
    Sum* at;
    int fresh;  // rows from this one on are still 0, whatever their memory holds; there are none behind the last

    DEVICE State(const Place& place, char* shared, Sum* global) : fresh(place.rows) {
        if (IN_SHARED)
            at = reinterpret_cast<Sum*>(shared) + place.own;
        else
            at = global + (long long)(place.unit) * place.rows * place.channels + place.slice * CHANNELS + place.own;
    }
    // Where the slot of an access is; some row, if it does nothing.
    DEVICE const Vector* row(int code) const {
        return reinterpret_cast<const Vector*>(at + (code < 0 ? 0 : row_at(code)) * CHANNELS);
    }
    DEVICE Vector load(const Place& place, int row) const {
        if (IN_SHARED) return *reinterpret_cast<const Vector*>(at + row * CHANNELS);
        Vector x;
        x.clear();
        return row < fresh ? load_channels(place, at + (long long)(row)*place.channels) : x;
    }
    // What an access finds in place; anything, if it does not act there.
    DEVICE Vector find(const Place& place, int code) const {
        return IN_SHARED ? *row(code) : load(place, code < 0 ? 0x7fffffff : row_at(code));
    }
    DEVICE void store(const Place& place, int row, const Vector& x) const {
        if (IN_SHARED)
            *reinterpret_cast<Vector*>(at + row * CHANNELS) = x;
        else
            store_channels(place, x, at + (long long)(row)*place.channels);
    }
    // Shared memory starts from (B*H, rows, C), or from 0 if there is none; device memory was set by the caller.
    DEVICE void start(const Place& place, const Sum* given) const {
        if (!IN_SHARED) return;
        const Sum* from = given ? given + (long long)(place.unit) * place.rows * place.channels + place.slice * CHANNELS + place.own : nullptr;
        for (int row = place.group; row < place.rows; row += GROUPS) {
            Vector x;
            x.clear();
            if (from) x = load_channels(place, from + (long long)(row)*place.channels);
            store(place, row, x);
        }
    }
    DEVICE void finish(const Place& place, Sum* to) const {
        if (!IN_SHARED || !to) return;
        to += (long long)(place.unit) * place.rows * place.channels + place.slice * CHANNELS + place.own;
        for (int row = place.group; row < place.rows; row += GROUPS)
            store_channels(place, load(place, row), to + (long long)(row)*place.channels);
    }
};

// A group's accesses of one side of a token: in registers, or too many for that.
template <int OWN> struct Accesses {
    static constexpr int HELD = OWN <= 8 ? OWN : 0;
    static constexpr int BATCH = OWN <= 8 ? OWN : 4;  // so many at a time
    static constexpr int EACH = 16 / sizeof(TokenEvent);

    TokenEvent event[HELD ? HELD : 1];
    const TokenEvent* from;  // or null if the token is not there

    struct alignas(16) Pack {
        TokenEvent event[EACH];
    };
    DEVICE void fetch(const TokenEvent* events) {
        from = events;
#pragma unroll
        for (int e = 0; e < HELD; e += EACH) {
            Pack pack;
#pragma unroll
            for (int i = 0; i < EACH; i++) pack.event[i] = {NOTHING, 0};
            if (from) pack = *reinterpret_cast<const Pack*>(from + e);
#pragma unroll
            for (int i = 0; i < EACH; i++) event[e + i] = pack.event[i];
        }
    }
    DEVICE TokenEvent get(int e) const { return HELD ? event[HELD ? e : 0] : from ? from[e] : TokenEvent{NOTHING, 0}; }
};

// What a group needs of its token in a chunk for one of the two steps: one side's accesses, and values.
template <int OWN> struct Inputs {
    Accesses<OWN> accesses;
    Vector value;

    DEVICE void fetch(const Place& place, int chunk, const TokenEvent* events, const ELEMENT* values) {
        const bool here = place.has(chunk);
        accesses.fetch(here ? events + place.first_of(chunk, OWN) : nullptr);
        value.clear();
        if (here && values) value = load_channels(place, values + place.row_of(chunk * CHUNK + place.token));
    }
};

// A chunk's lists and versions share what the launch left of shared memory: lists from its beginning, versions from its
// end; versions that find no room there are in device memory.
struct Workshop {
    Vector* rows;     // of values: what chains need of other groups' tokens
    char* begin;
    int space;        // bytes
    Vector* spare;    // of device memory, for this block
    int lane;

    DEVICE Workshop(const Place& place, char* shared, int space, Sum* spare)
        : rows(reinterpret_cast<Vector*>(shared)), begin(shared + CHUNK * CHANNELS * sizeof(Sum)), space(space),
          spare(reinterpret_cast<Vector*>(spare) + (long long)(blockIdx.x) * CHUNK * (W > R ? W : R) * LANES),
          lane(threadIdx.x % LANES) {}

    static DEVICE int bytes_of(int chains, int entries) {
        return (chains * int(sizeof(Chain)) + 15) / 16 * 16 + entries * int(sizeof(TokenEvent));
    }
    // The larger of two lists.
    static DEVICE int bytes_of_more(int chains, int entries, int other_chains, int other_entries) {
        const int one = bytes_of(chains, entries), other = bytes_of(other_chains, other_entries);
        return one > other ? one : other;
    }
    DEVICE void leave_row(const Place& place, const Vector& x) const {
        if (place.part == 0 && place.token < CHUNK) rows[place.token * LANES + lane] = x;
    }
    DEVICE const Vector& row(int token) const { return rows[token * LANES + lane]; }
    DEVICE const Chain* chains() const { return reinterpret_cast<const Chain*>(begin); }
    DEVICE const TokenEvent* entries(int chains) const {
        return reinterpret_cast<const TokenEvent*>(begin + bytes_of(chains, 0));
    }
    DEVICE void fetch_lists(const Lists& lists, long long chunk, int chains, int entries) const {
#pragma unroll 1
        for (int i = threadIdx.x; i < chains; i += THREADS)
            copy_async<sizeof(Chain)>(begin + i * sizeof(Chain), lists.chains_of(chunk) + i);
        char* to = begin + bytes_of(chains, 0);
#pragma unroll 1
        for (int i = threadIdx.x; i < entries; i += THREADS)
            copy_async<sizeof(TokenEvent)>(to + i * sizeof(TokenEvent), lists.entries_of(chunk) + i);
        end_group_of_copies();
    }
    // ``lists``: the most bytes that lists take while the version is in use
    DEVICE Vector* version(int number, int lists) const {
        const int room = (space - lists) / int(CHANNELS * sizeof(Sum));
        return (number < room ? reinterpret_cast<Vector*>(begin + space) - (number + 1) * LANES : spare + number * LANES) + lane;
    }
};

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
    if (place.token < CHUNK) store<N / 4>(sums, to + threadIdx.x % LANES * (N / 4));
}
