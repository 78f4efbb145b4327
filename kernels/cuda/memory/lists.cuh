// Lists of the slots that several accesses of a chunk change; and the inputs of chunks that come.
#pragma once
#include "memory/coupled.cuh"

// Headers of a round, and the entries of the chunk at hand, come to shared memory: a list's entries then cost no more than
// the rows of their tokens, and no register waits for them.
DEVICE SlotList* shared_headers(int chunk) { return reinterpret_cast<SlotList*>(dynamic_shared()) + (chunk & 1) * GROUPS; }
DEVICE TokenEvent* shared_entries() {
    return reinterpret_cast<TokenEvent*>(dynamic_shared() + HEADER_BYTES + COUPLING_BYTES);
}

// The lists of one kind of a chunk: of writes, or of reads.
template <bool OF_WRITES> struct Lists {
    static constexpr int COUNT = OF_WRITES ? WRITE_ENTRIES : READ_ENTRIES;

    DEVICE static const SlotList* headers(const ChunkRecord& record) { return OF_WRITES ? record.write_lists : record.read_lists; }
    DEVICE static const TokenEvent* entries(const ChunkRecord& record) {
        return OF_WRITES ? record.write_entries : record.read_entries;
    }
    // Forward, the last warps have most of the couplings, which are looked up while headers and entries are copied.
    DEVICE static int copier() { return STAGGERED && OF_WRITES ? copier_of_first_warps() : copier_of_last_warps(); }
    DEVICE static void copy_headers(const ChunkRecord& record, int chunk) {
        copy_to_shared<GROUPS>(copier(), shared_headers(chunk), headers(record), GROUPS);
    }
    DEVICE static void copy_entries(const ChunkRecord& record, int chunk) {
        copy_to_shared<COUNT>(copier(), shared_entries(), entries(record), shared_headers(chunk)->total());
    }
    // The group's list in the second round, or one that is not there. Asked for early, because it comes from device memory.
    DEVICE static SlotList second(const Lane& lane, const ChunkRecord& record, int chunk) {
        SlotList list{-1, 0, 1};
        if (shared_headers(chunk)[lane.group].more()) list.load_from(headers(record) + list_of_group(1, lane.group));
        return list;
    }
    // What a change of this chunk needs, and the headers of the chunk that is next; returns the group's second list.
    DEVICE static SlotList load(const Lane& lane, const ChunkRecord* records, int chunk, int next) {
        const ChunkRecord& record = records[unsigned(chunk)];
        if (copier() >= 0) {
            if (next != chunk) copy_headers(records[unsigned(next)], next);
            copy_entries(record, chunk);
            end_group_of_copies();
        }
        return second(lane, record, chunk);
    }
    // in_place(), and change(list) for every list of the chunk that is the group's. They change different slots. A group that
    // begins with its lists is done with their loads, each of which waits for the one before, while other groups load rows.
    template <class InPlace, class Change>
    DEVICE static void change_all(const Lane& lane, const ChunkRecord& record, int chunk, const SlotList& second,
        const InPlace& in_place, const Change& change) {
        if (!STAGGERED) in_place();
        for_each(lane, record, chunk, second, change);
        if (STAGGERED) in_place();
    }
    // change(list) for every list of the chunk that is the group's.
    template <class Change>
    DEVICE static void for_each(
        const Lane& lane, const ChunkRecord& record, int chunk, const SlotList& second, const Change& change) {
        SlotList list = shared_headers(chunk)[lane.group];
        for (int round = 1; list.there(); round++) {
            change(list);
            if (!list.more()) break;
            list = round == 1 ? second : headers(record)[list_of_group(round, lane.group)];
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
        visit(int(e.code), e.coefficient, state[state.token_row(chunk, int(e.code) & ~HEAVY)]);
    }
}

constexpr int PREFETCHED = 3;  // chunks whose inputs come to the L2 cache before they are needed

// Brings a chunk's inputs to the L2 cache: each lane at most one line of 128 bytes, the same in every chunk.
struct Prefetcher {
    const char* line;
    unsigned stride;  // bytes from chunk to chunk
    unsigned chunks;  // that have all tokens; 0 of a lane without a line

    template <bool OF_WRITES, class Params>
    DEVICE Prefetcher(const Lane& lane, const Params& p, const ChunkRecord* records, Lists<OF_WRITES>, const ELEMENT* dy)
        : line(nullptr), stride(0), chunks(0) {
        const int warp = threadIdx.x / 32, number = threadIdx.x % 32;
        const auto part = [&](const void* first, int bytes) {
            if (number * 128 >= bytes) return;
            line = reinterpret_cast<const char*>(first) + number * 128, stride = sizeof(ChunkRecord);
        };
        constexpr int EVENT = sizeof(TokenEvent);
        if (warp == 0) part(records->writes, CHUNK * W * EVENT);
        if (warp == 1) part(records->reads, CHUNK * R * EVENT);
        if (warp == 2) part(Lists<OF_WRITES>::entries(*records), Lists<OF_WRITES>::COUNT * EVENT);
        if (warp == 3) part(Lists<OF_WRITES>::headers(*records), GROUPS * sizeof(SlotList));
        if (warp == 4) part(OF_WRITES ? &records->by_reader : &records->by_writer, COUPLING_BYTES);
        const auto rows = [&](const void* first, int size) {
            if (number >= CHUNK) return;
            const long long row = lane.at(0, number) - lane.channel;
            line = reinterpret_cast<const char*>(first) + row * size, stride = lane.stride * size;
        };
        if (warp == 5) rows(p.values, sizeof(ELEMENT));
        if (warp == 6 && dy) rows(dy, sizeof(ELEMENT));
        if (line) chunks = lane.tokens / CHUNK;
    }
    DEVICE void operator()(int chunk) const {  // which may be below 0
        if (unsigned(chunk) < chunks) prefetch(of_chunk(line, chunk, stride));
    }
};
