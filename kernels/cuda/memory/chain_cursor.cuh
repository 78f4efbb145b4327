// Following chains: their headers, their entries, and the inputs of chunks that come.
#pragma once
#include "memory/state_slice.cuh"

// Chain headers are copied to shared memory two chunks ahead (2 chunks x 2 rounds). If they were kept in registers, the
// compiler would move them and so stall on the load. In the second round groups take chains in the opposite order, because
// longer chains come first.
DEVICE Chain& header_of(const Lane& lane, int chunk, int round = 0) {
    return reinterpret_cast<Chain*>(dynamic_shared())[((chunk & 1) * 2 + round) * GROUPS + lane.group];
}
// From a group's chain to that of the group opposite.
DEVICE int opposite_group(const Lane& lane) { return GROUPS - 1 - 2 * lane.group; }
// ``chains``: the group's first of chunk 0.
template <int ROUNDS> DEVICE void copy_headers(const Lane& lane, const Chain* chains, int chunk) {
    const int round = lane.lane;
    if (round < ROUNDS && chunk >= 0 && chunk < lane.chunks)
        copy_async<sizeof(Chain)>(
            &header_of(lane, chunk, round),
            chains + at_chunk(chunk, CHAINS) + (round ? GROUPS + opposite_group(lane) : 0));
    end_group_of_copies();
}

// A group's chain in a chunk, with the next of its entries: entry i of four in lane i of the group. STEP is 1 from the
// first entry on, -1 from the last one back.
//
// Waiting for one load is waiting for all that were issued before, because they share a scoreboard counter. So the entries
// of the next chunk come with its other inputs, into registers of their own. Later entries
// are loaded four entries early. That pays because a model's tokens share slots more than random ones do, so its chains
// are long.
struct ChainCursor {
    Chain chain;
    TokenEvent entry, coming, second;  // coming: of the next chunk; second: of the second round

    // The first four entries of a chain, or with STEP -1 the last.
    template <int STEP> DEVICE static void load(const Lane& lane, const Chain& chain, const TokenEvent* entries, TokenEvent& to) {
        const int i = STEP > 0 ? lane.lane : chain.count() - 1 - lane.lane;
        if (i >= 0 && i < chain.count()) to = entries[chain.begin() + i];
    }
    // The four from entry ``from`` of the chunk on, as far as they are the chain's.
    template <int STEP> DEVICE TokenEvent load_further(const Lane& lane, const TokenEvent* entries, int from) const {
        const int i = from + STEP * lane.lane;
        TokenEvent further{};
        if (i >= chain.begin() && i < chain.begin() + chain.count()) further = entries[i];
        return further;
    }
    // Header and entries of a later round, waited for here.
    template <int STEP> DEVICE void load_round(const Lane& lane, const Chain* header, const TokenEvent* entries) {
        chain = *header;
        load<STEP>(lane, chain, entries, entry);
        entry = {wait_for_load(entry.code), wait_for_load(entry.coefficient)};
    }
    // Entry i of four, in all lanes of the group.
    DEVICE TokenEvent broadcast(int i) const {
        TokenEvent e;
        e.code = __shfl_sync(~0u, entry.code, i, LANES);
        e.coefficient = __shfl_sync(~0u, entry.coefficient, i, LANES);
        return e;
    }

    // visit(entry, coefficient, the token's row) for every entry of the chain. Groups of a warp stay together: those with
    // shorter chains, or with none (count 0), do nothing meanwhile.
    template <int STEP, class Visit>
    DEVICE void follow(const Lane& lane, const StateSlice& state, const TokenEvent* entries, int count, const Visit& visit) {
        const int longest = __reduce_max_sync(~0u, count), first = chain.begin() + (STEP > 0 ? 0 : count - 1);
        if (longest == 0) return;
        TokenEvent ahead = load_further<STEP>(lane, entries, first + STEP * LANES);  // the four after ``entry``
        TokenEvent now = broadcast(0);
        Tile value = state.get_if(count, entry_token_row(int(now.code)));
#pragma unroll 2
        for (int i = 1; i <= longest; i++) {
            TokenEvent next;
            if (i % LANES == 0 && i < longest) {
                entry = ahead;
                ahead = load_further<STEP>(lane, entries, first + STEP * (i + LANES));
            }
            next = broadcast(i % LANES);
            const Tile next_value = state.get_if(i < count, entry_token_row(int(next.code)));
            if (i <= count) visit(int(now.code), now.coefficient, value);
            now = next, value = next_value;
        }
    }
};

constexpr int PREFETCHED = 3;  // chunks whose inputs come to the L2 cache before they are needed

// Brings a chunk's inputs to the L2 cache: each lane at most one line of 128 bytes, the same in every chunk.
struct Prefetcher {
    const char* line;
    int stride;  // bytes from chunk to chunk; 0: none

    template <class Params>
    DEVICE Prefetcher(const Lane& lane, const Params& p, const ELEMENT* dy, const Acc* before_first)
        : line(nullptr), stride(0) {
        const int warp = threadIdx.x / 32, number = threadIdx.x % 32;
        const auto list = [&](const void* first, int bytes, int used) {
            if (number * 128 >= used) return;
            line = reinterpret_cast<const char*>(first) + lane.first_chunk * bytes + number * 128, stride = bytes;
        };
        constexpr int EVENT = sizeof(TokenEvent), CHAIN = sizeof(Chain);
        if (warp == 0) list(p.writes, CHUNK * W * EVENT, CHUNK * W * EVENT);
        if (warp == 1) list(p.reads, CHUNK * R * EVENT, CHUNK * R * EVENT);
        if (warp == 2) list(p.entries, ENTRIES * EVENT, ENTRIES * EVENT);
        if (warp == 3) list(p.chains, CHAINS * CHAIN, (before_first ? MIN_ROUNDS : 1) * GROUPS * CHAIN);
        const auto rows = [&](const void* first, int size) {
            if (number >= CHUNK) return;
            const long long row = lane.at(0, number) - lane.lane * TILE;
            line = reinterpret_cast<const char*>(first) + row * size, stride = lane.stride * size;
        };
        if (warp == 5) rows(p.values, sizeof(ELEMENT));
        if (warp == 6 && dy) rows(dy, sizeof(ELEMENT));
        if (warp == 7 && before_first) rows(before_first, sizeof(Acc));
    }
    DEVICE void operator()(const Lane& lane, int chunk) const {
        if (chunk >= 0 && (chunk + 1) * CHUNK <= lane.tokens && stride) prefetch(line + (long long)(chunk)*stride);
    }
};
