// What the tokens of a chunk mean to one another, once for all channels (chunk.cuh has the equations): A, r~ and eta~ of every
// access, and lists of the slots that several accesses change.
//
// Who computes what: see couplings.cuh; thread c has the lists of the slot of chain c.
//
// Compiled with: what chunk.cuh and couplings.cuh ask for.
#include "memory/couplings.cuh"


constexpr int READ_LANES = R < 32 ? R : 32, READ_PARTS = R / READ_LANES;  // a token's reads in a warp; warps of a token

// Lists of writes and of reads, and their entries, before a thread's.
struct ListCounts {
    unsigned writes, reads;  // lists | entries << 16

    DEVICE static unsigned of(bool there, int entries) { return there ? 1 | entries << 16 : 0; }
    DEVICE void add(const ListCounts& x) { writes += x.writes, reads += x.reads; }
};

struct ForwardShared {
    ChunkSlots slots;
    alignas(16) Acc coupling[READ_PARTS * CHUNK * (CHUNK + 1)];  // parts of A_tj
    int others_of_row[32], others_of_column[32];                 // couplings that are not 0
    ListCounts lists_of_warp[THREADS / 32];
    unsigned short write_list[ENTRIES], read_list[ENTRIES];  // where a slot's entries begin, by where its chain does

    DEVICE Acc& part_of(int part, int t, int j) { return coupling[(part * CHUNK + t) * (CHUNK + 1) + j]; }
    DEVICE Acc coupling_of(int t, int j) {
        Acc sum = 0;
#pragma unroll
        for (int part = 0; part < READ_PARTS; part++)
            sum += part_of(part, t, j);
        return sum;
    }
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

DEVICE void store_read(const ForwardShared& shared, const ThreadOfChunk& thread, ChunkRecord& record, Acc weight) {
    const SlotAccess& read = thread.read;
    bool in_list = false;
    if (thread.listed_read()) {
        const SlotOfAccess slot = thread.read_slot(shared.slots);
        const int entry = shared.read_list[slot.begin] + slot.read_rank(thread.read_token) - slot.writes();
        in_list = slot.has_read_list();
        if (in_list) record.read_entries[entry] = {thread.read_token, weight};
    }
    if (thread.read_token >= CHUNK) return;
    record.reads[threadIdx.x] = {read.live() ? code_of(read.row, in_list) : 0, read.live() ? weight : Acc(0)};
}

DEVICE void store_write(const ForwardShared& shared, const ThreadOfChunk& thread, ChunkRecord& record) {
    const MassAccess& write = thread.write;
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
    if (thread.write_token >= CHUNK) return;
    record.writes[threadIdx.x] = {write.live() ? code_of(int(write.row), in_list, heavy) : 0, eta};
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
DEVICE void store_list(SlotList* lists, bool there, int row, int count, unsigned before, unsigned total, int coupled, Acc kept) {
    const int number = before & 0xffff, all = total & 0xffff, entries = total >> 16;
    const int round = number / GROUPS, group = round % 2 ? GROUPS - 1 - number % GROUPS : number % GROUPS;
    const bool more = list_of_group(round + 1, group) < all;
    if (there) lists[number] = SlotList::make(row, before >> 16, count, more, entries, coupled, kept);
    if (int(threadIdx.x) >= all && threadIdx.x < GROUPS) lists[threadIdx.x] = SlotList::make(-1, 0, 0, false, entries, coupled, 1);
}

// The lists of the slot of this thread's chain.
DEVICE void store_lists(ForwardShared& shared, ChunkRecord& record, const Chain& chain, int coupled) {
    const bool there = chain.count() > 0;
    const SlotOfAccess slot(shared.slots, chain.begin());
    const bool write_list = there && slot.has_write_list(), read_list = there && slot.has_read_list();
    ListCounts total;
    const ListCounts own{ListCounts::of(write_list, slot.writes()), ListCounts::of(read_list, slot.reads())};
    const ListCounts before = counts_before(shared, own, total);
    const Acc kept = write_list ? slot.kept() : Acc(1);
    store_list(record.write_lists, write_list, chain.row, slot.writes(), before.writes, total.writes, coupled, kept);
    store_list(record.read_lists, read_list, chain.row, slot.reads(), before.reads, total.reads, coupled, kept);
    if (write_list) shared.write_list[slot.begin] = before.writes >> 16;
    if (read_list) shared.read_list[slot.begin] = before.reads >> 16;
    __syncthreads();
}

// The lists of rows of A, or of columns if TRANSPOSED: a warp has some of them, a lane one number of each.
template <bool TRANSPOSED> struct Lines {
    static constexpr int WARPS = THREADS / 32, COUNT = (CHUNK + WARPS - 1) / WARPS;
    ForwardShared& shared;
    int* const count_of;  // every line's numbers that are not 0
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned others[COUNT];  // a mask: where a line is not 0

    DEVICE explicit Lines(ForwardShared& shared)
        : shared(shared), count_of(TRANSPOSED ? shared.others_of_column : shared.others_of_row) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            others[i] = __ballot_sync(~0u, there(i) && number(warp + i * WARPS) != 0);
            if (lane == 0) count_of[warp + i * WARPS] = __popc(others[i]);
        }
    }
    DEVICE bool there(int i) const { return CHUNK == 32 || (lane < CHUNK && warp + i * WARPS < CHUNK); }
    DEVICE Acc number(int own) const { return TRANSPOSED ? shared.coupling_of(lane, own) : shared.coupling_of(own, lane); }
    // After a barrier. Returns the number of all, in PAIRS_AT_ONCE.
    DEVICE int store(CouplingLists& lists) const {
        const int count = lane < CHUNK ? count_of[lane] : 0;
        int end = count;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int lower = __shfl_up_sync(~0u, end, distance);
            if (lane >= distance) end += lower;
        }
        if (warp == 0 && lane < CHUNK) lists.of_token[lane] = (end - count) | count << 16;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int own = warp + i * WARPS, begin = __shfl_sync(~0u, end - count, own);
            if (others[i] >> lane & 1)
                lists.pairs[begin + __popc(others[i] & ((1u << lane) - 1))] = {lane, number(own)};
        }
        return (__shfl_sync(~0u, end, 31) + PAIRS_AT_ONCE - 1) / PAIRS_AT_ONCE;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(Acc) == 4 ? 6 : 4)
couple_forward(const __grid_constant__ CouplingParams p) {
    __shared__ ForwardShared shared;
    const ThreadOfChunk thread(p);
    const Chain chain = chain_of_thread(thread);
    clear(shared.coupling);
    thread.enter(shared.slots);
    const Acc weight = couple(shared, thread);
    __syncthreads();
    const Lines<false> rows(shared);
    const Lines<true> columns(shared);
    __syncthreads();
    ChunkRecord& record = *computed_once(p.records + thread.number);
    columns.store(record.by_writer);
    store_lists(shared, record, chain, rows.store(record.by_reader));
    store_read(shared, thread, record, weight);
    store_write(shared, thread, record);
}
