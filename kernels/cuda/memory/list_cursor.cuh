// Following lists: their headers, their entries, and the inputs of chunks that come.
#pragma once
#include "memory/state_slice.cuh"

// Headers are copied to shared memory two chunks ahead. If they were kept in registers, the compiler would move them and so
// stall on the load.
DEVICE SlotList& header_of(const Lane& lane, int chunk) {
    return reinterpret_cast<SlotList*>(dynamic_shared())[(chunk & 1) * GROUPS + lane.group];
}
// ``lists``: the group's first of chunk 0.
DEVICE void copy_header(const Lane& lane, const SlotList* lists, int chunk) {
    if (lane.lane == 0 && chunk >= 0 && chunk < lane.chunks)
        copy_async<sizeof(SlotList)>(&header_of(lane, chunk), lists + at_chunk(chunk, CHAINS));
    end_group_of_copies();
}

// A group's list in a chunk, with the next of its entries: entry i of four in lane i of the group. Later entries are loaded
// four entries early. That pays because a model's tokens share slots more than random ones do, so its lists are long.
struct ListCursor {
    SlotList list;
    TokenEvent entry;

    // ``entries``: of the chunk.
    DEVICE void load(const Lane& lane, const SlotList& header, const TokenEvent* entries) {
        list = header;
        if (lane.lane < list.count()) entry = entries[list.begin() + lane.lane];
    }
    // Entry i of four, in all lanes of the group.
    DEVICE TokenEvent broadcast(int i) const {
        TokenEvent e;
        e.code = __shfl_sync(~0u, entry.code, i, LANES);
        e.coefficient = __shfl_sync(~0u, entry.coefficient, i, LANES);
        return e;
    }
    DEVICE TokenEvent load_further(const Lane& lane, const TokenEvent* entries, int first) const {
        TokenEvent further{};
        if (first + lane.lane < list.count()) further = entries[list.begin() + first + lane.lane];
        return further;
    }

    // visit(token and flag, coefficient, the token's row) for every entry of the list. Groups of a warp stay together:
    // those with shorter lists, or with none, do nothing meanwhile.
    template <class Visit>
    DEVICE void follow(const Lane& lane, const StateSlice& state, int chunk, const TokenEvent* entries, const Visit& visit) {
        const int count = list.count(), longest = __reduce_max_sync(~0u, count);
        if (longest == 0) return;
        const auto row_of = [&](const TokenEvent& e) { return state.token_row(lane, chunk, int(e.code) & ~ENTRY_FIRST); };
        TokenEvent ahead = load_further(lane, entries, LANES), now = broadcast(0);
        Tile value = state.get_if(count > 0, row_of(now));
#pragma unroll 2
        for (int i = 1; i <= longest; i++) {
            if (i % LANES == 0 && i < longest) {
                entry = ahead;
                ahead = load_further(lane, entries, i + LANES);
            }
            const TokenEvent next = broadcast(i % LANES);
            const Tile next_value = state.get_if(i < count, row_of(next));
            if (i <= count) visit(int(now.code), now.coefficient, value);
            now = next, value = next_value;
        }
    }
    // The lists of the chunk's rounds, change(list) each. ``lists``, ``entries``: of the chunk.
    template <class Change>
    DEVICE void follow_rounds(const Lane& lane, const SlotList* lists, const TokenEvent* entries, const Change& change) {
        change();
        for (int round = 1; __any_sync(~0u, list.more()); round++) {
            const SlotList* const next = lists + list_of_group(round, lane.group);
            SlotList header = SlotList::none();
            if (list.more()) header = *next;
            load(lane, header, entries);
            entry = {wait_for_load(entry.code), wait_for_load(entry.coefficient)};
            change();
        }
    }
};

constexpr int PREFETCHED = 3;  // chunks whose inputs come to the L2 cache before they are needed

// Brings a chunk's inputs to the L2 cache: each lane at most one line of 128 bytes, the same in every chunk.
struct Prefetcher {
    const char* line;
    int stride;  // bytes from chunk to chunk; 0: none

    template <class Params>
    DEVICE Prefetcher(const Lane& lane, const Params& p, const SlotList* lists, const ELEMENT* dy, const Acc* before_first)
        : line(nullptr), stride(0) {
        const int warp = threadIdx.x / 32, number = threadIdx.x % 32;
        const auto list = [&](const void* first, int bytes, int used) {
            if (number * 128 >= used) return;
            line = reinterpret_cast<const char*>(first) + lane.first_chunk * bytes + number * 128, stride = bytes;
        };
        constexpr int EVENT = sizeof(TokenEvent), HEADER = sizeof(SlotList), NUMBER = sizeof(Acc);
        if (warp == 0) list(p.writes, CHUNK * W * EVENT, CHUNK * W * EVENT);
        if (warp == 1) list(p.reads, CHUNK * R * EVENT, CHUNK * R * EVENT);
        if (warp == 2) list(p.entries, ENTRIES * EVENT, ENTRIES * EVENT);
        if (warp == 3) list(lists, CHAINS * HEADER, GROUPS * HEADER);
        if (warp == 4) list(p.couplings, COUPLINGS * NUMBER, COUPLINGS * NUMBER);
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
