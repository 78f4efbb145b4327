// What the tokens of a chunk mean to one another, once for all channels (chunk.cuh has the equations): A, r~ and eta~ of every
// access, and lists of the slots that several accesses change.
//
// Who computes what: see couplings.cuh; thread c has the lists of the slot of chain c.
//
// Compiled with: what chunk.cuh and couplings.cuh ask for, and the definition below.
#include "memory/couplings.cuh"

#ifndef GRADIENTS
#error "GRADIENTS (a backward follows, which needs lists of reads and couplings by writer) must be 0 or 1"
#endif

constexpr int READ_LANES = R < 32 ? R : 32, READ_PARTS = R / READ_LANES;  // a token's reads in a warp; warps of a token

// Lists of writes and of reads, and their entries, before a thread's.
struct ListCounts {
    unsigned writes, reads;  // lists | entries << 16

    DEVICE static unsigned of(bool there, int entries) { return there ? 1 | entries << 16 : 0; }
    DEVICE void add(const ListCounts& x) { writes += x.writes, reads += x.reads; }
};

// A list of writes as the slot's first write names it.
struct NamedList {
    int row, begin;   // of the slot; of its chain
    unsigned before;  // lists | entries << 16, of as long lists that were named before
};

// The lists of writes of a chunk, where no backward follows: then there are no headers of chains.
struct NamedLists {
    NamedList list[WRITE_LISTS];
    unsigned of_length[32];  // lists | entries << 16, by the number of entries, less 1
    int count;

    DEVICE void clear() {
        if (threadIdx.x < 32) of_length[threadIdx.x] = 0;
        if (threadIdx.x == 32) count = 0;
    }
    DEVICE void name(const ThreadOfChunk& thread, const ChunkSlots& slots) {
        if (!thread.chained_write()) return;
        const SlotOfAccess slot = thread.write_slot(slots);
        if (!slot.has_write_list() || slot.write_rank(thread.write_token)) return;
        const unsigned before = atomicAdd(&of_length[slot.writes() - 1], 1u | unsigned(slot.writes()) << 16);
        list[atomicAdd(&count, 1)] = {thread.write.row, slot.begin, before};
    }
};

struct ForwardShared {
    ChunkSlots slots;
    alignas(16) Acc coupling[READ_PARTS * CHUNK * (CHUNK + 1)];  // parts of A_tj
    unsigned row[32], column[32];                                // masks: where a row of A, and a column, is not 0
    ListCounts lists_of_warp[THREADS / 32];
    int pairs;                                               // of A that are not 0
    unsigned short write_list[ENTRIES], read_list[ENTRIES];  // where a slot's entries begin, by where its chain does
    NamedLists named;                                        // only without GRADIENTS

    DEVICE static int place_of(int part, int t, int j) { return (part * CHUNK + t) * (CHUNK + 1) + j; }
    DEVICE void add_part(int part, int t, int j, Acc a) {
        coupling[place_of(part, t, j)] = a;
        atomicOr(row + t, 1u << j);
        if (GRADIENTS) atomicOr(column + j, 1u << t);
    }
    // Not 0, of those that ``row`` and ``column`` name. Nobody sets the others, unless a token has several parts.
    DEVICE Acc coupling_of(int t, int j) const {
        Acc sum = coupling[place_of(0, t, j)];
#pragma unroll
        for (int part = 1; part < READ_PARTS; part++) sum += coupling[place_of(part, t, j)];
        return sum;
    }
};

// A read's share of A_tj, from the last j to the first.
struct CoupledRead {
    const SlotOfAccess slot;
    unsigned left;  // the earlier tokens that write the read's slot, as a mask
    Acc weight;     // r~, once none is left

    DEVICE Acc take(int j) {
        const Acc eta = slot.number[__popc(left) - 1], share = weight * eta;
        weight *= 1 - eta, left ^= 1u << j;
        return share;
    }
};

// A_tj of this thread's token t. Returns r~.
DEVICE Acc couple(ForwardShared& shared, const ThreadOfChunk& thread) {
    const bool coupled = thread.read.live() && thread.read.chained();
    const SlotOfAccess slot(shared.slots, coupled ? chain_begin(thread.read.tag) : 0);
    CoupledRead read{slot, coupled ? slot.writers & tokens_to(thread.read_token) : 0, thread.weight};
    const int t = thread.read_token, part = thread.read_k / READ_LANES;
    unsigned of_token = read.left, twice = 0;  // the tokens j of any of the token's reads; those of several
#pragma unroll
    for (int distance = 1; distance < READ_LANES; distance *= 2) {
        const unsigned others = __shfl_xor_sync(~0u, of_token, distance);
        twice |= of_token & others, of_token |= others;
    }
    if (READ_LANES <= 8 && !__any_sync(~0u, twice)) {  // as seldom as random addresses: nothing to add up
        while (read.left) {
            const int j = last_token(read.left);
            const Acc share = read.take(j);
            if (share != 0) shared.add_part(part, t, j, share);
        }
        return read.weight;
    }
    // the lanes of a token go through its j together, so that its reads add up in a fixed order
    while (__any_sync(~0u, of_token)) {
        const int j = last_token(of_token);
        Acc sum = 0;
        if (of_token) {
            of_token ^= 1u << j;
            if (read.left >> j & 1) sum = read.take(j);
        }
#pragma unroll
        for (int distance = 1; distance < READ_LANES; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        if (thread.read_k % READ_LANES == 0 && sum != 0) shared.add_part(part, t, j, sum);
    }
    return read.weight;
}

DEVICE void store_read(const ForwardShared& shared, const ThreadOfChunk& thread, ChunkRecord& record, Acc weight) {
    const SlotAccess& read = thread.read;
    bool in_list = false;
    if (GRADIENTS && thread.listed_read()) {
        const SlotOfAccess slot = thread.read_slot(shared.slots);
        const int entry = shared.read_list[slot.begin] + slot.read_rank(thread.read_token) - slot.writes();
        in_list = slot.has_read_list();
        if (in_list) record.read_entries[entry] = {thread.read_token, weight};
    }
    const int code = read.live() ? code_of(read.row, in_list) : 0, place = place_in_token<R>(thread.read_token, thread.read_k, code);
    if (in_chunk(thread.read_token, R)) record.reads[thread.read_token * R + place] = {code, read.live() ? weight : Acc(0)};
}

DEVICE void store_write(const ForwardShared& shared, const ThreadOfChunk& thread, ChunkRecord& record) {
    const SlotAccess& write = thread.write;
    const bool heavy = thread.write_k == 0 && write.heavy();
    bool in_list = false;
    Acc eta = thread.eta;
    if (thread.chained_write()) {
        const SlotOfAccess slot = thread.write_slot(shared.slots);
        const int entry = shared.write_list[slot.begin] + slot.write_rank(thread.write_token);
        const int token = thread.write_token | (heavy ? HEAVY : 0);
        eta *= slot.kept(thread.write_token, CHUNK - 1), in_list = slot.has_write_list();
        if (in_list) record.write_entries[entry] = {token, eta};
    }
    const int code = write.live() ? code_of(write.row, in_list, heavy) : 0, place = place_in_token<W>(thread.write_token, thread.write_k, code);
    if (in_chunk(thread.write_token, W)) record.writes[thread.write_token * W + place] = {code, eta};
}

// The chains that are always there are asked for with everything else; the others when they are needed.
struct ChainOfThread {
    static constexpr int ALWAYS = MIN_ROUNDS * CHAINS_PER_ROUND;
    const Chain* const chains;  // of the chunk
    const Chain chain;          // the thread's; beyond ALWAYS the chunk's first, which says how many there are

    DEVICE explicit ChainOfThread(const ThreadOfChunk& thread)
        : chains(thread.p.memory.chains + thread.number * CHAINS), chain(chains[threadIdx.x < ALWAYS ? threadIdx.x : 0]) {}
    // The thread's chain, or one without accesses.
    DEVICE Chain get() const {
        if (int(threadIdx.x) < ALWAYS) return chain;
        const bool there = int(threadIdx.x) < CHAINS && int(threadIdx.x) / CHAINS_PER_ROUND <= chain.last_round();
        return there ? chains[threadIdx.x] : Chain::make(-1, 0, 0, 0);
    }
};

// The counts of this thread and those before it in its warp.
DEVICE ListCounts counts_in_warp(ListCounts sum) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const ListCounts lower{__shfl_up_sync(~0u, sum.writes, distance), __shfl_up_sync(~0u, sum.reads, distance)};
        if (int(threadIdx.x) % 32 >= distance) sum.add(lower);
    }
    return sum;
}

// The list that a thread has, if it has one, and unused ones. ``before``, ``total``: counts. Lists keep the order of chains.
DEVICE void store_list(SlotList* lists, bool there, int row, int count, unsigned before, unsigned total, int coupled, Acc kept) {
    const int number = before & 0xffff, all = total & 0xffff, entries = total >> 16;
    const int round = number / GROUPS, group = round % 2 ? GROUPS - 1 - number % GROUPS : number % GROUPS;
    const bool more = list_of_group(round + 1, group) < all;
    if (there) lists[number] = SlotList::make(row, before >> 16, count, more, entries, coupled, kept);
    if (int(threadIdx.x) >= all && threadIdx.x < GROUPS) lists[threadIdx.x] = SlotList::make(-1, 0, 0, false, entries, coupled, 1);
}

// The lists of the slot of this thread's chain; warps without chains have nothing to count or store.
DEVICE void store_lists(ForwardShared& shared, ChunkRecord& record, const ChainOfThread& of_thread) {
    const int own_warp = threadIdx.x / 32;
    const Chain chain = of_thread.get();
    const bool there = chain.count() > 0, needed = __any_sync(~0u, there);
    const SlotOfAccess slot(shared.slots, chain.begin());
    const bool write_list = there && slot.has_write_list(), read_list = there && slot.has_read_list();
    const ListCounts own{ListCounts::of(write_list, slot.writes()), ListCounts::of(read_list, slot.reads())};
    ListCounts before{0, 0}, total{0, 0};
    if (needed) before = counts_in_warp(own);
    if (threadIdx.x % 32 == 31) shared.lists_of_warp[own_warp] = before;
    __syncthreads();
    if (needed || threadIdx.x < GROUPS) {
        before = {before.writes - own.writes, before.reads - own.reads};
#pragma unroll
        for (int warp = 0; warp < THREADS / 32; warp++) {
            if (warp < own_warp) before.add(shared.lists_of_warp[warp]);
            total.add(shared.lists_of_warp[warp]);
        }
        const Acc kept = write_list ? slot.kept() : Acc(1);
        const int coupled = (shared.pairs + PAIRS_AT_ONCE - 1) / PAIRS_AT_ONCE;
        store_list(record.write_lists, write_list, chain.row, slot.writes(), before.writes, total.writes, coupled, kept);
        store_list(record.read_lists, read_list, chain.row, slot.reads(), before.reads, total.reads, coupled, kept);
        if (write_list) shared.write_list[slot.begin] = before.writes >> 16;
        if (read_list) shared.read_list[slot.begin] = before.reads >> 16;
    }
    __syncthreads();
}

// The same without headers of chains, and of writes only: thread c has the list that was named as number c.
DEVICE void store_named_lists(ForwardShared& shared, ChunkRecord& record) {
    const NamedLists& named = shared.named;
    const bool there = int(threadIdx.x) < named.count, needed = threadIdx.x < GROUPS || __any_sync(~0u, there);
    const int lane = threadIdx.x % 32;
    unsigned before = 0, total = 0;
    NamedList own{-1, 0, 0};
    SlotOfAccess slot(shared.slots, 0);
    if (needed) {
        // long lists come first, so that the groups of a warp, which stay together, have lists of nearly one length
        const unsigned of_length = named.of_length[31 - lane];
        unsigned sum = of_length;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const unsigned longer = __shfl_up_sync(~0u, sum, distance);
            if (lane >= distance) sum += longer;
        }
        total = __shfl_sync(~0u, sum, 31);
        if (there) own = named.list[threadIdx.x], slot = SlotOfAccess(shared.slots, own.begin);
        before = own.before + __shfl_sync(~0u, sum - of_length, there ? 32 - slot.writes() : 0);
        if (there) shared.write_list[slot.begin] = before >> 16;
    }
    __syncthreads();
    if (!needed) return;
    const int coupled = (shared.pairs + PAIRS_AT_ONCE - 1) / PAIRS_AT_ONCE;
    store_list(record.write_lists, there, own.row, slot.writes(), before, total, coupled, there ? slot.kept() : Acc(1));
}

// The lists of rows of A, or of columns if TRANSPOSED: each lane of a warp has one. Returns the number of all pairs.
template <bool TRANSPOSED> DEVICE int store_pairs(const ForwardShared& shared, CouplingLists& lists) {
    const int lane = threadIdx.x % 32;
    unsigned others = TRANSPOSED ? shared.column[lane] : shared.row[lane];
    const int count = __popc(others);
    int end = count;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int lower = __shfl_up_sync(~0u, end, distance);
        if (lane >= distance) end += lower;
    }
    const int begin = end - count;
    if (lane < CHUNK) lists.of_token[lane] = begin | count << 16;
    for (TokenEvent* to = lists.pairs + begin; others; others &= others - 1, to++) {
        const int other = last_token(others & -others);
        *to = {other, TRANSPOSED ? shared.coupling_of(other, lane) : shared.coupling_of(lane, other)};
    }
    return __shfl_sync(~0u, end, 31);
}

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(Acc) == 4 ? 6 : 4)
couple_forward(const __grid_constant__ CouplingParams p) {
    __shared__ ForwardShared of_block;
    ForwardShared& shared = computed_once(of_block);
    const ThreadOfChunk thread(p);
    const ChainOfThread chain(thread);
    if (READ_PARTS > 1) clear(shared.coupling);
    if (threadIdx.x < 32) shared.row[threadIdx.x] = shared.column[threadIdx.x] = 0;
    if (!GRADIENTS) shared.named.clear();
    thread.enter(shared.slots);
    const Acc weight = couple(shared, thread);
    if (!GRADIENTS) shared.named.name(thread, shared.slots);
    __syncthreads();
    ChunkRecord& record = *computed_once(p.records + thread.number);
    // the last two warps, which seldom have chains
    if (GRADIENTS && threadIdx.x / 32 == THREADS / 32 - 2) store_pairs<true>(shared, record.by_writer);
    if (threadIdx.x / 32 == THREADS / 32 - 1) {
        const int pairs = store_pairs<false>(shared, record.by_reader);
        if (threadIdx.x % 32 == 0) shared.pairs = pairs;
    }
    if (GRADIENTS)
        store_lists(shared, record, chain);
    else
        store_named_lists(shared, record);
    store_read(shared, thread, record, weight);
    store_write(shared, thread, record);
}
