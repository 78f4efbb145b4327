// A chunk's accesses as couplings.cu and couplings_backward.cu see them: every access with the others of its slot.
//
// Two masks of 32 tokens say which write the slot and which read it, and a number for each: eta of the slot's writes in
// order, then the weights of its reads. They begin where the slot's chain does.
//
// Who computes what: one block a chunk, as find_conflicts; thread token * W + k has write k of a token, thread
// token * R + k read k. Chunks do not depend on one another.
#pragma once
#include "memory/mass.cuh"

struct CouplingParams {
    MemoryParams memory;
    const SlotAccess* writes;        // (B*H, chunks, CHUNK, W)
    const Acc* eta;                  // likewise
    const SlotAccess* reads;         // (B*H, chunks, CHUNK, R)
    const Acc* read_weight;          // (B, T, H, READS)
    ChunkRecord* records;            // (B*H, chunks)
    const ELEMENT *values, *dy;      // (B, T, H, C)
    Acc *dy_dot_s, *d_dot_v;         // (slices, B*H, chunks, CHUNK, R), (.., W): what content.cu left. The first slice's
                                     // become those of all channels, for the masses
    const Acc *before_heavy, *after_heavy;  // (B, T, H, C): as content.cu left them
    Acc* d_dot_before;               // (B*H, chunks, CHUNK): of a token's first write, or 0 if it is not heavy
    int channels, slices;                    // C; slices of content.cu
    int first_batch, first_chunk;            // of the launch
};

DEVICE unsigned tokens_to(int token) { return 2u * (1u << token) - 1; }  // a mask
DEVICE int last_token(unsigned mask) { return 31 - __clz(int(mask)); }    // -1 of none

// The slots of a chunk that have chains, in shared memory, by where a chain begins.
struct ChunkSlots {
    alignas(16) unsigned writers[ENTRIES], readers[ENTRIES];  // masks of tokens
    Acc number[ENTRIES];                                      // of an access: eta, or the weight of a read
};

// The slot of an access, as its chain has it.
struct SlotOfAccess {
    const Acc* number;  // of its accesses
    unsigned writers, readers;
    int begin;

    DEVICE SlotOfAccess(const ChunkSlots& slots, int begin)
        : number(slots.number + begin), writers(slots.writers[begin]), readers(slots.readers[begin]), begin(begin) {}
    DEVICE int writes() const { return __popc(writers); }
    DEVICE int reads() const { return __popc(readers); }
    DEVICE int write_rank(int token) const { return __popc(writers & ((1u << token) - 1)); }
    DEVICE int read_rank(int token) const { return writes() + __popc(readers & ((1u << token) - 1)); }
    DEVICE Acc eta(int token) const { return number[write_rank(token)]; }
    DEVICE Acc weight(int token) const { return number[read_rank(token)]; }
    // The product of 1 - eta over all writes.
    DEVICE Acc kept() const {
        Acc product = 1;
        for (int i = writes() - 1; i >= 0; i--) product *= 1 - number[i];
        return product;
    }
    // The product of 1 - eta over the writes after ``after`` up to ``upto``.
    DEVICE Acc kept(int after, int upto) const {
        Acc product = 1;
        for (unsigned left = writers & tokens_to(upto) & ~tokens_to(after); left; left &= left - 1)
            product *= 1 - eta(last_token(left & -left));
        return product;
    }
    // Whether a list changes it: forward a list of writes, backward one of reads.
    DEVICE bool has_write_list() const { return writes() > 1; }
    DEVICE bool has_read_list() const { return writes() > 1 || reads() > 1; }
};

// Where content.cu has an access among the WIDTH of its token. Two groups ask shared memory for a row each at the same time,
// and a row of 16 floats has half of the banks: that of an even row, or of an odd one. So where the one group begins with
// even rows, the other begins with odd ones: a group of another token or, if there is none, of the token's second half. A
// heavy write stays the first. All lanes ask together.
template <int WIDTH> DEVICE int place_in_token(int token, int k, int code) {
    if (WIDTH > 32) return k;  // a token has several warps
    const int first_lane = int(threadIdx.x) % 32 - k;
    const unsigned odd = __ballot_sync(~0u, code & 1) >> first_lane, heavy = __ballot_sync(~0u, code & HEAVY) >> first_lane;
    const bool odd_first = (TOKENS_IN_PAIRS ? unsigned(token) : odd) & 1;
    const unsigned sooner = ((odd_first ? odd : ~odd) | heavy) & (WIDTH < 32 ? (1u << WIDTH % 32) - 1 : ~0u);
    const int rank = __popc(sooner & ((1u << k) - 1));
    return sooner >> k & 1 ? rank : __popc(sooner) + k - rank;
}

// A chunk and this thread's two accesses of it.
struct ThreadOfChunk {
    const CouplingParams& p;
    const Sequence sequence;
    const int chunk;
    const long long number, at;  // of the chunk in arrays (B*H, chunks); of its first token in (B*H, chunks, CHUNK)
    const int write_token, write_k, read_token, read_k;
    SlotAccess write, read;
    Acc eta, weight;

    DEVICE explicit ThreadOfChunk(const CouplingParams& p) : ThreadOfChunk(p, chunk_of_block(p)) {}
    DEVICE ThreadOfChunk(const CouplingParams& p, const SpanChunk& at_chunk)
        : p(p), sequence(p.memory, at_chunk.span, blockIdx.x), chunk(at_chunk.chunk),
          number(sequence.chunk(chunk)), at(number * CHUNK), write_token(threadIdx.x / W), write_k(threadIdx.x % W),
          read_token(threadIdx.x / R), read_k(threadIdx.x % R), write(SlotAccess::dead()), read(SlotAccess::dead()), eta(0),
          weight(0) {
        if (in_chunk(write_token, W)) write = load_read_only(p.writes + at * W + threadIdx.x), eta = p.eta[at * W + threadIdx.x];
        if (in_chunk(read_token, R)) read = load_read_only(p.reads + at * R + threadIdx.x);
        const int t = chunk * CHUNK + read_token;  // asked for before it is known whether the read is live
        if (t < sequence.tokens && in_chunk(read_token, R) && read_k < READS) weight = p.read_weight[sequence.token(t) * READS + read_k];
    }
    DEVICE bool chained_write() const { return write.live() && write.chained(); }
    DEVICE bool listed_read() const { return read.live() && read.listed(); }
    DEVICE SlotOfAccess write_slot(const ChunkSlots& slots) const { return {slots, chain_begin(write.tag)}; }
    DEVICE SlotOfAccess read_slot(const ChunkSlots& slots) const { return {slots, chain_begin(read.tag)}; }

    // Masks and numbers of all slots with chains.
    DEVICE void enter(ChunkSlots& slots) const {
        clear(slots.writers), clear(slots.readers);
        __syncthreads();
        if (chained_write()) atomicOr(slots.writers + chain_begin(write.tag), 1u << write_token);
        if (listed_read()) atomicOr(slots.readers + chain_begin(read.tag), 1u << read_token);
        __syncthreads();
        if (chained_write()) {
            const SlotOfAccess slot = write_slot(slots);
            slots.number[slot.begin + slot.write_rank(write_token)] = eta;
        }
        if (listed_read()) {
            const SlotOfAccess slot = read_slot(slots);
            slots.number[slot.begin + slot.read_rank(read_token)] = weight;
        }
        __syncthreads();
    }
};
