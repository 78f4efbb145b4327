// What the passes over the contents are made of: where a warp stands, its slice of the state, tiles of tokens, and the
// pipeline of warps. content.cu says who computes what, and what this is compiled with.
#pragma once
#include "memory.cuh"

using Sum = SumOf<ELEMENT>::type;
using TokenEvent = Event<Sum>;

constexpr int LANES = CHANNELS / VECTOR, GROUPS = 32 / LANES;
constexpr int W = padded(WRITES, GROUPS), R = padded(READS, GROUPS);  // events of a token
constexpr int OWN_W = W / GROUPS, OWN_R = R / GROUPS;                 // those of one group
constexpr int HELPERS = 96;        // threads of the other warps
constexpr int PART = 32 + GROUPS;  // one number a lane, with room so that parts of several events lie in other banks

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
    DEVICE Sum dot(const Vector& x) const {
        Sum sum = 0;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sum += at[i] * x.at[i];
        return sum;
    }
};

DEVICE Sum sum_over_lanes(Sum x) {
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// Sizes of one call, and which part of it this warp computes.
struct Place {
    int tokens, heads, channels, rows;  // T, H, C; rows of the state that hold slots
    int batch, head, first;             // first channel of the slice
    long long unit;                     // batch * H + head
    int lane, group, own;               // own: the lane's first channel in the slice
    int helper;                         // number of this thread among those of the other warps

    DEVICE Place(int tokens, int heads, int channels, int rows)
        : tokens(tokens), heads(heads), channels(channels), rows(rows), batch(blockIdx.x / heads),
          head(blockIdx.x % heads), first(blockIdx.y * CHANNELS), unit(blockIdx.x), lane(threadIdx.x % 32),
          group(lane / LANES), own(lane % LANES * VECTOR),
          helper(int(threadIdx.x) - 32) {}

    DEVICE long long row_of(int t) const {  // first element of the slice of token t, in arrays (B, T, H, C)
        return (((long long)(batch) * tokens + t) * heads + head) * channels + first;
    }
    DEVICE long long part(int t) const {  // of arrays (slices, B*H, T)
        return (blockIdx.y * (long long)(gridDim.x) + unit) * tokens + t;
    }
    DEVICE void store_sums(const Vector& x, Sum* to) const {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (first + own + i < channels) to[own + i] = x.at[i];
    }
};

// The slice's state: rows of CHANNELS in shared memory, with a row more for each group's writes that do nothing and one
// for its reads that do nothing; or the rows of (B*H, rows, C) in device memory.
struct State {
    Sum* at;
    int stride, rows;
    bool inside[VECTOR];

    DEVICE State(const Place& place, Sum* shared, Sum* global) : rows(place.rows) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) inside[i] = place.first + place.own + i < place.channels;
        if (IN_SHARED) {
            at = shared + place.own;
            stride = CHANNELS;
        } else {
            at = global + place.unit * place.rows * place.channels + place.first + place.own;
            stride = place.channels;
        }
    }
    DEVICE Vector load(int row) const {
        if (IN_SHARED) return *reinterpret_cast<const Vector*>(at + row * stride);
        Vector x;
        x.clear();
        if (row < rows)
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                if (inside[i]) x.at[i] = at[(long long)(row)*stride + i];
        return x;
    }
    DEVICE void store(int row, const Vector& x) const {
        if (IN_SHARED) {
            *reinterpret_cast<Vector*>(at + row * stride) = x;
        } else if (row < rows) {
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                if (inside[i]) at[(long long)(row)*stride + i] = x.at[i];
        }
    }
    // Shared memory starts from (B*H, rows, C), or from 0 if there is none; device memory was set by the caller.
    DEVICE void start(const Place& place, const Sum* given) const {
        if (!IN_SHARED) return;
        const Sum* from = given ? given + place.unit * rows * place.channels + place.first + place.own : nullptr;
        for (int row = threadIdx.x / LANES; row < rows + 2 * GROUPS; row += blockDim.x / LANES) {
            Vector x;
            x.clear();
            if (from && row < rows)
#pragma unroll
                for (int i = 0; i < VECTOR; i++)
                    if (inside[i]) x.at[i] = from[(long long)(row)*place.channels + i];
            store(row, x);
        }
    }
    DEVICE void finish(const Place& place, Sum* to) const {
        if (!IN_SHARED || !to) return;
        to += place.unit * rows * place.channels + place.first;
        for (int row = threadIdx.x / LANES; row < rows; row += blockDim.x / LANES)
            place.store_sums(load(row), to + (long long)(row)*place.channels);
    }
};

// Elements of (B, T, H, C) on their way to a tile.
template <int BYTES, class T>
DEVICE void fetch_rows(const Place& place, int first, int count, const T* from, T (*to)[CHANNELS]) {
    constexpr int EACH = BYTES / sizeof(T), COPIES = CHANNELS / EACH;
    for (int i = place.helper; i < count * COPIES; i += HELPERS) {
        const int t = i / COPIES, c = i % COPIES * EACH;
        if (place.first + c < place.channels) copy_async<BYTES>(&to[t][c], from + place.row_of(first + t) + c);
    }
}

template <class T> DEVICE Vector widened(const T* from) {
    Vector x;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) x.at[i] = widen(from[i]);
    return x;
}

// One token's inputs, in registers.
template <int ROWS, int SUMS> struct Token {
    TokenEvent write[OWN_W], read[OWN_R];
    Vector value[ROWS], sum;
};

// Tiles of TOKENS tokens, three at a time: one is followed, two are on their way. A token has its events, ROWS rows of
// values, and SUMS rows of sums. Beside them, for two tiles, what the first warp leaves to be added up: SHARES vectors of
// GROUPS groups, to be summed over these, and NUMBERS numbers a lane, to be summed over the lanes of a group.
template <int TOKENS, int ROWS, int SUMS, int SHARES, int NUMBERS> struct Tiles {
    using Inputs = Token<ROWS, SUMS>;

    struct alignas(16) Tile {
        TokenEvent events[TOKENS][W + R];
        ELEMENT values[ROWS][TOKENS][CHANNELS];
        Sum sums[SUMS ? TOKENS : 1][CHANNELS];
    };
    struct alignas(16) Parts {
        Vector vectors[TOKENS][SHARES][LANES];
        Vector unused[SHARES < GROUPS ? GROUPS - SHARES : 1][LANES];  // where the other groups leave theirs
        Sum numbers[NUMBERS ? TOKENS * NUMBERS : 1][NUMBERS ? PART : 1];
    };
    Tile* tile;
    Parts* parts;
    int lane, group, own;

    static DEVICE constexpr int bytes() { return 3 * int(sizeof(Tile)) + 2 * int(sizeof(Parts)); }

    DEVICE Tiles(char* shared, const Place& place)
        : tile(reinterpret_cast<Tile*>(shared)), parts(reinterpret_cast<Parts*>(shared + 3 * sizeof(Tile))),
          lane(place.lane), group(place.group), own(place.own) {
        // channels that C does not have stay 0
        for (int i = threadIdx.x * 4; i < bytes(); i += 4 * blockDim.x) *reinterpret_cast<int*>(shared + i) = 0;
        __syncthreads();
    }
    DEVICE int count(const Place& place) const { return (place.tokens + TOKENS - 1) / TOKENS; }
    DEVICE int tokens_of(const Place& place, int number) const {
        return smaller_of(TOKENS, place.tokens - number * TOKENS);
    }
    DEVICE void fetch(
        const Place& place, int number, const TokenEvent* events, const ELEMENT* values, const ELEMENT* more_values,
        const Sum* sums
    ) {
        if (number >= 0 && number < count(place)) {
            Tile& to = tile[number % 3];
            const int first = number * TOKENS, tokens = tokens_of(place, number);
            const char* from = reinterpret_cast<const char*>(events + (place.unit * place.tokens + first) * (W + R));
            for (int i = place.helper * 16; i < tokens * (W + R) * int(sizeof(TokenEvent)); i += 16 * HELPERS)
                copy_async<16>(reinterpret_cast<char*>(to.events) + i, from + i);
            fetch_rows<COPY>(place, first, tokens, values, to.values[0]);
            if constexpr (ROWS > 1) fetch_rows<COPY>(place, first, tokens, more_values, to.values[1]);
            if constexpr (SUMS > 0) fetch_rows<COPY == 16 ? 16 : int(sizeof(Sum))>(place, first, tokens, sums, to.sums);
        }
        end_group_of_copies();
    }
    // Token i of a tile; of one that the tile does not have, what lies there and is never used.
    DEVICE Inputs load(const Tile& from, int i) const {
        Inputs token;
        i = i < 0 ? 0 : smaller_of(i, TOKENS - 1);
#pragma unroll
        for (int e = 0; e < OWN_W; e++) token.write[e] = from.events[i][group * OWN_W + e];
#pragma unroll
        for (int e = 0; e < OWN_R; e++) token.read[e] = from.events[i][W + group * OWN_R + e];
#pragma unroll
        for (int row = 0; row < ROWS; row++) token.value[row] = widened(from.values[row][i] + own);
        if constexpr (SUMS > 0) token.sum = widened(from.sums[i] + own);
        return token;
    }
    DEVICE void leave(int number, int i, const Vector& x) const {
        Parts& to = parts[number & 1];  // without a branch, which would stop the compiler from moving code across
        *(group < SHARES ? &to.vectors[i][group][own / VECTOR] : &to.unused[group - SHARES][own / VECTOR]) = x;
    }
    DEVICE void leave(int number, int i, int which, Sum x) const {
        parts[number & 1].numbers[i * NUMBERS + which][own / VECTOR * GROUPS + group] = x;
    }
    // The sums over groups of what was left of a tile, to rows of (B, T, H, C).
    template <class T> DEVICE void add_vectors(const Place& place, int number, T* to) const {
        const int first = number * TOKENS, tokens = tokens_of(place, number);
#pragma unroll
        for (int i0 = 0; i0 < TOKENS * LANES; i0 += HELPERS) {
            const int i = i0 + place.helper, t = i / LANES, l = i % LANES;
            if (t >= tokens) break;
            Vector sum = parts[number & 1].vectors[t][0][l];
#pragma unroll
            for (int g = 1; g < SHARES; g++) sum.add(1, parts[number & 1].vectors[t][g][l]);
            T* row = to + place.row_of(first + t) + l * VECTOR;
            if (COPY == 16) {  // then a lane's channels are all there or all not, and aligned
                if (place.first + l * VECTOR < place.channels) store<VECTOR>(sum.at, row);
            } else {
#pragma unroll
                for (int v = 0; v < VECTOR; v++)
                    if (place.first + l * VECTOR + v < place.channels) narrow(sum.at[v], row[v]);
            }
        }
    }
    // The sum over the lanes of group g of one number of a token.
    DEVICE Sum added(int number, int t, int which, int g) const {
        const Sum* part = parts[number & 1].numbers[t * NUMBERS + which] + g;
        Sum sum = part[0];
#pragma unroll
        for (int l = 1; l < LANES; l++) sum += part[l * GROUPS];
        return sum;
    }
};

// Runs the warps over the tiles, as drawn above.
template <class Fetch, class Follow, class Finish>
DEVICE void pipeline(int count, const Fetch& fetch, const Follow& follow, const Finish& finish) {
    const bool follows = warp_of_thread() == 0;
    if (!follows) {
        fetch(0);
        fetch(1);
        wait_for_copies<1>();
    }
    __syncthreads();
    for (int n = 0; n < count; n++) {
        if (follows) {
            follow(n);
        } else {
            fetch(n + 2);
            if (n) finish(n - 1);
            wait_for_copies<1>();
        }
        __syncthreads();
    }
    if (!follows) finish(count - 1);
}
