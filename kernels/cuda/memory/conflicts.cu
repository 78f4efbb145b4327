// Which accesses of a chunk share a slot: the chains, and for every access where it stands in its chain (chunk.cuh).
// Chunks do not depend on one another here, so all are worked through at once.
//
// A table in shared memory has a cell for each slot that the chunk touches, with two masks of 32 tokens: which write it and
// which read it. With few rows a slot's row says which cell; with many the table is a hash table. The masks say all of a slot's accesses in order, so nothing needs sorting: an access' rank in its
// chain is the number of bits below its own. Timing decides which access claims a cell, and the order of chains of one
// length. It decides nothing else, and it changes no result.
//
// The kernel also computes what depends on nothing else for the masses: what a write leaves of its slot's mass (alpha),
// and what the chunk's writes before an access make of the mass, so that mass_forward.cu follows no chains.
//
// Who computes what: block (head, chunk, batch counted from the last), heads first because they share lines of memory. A
// packed row's chunks are those of all its sequences. Thread token * W + k has write k of a token, and thread token * R + k
// its read k.
//
// Compiled with: what chunk.cuh and retention.cuh ask for, and the definitions below.
#include "memory/mass.cuh"
#include "memory/retention.cuh"

#if !defined(DIRECT) || !defined(GRADIENTS)
#error "DIRECT (there are no more rows than cells) and GRADIENTS (a backward follows) must be 0 or 1"
#endif

struct ConflictParams {
    MemoryParams memory;
    MassAccess* writes;            // (B*H, chunks, CHUNK, W)
    Affine* change_before;         // likewise, chained writes by their number: the change by those before
    SlotAccess* reads;             // (B*H, chunks, CHUNK, R)
    MassAccess* mass_reads;        // likewise, or null if reads are not mass-aware
    int first_batch, first_chunk;  // of the launch
};

DEVICE constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }
constexpr int CELLS = 2 * power_of_two(ENTRIES);
constexpr int LENGTHS = 32;  // of chains that are told apart, a lane each; longer ones count as the longest

struct TokenOfThread {
    int number;  // in the chunk
    bool live;
    long long row;  // in arrays (B, T, H)

    DEVICE TokenOfThread(const Sequence& sequence, int chunk, unsigned width) : number(int(threadIdx.x / width)) {
        const int t = chunk * CHUNK + number;
        live = in_chunk(number, width) && sequence.live(t), row = sequence.token(t);
    }
};

struct Access {
    int token, k, row, cell;
    Acc weight;
    bool live;

    DEVICE Access(const TokenOfThread& token, unsigned width, int top_k, const int* rows, const Acc* weights)
        : token(token.number), k(int(threadIdx.x % width)), row(-1), cell(0), weight(0) {
        if (token.live && k < top_k) {
            const long long from = token.row * top_k + k;
            row = rows[from], weight = weights[from];
        }
        live = row >= 0;
    }
};

// What an access is in its slot's chain.
struct Role {
    bool with_writes;  // the chain has writes
    bool listed;       // the access is in a chain
    bool leads, last;  // first in its chain; the chunk's last write to the slot
    int size, rank;
};

// Five running counts packed into two words, for a prefix sum over the block. mixed: entries | chains | writes, of chains
// with writes. other: entries | chains, of read-only chains, which only a backward needs.
struct alignas(8) Tally {
    unsigned mixed, other;

    DEVICE static Tally mixed_chain(int entries) { return {unsigned(entries) | 1 << 10, 0}; }
    DEVICE static Tally chained_write() { return {1 << 20, 0}; }
    DEVICE static Tally read_only_chain(int entries) { return {0, unsigned(entries) | 1 << 10}; }
    DEVICE void add(const Tally& x) { mixed += x.mixed, other += x.other; }
    DEVICE int mixed_entries() const { return mixed & 1023; }
    DEVICE int mixed_chains() const { return mixed >> 10 & 1023; }
    DEVICE int chained_writes() const { return mixed >> 20; }
    DEVICE int read_only_entries() const { return other & 1023; }
    DEVICE int read_only_chains() const { return other >> 10; }
};

// Prefix sums over a block: those over the warps before each warp, and last over all. All 0 to begin with.
struct WarpTallies {
    Tally before[THREADS / 32 + 1];

    DEVICE void clear() {
        if (threadIdx.x <= THREADS / 32) before[threadIdx.x] = {0, 0};
    }
    // The sum of ``own`` over all threads before this one; ``total``: over all.
    DEVICE Tally before_thread(const Tally& own, Tally& total) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        Tally sum = own;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const Tally lower{__shfl_up_sync(~0u, sum.mixed, distance), GRADIENTS ? __shfl_up_sync(~0u, sum.other, distance) : 0};
            if (lane >= distance) sum.add(lower);
        }
        const Tally of_warp{__shfl_sync(~0u, sum.mixed, 31), GRADIENTS ? __shfl_sync(~0u, sum.other, 31) : 0};
        if (lane > warp && lane <= THREADS / 32) {
            atomicAdd(&before[lane].mixed, of_warp.mixed);
            if (GRADIENTS) atomicAdd(&before[lane].other, of_warp.other);
        }
        __syncthreads();
        total = before[THREADS / 32];
        sum.add(before[warp]);
        return {sum.mixed - own.mixed, sum.other - own.other};
    }
};

// Places of two chains, which a thread's write and its read lead, among the chains with writes.
struct ChainPlaces {
    int write, read;
};

// The table of a chunk, in shared memory.
struct ConflictTable {
    alignas(16) int slots[DIRECT ? 4 : CELLS];          // or -1; only of a hash table
    alignas(16) unsigned writers[CELLS], readers[CELLS];  // masks of tokens
    unsigned short begin[CELLS];                        // of the slot's chain
    Affine change_at[ENTRIES];                          // by the entries of chains
    int chains_of_length[LENGTHS];                      // with writes
    WarpTallies tallies;

    DEVICE void clear() {
        struct alignas(16) Four {
            int at[4];
        };
        static_assert(CELLS / 4 <= THREADS, "one a thread");
        tallies.clear();
        if (threadIdx.x < LENGTHS) chains_of_length[threadIdx.x] = 0;
        if (threadIdx.x < CELLS / 4) {
            if (!DIRECT) reinterpret_cast<Four*>(slots)[threadIdx.x] = {-1, -1, -1, -1};
            reinterpret_cast<Four*>(writers)[threadIdx.x] = {};
            reinterpret_cast<Four*>(readers)[threadIdx.x] = {};
        }
    }
    // Finds or claims the cell of an access' slot, and sets its token's bit in ``masks``.
    DEVICE void mark(Access& access, unsigned* masks) {
        if (!access.live) return;
        access.cell = access.row & (CELLS - 1);
        while (!DIRECT) {
            const int seen = atomicCAS(slots + access.cell, -1, access.row);
            if (seen == -1 || seen == access.row) break;
            access.cell = (access.cell + 1) & (CELLS - 1);
        }
        atomicOr(masks + access.cell, 1u << access.token);
    }
    DEVICE Role role_of(const Access& access, bool is_read) const {
        Role role;
        const unsigned written = access.live ? writers[access.cell] : 0, read = access.live ? readers[access.cell] : 0;
        const unsigned before = (1u << access.token) - 1;
        role.with_writes = written & (written - 1) || (written && read);
        role.listed = role.with_writes || (GRADIENTS && is_read && read & (read - 1));
        role.size = (role.with_writes ? __popc(written) : 0) + __popc(read);
        const int writes_before = __popc(written & before) + (is_read ? int(written >> access.token & 1) : 0);
        role.rank = (role.with_writes ? writes_before : 0) + __popc(read & before);
        role.leads = role.listed & (role.rank == 0);
        role.last = !is_read & (written >> access.token == 1);
        return role;
    }
    // Of the chains with writes that this thread's accesses lead: how many as long were counted before.
    DEVICE ChainPlaces count_lengths(const Role& write, const Role& read) {
        return {count_length(write, true), count_length(read, read.with_writes)};
    }
    DEVICE int count_length(const Role& role, bool with_writes) {
        return role.leads && with_writes ? atomicAdd(&chains_of_length[length_of(role)], 1) : 0;
    }
    // Their places, long before short. All lanes ask together; when all chains are counted.
    DEVICE ChainPlaces places(const Role& write, const Role& read, const ChainPlaces& counted) const {
        const int lane = threadIdx.x % 32, own = chains_of_length[LENGTHS - 1 - lane];
        int sum = own;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int lower = __shfl_up_sync(~0u, sum, distance);
            if (lane >= distance) sum += lower;
        }
        const int longer = sum - own;
        return {
            counted.write + __shfl_sync(~0u, longer, LENGTHS - 1 - length_of(write)),
            counted.read + __shfl_sync(~0u, longer, LENGTHS - 1 - length_of(read))};
    }
    DEVICE static int length_of(const Role& role) { return smaller_of(role.size, LENGTHS - 1); }
    // The change of the mass by the entries of a chain from ``begin`` up to ``end``.
    DEVICE Affine change_between(int begin, int end) const {
        Affine sum{1, 0};
#pragma unroll 1
        for (int i = begin; i < end; i++) {
            const Affine next = change_at[i];
            sum = {next.a * sum.a, next(sum.b)};
        }
        return sum;
    }
};

DEVICE Tally tally_of(const Role& write, const Role& read) {
    Tally own{0, 0};
    if (write.leads) own.add(Tally::mixed_chain(write.size));
    if (read.leads) own.add(read.with_writes ? Tally::mixed_chain(read.size) : Tally::read_only_chain(read.size));
    if (write.with_writes) own.add(Tally::chained_write());
    return own;
}

// The headers of a chunk's chains, for a backward; the access that leads a chain writes its header.
struct ChainHeaders {
    Chain* chains;
    ConflictTable& table;
    const Tally total;
    int count, last_round;

    DEVICE ChainHeaders(Chain* chains, ConflictTable& table, const Tally& total)
        : chains(chains), table(table), total(total), count(total.mixed_chains() + total.read_only_chains()),
          last_round((count ? count - 1 : 0) / CHAINS_PER_ROUND) {}

    // Where an access' chain begins. ``before``: the counts of all accesses before this one.
    DEVICE int begin_of(bool with_writes, const Tally& before) const {
        return with_writes ? before.mixed_entries() : total.mixed_entries() + before.read_only_entries();
    }
    DEVICE void begin(const Access& access, const Role& role, bool with_writes, const Tally& before) const {
        if (role.leads) table.begin[access.cell] = begin_of(with_writes, before);
    }
    // Chains with writes first, long before short, so that the groups of a warp, which stay together, follow chains of
    // nearly one length.
    DEVICE void store(
        const Access& write, const Role& write_role, const Access& read, const Role& read_role, const Tally& before,
        const Tally& before_read, const ChainPlaces& counted
    ) const {
        const ChainPlaces places = table.places(write_role, read_role, counted);
        if (write_role.leads) store_at(places.write, write, write_role, begin_of(true, before));
        const bool with_writes = read_role.with_writes;
        const int number = with_writes ? places.read : total.mixed_chains() + before_read.read_only_chains();
        if (read_role.leads) store_at(number, read, read_role, begin_of(with_writes, before_read));
        pad();
    }
    DEVICE void store_at(int number, const Access& access, const Role& role, int begin) const {
        chains[number] = Chain::make(access.row, begin, role.size, last_round);
    }
    // Empty ones, to whole rounds.
    DEVICE void pad() const {
        const int rounds = last_round < MIN_ROUNDS ? MIN_ROUNDS : last_round + 1;
        if (int(threadIdx.x) >= count && int(threadIdx.x) < rounds * CHAINS_PER_ROUND)
            chains[threadIdx.x] = Chain::make(-1, 0, 0, last_round);
    }
};

// ``at``: the chunk's first token, in arrays (B*H, chunks, CHUNK); ``number``: among the chunk's writes in chains.
DEVICE void store_write(
    const ConflictParams& p, ConflictTable& table, long long at, const Access& write, const Role& role, const Affine& change,
    int number
) {
    int tag = write.live ? (role.last ? LAST : 0) : DEAD;
    if (role.with_writes) {
        const int begin = table.begin[write.cell], entry = begin + role.rank;
        table.change_at[entry] = change;
        tag |= CHAINED | access_tag(entry, begin, number);
    }
    if (in_chunk(write.token, W)) p.writes[at * W + threadIdx.x] = {write.live ? write.row : 0, tag, change};
}

// Returns the read's tag.
DEVICE int store_read(const ConflictParams& p, ConflictTable& table, long long at, const Access& read, const Role& role) {
    int tag = read.live ? 0 : DEAD;
    if (role.listed) {
        const int begin = table.begin[read.cell], entry = begin + role.rank;
        table.change_at[entry] = {1, 0};  // a read leaves the mass as it is
        tag = LISTED | (role.with_writes ? CHAINED : 0) | access_tag(entry, begin, 0);
    }
    if (in_chunk(read.token, R)) p.reads[at * R + threadIdx.x] = {read.live ? read.row : 0, tag};
    return tag;
}

// The changes of the mass by the chunk's writes before a chained write, and before a read.
DEVICE void store_changes_before(
    const ConflictParams& p, const ConflictTable& table, long long at, const Access& write, const Role& write_role, int number,
    const Access& read, int read_tag
) {
    if (write_role.with_writes) {
        const int begin = table.begin[write.cell];
        p.change_before[at * W + number] = table.change_between(begin, begin + write_role.rank);
    }
    if (!p.mass_reads || !in_chunk(read.token, R)) return;
    const int begin = chain_begin(read_tag), end = read_tag & CHAINED ? entry_index(read_tag) : begin;
    p.mass_reads[at * R + threadIdx.x] = {read.live ? read.row : 0, read_tag, table.change_between(begin, end)};
}

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(Acc) == 4 ? 8 : 4)
find_conflicts(const __grid_constant__ ConflictParams p) {
    __shared__ ConflictTable of_block;
    ConflictTable& table = computed_once(of_block);
    SpanChunk at_chunk{p.first_batch + int(gridDim.z - 1 - blockIdx.z), p.first_chunk + int(blockIdx.y)};
    if (p.memory.span_chunks) at_chunk = p.memory.span_chunks[at_chunk.chunk];
    const int chunk = at_chunk.chunk;
    const Sequence sequence(p.memory, at_chunk.span, blockIdx.x);
    const long long number = sequence.chunk(chunk), at = number * CHUNK;
    const TokenOfThread write_token(sequence, chunk, W);
    const TokenOfThread read_token = W == R ? write_token : TokenOfThread(sequence, chunk, R);
    Access write(write_token, W, WRITES, p.memory.write_row, p.memory.write_weight);
    Access read(read_token, R, READS, p.memory.read_row, p.memory.read_weight);
    const bool own_gamma = p.memory.gamma && write_token.live;
    const Acc gamma = own_gamma ? widen(p.memory.gamma[write_token.row]) : p.memory.constant_gamma;
    table.clear();
    __syncthreads();

    // 1. a cell for every slot, and its masks
    table.mark(write, table.writers);
    table.mark(read, table.readers);
    const Affine change{write.live ? Retention<Acc>::alpha(write.weight, gamma) : Acc(1), write.live ? write.weight : Acc(0)};
    __syncthreads();

    // 2. every access: its slot's chain, its rank there; how many chains, entries and versions come before it
    const Role write_role = table.role_of(write, false), read_role = table.role_of(read, true);
    const ChainPlaces counted = GRADIENTS ? table.count_lengths(write_role, read_role) : ChainPlaces{0, 0};
    Tally total;
    const Tally before = table.tallies.before_thread(tally_of(write_role, read_role), total);

    // 3. where chains begin, and their headers
    Tally before_read = before;
    if (write_role.leads) before_read.add(Tally::mixed_chain(write_role.size));
    const ChainHeaders headers(p.memory.chains + number * CHAINS, table, total);
    headers.begin(write, write_role, true, before);
    headers.begin(read, read_role, read_role.with_writes, before_read);
    if (GRADIENTS) headers.store(write, write_role, read, read_role, before, before_read, counted);
    __syncthreads();

    // 4. accesses
    store_write(p, table, at, write, write_role, change, before.chained_writes());
    const int read_tag = store_read(p, table, at, read, read_role);
    __syncthreads();

    // 5. along chains, up to an access
    store_changes_before(p, table, at, write, write_role, before.chained_writes(), read, read_tag);
}
