// A chunk: up to 32 tokens of one (batch, head), whose accesses are worked through at once.
//
// Eleven words, which mean the same in every file of this folder:
//
//     token     one position of a sequence. It writes WRITES slots, then reads READS slots
//     slot      one of the M places of a head's memory
//     access    one write or one read of one slot by one token
//     row       where the state keeps a slot: the slot's number, or a smaller one (renumber.cu)
//     chunk     CHUNK tokens that follow one another
//     conflict  two accesses of a chunk to one slot whose order matters
//     chain     the accesses of a chunk to one slot with a conflict, in order
//     version   a copy of a slot's content that a chain puts aside for one lookup
//     slice     CHANNELS of a slot's C channels; a block works on one slice
//     segment   chunks that a block works through from a state of their own (segments.cu)
//     tile      the part of a slice that one lane holds
//
// Tokens depend on one another only where they conflict, and in a chunk few do. So the kernels take the accesses of a
// chunk in three groups, which conflicts.cu prepares:
//
//     unconflicted  the only access of the chunk that changes its slot (forward a write; backward a read, whose
//                   gradient goes to the slot's adjoint): all at once
//     chains        slots with conflicts: the accesses of each, one after another; all chains at once
//     lookups       accesses that need what the slot holds (forward reads; backward writes, which need its adjoint):
//                   all at once, at the end. They find the slot as it is now or, if it changes again in the chunk,
//                   the version that its chain put aside. A backward write that finds the slot itself scales it
//
//     token        0    1    2    3     (time)
//     slot 5       W                    unconflicted
//     slot 9       R         R          two lookups; backward a chain
//     slot 12      W         R    R     unconflicted, two lookups; backward a chain (of its reads) and a lookup
//     slot 17      WR   W         R     a chain W R W R; both reads find their versions
//
// Writes here move a slot's content toward a value, by an eta that depends on no channel. That is what lets masses
// (mass_*.cu) run before contents (content.cu). A rule whose change of content depends on the content itself, such as the
// delta rule's, does not fit this split.
#pragma once
#include "memory/span.cuh"
#include "runtime/shared.cuh"

// Sizes come from layout.py, which says what they are.
#if !defined(ELEMENT) || !defined(THREADS) || !defined(CHUNK) || !defined(WRITES) || !defined(READS)
#error "ELEMENT, THREADS, CHUNK, WRITES and READS must be defined"
#endif
#if !defined(WRITES_PADDED) || !defined(READS_PADDED) || !defined(GROUPS_PER_TOKEN) || !defined(ENTRIES) || !defined(CHAINS)
#error "WRITES_PADDED, READS_PADDED, GROUPS_PER_TOKEN, ENTRIES and CHAINS must be defined"
#endif

using Acc = AccOf<ELEMENT>::type;  // accumulators, weights, masses, contents

constexpr int LANES = 4, GROUPS = THREADS / LANES;      // lanes of a group; groups of a block
constexpr int W = WRITES_PADDED, R = READS_PADDED;      // accesses of a token, with those that do nothing
constexpr int CHAINS_PER_ROUND = GROUPS;                // a group follows one chain a round
constexpr int MIN_ROUNDS = CHAINS / CHAINS_PER_ROUND < 2 ? CHAINS / CHAINS_PER_ROUND : 2;  // always written
static_assert(CHUNK <= 32 && CHUNK * GROUPS_PER_TOKEN <= GROUPS, "masks have a bit for each token");
static_assert(W >= WRITES && R >= READS && CHUNK * W <= THREADS && CHUNK * R <= THREADS, "one access a thread and side");
static_assert(ENTRIES == CHUNK * (WRITES + READS) && ENTRIES < 1024, "counts of entries take 10 bits");
static_assert(2 * CHAINS >= ENTRIES && CHAINS % CHAINS_PER_ROUND == 0 && CHAINS <= THREADS, "a chain has two entries");

// An integer as long as an accumulator, so that an event has no unused bytes.
template <class Acc> struct RowOf {
    using type = int;
};
template <> struct RowOf<double> {
    using type = long long;
};

// ---- codes: where an access finds its slot ----

// A block of content.cu numbers rows of shared memory, each a slice wide:
//
//     0: zeros | the state's rows, if they are there | a row for each token of the chunk | versions
DEVICE constexpr int shared_row_of_slot(int row) { return 1 + row; }
DEVICE constexpr int shared_row_of_token(int rows_in_shared, int token) { return 1 + rows_in_shared + token; }
DEVICE constexpr int shared_row_of_version(int rows_in_shared, int version) { return 1 + rows_in_shared + CHUNK + version; }

// A code is such a number, with flags in bits that the product with a row's bytes drops.
constexpr int ROW_MASK = (1 << 26) - 1;
constexpr int SPILLED = 1 << 29;          // beside VERSION: it does not fit shared memory; its number, not a row
constexpr int VERSION = int(0x80000000);  // a version, beside its row or number
constexpr int NOTHING = VERSION;          // this alone: an access that does nothing, of the row of zeros
constexpr int LISTED = 1 << 30;           // beside VERSION: a read in place that the backward has in a chain
DEVICE constexpr bool is_unconflicted(int code) { return code >= 0; }
DEVICE constexpr bool in_place(int code) { return is_unconflicted(code) || code & LISTED; }
DEVICE constexpr bool in_chain(int code) { return !is_unconflicted(code) && code != NOTHING; }
DEVICE constexpr bool has_version(int code) { return in_chain(code) && !(code & LISTED); }
DEVICE constexpr int row_of_code(int code) { return (code & ROW_MASK) - 1; }
DEVICE constexpr int version_code(int version, int rows_in_shared, int version_capacity) {
    return VERSION | (version < version_capacity ? shared_row_of_version(rows_in_shared, version) : SPILLED | version);
}

// An access: the code of its slot, and eta (a write) or the weight (a read).
struct alignas(2 * sizeof(Acc)) TokenEvent {
    RowOf<Acc>::type code;
    Acc coefficient;
};

// ---- chains ----

// An access in a chain, packed: the shared rows of its token and of its version, whether it is its token's first access
// of its side, whether it is a read. In an entry, a TokenEvent, this stands in the place of the code.
constexpr int ENTRY_ROW = (1 << 15) - 1, ENTRY_SPILLED = 1 << 14;  // a spilled version: its number, not a row
DEVICE constexpr int entry_of(int token_row, int version_row, bool first, bool is_read) {
    return token_row | version_row << 15 | int(first) << 30 | int(is_read) << 31;
}
DEVICE constexpr int entry_token_row(int entry) { return entry & ENTRY_ROW; }
DEVICE constexpr int entry_version_row(int entry) { return entry >> 15 & ENTRY_ROW; }
DEVICE constexpr bool entry_is_first(int entry) { return entry & 1 << 30; }
DEVICE constexpr bool entry_is_read(int entry) { return entry < 0; }

// The header of a slot's chain: its entries are begin, begin + 1, .. of the chunk's.
//
// Order of the headers of a chunk: chains with writes, long before short, then read-only chains (followed by the backward
// only), then empty padding (row -1) to whole rounds of CHAINS_PER_ROUND. MIN_ROUNDS are always written: a chunk of random
// addresses at the paper's sizes has 71 chains.
struct alignas(8) Chain {
    int row, info;

    DEVICE static Chain make(int row, int begin, int count, bool read_only, bool more_with_writes, int last_round) {
        return {row, begin | count << 10 | int(read_only) << 20 | int(more_with_writes) << 21 | last_round << 22};
    }
    DEVICE int begin() const { return info & 1023; }
    DEVICE int count() const { return info >> 10 & 1023; }
    DEVICE bool read_only() const { return info >> 20 & 1; }
    DEVICE bool more_with_writes() const { return info >> 21 & 1; }  // the next round has a chain with writes for its group
    DEVICE int last_round() const { return info >> 22; }             // of the chunk: 0 to 3
    DEVICE void wait_for_load() { row = ::wait_for_load(row), info = ::wait_for_load(info); }
};

// ---- what every kernel of the memory is given ----

// An empty sequence of a packed row has a chunk too, whose tokens do nothing.
DEVICE constexpr int chunks_of(int tokens) { return tokens > CHUNK ? (tokens + CHUNK - 1) / CHUNK : 1; }

struct MemoryParams {
    const int *write_row, *read_row;          // (B, T, H, K); -1: an access that does nothing
    const Acc *write_weight, *read_weight;    // (B, T, H, K)
    const ELEMENT* gamma;                     // (B, T, H), or null: constant_gamma
    const bool* mask;                         // (B, T), or null
    Chain* chains;                            // (B*H, chunks, CHAINS)
    TokenEvent* entries;                      // (B*H, chunks, ENTRIES): of all chains of a chunk
    Acc constant_gamma, eps, initial_mass, proxy_eps;
    const Span* spans;                        // of a packed row; or null: sequence b is row b of the batch
    const SpanChunk* span_chunks;             // of a packed row: a head's chunks of all spans, in their order
    int tokens, heads, rows;                  // T, H; rows of a sequence's state, or 0 (StateRows)
    int all_chunks;                           // of all sequences and heads
};

// A sequence and head, and where it stands in arrays (B, T, H), (B, T), (B*H, rows) and (B*H, chunks). A packed row has
// N sequences in the place of B. Their chunks follow one another: span by span, and in each head by head.
struct Sequence {
    const MemoryParams& memory;
    int tokens, rows;                                // of this sequence
    long long first, first_mask, first_row, first_chunk;  // token 0 in (B, T, H) and in (B, T); row 0; chunk 0

    DEVICE Sequence(const MemoryParams& memory, const Span& span, unsigned head)
        : memory(memory), tokens(span.tokens), first_mask(unsigned(span.begin)) {
        const unsigned heads = memory.heads;
        const StateRows state(span, head, heads, memory.rows, WRITES);
        first = first_mask * heads + head, rows = state.rows, first_row = state.first;
        first_chunk = (unsigned long long)(unsigned(span.first_chunk)) * heads + head * unsigned(chunks());
    }
    DEVICE Sequence(const MemoryParams& memory, unsigned span, unsigned head)
        : Sequence(memory, span_of(memory.spans, span, memory.tokens, chunks_of(memory.tokens)), head) {}
    DEVICE Sequence(const MemoryParams& memory, unsigned number)
        : Sequence(memory, number / unsigned(memory.heads), number % unsigned(memory.heads)) {}
    DEVICE int chunks() const { return chunks_of(tokens); }
    DEVICE long long token(int t) const { return first + (unsigned long long)(unsigned(t)) * unsigned(memory.heads); }
    DEVICE bool live(int t) const { return t >= 0 && t < tokens && (!memory.mask || memory.mask[first_mask + t]); }
    DEVICE long long chunk(int chunk) const { return first_chunk + chunk; }
};
