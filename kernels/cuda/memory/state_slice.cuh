// What a block of content.cu holds: lists' headers, couplings, the slice of the state, token rows; and a group's accesses.
#pragma once
#include "memory/tile.cuh"

#if !defined(IN_SHARED) || !defined(LAZY_ZERO)
#error "IN_SHARED (the state's slice is in shared memory) and LAZY_ZERO (in device memory, rows begin unset) must be 0 or 1"
#endif

// Shared memory begins with the headers of a round of lists for two chunks, and of a chunk the couplings and lists' entries.
DEVICE constexpr int whole_128(int bytes) { return (bytes + 127) / 128 * 128; }  // to all banks
constexpr int HEADER_BYTES = 2 * GROUPS * sizeof(SlotList), COUPLING_BYTES = 2816;
constexpr int ENTRY_BYTES = (WRITE_ENTRIES > READ_ENTRIES ? WRITE_ENTRIES : READ_ENTRIES) * sizeof(TokenEvent);
#ifndef BYTES_BEFORE_ROWS
#error "BYTES_BEFORE_ROWS must be defined as layout.py counts them"
#endif
static_assert(whole_128(HEADER_BYTES + COUPLING_BYTES + ENTRY_BYTES) == BYTES_BEFORE_ROWS, "layout.py and this file count the same bytes");

// Then rows of CHANNELS, as a lane sees them:
//
//     a row for each token of two chunks | zeros | the slice's state
//
// The state is in device memory instead, (B*H, rows, C), if it does not fit.
constexpr int ROW_BYTES = LANES * sizeof(Tile);
DEVICE int token_place(int chunk) { return (chunk & 1) * CHUNK; }  // of a chunk's first token among those rows
struct StateSlice {
    unsigned address;     // the lane's tile of the zeros, in shared memory; its first piece
    unsigned second;      // and its second, if it has two
    long long origin;     // the lane's first channel in arrays (B*H, rows, C)
    Acc* state;           // there, if the state is in device memory
    int first_unset_row;  // in device memory, rows from this one on are still 0, whatever the memory holds

    DEVICE StateSlice(const Lane& lane, Acc* working)
        : address(shared_address(dynamic_shared() + BYTES_BEFORE_ROWS + 2 * CHUNK * ROW_BYTES + lane.channel * sizeof(Acc))),
          second(address + lane.to_second * sizeof(Acc)),
          origin(lane.first_row * lane.channels + lane.slice * CHANNELS + lane.channel),
          state(working + origin), first_unset_row(lane.rows) {}

    // Counted from the zeros, so below 0.
    DEVICE static int token_row(int chunk, int token) { return token_place(chunk) + token - 2 * CHUNK; }
    DEVICE Tile operator[](int code) const {
        Tile x;
        reinterpret_cast<Piece&>(x.piece(0)) = piece(address, code);
        if (TWO_PIECES) reinterpret_cast<Piece&>(x.piece(TWO_PIECES)) = piece(second, code);
        return x;
    }
    DEVICE void set(int code, const Tile& x) const {
        piece(address, code) = reinterpret_cast<const Piece&>(x.piece(0));
        if (TWO_PIECES) piece(second, code) = reinterpret_cast<const Piece&>(x.piece(TWO_PIECES));
    }
    struct alignas(PIECE * sizeof(Acc)) Piece {
        Tile::Piece at;
    };
    DEVICE static Piece& piece(unsigned of_zeros, int code) {  // the product drops the flags
        return *reinterpret_cast<Piece*>(__cvta_shared_to_generic(of_zeros + unsigned(code) * unsigned(ROW_BYTES)));
    }

    // Shared memory starts from ``given`` (B*H, rows, C), or from 0 if it is null. Device memory was set by the caller.
    DEVICE void start(const Lane& lane, const Acc* given) const {
        Tile x;
        x.clear();
        if (lane.group == 0) set(0, x);
        if (!IN_SHARED) return;
        if (given) {
            const Acc* const from = given + origin;
            for (int row = lane.group; row < lane.rows; row += GROUPS)
                set(code_of(row), load_channels(lane, from + (long long)(row)*lane.channels));
        } else {  // a short sequence spends a good part of its time here
#pragma unroll 8
            for (int row = lane.group; row < lane.rows; row += GROUPS) set(code_of(row), x);
        }
    }
    DEVICE void finish(const Lane& lane, Acc* to) const {
        if (!IN_SHARED || !to) return;
        to += origin;
        for (int row = lane.group; row < lane.rows; row += GROUPS)
            store_channels(lane, (*this)[code_of(row)], to + (long long)(row)*lane.channels);
    }

    // A slot in place; code 0: zeros.
    DEVICE Tile load(const Lane& lane, int code) const {
        if (IN_SHARED) return (*this)[code];
        Tile x;
        x.clear();
        const int row = row_of_code(code);
        return row >= 0 && row < first_unset_row ? load_channels(lane, state + (long long)(row)*lane.channels) : x;
    }
    DEVICE void store(const Lane& lane, int code, const Tile& x) const {
        if (IN_SHARED)
            set(code, x);
        else
            store_channels(lane, x, state + (long long)(row_of_code(code)) * lane.channels);
    }
    template <int N> DEVICE void load_all(const Lane& lane, const int (&codes)[N], Tile (&tiles)[N]) const {
#pragma unroll
        for (int e = 0; e < N; e++) tiles[e] = load(lane, codes[e]);
    }
    // Starts to bring a row before ``end`` to the L2 cache, if the state is in device memory.
    DEVICE void prefetch_row(const Lane& lane, int code, int end) const {
        const int row = row_of_code(code);
        if (!IN_SHARED && row >= 0 && row < end) prefetch(state + (long long)(row)*lane.channels);
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
    // ``chunk``, by a computation that needs these accesses: a load whose address comes from it is issued once they are here.
    // Loads share a counter, so accesses that are used behind newer loads would wait for the newer ones, too.
    DEVICE int once_here(const Lane& lane, int chunk) const {
        return lane.takes_part() ? chunk | (int(event[OWN - 1].code) & NO_CODE) : chunk;
    }
    // Where accesses find their slots; with ``in_place``, those whose slots a list changes find zeros.
    DEVICE void codes(const Lane& lane, bool in_place, int (&codes)[OWN]) const {
#pragma unroll
        for (int e = 0; e < OWN; e++) {
            const int code = lane.takes_part() ? int(event[e].code) : 0;
            codes[e] = in_place ? max(code, 0) : code & ~IN_LIST;
        }
    }
    DEVICE void prefetch_rows(const Lane& lane, const StateSlice& state, int end) const {
#pragma unroll
        for (int e = 0; !IN_SHARED && e < OWN && lane.takes_part(); e++) state.prefetch_row(lane, int(event[e].code), end);
    }
};
