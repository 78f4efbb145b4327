// A chunk: up to 32 tokens of a (batch, head) whose accesses are worked through at once.
//
// Tokens follow one another only where they meet in a slot, and in a chunk few do. So every kernel of the memory takes
// the accesses of a chunk in three steps, which link.cu prepares:
//
//     alone   a slot that one write of the chunk changes, or, in reverse, one read: each in its own group of lanes
//     chains  slots with more: a group of lanes takes a slot and follows its accesses one after another
//     rest    what changes nothing: reads, or, in reverse, writes. They find the slot as it is now or, if it was
//             changed again in the chunk, the version that its chain put aside for them
//
//     token        0    1    2    3     (time)
//     slot 5       W                    alone
//     slot 9       R         R          rest; in reverse a chain
//     slot 12      W         R    R     alone, rest; in reverse a chain (of its reads), rest
//     slot 17      WR   W         R     chain W R W R; both reads find their versions
//
// Compiled with: ELEMENT, CHUNK (tokens; 1 if K is above 64), WRITES and READS (K).
#pragma once
#include "memory.cuh"

using Sum = SumOf<ELEMENT>::type;
using TokenEvent = Event<Sum>;

constexpr int THREADS = 256;                             // of a block, in every kernel of the memory
DEVICE constexpr int items(int width) { return (CHUNK * width + THREADS - 1) / THREADS; }  // accesses of a thread
constexpr int SPREAD = CHUNK < 8 ? 8 : 64 / CHUNK;       // groups of 4 lanes that share a token's accesses
DEVICE constexpr int padded(int k) { return (k + 4 * SPREAD - 1) / (4 * SPREAD) * (4 * SPREAD); }
constexpr int W = padded(WRITES), R = padded(READS);     // accesses of a token, with those that do nothing
constexpr int ENTRIES = CHUNK * (WRITES + READS);        // most in the chains of a chunk
constexpr int CHAINS = ENTRIES / 2;

// Where an access finds its slot.
constexpr int NOTHING = -1;  // nowhere: it does nothing
DEVICE constexpr bool in_place(int code) { return code >= 0; }
DEVICE constexpr int place_of(int row, bool in_reverse_listed) { return row << 1 | int(in_reverse_listed); }
DEVICE constexpr int row_at(int code) { return code >> 1; }
DEVICE constexpr bool in_reverse_listed(int code) { return code & 1; }  // of a read: the reverse has it in a chain
DEVICE constexpr int version_code(int version) { return -2 - version; }
DEVICE constexpr int version_at(int code) { return -2 - code; }

// An access in a chain: its token in the chunk, its number k, whether it is a read, its version. An entry is an Event
// with this in the place of the row.
DEVICE constexpr int entry_of(int token, int k, bool read, int version) {
    return token | int(read) << 5 | k << 6 | version << 12;
}
DEVICE constexpr int entry_token(int entry) { return entry & 31; }
DEVICE constexpr bool entry_reads(int entry) { return entry & 32; }
DEVICE constexpr int entry_k(int entry) { return entry >> 6 & 63; }
DEVICE constexpr int entry_version(int entry) { return entry >> 12; }

struct alignas(8) Chain {
    int row;
    unsigned short begin, count;  // among the chunk's entries
};

// Of a chunk: its chains with writes that follow another access, which come first, and all of them; their entries; the
// versions that reads need, and writes in reverse.
struct alignas(16) Counts {
    unsigned short mixed_chains, all_chains, mixed_entries, all_entries, read_versions, write_versions, unused[2];
};

// The chains of all chunks; null if CHUNK is 1, for then there are none.
struct Lists {
    Chain* chains;        // (B*H, chunks, CHAINS)
    TokenEvent* entries;  // (B*H, chunks, ENTRIES)
    Counts* counts;       // (B*H, chunks)

    DEVICE const Chain* chains_of(long long chunk) const { return chains + chunk * CHAINS; }
    DEVICE TokenEvent* entries_of(long long chunk) const { return entries + chunk * ENTRIES; }
    DEVICE Counts counts_of(long long chunk, bool there) const { return CHUNK > 1 && there ? counts[chunk] : Counts{}; }
};

DEVICE constexpr int chunks_of(int tokens) { return (tokens + CHUNK - 1) / CHUNK; }

// What holds for a whole call, and where a block stands in the arrays (B, T, H): the parameters that the kernels of
// link.cu and mass.cu start with.
struct Call {
    int tokens, heads, rows;          // T, H; rows that hold slots
    const int *write_row, *read_row;  // (B, T, H, K); -1: a slot that nothing is written to
    const Sum *write_weight, *read_weight;
    const ELEMENT* gamma;  // (B, T, H), or null:
    Sum one_gamma;
    const bool* mask;  // (B, T), or null
    Sum eps, initial;  // initial: mass of a slot before its first write
    int renumbered;    // rows are t * K_w + k of a slot's first write
    Retention<Sum> retention;
    Lists lists;

    DEVICE int chunks() const { return chunks_of(tokens); }
};

// A (batch, head) of a call.
struct Unit {
    const Call& call;
    long long number, first, first_mask;  // b * H + h; token 0 in (B, T, H) and in (B, T)

    DEVICE Unit(const Call& call, int unit)
        : call(call), number(unit), first((long long)(unit / call.heads) * call.tokens * call.heads + unit % call.heads),
          first_mask((long long)(unit / call.heads) * call.tokens) {}
    DEVICE long long row_of(int t) const { return first + (long long)(t)*call.heads; }
    DEVICE bool live(int t) const { return t >= 0 && t < call.tokens && (!call.mask || call.mask[first_mask + t]); }
    DEVICE Sum gamma_of(int t) const { return call.gamma ? widen(call.gamma[row_of(t)]) : call.one_gamma; }
    DEVICE long long chunk_at(int chunk) const { return number * call.chunks() + chunk; }
};

#define CALL_PARAMETERS                                                                                                  \
    int tokens, int heads, int rows, const int *write_row, const int *read_row, const Sum *write_weight,                 \
        const Sum *read_weight, const ELEMENT *gamma, Sum one_gamma, const bool *mask, Sum eps, Sum initial,             \
        int renumbered, int gsu, Sum proxy_eps, Sum smallest, Chain *chains, TokenEvent *entries, Counts *list_counts
#define CALL                                                                                                             \
    {tokens, heads, rows, write_row, read_row, write_weight, read_weight, gamma, one_gamma, mask, eps,                   \
     initial, renumbered, {gsu, proxy_eps, smallest}, {chains, entries, list_counts}}
