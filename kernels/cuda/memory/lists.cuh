// Lists of the slots that several accesses of a chunk change; and the inputs of chunks that come.
#pragma once
#include "memory/coupled.cuh"

// Headers of a round, and the entries of the chunk at hand, come to shared memory: a list's entries then cost no more than
// the rows of their tokens, and no register waits for them.
DEVICE SlotList& header_of(const Lane& lane, int chunk) {
    return reinterpret_cast<SlotList*>(dynamic_shared())[(chunk & 1) * GROUPS + lane.group];
}
DEVICE TokenEvent* shared_entries() {
    return reinterpret_cast<TokenEvent*>(dynamic_shared() + HEADER_BYTES + COUPLING_BYTES);
}

// The lists of one kind, of all chunks of a block. COUNT: entries that a chunk has room for.
template <int COUNT> struct Lists {
    const SlotList* headers;  // of chunk 0
    const TokenEvent* entries;

    DEVICE Lists(const Lane& lane, const SlotList* headers, const TokenEvent* entries)
        : headers(headers + lane.first_chunk * CHAINS), entries(entries + lane.first_chunk * COUNT) {}

    DEVICE void copy_header(const Lane& lane, int chunk) const {
        if (lane.lane == 0 && chunk >= 0 && chunk < lane.chunks)
            copy_async<sizeof(SlotList)>(&header_of(lane, chunk), headers + at_chunk(chunk, CHAINS) + lane.group);
        end_group_of_copies();
    }
    DEVICE void copy_entries(const Lane& lane, int chunk) const {
        copy_to_shared<COUNT>(shared_entries(), entries + at_chunk(chunk, COUNT), header_of(lane, chunk).total());
    }
    // change(list) for every list of the chunk that is the group's.
    template <class Change> DEVICE void for_each(const Lane& lane, int chunk, const Change& change) const {
        SlotList list = header_of(lane, chunk);
        for (int round = 1; list.there(); round++) {
            change(list);
            if (!list.more()) break;
            list = headers[at_chunk(chunk, CHAINS) + list_of_group(round, lane.group)];
        }
    }
};

// visit(token and flag, coefficient, the token's row) for every entry of a list.
template <class Visit>
DEVICE void for_each_entry(const Lane& lane, const StateSlice& state, int chunk, const SlotList& list, const Visit& visit) {
    const TokenEvent* const entries = shared_entries() + list.begin();
#pragma unroll 2
    for (int i = 0; i < list.count(); i++) {
        const TokenEvent e = entries[i];
        visit(int(e.code), e.coefficient, state[state.token_row(lane, chunk, int(e.code) & ~HEAVY)]);
    }
}

constexpr int PREFETCHED = 3;  // chunks whose inputs come to the L2 cache before they are needed

// Brings a chunk's inputs to the L2 cache: each lane at most one line of 128 bytes, the same in every chunk.
struct Prefetcher {
    const char* line;
    int stride;  // bytes from chunk to chunk; 0: none

    template <class Params>
    DEVICE Prefetcher(
        const Lane& lane, const Params& p, const SlotList* lists, const TokenEvent* entries, int most_entries,
        const ELEMENT* dy)
        : line(nullptr), stride(0) {
        const int warp = threadIdx.x / 32, number = threadIdx.x % 32;
        const auto list = [&](const void* first, int bytes, int used) {
            if (number * 128 >= used) return;
            line = reinterpret_cast<const char*>(first) + lane.first_chunk * bytes + number * 128, stride = bytes;
        };
        constexpr int EVENT = sizeof(TokenEvent), HEADER = sizeof(SlotList), NUMBER = sizeof(Acc);
        if (warp == 0) list(p.writes, CHUNK * W * EVENT, CHUNK * W * EVENT);
        if (warp == 1) list(p.reads, CHUNK * R * EVENT, CHUNK * R * EVENT);
        if (warp == 2) list(entries, most_entries * EVENT, most_entries * EVENT);
        if (warp == 3) list(lists, CHAINS * HEADER, GROUPS * HEADER);
        if (warp == 4) list(p.couplings, COUPLINGS * NUMBER, COUPLINGS * NUMBER);
        const auto rows = [&](const void* first, int size) {
            if (number >= CHUNK) return;
            const long long row = lane.at(0, number) - lane.lane * TILE;
            line = reinterpret_cast<const char*>(first) + row * size, stride = lane.stride * size;
        };
        if (warp == 5) rows(p.values, sizeof(ELEMENT));
        if (warp == 6 && dy) rows(dy, sizeof(ELEMENT));
    }
    DEVICE void operator()(const Lane& lane, int chunk) const {
        if (chunk >= 0 && (chunk + 1) * CHUNK <= lane.tokens && stride) prefetch(line + (long long)(chunk)*stride);
    }
};
