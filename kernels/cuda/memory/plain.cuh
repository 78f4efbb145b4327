// What plain.cu is built from: its parameters, a block's (batch, head), a token's accesses, rows and sums.
//
// Who computes what: one block a (batch, head). What does not depend on channels is computed by one thread an access. For
// the rest, SPAN lanes, a team, take a row, VECTOR channels a lane, and TEAMS teams share out a token's accesses: team 0
// has accesses 0, TEAMS, 2 TEAMS, .. It loads AT_ONCE rows before it uses the first, so that many loads are under way.
//
// Compiled with: retention.cuh's UPDATE, and the definitions below.
#pragma once
#include "memory/retention.cuh"
#include "memory/span.cuh"
#include "runtime/reduce.cuh"
#include "runtime/shared.cuh"

#if !defined(ELEMENT) || !defined(THREADS) || !defined(CHANNELS) || !defined(MASS_AWARE)
#error "ELEMENT, THREADS of a block, CHANNELS (C) and MASS_AWARE (0 or 1) must be defined"
#endif

using Acc = AccOf<ELEMENT>::type;

DEVICE constexpr int vector_length() {  // 16 bytes, or as many channels as divide a row
    int length = 16 / sizeof(Acc);
    while (CHANNELS % length) length /= 2;
    return length;
}
DEVICE constexpr int span_of(int vectors) {  // a power of two, at most a warp
    int span = 1;
    while (span < vectors && span < 32) span *= 2;
    return span;
}
constexpr int VECTOR = vector_length(), VECTORS = CHANNELS / VECTOR;  // channels of a lane; lanes' worth of a row
constexpr int SPAN = span_of(VECTORS), TEAMS = THREADS / SPAN;
constexpr int AT_ONCE = 4;  // rows that a team loads before it uses the first

struct PlainParams {
    const int *write_row, *read_row;        // (B, T, H, K): the state's rows; -1: an access that does nothing
    const Acc *write_weight, *read_weight;  // (B, T, H, K)
    const ELEMENT* values;                  // (B, T, H, C)
    const ELEMENT* gamma;                   // (B, T, H), or null: constant_gamma
    const bool* mask;                       // (B, T), or null
    Acc *content, *mass;                    // (B*H, rows, C), (B*H, rows): the state, changed in place
    ELEMENT* y;                             // (B, T, H, C)
    // all pointers below are null in the forward
    const ELEMENT* dy;      // (B, T, H, C)
    Acc *dcontent, *dmass;  // as the state: its adjoint after the last token; becomes that before the first
    Acc* q;                 // (B*H, rows): <adjoint, content>; 0 without a dstate
    Acc* mass_before;       // (B, T, H, writes): before each write
    Acc* before_first;      // (B, T, H, C): the content before a token's first write
    Acc *dw, *dr;           // (B, T, H, K)
    ELEMENT *dv, *dgamma;   // (B, T, H, C), (B, T, H)
    const Span* spans;      // of a packed row; or null: sequence b is row b of the batch
    Acc constant_gamma, eps, proxy_eps, initial_mass;
    int tokens, heads, rows, writes, reads, has_dstate;  // rows: of a sequence's state, or 0 (StateRows)
};

struct alignas(VECTOR * sizeof(Acc)) Vector {
    Acc at[VECTOR];

    template <class T> DEVICE static Vector load(const T* from) {
        Vector x;
        ::load<VECTOR>(from, x.at);
        return x;
    }
    DEVICE void add(Acc a, const Vector& x) {  // += a x
#pragma unroll
        for (int i = 0; i < VECTOR; i++) at[i] += a * x.at[i];
    }
    DEVICE void approach(Acc eta, const Vector& v) {  // += eta (v - this)
#pragma unroll
        for (int i = 0; i < VECTOR; i++) at[i] += eta * (v.at[i] - at[i]);
    }
    DEVICE void scale(Acc a) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) at[i] *= a;
    }
    DEVICE Acc dot(const Vector& x) const {
        Acc sum = 0;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sum += at[i] * x.at[i];
        return sum;
    }
};

// The block's sequence and head, and where the thread stands in the block.
struct Head {
    const PlainParams& p;
    const Span span;
    const StateRows state;
    const int tokens;                   // of the sequence
    const long long first, first_mask;  // token 0 in (B, T, H) and (B, T)
    Acc *const content, *const mass;
    const int team, lane;  // lane of the team

    DEVICE explicit Head(const PlainParams& p)
        : p(p), span(span_of(p.spans, blockIdx.x / p.heads, p.tokens, 0)),
          state(span, blockIdx.x % p.heads, p.heads, p.rows, p.writes), tokens(span.tokens),
          first((long long)(span.begin) * p.heads + blockIdx.x % p.heads), first_mask(span.begin),
          content(p.content + state.first * CHANNELS), mass(p.mass + state.first), team(threadIdx.x / SPAN),
          lane(threadIdx.x % SPAN) {}
    DEVICE long long token(int t) const { return first + (long long)(t)*p.heads; }
    DEVICE bool live(int t) const { return !p.mask || p.mask[first_mask + t]; }
    DEVICE Acc gamma(long long token) const { return p.gamma ? Acc(widen(p.gamma[token])) : p.constant_gamma; }
    DEVICE Acc mass_of(int row) const { return row < 0 ? p.initial_mass : mass[row]; }  // -1: nothing was written there
    template <class T> DEVICE static Vector at(const T* array, long long token, int v) {
        return Vector::load(array + token * CHANNELS + v * VECTOR);
    }
};

// A token's accesses, in shared memory.
struct Accesses {
    Acc *w, *r;                 // [writes], [reads]: weights
    int *write_row, *read_row;  // [writes], [reads]
};

// In shared memory: the accesses of two tokens, this one and the next, whose copy is under way; and what the block's
// threads exchange.
struct TokenData {
    Accesses even;        // of even tokens; those of odd ones stand behind them
    Acc* eta;             // [writes]: w / (z + eps)
    Acc* weight;          // [reads]: r, or if MASS_AWARE what it counts for
    Acc *dots, *terms;    // [max K]: dot products over channels; numbers to be summed
    Acc* parts;           // [TEAMS][C]: each team's part of a sum over accesses
    int each;             // writes and reads of a token

    DEVICE explicit TokenData(const PlainParams& p) : each(p.writes + p.reads) {
        const int most = max(p.writes, p.reads);
        parts = reinterpret_cast<Acc*>(dynamic_shared()), even.w = parts + TEAMS * CHANNELS, even.r = even.w + p.writes;
        eta = even.w + 2 * each, weight = eta + p.writes, dots = weight + p.reads, terms = dots + most;
        even.write_row = reinterpret_cast<int*>(terms + most), even.read_row = even.write_row + p.writes;
    }
    DEVICE Accesses of(int t) const {
        const int odd = (t & 1) * each;
        return {even.w + odd, even.r + odd, even.write_row + odd, even.read_row + odd};
    }
    // Starts to copy token t's accesses, if there is a token t.
    DEVICE void copy(const Head& head, int t) const {
        const PlainParams& p = head.p;
        if (t >= 0 && t < head.tokens) {
            const Accesses to = of(t);
            const long long write = head.token(t) * p.writes, read = head.token(t) * p.reads;
            for (int k = threadIdx.x; k < p.writes; k += THREADS) {
                copy_async<sizeof(int)>(to.write_row + k, p.write_row + write + k);
                copy_async<sizeof(Acc)>(to.w + k, p.write_weight + write + k);
            }
            for (int k = threadIdx.x; k < p.reads; k += THREADS) {
                copy_async<sizeof(int)>(to.read_row + k, p.read_row + read + k);
                copy_async<sizeof(Acc)>(to.r + k, p.read_weight + read + k);
            }
        }
        end_group_of_copies();
    }
    // Adds a team's sum over AT_ONCE accesses to its part; ``first``: there is nothing yet to add to.
    DEVICE void add_to_part(const Head& head, int v, bool first, const Vector& sum) const {
        Vector& part = reinterpret_cast<Vector*>(parts + head.team * CHANNELS)[v];
        if (first) part = sum;
        else part.add(1, sum);
    }
    // The sum of the teams' parts, for channel c.
    DEVICE Acc sum_over_teams(int c) const {
        Acc sum = parts[c];
#pragma unroll
        for (int team = 1; team < TEAMS; team++) sum += parts[team * CHANNELS + c];
        return sum;
    }
    // Adds the sum over a team's lanes to access k's dot.
    DEVICE void add_to_dot(const Head& head, int k, bool there, bool first, Acc product) const {
#pragma unroll
        for (int distance = SPAN / 2; distance; distance /= 2) product += __shfl_xor_sync(~0u, product, distance);
        if (there && head.lane == 0) dots[k] = first ? product : dots[k] + product;
    }
};

// The sum of ``count`` numbers in shared memory. Every thread gets the same bits.
DEVICE Acc sum_of(const Acc* numbers, int count) {
    Acc sum = 0;
    for (int i = threadIdx.x % 32; i < count; i += 32) sum += numbers[i];
    return warp_sum(sum);
}

// AT_ONCE of a team's accesses: base + team, base + team + TEAMS, .., and vector v of their rows of an array (rows, C).
struct Batch {
    int base, v;
    int row[AT_ONCE];  // -1 where there is none, or it does nothing, or v is beyond the row
    Vector x[AT_ONCE];

    DEVICE Batch(const Head& head, const int* rows, int count, int base, int v, const Acc* array) : base(base + head.team), v(v) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            row[i] = k(i) < count && v < VECTORS ? rows[k(i)] : -1;
            x[i] = {};
            if (row[i] >= 0) x[i] = Vector::load(array + at(i));
        }
    }
    DEVICE int k(int i) const { return base + i * TEAMS; }
    DEVICE long long at(int i) const { return (long long)(row[i]) * CHANNELS + v * VECTOR; }
    DEVICE void store(int i, Acc* array) const { ::store<VECTOR>(x[i].at, array + at(i)); }
};

// Calls visit(batch) for all accesses and vectors. All lanes of a warp make the same calls, so a visit may sum over lanes.
template <class Visit> DEVICE void for_each_batch(const Head& head, const int* rows, int count, const Acc* array, const Visit& visit) {
#pragma unroll 1
    for (int base = 0; base < count; base += TEAMS * AT_ONCE)
#pragma unroll 1
        for (int v = head.lane; v - head.lane < VECTORS; v += SPAN) {
            Batch batch(head, rows, count, base, v, array);
            visit(batch);
        }
}
