// What plain.cu stands on: its parameters, a block's (batch, head), a token's accesses, sums.
//
// Who computes what: one block a (batch, head). A thread takes an access for what does not depend on channels. For what
// does, warps take accesses and lanes channels: a warp has 32 channels, COLUMNS warps side by side have up to all of them,
// and TEAMS such teams share out a token's accesses:
//
//     team       0           1           ..     access 0, TEAMS, 2 TEAMS, ..   1, TEAMS + 1, ..
//     warp       0     1     2     3     ..
//     channels   0-31  32-63 0-31  32-63 ..     COLUMNS = 2: C = 64
//
// Compiled with: retention.cuh's UPDATE, and the definitions below.
#pragma once
#include "memory/retention.cuh"
#include "runtime/common.cuh"
#include "runtime/reduce.cuh"
#include "runtime/shared.cuh"

#if !defined(ELEMENT) || !defined(THREADS) || !defined(COLUMNS) || !defined(MASS_AWARE)
#error "ELEMENT, THREADS of a block, COLUMNS (warps side by side) and MASS_AWARE (0 or 1) must be defined"
#endif

using Acc = AccOf<ELEMENT>::type;

constexpr int WARPS = THREADS / 32, TEAMS = WARPS / COLUMNS;
constexpr int AT_ONCE = 8;  // rows that a warp loads before it uses the first
static_assert(WARPS % COLUMNS == 0, "whole teams");

struct PlainParams {
    const int *write_row, *read_row;        // (B, T, H, K): the state's rows; -1: an access that does nothing
    const Acc *write_weight, *read_weight;  // (B, T, H, K)
    const ELEMENT* values;                  // (B, T, H, C)
    const ELEMENT* gamma;                   // (B, T, H), or null: constant_gamma
    const bool* mask;                       // (B, T), or null
    Acc *content, *mass;                    // (B*H, rows, C), (B*H, rows): the state, changed in place
    ELEMENT* y;                             // (B, T, H, C)
    // of the backward alone
    const ELEMENT* dy;        // (B, T, H, C)
    Acc *dcontent, *dmass;    // as the state: its adjoint after the last token; left as that before the first
    Acc* q;                   // (B*H, rows): <adjoint, content>
    Acc* mass_before;         // (B, T, H, writes): before each write
    Acc* before_first;        // (B, T, H, C): the content before a token's first write
    Acc *dw, *dr;             // (B, T, H, K)
    ELEMENT *dv, *dgamma;     // (B, T, H, C), (B, T, H)
    Acc constant_gamma, eps, proxy_eps, initial_mass;
    int tokens, heads, channels, rows, writes, reads;
    int has_dstate;           // q must be computed before the backward; else it is 0
};

// The block's (batch, head) and the thread's place in it.
struct Head {
    const PlainParams& p;
    const long long first, first_mask;  // token 0 in (B, T, H) and (B, T)
    Acc *const content, *const mass;
    const int warp, column, team, lane;

    DEVICE explicit Head(const PlainParams& p)
        : p(p), first((long long)(blockIdx.x / p.heads) * p.tokens * p.heads + blockIdx.x % p.heads),
          first_mask((long long)(blockIdx.x / p.heads) * p.tokens),
          content(p.content + (long long)(blockIdx.x) * p.rows * p.channels), mass(p.mass + (long long)(blockIdx.x) * p.rows),
          warp(warp_of_thread()), column(warp % COLUMNS), team(warp / COLUMNS), lane(threadIdx.x % 32) {}
    DEVICE long long token(int t) const { return first + (long long)(t)*p.heads; }
    DEVICE bool live(int t) const { return !p.mask || p.mask[first_mask + t]; }
    DEVICE Acc gamma(long long token) const { return p.gamma ? Acc(widen(p.gamma[token])) : p.constant_gamma; }
    DEVICE Acc mass_of(int row) const { return row < 0 ? p.initial_mass : mass[row]; }  // -1: nothing was written there
    DEVICE int first_channel() const { return column * 32 + lane; }
    static constexpr int CHANNELS_AT_ONCE = COLUMNS * 32;
};

// A token's accesses and what the block's threads tell one another about them, in shared memory.
struct TokenData {
    int *write_row, *read_row;  // [writes], [reads]
    Acc *w, *eta;               // [writes]: weight; w / (z + eps)
    Acc *r, *weight;            // [reads]: as given; as used (they differ if MASS_AWARE)
    Acc *dots, *terms;          // [COLUMNS][max K]: parts of dot products; [max K]: numbers to be summed
    Acc* parts;                 // [TEAMS][C]: each team's part of a sum over accesses
    int most;                   // max K

    DEVICE explicit TokenData(const PlainParams& p) : most(max(p.writes, p.reads)) {
        w = reinterpret_cast<Acc*>(dynamic_shared()), eta = w + p.writes;
        r = eta + p.writes, weight = r + p.reads;
        dots = weight + p.reads, terms = dots + COLUMNS * most, parts = terms + most;
        write_row = reinterpret_cast<int*>(parts + TEAMS * p.channels), read_row = write_row + p.writes;
    }
    // Starts to copy a token's accesses here.
    DEVICE void copy(const PlainParams& p, long long token) const {
        for (int k = threadIdx.x; k < p.writes; k += THREADS) {
            copy_async<sizeof(int)>(write_row + k, p.write_row + token * p.writes + k);
            copy_async<sizeof(Acc)>(w + k, p.write_weight + token * p.writes + k);
        }
        for (int k = threadIdx.x; k < p.reads; k += THREADS) {
            copy_async<sizeof(int)>(read_row + k, p.read_row + token * p.reads + k);
            copy_async<sizeof(Acc)>(r + k, p.read_weight + token * p.reads + k);
        }
        end_group_of_copies();
    }
    DEVICE Acc dot(int k) const {  // the sum of its parts
        Acc sum = dots[k];
        for (int column = 1; column < COLUMNS; column++) sum += dots[column * most + k];
        return sum;
    }
};

// The sum of count numbers in shared memory; every thread gets it, the same bits.
DEVICE Acc sum_of(const Acc* numbers, int count) {
    Acc sum = 0;
    for (int i = threadIdx.x % 32; i < count; i += 32) sum += numbers[i];
    return warp_sum(sum);
}

// visit(k, row, channel, x) for this warp's accesses and this lane's channels, x the number in array (rows, C) there. Loads
// AT_ONCE rows before it visits the first.
template <class Visit>
DEVICE void for_each_access(const Head& head, const int* rows, int count, const Acc* array, const Visit& visit) {
    const int channels = head.p.channels;
#pragma unroll 1
    for (int c = head.first_channel(); c - head.lane < channels; c += Head::CHANNELS_AT_ONCE)
#pragma unroll 1
        for (int first = head.team; first < count; first += TEAMS * AT_ONCE) {
            Acc x[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const int k = first + i * TEAMS;
                const bool there = k < count && rows[k] >= 0 && c < channels;
                x[i] = there ? array[(long long)(rows[k]) * channels + c] : Acc(0);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const int k = first + i * TEAMS;
                if (k < count) visit(k, rows[k], c, x[i]);  // all lanes: a visit may sum over the warp
            }
        }
}

// Adds a lane's product to access k's dot over channels.
DEVICE void add_to_dot(const Head& head, const TokenData& data, int k, int c, Acc product) {
    const Acc sum = warp_sum(product);
    Acc& part = data.dots[head.column * data.most + k];
    if (head.lane == 0) part = c == head.first_channel() ? sum : part + sum;
}

// The sum of the teams' parts of channel c.
DEVICE Acc sum_over_teams(const TokenData& data, int c, int channels) {
    Acc sum = data.parts[c];
#pragma unroll
    for (int team = 1; team < TEAMS; team++) sum += data.parts[team * channels + c];
    return sum;
}
