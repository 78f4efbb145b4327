// Which accesses of a chunk share a slot: the chains, and for every access where it stands in its chain (chunk.cuh).
// Chunks do not depend on one another here, so all are worked through at once.
//
// A hash table in shared memory has a cell for each slot that the chunk touches, with two masks of 32 tokens: which write
// it and which read it. The masks say all of a slot's accesses in order, so nothing needs sorting: an access' rank in its
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
// Compiled with: what chunk.cuh and retention.cuh ask for.
#include "memory/mass.cuh"
#include "memory/retention.cuh"

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

struct AccessOfThread {
    int token, k, row, cell;
    Acc weight;
    bool live;

    DEVICE AccessOfThread(const TokenOfThread& token, unsigned width, int top_k, const int* rows, const Acc* weights)
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

// Five running counts packed into two words, for a prefix sum over the block. mixed: entries | chains, of chains with
// writes. other: writes in chains | entries | chains, the last two of read-only chains.
struct alignas(8) Tally {
    unsigned mixed, other;

    DEVICE static Tally mixed_chain(int entries) { return {unsigned(entries) | 1 << 10, 0}; }
    DEVICE static Tally chained_write() { return {0, 1}; }
    DEVICE static Tally read_only_chain(int entries) { return {0, unsigned(entries) << 10 | 1 << 20}; }
    DEVICE void add(const Tally& x) { mixed += x.mixed, other += x.other; }
    DEVICE int mixed_entries() const { return mixed & 1023; }
    DEVICE int mixed_chains() const { return mixed >> 10; }
    DEVICE int chained_writes() const { return other & 1023; }
    DEVICE int read_only_entries() const { return other >> 10 & 1023; }
    DEVICE int read_only_chains() const { return other >> 20; }
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
            const Tally lower{__shfl_up_sync(~0u, sum.mixed, distance), __shfl_up_sync(~0u, sum.other, distance)};
            if (lane >= distance) sum.add(lower);
        }
        const Tally of_warp{__shfl_sync(~0u, sum.mixed, 31), __shfl_sync(~0u, sum.other, 31)};
        if (lane > warp && lane <= THREADS / 32) {
            atomicAdd(&before[lane].mixed, of_warp.mixed);
            atomicAdd(&before[lane].other, of_warp.other);
        }
        __syncthreads();
        total = before[THREADS / 32];
        sum.add(before[warp]);
        return {sum.mixed - own.mixed, sum.other - own.other};
    }
};

// The hash table of a chunk, in shared memory.
struct ConflictTable {
    alignas(16) int slots[CELLS];                       // or -1
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
            reinterpret_cast<Four*>(slots)[threadIdx.x] = {-1, -1, -1, -1};
            reinterpret_cast<Four*>(writers)[threadIdx.x] = {};
            reinterpret_cast<Four*>(readers)[threadIdx.x] = {};
        }
    }
    // Finds or claims the cell of an access' slot, and sets its token's bit in ``masks``.
    DEVICE void mark(AccessOfThread& access, unsigned* masks) {
        if (!access.live) return;
        access.cell = access.row & (CELLS - 1);
        for (;;) {
            const int seen = atomicCAS(slots + access.cell, -1, access.row);
            if (seen == -1 || seen == access.row) break;
            access.cell = (access.cell + 1) & (CELLS - 1);
        }
        atomicOr(masks + access.cell, 1u << access.token);
    }
    DEVICE Role role_of(const AccessOfThread& access, bool is_read) const {
        Role role;
        const unsigned written = access.live ? writers[access.cell] : 0, read = access.live ? readers[access.cell] : 0;
        const unsigned before = (1u << access.token) - 1;
        role.with_writes = written & (written - 1) || (written && read);
        role.listed = role.with_writes || (is_read && read & (read - 1));
        role.size = (role.with_writes ? __popc(written) : 0) + __popc(read);
        const int writes_before = __popc(written & before) + (is_read ? int(written >> access.token & 1) : 0);
        role.rank = (role.with_writes ? writes_before : 0) + __popc(read & before);
        role.leads = role.listed & (role.rank == 0);
        role.last = !is_read & (written >> access.token == 1);
        return role;
    }
    // Chains with writes, long before short: how many are as long as that which an access leads, of those counted so far.
    DEVICE int count_length(const Role& role, bool with_writes) {
        return role.leads && with_writes ? atomicAdd(&chains_of_length[length_of(role)], 1) : 0;
    }
    // How many are longer. All lanes ask together; when all chains are counted.
    DEVICE int longer_than(const Role& write, const Role& read, int& longer_than_read) const {
        const int lane = threadIdx.x % 32, own = chains_of_length[LENGTHS - 1 - lane];
        int sum = own;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int lower = __shfl_up_sync(~0u, sum, distance);
            if (lane >= distance) sum += lower;
        }
        longer_than_read = __shfl_sync(~0u, sum - own, LENGTHS - 1 - length_of(read));
        return __shfl_sync(~0u, sum - own, LENGTHS - 1 - length_of(write));
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

// The headers of a chunk's chains; the access that leads a chain writes its header.
struct ChainHeaders {
    Chain* chains;
    ConflictTable& table;
    const Tally total;
    int count, last_round;

    DEVICE ChainHeaders(Chain* chains, ConflictTable& table, const Tally& total)
        : chains(chains), table(table), total(total), count(total.mixed_chains() + total.read_only_chains()),
          last_round((count ? count - 1 : 0) / CHAINS_PER_ROUND) {}

    // ``before``: the counts of all accesses before this one; ``place``: among the chains with writes.
    DEVICE void lead(
        const AccessOfThread& access, const Role& role, bool with_writes, const Tally& before, int place
    ) const {
        if (!role.leads) return;
        const int number = with_writes ? place : total.mixed_chains() + before.read_only_chains();
        const int begin = with_writes ? before.mixed_entries() : total.mixed_entries() + before.read_only_entries();
        table.begin[access.cell] = begin;
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
    const ConflictParams& p, ConflictTable& table, long long at, const AccessOfThread& write, const Role& role,
    const Affine& change, int number
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
DEVICE int store_read(
    const ConflictParams& p, ConflictTable& table, long long at, const AccessOfThread& read, const Role& role
) {
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
    const ConflictParams& p, const ConflictTable& table, long long at, const AccessOfThread& write,
    const Role& write_role, int number, const AccessOfThread& read, int read_tag
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
    AccessOfThread write(write_token, W, WRITES, p.memory.write_row, p.memory.write_weight);
    AccessOfThread read(read_token, R, READS, p.memory.read_row, p.memory.read_weight);
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
    const int write_place = table.count_length(write_role, true);
    const int read_place = table.count_length(read_role, read_role.with_writes);
    Tally total;
    const Tally before = table.tallies.before_thread(tally_of(write_role, read_role), total);

    // 3. headers: chains with writes first, long before short, so that the groups of a warp, which stay together, follow
    // chains of nearly one length
    const ChainHeaders headers(p.memory.chains + number * CHAINS, table, total);
    Tally before_read = before;
    if (write_role.leads) before_read.add(Tally::mixed_chain(write_role.size));
    int longer_than_read;
    const int longer = table.longer_than(write_role, read_role, longer_than_read);
    headers.lead(write, write_role, true, before, longer + write_place);
    headers.lead(read, read_role, read_role.with_writes, before_read, longer_than_read + read_place);
    headers.pad();
    __syncthreads();

    // 4. accesses
    store_write(p, table, at, write, write_role, change, before.chained_writes());
    const int read_tag = store_read(p, table, at, read, read_role);
    __syncthreads();

    // 5. along chains, up to an access
    store_changes_before(p, table, at, write, write_role, before.chained_writes(), read, read_tag);
}
