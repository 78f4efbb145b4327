// What a block of content.cu holds: the slice of the state, token rows, versions; and a group's accesses of a chunk.
#pragma once
#include "memory/tile.cuh"

#if !defined(IN_SHARED) || !defined(LAZY_ZERO)
#error "IN_SHARED (the state's slice is in shared memory) and LAZY_ZERO (in device memory, rows begin unset) must be 0 or 1"
#endif

// Bytes of the chain headers that shared memory begins with: two chunks, two rounds (chain_cursor.cuh).
constexpr int HEADER_BYTES = 2 * 2 * GROUPS * sizeof(Chain);
#ifndef SHARED_HEADER_BYTES
#error "SHARED_HEADER_BYTES must be defined as layout.py counts them"
#endif
static_assert(HEADER_BYTES == SHARED_HEADER_BYTES, "layout.py and this file count the same headers");

// Shared rows of CHANNELS (chunk.cuh), as a lane sees them:
//
//     zeros | the slice's state | a row for each token of the chunk | versions
//
// The state is in device memory instead, (B*H, rows, C), if it does not fit. Versions that do not fit are spilled to
// device memory.
struct StateSlice {
    unsigned address;   // the lane's tile of the zeros, in shared memory
    Tile* spill;        // (blocks, versions of a chunk, CHANNELS) in device memory, from this block's on
    long long origin;   // the lane's first channel in arrays (B*H, rows, C)
    Acc* state;         // there, if the state is in device memory
    int first_unset_row;  // in device memory, rows from this one on are still 0, whatever the memory holds

    DEVICE StateSlice(const Lane& lane, Acc* spill, Acc* working)
        : address(shared_address(dynamic_shared() + HEADER_BYTES + lane.lane * sizeof(Tile))),
          spill(reinterpret_cast<Tile*>(spill) + (long long)(blockIdx.x) * CHUNK * (W > R ? W : R) * LANES + lane.lane),
          origin(lane.first_row * lane.channels + lane.slice * CHANNELS + lane.lane * TILE),
          state(working + origin), first_unset_row(lane.rows) {}

    DEVICE Tile& operator[](int code) const {  // the product drops the flags
        return *reinterpret_cast<Tile*>(__cvta_shared_to_generic(address + unsigned(code) * unsigned(LANES * sizeof(Tile))));
    }

    // A shared row if it is wanted, else zeros. Lanes that want nothing leave the banks to others.
    DEVICE Tile get_if(bool wanted, int code) const {
        Tile x;
        x.clear();
        if (wanted) x = (*this)[code];
        return x;
    }

    // Shared memory starts from ``given`` (B*H, rows, C), or from 0 if it is null. Device memory was set by the caller.
    DEVICE void start(const Lane& lane, const Acc* given) const {
        Tile x;
        x.clear();
        if (lane.group == 0) (*this)[0] = x;
        if (!IN_SHARED) return;
        const Acc* from = given ? given + origin : nullptr;
        for (int row = lane.group; row < lane.rows; row += GROUPS)
            (*this)[shared_row_of_slot(row)] = from ? load_channels(lane, from + (long long)(row)*lane.channels) : x;
    }
    DEVICE void finish(const Lane& lane, Acc* to) const {
        if (!IN_SHARED || !to) return;
        to += origin;
        for (int row = lane.group; row < lane.rows; row += GROUPS)
            store_channels(lane, (*this)[shared_row_of_slot(row)], to + (long long)(row)*lane.channels);
    }

    // A slot in place; code 0: zeros.
    DEVICE Tile load(const Lane& lane, int code) const {
        if (IN_SHARED) return get_if(code, code);
        Tile x;
        x.clear();
        const int row = row_of_code(code);
        return row >= 0 && row < first_unset_row ? load_channels(lane, state + (long long)(row)*lane.channels) : x;
    }
    DEVICE void store(const Lane& lane, int code, const Tile& x) const {
        if (IN_SHARED)
            (*this)[code] = x;
        else
            store_channels(lane, x, state + (long long)(row_of_code(code)) * lane.channels);
    }
    // The slots of unconflicted accesses; other accesses find zeros, and their codes become 0.
    template <int N> DEVICE void load_unconflicted(const Lane& lane, int (&codes)[N], Tile (&tiles)[N]) const {
#pragma unroll
        for (int e = 0; e < N; e++) {
            codes[e] = max(codes[e], 0);
            tiles[e] = load(lane, codes[e]);
        }
    }
    // What accesses find: slots, versions, or zeros; ``any_spilled``: whether a version among the warp's is spilled.
    template <int N> DEVICE void look_up(const Lane& lane, const int (&codes)[N], bool any_spilled, Tile (&tiles)[N]) const {
#pragma unroll
        for (int e = 0; e < N; e++)
            tiles[e] = IN_SHARED || !in_place(codes[e]) ? (*this)[codes[e] & SPILLED ? 0 : codes[e]] : load(lane, codes[e]);
        if (!any_spilled) return;
#pragma unroll
        for (int e = 0; e < N; e++) {
            if (codes[e] & SPILLED) tiles[e] = spill[(codes[e] & ROW_MASK) * LANES];
            tiles[e].wait_for_load();
        }
    }
    // Starts to bring a row before ``end`` to the L2 cache, if the state is in device memory.
    DEVICE void prefetch_row(const Lane& lane, int code, int end) const {
        const int row = row_of_code(code);
        if (!IN_SHARED && in_place(code) && row >= 0 && row < end) prefetch(state + (long long)(row)*lane.channels);
    }
    DEVICE void store_version(int version_row, const Tile& x) const {
        if (version_row & ENTRY_SPILLED)
            spill[(version_row - ENTRY_SPILLED) * LANES] = x;
        else
            (*this)[version_row] = x;
    }
};

// A group's accesses of one side of a token, in registers.
template <int OWN> struct GroupAccesses {
    TokenEvent event[OWN];

    DEVICE void load(const TokenEvent* events) {
        constexpr int EACH = 16 / sizeof(TokenEvent);
        struct alignas(16) Wide {
            TokenEvent event[EACH];
        };
#pragma unroll
        for (int e = 0; e < OWN; e += EACH) {
            const Wide wide = *reinterpret_cast<const Wide*>(events + e);
#pragma unroll
            for (int i = 0; i < EACH; i++) event[e + i] = wide.event[i];
        }
    }
    DEVICE void codes(const Lane& lane, int (&codes)[OWN]) const {
#pragma unroll
        for (int e = 0; e < OWN; e++) codes[e] = lane.takes_part() ? int(event[e].code) : NOTHING;
    }
    DEVICE void prefetch_rows(const Lane& lane, const StateSlice& state, int end) const {
#pragma unroll
        for (int e = 0; !IN_SHARED && e < OWN && lane.takes_part(); e++) state.prefetch_row(lane, int(event[e].code), end);
    }
};

// Whether any of a warp's accesses looks up a version that is spilled.
template <int N> DEVICE bool any_spilled(const int (&codes)[N]) {
    int all = 0;
#pragma unroll
    for (int e = 0; e < N; e++) all |= codes[e];
    return __any_sync(~0u, all & SPILLED);
}
