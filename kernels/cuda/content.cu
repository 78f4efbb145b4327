// The contents of the slots, given every write's eta and every read's weight: three scans over the tokens.
//
//     forward   s[row] += eta (v_t - s[row]),  y_t = sum r s[row]
//     replay    the same writes again, for what the backward needs of s:  <dy_t, s[row]> of every read, and the content
//               that the first write of a token found
//     reverse   the adjoint d of s, from the last token to the first:
//               d[row] += r dy_t;  then of every write <d[row], v_t>, dv_t += eta d[row], d[row] *= 1 - eta
//
// Who computes what: one warp a (batch, head) and slice of CHANNELS channels, with the slice of the state in shared
// memory (or, if M is too large, in device memory). Its 32 lanes are GROUPS groups of LANES lanes; a group takes every
// token's events of its own, a lane VECTOR channels of them:
//
//     lane      0 .. LANES-1    ..              .. 31
//     events    0, 1, ..        2, 3, ..        ..            rows of one token differ, so groups never collide
//     channels  0,1 2,3 ..      0,1 2,3 ..                    VECTOR = 2
//
// The next tokens' events and values are on their way to shared memory (cp.async) while these are computed. Every sum
// has a fixed order and no atomics are used: the same inputs give the same bits.
//
// Compiled with: ELEMENT (of values, y), WRITES and READS (K), CHANNELS, VECTOR, TOKENS (of a tile), IN_SHARED, COPY
// (bytes of one copy of values).
#include "memory.cuh"

using Sum = SumOf<ELEMENT>::type;
using TokenEvent = Event<Sum>;

constexpr int LANES = CHANNELS / VECTOR, GROUPS = 32 / LANES;
constexpr int W = padded(WRITES, GROUPS), R = padded(READS, GROUPS);  // events of a token
constexpr int OWN_W = W / GROUPS, OWN_R = R / GROUPS;                 // those of one group
constexpr int UNROLLED_W = OWN_W < 8 ? OWN_W : 8, UNROLLED_R = OWN_R < 8 ? OWN_R : 8;

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
    DEVICE void sum_over_groups() {
#pragma unroll
        for (int distance = LANES; distance < 32; distance *= 2)
#pragma unroll
            for (int i = 0; i < VECTOR; i++) at[i] += __shfl_xor_sync(~0u, at[i], distance);
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

    DEVICE Place(int tokens, int heads, int channels, int rows)
        : tokens(tokens), heads(heads), channels(channels), rows(rows), batch(blockIdx.x / heads),
          head(blockIdx.x % heads), first(blockIdx.y * CHANNELS), unit(blockIdx.x), lane(threadIdx.x),
          group(threadIdx.x / LANES), own(threadIdx.x % LANES * VECTOR) {}

    DEVICE long long row_of(int t) const {  // first element of the slice of token t, in arrays (B, T, H, C)
        return (((long long)(batch) * tokens + t) * heads + head) * channels + first;
    }
    DEVICE long long part(int t) const {  // of arrays (slices, B*H, T)
        return (blockIdx.y * (long long)(gridDim.x) + unit) * tokens + t;
    }
    DEVICE void store(const Vector& x, ELEMENT* to) const {  // group 0 stores a slice
        if (group == 0)
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                if (first + own + i < channels) narrow(x.at[i], to[own + i]);
    }
    DEVICE void store_sums(const Vector& x, Sum* to) const {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (first + own + i < channels) to[own + i] = x.at[i];
    }
};

// The slice's state: rows of CHANNELS in shared memory, with one row more for writes that do nothing and one for such
// reads; or the rows of (B*H, rows, C) in device memory.
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
        for (int row = place.group; row < rows + 2; row += GROUPS) {
            Vector x;
            x.clear();
            if (from && row < rows)
#pragma unroll
                for (int i = 0; i < VECTOR; i++)
                    if (inside[i]) x.at[i] = from[(long long)(row)*place.channels + i];
            store(row, x);
        }
        __syncwarp();
    }
    DEVICE void finish(const Place& place, Sum* to) const {
        if (!IN_SHARED || !to) return;
        __syncwarp();
        to += place.unit * rows * place.channels + place.first;
        for (int row = place.group; row < rows; row += GROUPS)
            place.store_sums(load(row), to + (long long)(row)*place.channels);
    }
};

// Elements of (B, T, H, C) on their way to a tile.
template <int BYTES, class T>
DEVICE void fetch_rows(const Place& place, int first, int count, const T* from, T (*to)[CHANNELS]) {
    constexpr int EACH = BYTES / sizeof(T), COPIES = CHANNELS / EACH;
    for (int i = threadIdx.x; i < count * COPIES; i += 32) {
        const int t = i / COPIES, c = i % COPIES * EACH;
        if (place.first + c < place.channels) copy_async<BYTES>(&to[t][c], from + place.row_of(first + t) + c);
    }
}

// Tiles of TOKENS tokens, two at a time: one is computed from, one is on its way. A token has its events, ROWS rows of
// values, and SUMS rows of sums.
template <int ROWS, int SUMS> struct Tiles {
    struct alignas(16) Tile {
        TokenEvent events[TOKENS][W + R];
        ELEMENT values[ROWS][TOKENS][CHANNELS];
        Sum sums[SUMS ? SUMS * TOKENS : 1][CHANNELS];
    };
    Tile* tile;

    static DEVICE constexpr int bytes() { return 2 * int(sizeof(Tile)); }

    DEVICE explicit Tiles(char* shared) : tile(reinterpret_cast<Tile*>(shared)) {
        char* byte = shared;  // channels that C does not have stay 0
        for (int i = threadIdx.x * 4; i < bytes(); i += 128) *reinterpret_cast<int*>(byte + i) = 0;
        __syncwarp();
    }
    DEVICE void fetch(
        const Place& place, int number, const TokenEvent* events, const ELEMENT* values, const ELEMENT* more_values,
        const Sum* sums
    ) {
        Tile& to = tile[number & 1];
        const int first = number * TOKENS, count = smaller_of(TOKENS, place.tokens - first);
        if (number >= 0 && count > 0) {
            const char* from = reinterpret_cast<const char*>(events + (place.unit * place.tokens + first) * (W + R));
            for (int i = threadIdx.x * 16; i < count * (W + R) * int(sizeof(TokenEvent)); i += 512)
                copy_async<16>(reinterpret_cast<char*>(to.events) + i, from + i);
            fetch_rows<COPY>(place, first, count, values, to.values[0]);
            if constexpr (ROWS > 1) fetch_rows<COPY>(place, first, count, more_values, to.values[1]);
            if constexpr (SUMS > 0) fetch_rows<COPY == 16 ? 16 : int(sizeof(Sum))>(place, first, count, sums, to.sums);
        }
        end_group_of_copies();
    }
    DEVICE const Tile& arrived(int number) const {
        wait_for_copies<1>();
        __syncwarp();
        return tile[number & 1];
    }
};

template <class T> DEVICE Vector widened(const T* from) {
    Vector x;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) x.at[i] = widen(from[i]);
    return x;
}

extern __shared__ double shared_memory[];

// The writes of a token. ``first_old``: what the group's first write found.
DEVICE void write(const State& state, const TokenEvent* events, const Vector& v, Vector& first_old) {
#pragma unroll UNROLLED_W
    for (int e = 0; e < OWN_W; e++) {
        const TokenEvent event = events[e];
        Vector s = state.load(event.row);
        if (e == 0) first_old = s;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) s.at[i] += event.coefficient * (v.at[i] - s.at[i]);
        state.store(event.row, s);
    }
}

extern "C" __global__ void __launch_bounds__(32) content_forward(
    const TokenEvent* __restrict__ events,  // (B*H, T, W + R)
    const ELEMENT* __restrict__ values,     // (B, T, H, C)
    int tokens, int heads, int channels, int rows,
    const Sum* given, Sum* working, Sum* final_state,  // (B*H, rows, C) each, or null; working only if not IN_SHARED
    ELEMENT* __restrict__ y                            // (B, T, H, C)
) {
    const Place place(tokens, heads, channels, rows);
    using Staged = Tiles<1, 0>;
    Staged tiles(reinterpret_cast<char*>(shared_memory));
    const State state(place, reinterpret_cast<Sum*>(reinterpret_cast<char*>(shared_memory) + Staged::bytes()), working);
    tiles.fetch(place, 0, events, values, nullptr, nullptr);
    state.start(place, given);
    Vector unused;

    const int count = (tokens + TOKENS - 1) / TOKENS;
    for (int number = 0; number < count; number++) {
        tiles.fetch(place, number + 1, events, values, nullptr, nullptr);
        const auto& tile = tiles.arrived(number);
        const int first = number * TOKENS, here = smaller_of(TOKENS, tokens - first);
        for (int i = 0; i < here; i++) {
            const TokenEvent* event = tile.events[i];
            write(state, event + place.group * OWN_W, widened(tile.values[0][i] + place.own), unused);
            __syncwarp();
            Vector sum;
            sum.clear();
#pragma unroll UNROLLED_R
            for (int e = 0; e < OWN_R; e++) {
                const TokenEvent own = event[W + place.group * OWN_R + e];
                sum.add(own.coefficient, state.load(own.row));
            }
            sum.sum_over_groups();
            place.store(sum, y + place.row_of(first + i));
            __syncwarp();
        }
    }
    state.finish(place, final_state);
}

extern "C" __global__ void __launch_bounds__(32) content_replay(
    const TokenEvent* __restrict__ events, const ELEMENT* __restrict__ values, const ELEMENT* __restrict__ dy,
    int tokens, int heads, int channels, int rows, const Sum* given, Sum* working,
    const Sum* dstate,         // (B*H, rows, C), or null
    Sum* __restrict__ dread,   // (slices, B*H, T, R): <dy, s> over the slice
    Sum* __restrict__ found,   // (B, T, H, C): the content that a token's first write found
    Sum* __restrict__ last     // (slices, B*H, rows): <dstate, s> after the last token, if there is a dstate
) {
    const Place place(tokens, heads, channels, rows);
    using Staged = Tiles<2, 0>;
    Staged tiles(reinterpret_cast<char*>(shared_memory));
    const State state(place, reinterpret_cast<Sum*>(reinterpret_cast<char*>(shared_memory) + Staged::bytes()), working);
    tiles.fetch(place, 0, events, values, dy, nullptr);
    state.start(place, given);

    const int count = (tokens + TOKENS - 1) / TOKENS;
    for (int number = 0; number < count; number++) {
        tiles.fetch(place, number + 1, events, values, dy, nullptr);
        const auto& tile = tiles.arrived(number);
        const int first = number * TOKENS, here = smaller_of(TOKENS, tokens - first);
        for (int i = 0; i < here; i++) {
            const int t = first + i;
            const TokenEvent* event = tile.events[i];
            Vector old;
            write(state, event + place.group * OWN_W, widened(tile.values[0][i] + place.own), old);
            if (place.group == 0) place.store_sums(old, found + place.row_of(t));
            __syncwarp();
            const Vector dy_t = widened(tile.values[1][i] + place.own);
            Sum* to = dread + place.part(t) * R + place.group * OWN_R;
#pragma unroll UNROLLED_R
            for (int e = 0; e < OWN_R; e++) {
                const Sum dot = sum_over_lanes(dy_t.dot(state.load(event[W + place.group * OWN_R + e].row)));
                if (place.own == 0) to[e] = dot;
            }
            __syncwarp();
        }
    }
    if (dstate) {
        const Sum* d = dstate + place.unit * rows * channels + place.first + place.own;
        for (int step = 0; step < rows; step += GROUPS) {
            const int row = step + place.group;
            Sum sum = 0;
            if (row < rows) {
                const Vector s = state.load(row);
#pragma unroll
                for (int i = 0; i < VECTOR; i++)
                    if (state.inside[i]) sum += d[(long long)(row)*channels + i] * s.at[i];
            }
            sum = sum_over_lanes(sum);
            if (row < rows && place.own == 0)
                last[(blockIdx.y * (long long)(gridDim.x) + place.unit) * rows + row] = sum;
        }
    }
}

extern "C" __global__ void __launch_bounds__(32) content_reverse(
    const TokenEvent* __restrict__ events, const ELEMENT* __restrict__ values, const ELEMENT* __restrict__ dy,
    const Sum* __restrict__ found, int tokens, int heads, int channels, int rows,
    const Sum* dstate, Sum* working, Sum* dgiven,
    ELEMENT* __restrict__ dv,    // (B, T, H, C)
    Sum* __restrict__ dwritten,  // (slices, B*H, T, W): <d, v> over the slice
    Sum* __restrict__ dfound     // (slices, B*H, T): <d, found> of the token's first write
) {
    const Place place(tokens, heads, channels, rows);
    using Staged = Tiles<2, 1>;
    Staged tiles(reinterpret_cast<char*>(shared_memory));
    const State d(place, reinterpret_cast<Sum*>(reinterpret_cast<char*>(shared_memory) + Staged::bytes()), working);
    const int count = (tokens + TOKENS - 1) / TOKENS;
    tiles.fetch(place, count - 1, events, values, dy, found);
    d.start(place, dstate);

    for (int number = count - 1; number >= 0; number--) {
        tiles.fetch(place, number - 1, events, values, dy, found);
        const auto& tile = tiles.arrived(number);
        const int first = number * TOKENS;
        for (int i = smaller_of(TOKENS, tokens - first) - 1; i >= 0; i--) {
            const int t = first + i;
            const TokenEvent* event = tile.events[i];
            // reads
            const Vector dy_t = widened(tile.values[1][i] + place.own);
#pragma unroll UNROLLED_R
            for (int e = 0; e < OWN_R; e++) {
                const TokenEvent own = event[W + place.group * OWN_R + e];
                Vector x = d.load(own.row);
                x.add(own.coefficient, dy_t);
                d.store(own.row, x);
            }
            __syncwarp();
            // writes
            const Vector v = widened(tile.values[0][i] + place.own), found_t = widened(tile.sums[i] + place.own);
            Vector dv_t;
            dv_t.clear();
            Sum* to = dwritten + place.part(t) * W + place.group * OWN_W;
#pragma unroll UNROLLED_W
            for (int e = 0; e < OWN_W; e++) {
                const TokenEvent own = event[place.group * OWN_W + e];
                Vector x = d.load(own.row);
                const Sum dot = sum_over_lanes(x.dot(v));
                if (place.own == 0) to[e] = dot;
                if (e == 0) {
                    const Sum dot_found = sum_over_lanes(x.dot(found_t));
                    if (place.lane == 0) dfound[place.part(t)] = dot_found;
                }
                dv_t.add(own.coefficient, x);
#pragma unroll
                for (int c = 0; c < VECTOR; c++) x.at[c] *= 1 - own.coefficient;
                d.store(own.row, x);
            }
            dv_t.sum_over_groups();
            place.store(dv_t, dv + place.row_of(t));
            __syncwarp();
        }
    }
    d.finish(place, dgiven);
}
