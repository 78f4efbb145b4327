// A chunk: up to 32 tokens of one (batch, head), whose accesses are worked through at once.
//
// Twelve words, which mean the same in every file of this folder:
//
//     token     one position of a sequence. It writes WRITES slots, then reads READS slots
//     slot      one of the M places of a head's memory
//     access    one write or one read of one slot by one token
//     row       where the state keeps a slot: the slot's number, or a smaller one (renumber.cu)
//     chunk     CHUNK tokens that follow one another
//     chain     the accesses of a chunk to one slot, in order, if the chunk writes it and accesses it again, or reads it twice
//     coupling  how much of a token's value a later token of the chunk reads, over all slots
//     list      the writes (backward: the reads) of a chunk to one slot, if there are several
//     slice     CHANNELS of a slot's C channels; a block works on one slice
//     segment   chunks that a block works through from a state of their own (segments.cu)
//     tile      the part of a slice that one lane holds
//     group     four lanes, which hold a row of a slice
//
// Tokens of a chunk depend on one another only through coefficients, which depend on no channel. With eta of a slot's
// writes j = 1, 2, .. of the chunk, kept(i, j) the product of 1 - eta over the writes after i up to j, and s its content
// before the chunk,
//
//     content after write j    kept(0, j) s + sum over i <= j of kept(i, j) eta_i v_i
//
// So a read finds its slot as it was before the chunk, times a number, and values of the chunk's tokens. Summed over a
// token's reads, the values' factors are the couplings A:
//
//     y_t      = sum over t's reads of r~ s + sum over j <= t of A_tj v_j           r~  = r kept(0, last write before)
//     s after  = kept(0, all) s + sum over the slot's writes of eta~ v              eta~ = eta kept(own, all)
//
// and backward, with the adjoint d of s, exactly the transpose:
//
//     dv_j     = sum over j's writes of eta~ d + sum over t >= j of A_tj dy_t
//     d before = kept(0, all) d + sum over the slot's reads of r~ dy
//
// Nothing is divided, so all factors are as exact as eta is, also where a slot forgets everything. The kernels:
//
//     conflicts.cu   which accesses of a chunk share a slot: all chunks at once
//     mass_*.cu      masses, and with them eta, chunk after chunk
//     couplings.cu   A, r~, eta~ and lists: all chunks at once. couplings_backward.cu: dot products
//     content.cu     chunk after chunk: first what looks slots up, all at once, then what changes them, all at once
//
// Writes here move a slot's content toward a value, by an eta that depends on no channel. A rule whose change of content
// depends on the content itself, such as the delta rule's, does not fit this split.
#pragma once
#include "memory/span.cuh"
#include "runtime/shared.cuh"

// Sizes come from layout.py, which says what they are.
#if !defined(ELEMENT) || !defined(THREADS) || !defined(CHUNK) || !defined(WRITES) || !defined(READS)
#error "ELEMENT, THREADS, CHUNK, WRITES and READS must be defined"
#endif
#if !defined(WRITES_PADDED) || !defined(READS_PADDED) || !defined(GROUPS_PER_TOKEN) || !defined(ENTRIES)
#error "WRITES_PADDED, READS_PADDED, GROUPS_PER_TOKEN and ENTRIES must be defined"
#endif
#if !defined(CHAINS) || !defined(RECORD_BYTES)
#error "CHAINS and RECORD_BYTES must be defined"
#endif

using Acc = AccOf<ELEMENT>::type;  // accumulators, weights, masses, contents

constexpr int LANES = 4, GROUPS = THREADS / LANES;      // lanes of a group; groups of a block
constexpr int W = WRITES_PADDED, R = READS_PADDED;      // accesses of a token, with those that do nothing
// Two groups that follow one another are of two tokens where a token has two groups; else of one token. That was measured.
constexpr bool TOKENS_IN_PAIRS = GROUPS_PER_TOKEN == 2;
constexpr int CHAINS_PER_ROUND = GROUPS;
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

// 1 + the slot's row, or 0: an access that does nothing, of a row of zeros. IN_LIST: a list changes the slot, not this access.
// HEAVY: a write of more than half of its token's weight, which is then the token's first (mass.cuh).
constexpr int IN_LIST = int(0x80000000), HEAVY = 1 << 30, NO_CODE = 1 << 29;  // the last: a bit that no code has
DEVICE constexpr int code_of(int row, bool in_list = false, bool heavy = false) {
    return (1 + row) | (in_list ? IN_LIST : 0) | (heavy ? HEAVY : 0);
}
DEVICE constexpr int row_of_code(int code) { return (code & ~(IN_LIST | HEAVY)) - 1; }

// An access, with eta~ (a write) or r~ (a read). In a list, the token of the chunk stands in the place of 1 + row.
struct alignas(2 * sizeof(Acc)) TokenEvent {
    RowOf<Acc>::type code;
    Acc coefficient;
};

// ---- chains and lists ----

// The header of a slot's chain: its accesses are begin, begin + 1, .. of the chunk's entries, a number that only orders them.
//
// Order of the headers of a chunk: chains with writes, long before short, then read-only chains, then empty padding
// (row -1) to whole rounds of CHAINS_PER_ROUND. MIN_ROUNDS are always written.
struct alignas(8) Chain {
    int row, info;

    DEVICE static Chain make(int row, int begin, int count, int last_round) {
        return {row, begin | count << 10 | last_round << 20};
    }
    DEVICE int begin() const { return info & 1023; }
    DEVICE int count() const { return info >> 10 & 1023; }
    DEVICE int last_round() const { return info >> 20; }  // of the chunk: 0 to 3
    DEVICE void wait_for_load() { row = ::wait_for_load(row), info = ::wait_for_load(info); }
};

// What a chunk does to a slot that several of its accesses change: content (backward: its adjoint) times ``kept``, plus the
// list's entries. A round of lists, one a group, is always written; unused ones have row -1.
struct alignas(16) SlotList {
    int row, info;
    Acc kept;

    // ``total``: entries of all lists of the chunk. ``coupled``: pairs of its coupling lists, in PAIRS_AT_ONCE.
    DEVICE static SlotList make(int row, int begin, int count, bool more, int total, int coupled, Acc kept) {
        return {row, begin | count << 10 | int(more) << 16 | total << 17 | coupled << 26, kept};
    }
    // In two loads, without the padding behind a float: the compiler would give its register to something else, which would
    // wait until the load has overwritten it.
    DEVICE void load_from(const SlotList* from) {
        asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(row), "=r"(info) : "l"(from));
        kept = from->kept;
    }
    DEVICE bool there() const { return row >= 0; }
    DEVICE int begin() const { return info & 1023; }
    DEVICE int count() const { return info >> 10 & 63; }
    DEVICE bool more() const { return info >> 16 & 1; }  // the group has a list in the next round, too
    DEVICE int total() const { return info >> 17 & 511; }
    DEVICE int coupled() const { return int(unsigned(info) >> 26); }
};
constexpr int WRITE_ENTRIES = CHUNK * WRITES, READ_ENTRIES = CHUNK * READS;  // the most that lists of writes, or of reads, have
// The list of a group in a round. Long lists come first, so in every second round groups take them in opposite order.
DEVICE constexpr int list_of_group(int round, int group) { return round * GROUPS + (round % 2 ? GROUPS - 1 - group : group); }

// ---- couplings ----

// The numbers of A that are not 0, forward token after token t, and backward token after token j: the other token, and A_tj.
constexpr int MOST_PAIRS = CHUNK * (CHUNK + 1) / 2;
constexpr int PAIRS_AT_ONCE = 16;  // are copied to shared memory
constexpr int MOST_COUPLED = (MOST_PAIRS + PAIRS_AT_ONCE - 1) / PAIRS_AT_ONCE;

struct alignas(16) CouplingLists {
    int of_token[CHUNK];  // begin | count << 16
    TokenEvent pairs[MOST_COUPLED * PAIRS_AT_ONCE];
};

// ---- what couplings.cu leaves of a chunk for content.cu ----

constexpr int WRITE_LISTS = WRITE_ENTRIES / 2 < GROUPS ? GROUPS : WRITE_ENTRIES / 2;  // the most: a list has two writes,
constexpr int READ_LISTS = CHAINS;                                                    // or is of a chain

// All of it together, so that one address leads to everything.
struct alignas(16) ChunkRecord {
    TokenEvent writes[CHUNK * W], reads[CHUNK * R];
    TokenEvent write_entries[WRITE_ENTRIES], read_entries[READ_ENTRIES];  // of the lists
    CouplingLists by_reader, by_writer;
    SlotList write_lists[WRITE_LISTS], read_lists[READ_LISTS];  // of slots with several writes; with several of either
};
static_assert(sizeof(ChunkRecord) == RECORD_BYTES, "layout.py and this file count the same bytes");

// ---- what every kernel of the memory is given ----

// An empty sequence of a packed row has a chunk too, whose tokens do nothing.
DEVICE constexpr int chunks_of(int tokens) { return tokens > CHUNK ? (tokens + CHUNK - 1) / CHUNK : 1; }

struct MemoryParams {
    const int *write_row, *read_row;          // (B, T, H, K); -1: an access that does nothing
    const Acc *write_weight, *read_weight;    // (B, T, H, K)
    const ELEMENT* gamma;                     // (B, T, H), or null: constant_gamma
    const bool* mask;                         // (B, T), or null
    Chain* chains;                            // (B*H, chunks, CHAINS)
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

// Which sequence's chunk a block has, of those that work on all chunks at once, and which of its chunks.
template <class Params> DEVICE SpanChunk chunk_of_block(const Params& p) {
    const SpanChunk at{p.first_batch + int(blockIdx.z), p.first_chunk + int(blockIdx.y)};
    return p.memory.span_chunks ? p.memory.span_chunks[at.chunk] : at;
}

// visit(i) for every i below COUNT, shared out among a block's threads; ``thread``: this one's number among them.
template <int COUNT, int BLOCK = THREADS, class Visit>
DEVICE void share_out(const Visit& visit, int thread = int(threadIdx.x)) {
#pragma unroll
    for (int first = 0; first < COUNT; first += BLOCK) {
        const int i = first + thread;
        if (first + BLOCK <= COUNT || i < COUNT) visit(i);
    }
}

// Sets an array in shared memory to 0, 16 bytes a thread.
template <class T, int N> DEVICE void clear(T (&array)[N]) {
    struct alignas(16) Zeros {
        int at[4];
    };
    constexpr int COUNT = sizeof(array) / sizeof(Zeros);
    static_assert(COUNT * sizeof(Zeros) == sizeof(array), "whole zeros");
    share_out<COUNT>([&](int i) { reinterpret_cast<Zeros*>(array)[i] = {}; });
}
