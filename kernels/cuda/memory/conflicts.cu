// Which accesses of a chunk share a slot: the chains, and for every access where it stands in its chain (chunk.cuh).
// Chunks do not depend on one another here, so all are worked through at once.
//
// A table in shared memory has a cell for each slot that the chunk touches, with two masks of 32 tokens: which write it and
// which read it. With few rows a slot's row says which cell; with many the table is a hash table. The masks say all of a
// slot's accesses in order, so nothing needs sorting: an access' rank in its chain is the number of bits below its own.
// Timing decides which access claims a cell, the order of chains of one length, and where a chain's entries stand. It
// decides nothing else, and it changes no result.
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
    int size, writes;  // of the chain
    int rank, writes_before;  // of the chain, those before the access

    // What the chain takes, by the access that leads it.
    DEVICE unsigned need() const {
        return leads ? unsigned(size) | (with_writes ? unsigned(writes) << 10 : 1u << 20) : 0;
    }
};

// What chains take: entries | numbers of writes in chains | read-only chains, ten bits each.
DEVICE int entries_of(unsigned counts) { return counts & 1023; }
DEVICE int writes_of(unsigned counts) { return counts >> 10 & 1023; }
DEVICE int read_only_of(unsigned counts) { return counts >> 20; }

// What chains had taken before those that a thread's write and its read lead.
struct TakenBefore {
    unsigned write, read;
};

// An access' tag (mass.cuh). Its chain's writes before it have the numbers first_write, first_write + 1, ..
struct Placed {
    int tag, first_write, writes_before;
};

// Places of the chains that a thread's write and its read lead, among those with writes; and how many there are of these.
struct ChainPlaces {
    int write, read, all;
};

// The table of a chunk, in shared memory.
struct ConflictTable {
    alignas(16) int slots[DIRECT ? 4 : CELLS];            // or -1; only of a hash table
    alignas(16) unsigned writers[CELLS], readers[CELLS];  // masks of tokens
    unsigned before[CELLS];                               // what chains took that were counted before the slot's
    Affine change_at[WRITE_ENTRIES];                      // by the numbers of writes in chains
    int chains_of_length[LENGTHS];                        // with writes
    unsigned taken;                                       // by all chains

    DEVICE void clear() {
        struct alignas(16) Four {
            int at[4];
        };
        static_assert(CELLS / 4 <= THREADS, "one a thread");
        if (threadIdx.x < LENGTHS) chains_of_length[threadIdx.x] = 0;
        if (threadIdx.x == LENGTHS) taken = 0;
        if (threadIdx.x < CELLS / 4) {
            if (!DIRECT) reinterpret_cast<Four*>(slots)[threadIdx.x] = {-1, -1, -1, -1};
            reinterpret_cast<Four*>(writers)[threadIdx.x] = {};
            reinterpret_cast<Four*>(readers)[threadIdx.x] = {};
        }
    }
    // Finds or claims the cell of an access' slot, and sets its token's bit in ``masks``.
    DEVICE void mark(AccessOfThread& access, unsigned* masks) {
        if (!access.live) return;
        access.cell = place_of_row(access.row) & (CELLS - 1);
        while (!DIRECT) {
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
        role.listed = role.with_writes || (GRADIENTS && is_read && read & (read - 1));
        role.writes = role.with_writes ? __popc(written) : 0;
        role.size = role.writes + __popc(read);
        role.writes_before = role.with_writes ? __popc(written & before) + (is_read ? int(written >> access.token & 1) : 0) : 0;
        role.rank = role.writes_before + __popc(read & before);
        role.leads = role.listed & (role.rank == 0);
        role.last = !is_read & (written >> access.token == 1);
        return role;
    }
    // A thread takes what the chains need that its accesses lead, at once: lanes that add to one number wait for one another.
    DEVICE TakenBefore take(const AccessOfThread& write, const Role& write_role, const AccessOfThread& read, const Role& read_role) {
        const unsigned by_write = write_role.need(), own = by_write + read_role.need();
        const unsigned before_write = own ? atomicAdd(&taken, own) : 0, before_read = before_write + by_write;
        if (write_role.leads) before[write.cell] = before_write;
        if (read_role.leads) before[read.cell] = before_read;
        return {before_write, before_read};
    }
    // Chains with writes, long before short: how many are as long as that which an access leads, of those counted so far.
    DEVICE int count_length(const Role& role) {
        return role.leads && role.with_writes ? atomicAdd(&chains_of_length[length_of(role)], 1) : 0;
    }
    // ``write_place``, ``read_place``: by count_length. All lanes ask together; when all chains are counted.
    DEVICE ChainPlaces places(const Role& write, int write_place, const Role& read, int read_place) const {
        const int lane = threadIdx.x % 32, own = chains_of_length[LENGTHS - 1 - lane];
        int sum = own;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int longer = __shfl_up_sync(~0u, sum, distance);
            if (lane >= distance) sum += longer;
        }
        return {
            write_place + __shfl_sync(~0u, sum - own, LENGTHS - 1 - length_of(write)),
            read_place + __shfl_sync(~0u, sum - own, LENGTHS - 1 - length_of(read)), __shfl_sync(~0u, sum, 31)};
    }
    DEVICE static int length_of(const Role& role) { return smaller_of(role.size, LENGTHS - 1); }
    // The change of the mass by the writes of a chain before an access. Reads change nothing and have no number.
    DEVICE Affine change_before(const Placed& access) const {
        Affine sum{1, 0};
#pragma unroll 1
        for (int i = 0; i < access.writes_before; i++) {
            const Affine next = change_at[access.first_write + i];
            sum = {next.a * sum.a, next(sum.b)};
        }
        return sum;
    }
};

// The headers of a chunk's chains, for a backward; the access that leads a chain writes its header. Chains with writes come
// first, long before short, so that the groups of a warp, which stay together, follow chains of nearly one length.
struct ChainHeaders {
    Chain* chains;
    const ChainPlaces places;
    int count, last_round;

    DEVICE ChainHeaders(Chain* chains, const ChainPlaces& places, unsigned taken)
        : chains(chains), places(places), count(places.all + read_only_of(taken)),
          last_round(unsigned(count ? count - 1 : 0) / CHAINS_PER_ROUND) {}

    // ``before``: what chains had taken; ``place``: among the chains with writes.
    DEVICE void lead(const AccessOfThread& access, const Role& role, unsigned before, int place) const {
        if (!role.leads) return;
        // without a sign, so that the header's address takes one instruction
        const unsigned number = role.with_writes ? place : places.all + read_only_of(before);
        chains[number] = Chain::make(access.row, entries_of(before), role.size, last_round);
    }
    // Empty ones, to whole rounds.
    DEVICE void pad() const {
        const int rounds = last_round < MIN_ROUNDS ? MIN_ROUNDS : last_round + 1;
        if (int(threadIdx.x) >= count && int(threadIdx.x) < rounds * CHAINS_PER_ROUND)
            chains[threadIdx.x] = Chain::make(-1, 0, 0, last_round);
    }
};

// ``at``: the chunk's first token, in arrays (B*H, chunks, CHUNK).
DEVICE Placed store_write(
    const ConflictParams& p, ConflictTable& table, long long at, const AccessOfThread& write, const Role& role, const Affine& change
) {
    Placed placed{write.live ? (role.last ? LAST : 0) : DEAD, 0, role.writes_before};
    if (role.with_writes) {
        const unsigned before = table.before[write.cell];
        const int begin = entries_of(before), number = writes_of(before) + role.writes_before;
        table.change_at[number] = change;
        placed.tag |= CHAINED | access_tag(begin + role.rank, begin, number);
        placed.first_write = writes_of(before);
    }
    if (in_chunk(write.token, W)) p.writes[at * W + threadIdx.x] = {write.live ? write.row : 0, placed.tag, change};
    return placed;
}

DEVICE Placed store_read(
    const ConflictParams& p, const ConflictTable& table, long long at, const AccessOfThread& read, const Role& role
) {
    Placed placed{read.live ? 0 : DEAD, 0, role.writes_before};
    if (role.listed) {
        const unsigned before = table.before[read.cell];
        const int begin = entries_of(before);
        placed.tag = LISTED | (role.with_writes ? CHAINED : 0) | access_tag(begin + role.rank, begin, 0);
        placed.first_write = writes_of(before);
    }
    if (in_chunk(read.token, R)) p.reads[at * R + threadIdx.x] = {read.live ? read.row : 0, placed.tag};
    return placed;
}

// The changes of the mass by the chunk's writes before a chained write, and before a read.
DEVICE void store_changes_before(
    const ConflictParams& p, const ConflictTable& table, long long at, const Placed& write, const AccessOfThread& read,
    const Placed& placed_read
) {
    if (write.tag & CHAINED) p.change_before[at * W + number_of(write.tag)] = table.change_before(write);
    if (!p.mass_reads || !in_chunk(read.token, R)) return;
    p.mass_reads[at * R + threadIdx.x] = {read.live ? read.row : 0, placed_read.tag, table.change_before(placed_read)};
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

    // 2. every access: its slot's chain, its rank there; what its chain takes
    const Role write_role = table.role_of(write, false), read_role = table.role_of(read, true);
    const TakenBefore before = table.take(write, write_role, read, read_role);
    const int write_place = GRADIENTS ? table.count_length(write_role) : 0;
    const int read_place = GRADIENTS ? table.count_length(read_role) : 0;
    __syncthreads();

    // 3. headers, and accesses
    if (GRADIENTS) {
        const ChainPlaces places = table.places(write_role, write_place, read_role, read_place);
        const ChainHeaders headers(computed_once(p.memory.chains + number * CHAINS), places, table.taken);
        headers.lead(write, write_role, before.write, places.write);
        headers.lead(read, read_role, before.read, places.read);
        headers.pad();
    }
    const Placed placed_write = store_write(p, table, at, write, write_role, change);
    const Placed placed_read = store_read(p, table, at, read, read_role);
    __syncthreads();

    // 4. along chains, up to an access
    store_changes_before(p, table, at, placed_write, read, placed_read);
}
