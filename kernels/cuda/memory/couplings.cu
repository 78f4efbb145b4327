// What the tokens of a chunk mean to one another, once for all channels (chunk.cuh has the equations).
//
//     couple_forward   A, r~ and eta~ of every access, and lists of the slots that several accesses change
//     couple_backward  the dot products that the masses need. content.cu has those with contents before the chunk and with
//                      adjoints after it. Between them lie the chunk's own tokens, which add <dy_t, v_j> of pairs:
//
//         at a read    <dy_t, content>     content = kept(0, t) s + sum over earlier writes i of kept(i, t) eta_i v_i
//         at a write   <adjoint, v_j>      adjoint = kept(j, all) d + sum over later reads t of kept(j, t) r_t dy_t
//         at a heavy write, a token's first, <adjoint, content before it>, from the same two
//
// An access finds the others of its slot by two masks of 32 tokens, which write the slot and which read it, and by a
// number for each: eta of the slot's writes in order, then the weights of its reads. They begin where the slot's chain does.
//
// Who computes what: one block a chunk, as find_conflicts; thread token * W + k has write k of a token, thread
// token * R + k read k, thread c chain c. Chunks do not depend on one another.
//
// Compiled with: what chunk.cuh asks for.
#include "memory/mass.cuh"

struct CouplingParams {
    MemoryParams memory;
    const MassAccess* writes;        // (B*H, chunks, CHUNK, W)
    const Acc* eta;                  // likewise
    const SlotAccess* reads;         // (B*H, chunks, CHUNK, R)
    const Acc* read_weight;          // (B, T, H, READS)
    TokenEvent *write_events, *read_events;  // (B*H, chunks, CHUNK, W), (.., R): for content.cu
    SlotList *write_lists, *read_lists;      // (B*H, chunks, CHAINS): of slots with several writes; with several of either
    TokenEvent *write_entries, *read_entries;  // (B*H, chunks, WRITE_ENTRIES), (.., READ_ENTRIES): of the lists
    Acc* couplings;                  // (B*H, chunks, COUPLINGS)
    const ELEMENT *values, *dy;      // (B, T, H, C)
    Acc *dy_dot_s, *d_dot_v;         // (slices, B*H, chunks, CHUNK, R), (.., W): what content.cu left. The first slice's
                                     // become those of all channels, for the masses
    const Acc *before_heavy, *after_heavy;  // (B, T, H, C): as content.cu left them
    Acc* d_dot_before;               // (B*H, chunks, CHUNK): of a token's first write, or 0 if it is not heavy
    int channels, slices, sequences;         // C; slices of content.cu; B * H
    int first_batch, first_chunk;            // of the launch
};

DEVICE unsigned tokens_to(int token) { return 2u * (1u << token) - 1; }  // a mask
DEVICE int last_token(unsigned mask) { return 31 - __clz(int(mask)); }    // -1 of none

// The slots of a chunk that have chains, in shared memory, by where a chain begins.
struct ChunkSlots {
    unsigned writers[ENTRIES], readers[ENTRIES];  // masks of tokens
    Acc number[ENTRIES];                          // of an access: eta, or the weight of a read

    DEVICE void clear() {
        for (int i = threadIdx.x; i < ENTRIES; i += THREADS) writers[i] = 0, readers[i] = 0;
    }
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

// A chunk and this thread's two accesses of it.
struct ThreadOfChunk {
    const CouplingParams& p;
    const Sequence sequence;
    const int chunk;
    const long long number, at;  // of the chunk in arrays (B*H, chunks); of its first token in (B*H, chunks, CHUNK)
    const int write_token, write_k, read_token, read_k;
    MassAccess write;
    SlotAccess read;
    Acc eta, weight;

    DEVICE explicit ThreadOfChunk(const CouplingParams& p)
        : p(p), sequence(p.memory, p.first_batch + blockIdx.z, blockIdx.x), chunk(p.first_chunk + blockIdx.y),
          number(sequence.chunk(chunk)), at(number * CHUNK), write_token(threadIdx.x / W), write_k(threadIdx.x % W),
          read_token(threadIdx.x / R), read_k(threadIdx.x % R), write(MassAccess::dead()), read(SlotAccess::dead()), eta(0),
          weight(0) {
        if (write_token < CHUNK) write = load_read_only(p.writes + at * W + threadIdx.x), eta = p.eta[at * W + threadIdx.x];
        if (read_token < CHUNK) read = load_read_only(p.reads + at * R + threadIdx.x);
        const int t = chunk * CHUNK + read_token;
        if (read.live()) weight = p.read_weight[sequence.token(t) * READS + read_k];
    }
    DEVICE bool chained_write() const { return write.live() && write.chained(); }
    DEVICE bool listed_read() const { return read.live() && read.listed(); }
    DEVICE SlotOfAccess write_slot(const ChunkSlots& slots) const { return {slots, chain_begin(int(write.tag))}; }
    DEVICE SlotOfAccess read_slot(const ChunkSlots& slots) const { return {slots, chain_begin(read.tag)}; }

    // Masks and numbers of all slots with chains.
    DEVICE void enter(ChunkSlots& slots) const {
        slots.clear();
        __syncthreads();
        if (chained_write()) atomicOr(slots.writers + chain_begin(int(write.tag)), 1u << write_token);
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

// ---- forward ----

constexpr int READ_LANES = R < 32 ? R : 32, READ_PARTS = R / READ_LANES;  // a token's reads in a warp; warps of a token

// Lists of writes and of reads, and their entries, before a thread's.
struct ListCounts {
    unsigned writes, reads;  // lists | entries << 16

    DEVICE static unsigned of(bool there, int entries) { return there ? 1 | entries << 16 : 0; }
    DEVICE void add(const ListCounts& x) { writes += x.writes, reads += x.reads; }
};

struct ForwardShared {
    ChunkSlots slots;
    Acc coupling[READ_PARTS * CHUNK * CHUNK];  // parts of A_tj
    ListCounts lists_of_warp[THREADS / 32];
    unsigned short write_list[ENTRIES], read_list[ENTRIES];  // where a slot's entries begin, by where its chain does

    DEVICE Acc& part_of(int part, int t, int j) { return coupling[(part * CHUNK + t) * CHUNK + j]; }
};

// A_tj of this thread's token t, from the last j to the first; the lanes of a warp go through j together, so that the reads
// of a token add up in a fixed order. Returns r~.
DEVICE Acc couple(ForwardShared& shared, const ThreadOfChunk& thread) {
    const int token = thread.read_token;
    const bool coupled = thread.read.live() && thread.read.chained();
    const SlotOfAccess slot(shared.slots, coupled ? chain_begin(thread.read.tag) : 0);
    unsigned left = coupled ? slot.writers & tokens_to(token) : 0;
    Acc weight = thread.weight;
    for (;;) {
        const int last = last_token(left), j = __reduce_max_sync(~0u, last);
        if (j < 0) return weight;
        Acc part = 0;
        if (last == j) {
            const Acc eta = slot.number[__popc(left) - 1];
            part = weight * eta, weight *= 1 - eta, left ^= 1u << j;
        }
#pragma unroll
        for (int distance = 1; distance < READ_LANES; distance *= 2) part += __shfl_xor_sync(~0u, part, distance);
        if (thread.read_k % READ_LANES == 0 && j <= token && token < CHUNK)
            shared.part_of(thread.read_k / READ_LANES, token, j) = part;
    }
}

DEVICE void store_read(const ForwardShared& shared, const ThreadOfChunk& thread, Acc weight) {
    const SlotAccess& read = thread.read;
    bool in_list = false;
    if (thread.listed_read()) {
        const SlotOfAccess slot = thread.read_slot(shared.slots);
        const int entry = shared.read_list[slot.begin] + slot.read_rank(thread.read_token) - slot.writes();
        in_list = slot.has_read_list();
        if (in_list) thread.p.read_entries[thread.number * READ_ENTRIES + entry] = {thread.read_token, weight};
    }
    if (thread.read_token >= CHUNK) return;
    thread.p.read_events[thread.at * R + threadIdx.x] = {read.live() ? code_of(read.row, in_list) : 0, read.live() ? weight : Acc(0)};
}

DEVICE void store_write(const ForwardShared& shared, const ThreadOfChunk& thread) {
    const MassAccess& write = thread.write;
    const bool heavy = thread.write_k == 0 && write.heavy();
    bool in_list = false;
    Acc eta = thread.eta;
    if (thread.chained_write()) {
        const SlotOfAccess slot = thread.write_slot(shared.slots);
        const int entry = shared.write_list[slot.begin] + slot.write_rank(thread.write_token);
        const int token = thread.write_token | (heavy ? HEAVY : 0);
        eta *= slot.kept(thread.write_token, CHUNK - 1), in_list = slot.has_write_list();
        if (in_list) thread.p.write_entries[thread.number * WRITE_ENTRIES + entry] = {token, eta};
    }
    if (thread.write_token >= CHUNK) return;
    thread.p.write_events[thread.at * W + threadIdx.x] = {write.live() ? code_of(int(write.row), in_list, heavy) : 0, eta};
}

// This thread's chain, or one without accesses.
DEVICE Chain chain_of_thread(const ThreadOfChunk& thread) {
    const Chain* const chains = thread.p.memory.chains + thread.number * CHAINS;
    const int round = threadIdx.x / CHAINS_PER_ROUND, always = MIN_ROUNDS * CHAINS_PER_ROUND;
    const Chain none = Chain::make(-1, 0, 0, 0);
    if (threadIdx.x >= CHAINS) return none;
    if (int(threadIdx.x) < always) return chains[threadIdx.x];
    return round <= chains[0].last_round() ? chains[threadIdx.x] : none;
}

// The counts of all threads before this one; ``total``: of all.
DEVICE ListCounts counts_before(ForwardShared& shared, const ListCounts& own, ListCounts& total) {
    const int lane = threadIdx.x % 32, own_warp = threadIdx.x / 32;
    ListCounts sum = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const ListCounts lower{__shfl_up_sync(~0u, sum.writes, distance), __shfl_up_sync(~0u, sum.reads, distance)};
        if (lane >= distance) sum.add(lower);
    }
    if (lane == 31) shared.lists_of_warp[own_warp] = sum;
    __syncthreads();
    sum = {sum.writes - own.writes, sum.reads - own.reads}, total = {0, 0};
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++) {
        if (warp < own_warp) sum.add(shared.lists_of_warp[warp]);
        total.add(shared.lists_of_warp[warp]);
    }
    return sum;
}

// The list that a thread has, if it has one, and unused ones. ``before``, ``total``: counts. Lists keep the order of chains.
DEVICE void store_list(SlotList* lists, bool there, int row, int count, unsigned before, unsigned total, Acc kept) {
    const int number = before & 0xffff, all = total & 0xffff, entries = total >> 16;
    const int round = number / GROUPS, group = round % 2 ? GROUPS - 1 - number % GROUPS : number % GROUPS;
    const bool more = list_of_group(round + 1, group) < all;
    if (there) lists[number] = SlotList::make(row, before >> 16, count, more, entries, kept);
    if (int(threadIdx.x) >= all && threadIdx.x < GROUPS) lists[threadIdx.x] = SlotList::make(-1, 0, 0, false, entries, 1);
}

// The lists of the slot of this thread's chain.
DEVICE void store_lists(ForwardShared& shared, const ThreadOfChunk& thread) {
    const Chain chain = chain_of_thread(thread);
    const bool there = chain.count() > 0;
    const SlotOfAccess slot(shared.slots, chain.begin());
    const bool write_list = there && slot.has_write_list(), read_list = there && slot.has_read_list();
    ListCounts total;
    const ListCounts own{ListCounts::of(write_list, slot.writes()), ListCounts::of(read_list, slot.reads())};
    const ListCounts before = counts_before(shared, own, total);
    const Acc kept = write_list ? slot.kept() : Acc(1);
    const long long first = thread.number * CHAINS;
    store_list(thread.p.write_lists + first, write_list, chain.row, slot.writes(), before.writes, total.writes, kept);
    store_list(thread.p.read_lists + first, read_list, chain.row, slot.reads(), before.reads, total.reads, kept);
    if (write_list) shared.write_list[slot.begin] = before.writes >> 16;
    if (read_list) shared.read_list[slot.begin] = before.reads >> 16;
    __syncthreads();
}

// A in blocks, a warp after another.
DEVICE void store_couplings(ForwardShared& shared, Acc* to) {
    constexpr int TOKEN_BLOCKS = (CHUNK + 7) / 8;
    int number = 0;
    for (int t = threadIdx.x % 64 / 8; t < 8 * TOKEN_BLOCKS; t += 8)
        for (int j = threadIdx.x % 8; j < t / 8 * 8 + 8; j += 8, number++) {
            if (number % (THREADS / 64) != int(threadIdx.x / 64)) continue;
            Acc sum = 0;
            for (int part = 0; part < READ_PARTS && t < CHUNK && j < CHUNK; part++) sum += shared.part_of(part, t, j);
            to[coupling_index(t, j)] = sum;
        }
}

extern "C" __global__ void __launch_bounds__(THREADS) couple_forward(const __grid_constant__ CouplingParams p) {
    __shared__ ForwardShared shared;
    const ThreadOfChunk thread(p);
    for (int i = threadIdx.x; i < READ_PARTS * CHUNK * CHUNK; i += THREADS) shared.coupling[i] = 0;
    thread.enter(shared.slots);
    store_lists(shared, thread);
    store_read(shared, thread, couple(shared, thread));
    store_write(shared, thread);
    __syncthreads();
    store_couplings(shared, p.couplings + thread.number * COUPLINGS);
}

// ---- backward ----

constexpr int CHANNELS_AT_ONCE = 128 / sizeof(Acc), PAD = 16 / sizeof(Acc);  // channels in shared memory; their rows are so much longer
constexpr int PAIRS = CHUNK < 16 ? 1 : CHUNK / 16;             // a thread has PAIRS x PAIRS dots <dy_t, v_j>
constexpr int SIDE = CHUNK / PAIRS;                            // threads along t, and along j

struct BackwardShared {
    ChunkSlots slots;
    Acc dot[ENTRIES];               // as content.cu left it, where ``slots`` has the number of the access
    Acc dy_dot_v[CHUNK][CHUNK + 1];
    struct alignas(16) {
        Acc dy[CHUNK][CHANNELS_AT_ONCE + PAD], v[CHUNK][CHANNELS_AT_ONCE + PAD];
    } channels;
};

// <dy_t, v_j> of all pairs of the chunk.
DEVICE void store_pairs(BackwardShared& shared, const ThreadOfChunk& thread) {
    const CouplingParams& p = thread.p;
    const int t = threadIdx.x / SIDE, j = threadIdx.x % SIDE;
    Acc sum[PAIRS][PAIRS] = {};
    for (int first = 0; first < p.channels; first += CHANNELS_AT_ONCE) {
        __syncthreads();
        for (int i = threadIdx.x; i < CHUNK * CHANNELS_AT_ONCE; i += THREADS) {
            const int token = i / CHANNELS_AT_ONCE, channel = i % CHANNELS_AT_ONCE, at_t = thread.chunk * CHUNK + token;
            const bool there = at_t < p.memory.tokens && first + channel < p.channels;
            const long long from = thread.sequence.token(at_t) * p.channels + first + channel;
            shared.channels.dy[token][channel] = there ? Acc(widen(p.dy[from])) : Acc(0);
            shared.channels.v[token][channel] = there ? Acc(widen(p.values[from])) : Acc(0);
        }
        __syncthreads();
        if (t >= SIDE) continue;
#pragma unroll
        for (int channel = 0; channel < CHANNELS_AT_ONCE; channel += PAD) {
            Acc dy[PAIRS][PAD], v[PAIRS][PAD];
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
                load<PAD>(&shared.channels.dy[t + SIDE * i][channel], dy[i]);
                load<PAD>(&shared.channels.v[j + SIDE * i][channel], v[i]);
            }
#pragma unroll
            for (int a = 0; a < PAIRS; a++)
#pragma unroll
                for (int b = 0; b < PAIRS; b++)
#pragma unroll
                    for (int c = 0; c < PAD; c++) sum[a][b] += dy[a][c] * v[b][c];
        }
    }
    if (t < SIDE)
#pragma unroll
        for (int a = 0; a < PAIRS; a++)
#pragma unroll
            for (int b = 0; b < PAIRS; b++) shared.dy_dot_v[t + SIDE * a][j + SIDE * b] = sum[a][b];
}

// <x, content before write or read ``token``'s> of a slot, for an x of which all dots are known: ``dot_s`` with the content
// before the chunk, ``dot_v(j)`` with the values. ``writers``: which writes came before.
template <class DotV> DEVICE Acc dot_with_content(const SlotOfAccess& slot, unsigned writers, Acc dot_s, const DotV& dot_v) {
    Acc sum = 0, kept = 1;
    while (writers) {
        const int j = last_token(writers);
        const Acc eta = slot.number[__popc(writers) - 1];
        sum += kept * eta * dot_v(j), kept *= 1 - eta;
        writers ^= 1u << j;
    }
    return sum + kept * dot_s;
}

// <adjoint after write ``token``, v of it>.
DEVICE Acc dot_with_adjoint(const BackwardShared& shared, const SlotOfAccess& slot, int token, Acc dot_d) {
    Acc sum = 0, kept = 1;
    for (unsigned later = (slot.writers | slot.readers) & ~(tokens_to(token) >> 1); later; later &= later - 1) {
        const int t = last_token(later & -later);
        if (t != token && slot.writers >> t & 1) kept *= 1 - slot.eta(t);
        if (slot.readers >> t & 1) sum += kept * slot.weight(t) * shared.dy_dot_v[t][token];
    }
    return sum + kept * dot_d;
}

// <adjoint after write ``token``, content before it>, the part of it that lane k of ``lanes`` has: the adjoint is a sum over
// later reads and, last, of the adjoint after the chunk.
DEVICE Acc dot_of_both(const BackwardShared& shared, const SlotOfAccess& slot, int token, int k, int lanes, Acc dot_d_s) {
    const unsigned later = slot.readers & ~(tokens_to(token) >> 1), earlier = slot.writers & (tokens_to(token) >> 1);
    const Acc* const dot = shared.dot + slot.begin;
    Acc sum = 0;
    int rank = 0;
    for (unsigned left = later; left; left &= left - 1, rank++) {
        if (rank % lanes != k) continue;
        const int t = last_token(left & -left);
        const auto dot_v = [&](int j) { return shared.dy_dot_v[t][j]; };
        sum += slot.weight(t) * slot.kept(token, t) * dot_with_content(slot, earlier, dot[slot.read_rank(t)], dot_v);
    }
    if (rank % lanes != k) return sum;
    const auto dot_v = [&](int j) { return dot[slot.write_rank(j)]; };
    return sum + slot.kept(token, CHUNK - 1) * dot_with_content(slot, earlier, dot_d_s, dot_v);
}

DEVICE Acc sum_over_slices(const Acc* dots, long long stride, int slices) {
    Acc sum = 0;
#pragma unroll 4
    for (int slice = 0; slice < slices; slice++) sum += load_read_only(dots + slice * stride);
    return sum;
}

constexpr int WRITE_LANES = W < 32 ? W : 32;  // of a token's writes, in one warp

DEVICE Acc sum_over_write_lanes(Acc x) {
#pragma unroll
    for (int distance = 1; distance < WRITE_LANES; distance *= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// Of a token's first write, if it is heavy; all lanes of the token take part.
DEVICE void store_dot_before(const BackwardShared& shared, const ThreadOfChunk& thread) {
    const CouplingParams& p = thread.p;
    const int lane = threadIdx.x % WRITE_LANES, first_lane = threadIdx.x % 32 - lane;
    const bool first = thread.write_k == 0 && thread.write_token < CHUNK, heavy = first && thread.write.heavy();
    const int tag = __shfl_sync(~0u, heavy ? int(thread.write.tag) : DEAD, first_lane);
    Acc sum = 0;
    if (__any_sync(~0u, heavy)) {
        const long long row = thread.sequence.token(thread.chunk * CHUNK + thread.write_token) * p.channels;
        for (int c = lane; tag >= 0 && c < p.channels; c += WRITE_LANES)
            sum += p.after_heavy[row + c] * p.before_heavy[row + c];
        const Acc dot = sum_over_write_lanes(sum);
        sum = lane ? 0 : dot;
        if (tag >= 0 && tag & CHAINED)
            sum = dot_of_both(shared, {shared.slots, chain_begin(tag)}, thread.write_token, lane, WRITE_LANES, dot);
        sum = sum_over_write_lanes(sum);
    }
    if (first) p.d_dot_before[thread.at + thread.write_token] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) couple_backward(const __grid_constant__ CouplingParams p) {
    __shared__ BackwardShared shared;
    const ThreadOfChunk thread(p);
    const long long stride = (long long)(p.sequences) * p.memory.chunks() * CHUNK;  // from slice to slice, in tokens
    Acc* const d_dot_v = p.d_dot_v + thread.at * W + threadIdx.x;
    Acc* const dy_dot_s = p.dy_dot_s + thread.at * R + threadIdx.x;
    Acc dot_v = thread.write.live() ? sum_over_slices(d_dot_v, stride * W, p.slices) : Acc(0);
    Acc dot_s = thread.read.live() ? sum_over_slices(dy_dot_s, stride * R, p.slices) : Acc(0);
    thread.enter(shared.slots);
    const bool chained_read = thread.listed_read() && thread.read.chained();
    const SlotOfAccess write_slot(shared.slots, thread.chained_write() ? chain_begin(int(thread.write.tag)) : 0);
    const SlotOfAccess read_slot(shared.slots, chained_read ? chain_begin(thread.read.tag) : 0);
    if (thread.chained_write()) shared.dot[write_slot.begin + write_slot.write_rank(thread.write_token)] = dot_v;
    if (chained_read) shared.dot[read_slot.begin + read_slot.read_rank(thread.read_token)] = dot_s;
    store_pairs(shared, thread);
    __syncthreads();
    if (thread.chained_write()) dot_v = dot_with_adjoint(shared, write_slot, thread.write_token, dot_v);
    if (chained_read) {
        const auto dot_with_value = [&](int j) { return shared.dy_dot_v[thread.read_token][j]; };
        dot_s = dot_with_content(read_slot, read_slot.writers & tokens_to(thread.read_token), dot_s, dot_with_value);
    }
    if (thread.write_token < CHUNK) *d_dot_v = dot_v;
    if (thread.read_token < CHUNK) *dy_dot_s = dot_s;
    store_dot_before(shared, thread);
}
