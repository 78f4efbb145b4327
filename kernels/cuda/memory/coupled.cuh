// What tokens of a chunk add to one another (chunk.cuh): the sums with the couplings, and copies to shared memory.
#pragma once
#include "memory/state_slice.cuh"

// A block of wide slices has a multiprocessor for itself, so nobody else works while its warps wait for one another. Its work
// is staggered: it asks for rows before it loads what comes next, and warps with long chains of loads begin with these while
// others copy. The contents take 5% less time. Three blocks of narrow slices fill one another's gaps, and lack the registers.
constexpr bool STAGGERED = TWO_PIECES;
static_assert(!STAGGERED || IN_SHARED, "rows in device memory would be asked for too late");

// Half of the warps copy: the last, because the first have most of the lists, or the first. Below 0: not this thread.
constexpr int COPIERS = THREADS / 2;
DEVICE int copier_of_last_warps() { return int(threadIdx.x) - (THREADS - COPIERS); }
DEVICE int copier_of_first_warps() { return int(threadIdx.x) < COPIERS ? int(threadIdx.x) : -1; }

// Copies ``count`` things, of at most MOST, to shared memory. ``copier``: this thread among those that copy.
template <int MOST, class T> DEVICE void copy_to_shared(int copier, T* to, const T* from, int count) {
    constexpr int EACH = sizeof(T) < 16 ? 16 / sizeof(T) : 1;
    const int own = copier * EACH;
    to += own, from += own;
#pragma unroll
    for (int first = 0; first < MOST; first += COPIERS * EACH)
        if (own < count - first) copy_async<16>(to + first, from + first);
}

DEVICE CouplingLists& shared_couplings() { return *reinterpret_cast<CouplingLists*>(dynamic_shared() + HEADER_BYTES); }
constexpr int SHARED_PAIRS = (COUPLING_BYTES - CHUNK * 4) / (PAIRS_AT_ONCE * sizeof(TokenEvent)) * PAIRS_AT_ONCE;

// ``coupled``: pairs of the chunk, in PAIRS_AT_ONCE. What shared memory does not hold is brought to the L2 cache.
DEVICE void copy_couplings(const CouplingLists& lists, int coupled) {
    const int copier = copier_of_last_warps();
    if (copier < 0) return;
    struct alignas(16) Part {
        int at[4];
    };
    constexpr int BEFORE = sizeof(lists.of_token) / sizeof(Part), EACH = PAIRS_AT_ONCE * sizeof(TokenEvent) / sizeof(Part);
    constexpr int MOST = BEFORE + SHARED_PAIRS / PAIRS_AT_ONCE * EACH;
    const auto* const from = reinterpret_cast<const Part*>(&lists);
    const int parts = BEFORE + coupled * EACH;
    if (copier >= parts) return;  // with random addresses three of four warps have nothing to copy
    copy_to_shared<MOST>(copier, reinterpret_cast<Part*>(&shared_couplings()), from, min(parts, MOST));
    end_group_of_copies();
    const int beyond = MOST + copier * EACH;
    if (beyond < parts) prefetch(from + beyond);
}

// The group's share of its token's couplings, times the other tokens' rows. A row is the last of three loads that wait for one
// another. So, if STAGGERED, the first two rows are asked for before sums wait for those of accesses; with random addresses few
// groups have more.
struct Coupled {
    const Lane& lane;
    const StateSlice& state;
    const int chunk;
    int i, end;  // of its pairs, every GROUPS_PER_TOKEN-th of the token's
    static constexpr int AHEAD = 2;
    TokenEvent pair[AHEAD];  // from i on
    Tile row[AHEAD];

    DEVICE Coupled(const Lane& lane, const StateSlice& state, int chunk) : lane(lane), state(state), chunk(chunk) {
        if (STAGGERED) find(), load_pairs_ahead();
    }
    DEVICE static TokenEvent pair_at(int i) { return shared_couplings().pairs[min(i, SHARED_PAIRS - 1)]; }
    DEVICE int shared_end() const { return min(end, SHARED_PAIRS); }
    DEVICE void find() {
        const int own = lane.takes_part() ? shared_couplings().of_token[lane.token] : 0;
        const int begin = own & 0xffff;
        end = begin + (own >> 16), i = begin + lane.part;
    }
    DEVICE void load_pairs_ahead() {
#pragma unroll
        for (int n = 0; n < AHEAD; n++) pair[n] = pair_at(i + n * GROUPS_PER_TOKEN);
    }
    DEVICE void load_rows_ahead() {
#pragma unroll
        for (int n = 0; STAGGERED && n < AHEAD; n++)
            if (i + n * GROUPS_PER_TOKEN < shared_end()) row[n] = state[state.token_row(chunk, int(pair[n].code))];
    }
    DEVICE void add_ahead(Tile& sum) {
#pragma unroll
        for (int n = 0; n < AHEAD; n++) {  // with a branch here the compiler would load in it
            const bool there = i < shared_end();
#pragma unroll
            for (int c = 0; c < TILE; c++) sum.at[c] = there ? sum.at[c] + pair[n].coefficient * row[n].at[c] : sum.at[c];
            if (there) i += GROUPS_PER_TOKEN;
        }
    }
    // ``lists``: where those pairs are that shared memory does not hold.
    DEVICE void add_to(Tile& sum, const CouplingLists& lists);
};

DEVICE void Coupled::add_to(Tile& sum, const CouplingLists& lists) {
    if (STAGGERED)
        add_ahead(sum);
    else
        find();
    const int in_shared = shared_end();
    TokenEvent next = pair_at(i);
    // One after another: with random addresses a group has one in two chunks. The next is asked for with the row of this one.
#pragma unroll 1
    while (i < in_shared) {
        const Tile x = state[state.token_row(chunk, int(next.code))];
        const Acc coefficient = next.coefficient;
        i += GROUPS_PER_TOKEN, next = pair_at(i);
        sum.add(coefficient, x);
    }
    // Seldom, and apart: behind a branch that may have loaded, everybody waits. For the same reason none skips a value here.
    constexpr int AT_ONCE = 4;
#pragma unroll 1
    for (; i < end; i += AT_ONCE * GROUPS_PER_TOKEN) {
        TokenEvent e[AT_ONCE];
        Tile x[AT_ONCE];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) e[n] = lists.pairs[min(i + n * GROUPS_PER_TOKEN, end - 1)];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            const bool there = i + n * GROUPS_PER_TOKEN < end;
            x[n] = state[state.token_row(chunk, int(e[n].code))];
#pragma unroll
            for (int c = 0; c < TILE; c++) sum.at[c] = there ? sum.at[c] + e[n].coefficient * x[n].at[c] : sum.at[c];
        }
    }
}
