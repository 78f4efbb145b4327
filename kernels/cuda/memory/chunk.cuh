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
#include "memory/memory.cuh"

using Sum = AccOf<ELEMENT>::type;
using TokenEvent = Event<Sum>;

constexpr int THREADS = 256;                             // of a block, in every kernel of the memory
DEVICE constexpr int items(int width) { return (CHUNK * width + THREADS - 1) / THREADS; }  // accesses of a thread
constexpr int SPREAD = CHUNK < 8 ? 8 : 64 / CHUNK;       // groups of 4 lanes that share a token's accesses
DEVICE constexpr int padded(int k) { return (k + 4 * SPREAD - 1) / (4 * SPREAD) * (4 * SPREAD); }
constexpr int W = padded(WRITES), R = padded(READS);     // accesses of a token, with those that do nothing
constexpr int ENTRIES = CHUNK * (WRITES + READS);        // most in the chains of a chunk
constexpr int CHAINS = (ENTRIES / 2 + 63) / 64 * 64;

// content.cu has numbered places of one slice's row each: zeros | the state's rows | a row for each token | versions
DEVICE constexpr int place_of_row(int row) { return 1 + row; }
DEVICE constexpr int place_of_token(int rows, int token) { return 1 + rows + token; }
DEVICE constexpr int place_of_version(int rows, int version) { return 1 + rows + CHUNK + version; }

// Where an access finds its slot: the number of a place, with flags in bits that a shift to bytes drops.
constexpr int PLACE = (1 << 26) - 1;
constexpr int ELSEWHERE = 1 << 29;            // of a version that finds no room: its number, not a place
constexpr int NOTHING = int(0x80000000);      // nowhere: it does nothing, at zeros
constexpr int VERSION = int(0x80000000);      // a version
constexpr int LISTED = 1 << 30;               // beside VERSION, of a read in place: in reverse it is in a chain
DEVICE constexpr bool is_alone(int code) { return code >= 0; }
DEVICE constexpr bool in_place(int code) { return is_alone(code) || code & LISTED; }
DEVICE constexpr bool in_chain(int code) { return !is_alone(code) && code != NOTHING; }
DEVICE constexpr bool has_version(int code) { return in_chain(code) && !(code & LISTED); }
DEVICE constexpr int row_at(int code) { return (code & PLACE) - 1; }
DEVICE constexpr int version_code(int version, int rows, int room) {
    return VERSION | (version < room ? place_of_version(rows, version) : ELSEWHERE | version);
}

// An access in a chain: the places of its token's row and of its version, whether it is its token's first, and whether
// it is a read. An entry is an Event with this in the place of the row.
constexpr int ENTRY_PLACE = (1 << 15) - 1, ENTRY_ELSEWHERE = 1 << 14;  // the latter of versions: their number
DEVICE constexpr int entry_of(int token, int version, bool first, bool read) {
    return token | version << 15 | int(first) << 30 | int(read) << 31;
}
DEVICE constexpr int entry_token(int entry) { return entry & ENTRY_PLACE; }
DEVICE constexpr int entry_version(int entry) { return entry >> 15 & ENTRY_PLACE; }
DEVICE constexpr bool entry_first(int entry) { return entry & 1 << 30; }
DEVICE constexpr bool entry_reads(int entry) { return entry < 0; }

// A slot's chain: entries begin, begin + 1, .. of the chunk. Chains with a write that follows another access come first,
// then those of reads alone, which only the reverse follows, then empty ones, whose row is -1, up to whole rounds: the
// first two are always there (of random addresses, a chunk of the paper's has 71 chains), and say how many there are.
struct alignas(8) Chain {
    int row, info;

    DEVICE int begin() const { return info & 1023; }
    DEVICE int count() const { return info >> 10 & 1023; }
    DEVICE bool reads_only() const { return info >> 20 & 1; }
    DEVICE bool more_mixed() const { return info >> 21 & 1; }  // there is one with writes EACH_ROUND further on
    DEVICE int last_round() const { return info >> 22; }       // of the chunk's chains: 0 to 3
    DEVICE void arrive() { row = arrived(row), info = arrived(info); }
};
constexpr int EACH_ROUND = 64;                                     // chains that content.cu follows at a time
constexpr int SURE_ROUNDS = smaller_of(CHAINS / EACH_ROUND, 2);  // those that are always there
DEVICE Chain chain_of(int row, int begin, int count, bool reads_only, bool more_mixed, int last_round) {
    return {row, begin | count << 10 | int(reads_only) << 20 | int(more_mixed) << 21 | last_round << 22};
}

DEVICE constexpr int chunks_of(int tokens) { return (tokens + CHUNK - 1) / CHUNK; }

// What holds for a whole call, and where a block stands in the arrays (B, T, H): the parameters that the kernels of
// link.cu, mass.cu and so on start with.
struct Call {
    int tokens, heads, rows;          // T, H; rows that hold slots
    const int *write_row, *read_row;  // (B, T, H, K); -1: an access that does nothing
    const Sum *write_weight, *read_weight;
    const ELEMENT* gamma;  // (B, T, H), or null:
    Sum one_gamma;
    const bool* mask;  // (B, T), or null
    Sum eps, initial;  // initial: mass of a slot before its first write
    Retention<Sum> retention;

    DEVICE int chunks() const { return chunks_of(tokens); }
};

// A (batch, head) of a call.
struct Unit {
    const Call& call;
    long long number, first, first_mask;  // b * H + h; token 0 in (B, T, H) and in (B, T)

    DEVICE Unit(const Call& call, unsigned batch, unsigned head)
        : call(call), number((unsigned long long)(batch) * unsigned(call.heads) + head),
          first_mask((unsigned long long)(batch) * unsigned(call.tokens)) {
        first = first_mask * unsigned(call.heads) + head;
    }
    DEVICE Unit(const Call& call, unsigned unit) : Unit(call, unit / unsigned(call.heads), unit % unsigned(call.heads)) {}
    DEVICE long long row_of(int t) const { return first + (unsigned long long)(unsigned(t)) * unsigned(call.heads); }
    DEVICE bool live(int t) const { return t >= 0 && t < call.tokens && (!call.mask || call.mask[first_mask + t]); }
    DEVICE Sum gamma_of(int t) const { return call.gamma ? widen(call.gamma[row_of(t)]) : call.one_gamma; }
    DEVICE long long chunk_at(int chunk) const { return number * unsigned(call.chunks()) + unsigned(chunk); }
};

// chains (B*H, chunks, CHAINS) and entries (B*H, chunks, ENTRIES): null if CHUNK is 1, for then there are none.
#define CALL_PARAMETERS                                                                                                  \
    int tokens, int heads, int rows, const int *write_row, const int *read_row, const Sum *write_weight,                 \
        const Sum *read_weight, const ELEMENT *gamma, Sum one_gamma, const bool *mask, Sum eps, Sum initial,             \
        int gsu, Sum proxy_eps, Sum smallest, Chain *chains, TokenEvent *entries
#define CALL                                                                                                             \
    {tokens, heads, rows, write_row, read_row, write_weight, read_weight, gamma, one_gamma, mask, eps,                   \
     initial, {gsu, proxy_eps, smallest}}
