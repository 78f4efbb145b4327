// What meets what: for every chunk of tokens the accesses that change a slot alone, and the chains of those that do not
// (chunk.cuh). Chunks do not depend on one another here, so all are worked through at once.
//
// A hash table in shared memory has a place for each slot that the chunk touches, with two masks of 32 tokens: which
// write it and which read it. Both say all of a slot's accesses in order, so nothing needs sorting: an access' rank in
// its chain is the number of bits below its own. Which access claims a place in the table depends on timing; nothing
// else does, and no result shows it.
//
// Beside that, for mass.cu, what depends on nothing else either: what a write leaves of its slot's mass (alpha), and
// what the writes before it in the chunk make of the mass that the chunk found, so that mass.cu follows no chains.
//
// Who computes what: block (head, chunk, batch counted from the last), heads first as they share lines of memory; thread
// token * W + k has write k of a token and read k.
#include "memory/mass.cuh"

// Whether a thread's token is one of the chunk; known to the compiler where all threads have one.
DEVICE constexpr bool in_chunk(int token, int width) { return CHUNK * width >= THREADS || token < CHUNK; }

DEVICE constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

// Six counts, three in a word, of all accesses before one: entries and chains with writes, versions of their reads; and
// of their writes, entries and chains of reads alone.
struct alignas(8) Tally {
    unsigned mixed, other;

    DEVICE void add(const Tally& x) { mixed += x.mixed, other += x.other; }
};
DEVICE int first_of(unsigned word) { return word & 1023; }
DEVICE int second_of(unsigned word) { return word >> 10 & 1023; }
DEVICE int third_of(unsigned word) { return word >> 20; }
DEVICE Tally mixed_chain(int entries) { return {unsigned(entries) | 1 << 10, 0}; }
DEVICE Tally read_version() { return {1 << 20, 0}; }
DEVICE Tally write_version() { return {0, 1}; }
DEVICE Tally read_chain(int entries) { return {0, unsigned(entries) << 10 | 1 << 20}; }

// Of a block: sums over the warps before each warp, and last over all; all 0 to begin with.
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

extern "C" __global__ void __launch_bounds__(256, sizeof(Sum) == 4 ? 8 : 4) link_accesses(
    CALL_PARAMETERS,
    Link* __restrict__ writes,             // (B*H, chunks, CHUNK, W)
    Affine* __restrict__ earlier,          // likewise, of writes in chains, by their version: the change by those before
    TokenEvent* __restrict__ read_events,  // (B*H, chunks, CHUNK, R), the coefficients those that were given
    unsigned short* __restrict__ read_places,  // likewise, of listed reads: among the entries
    Link* __restrict__ reads,              // likewise, or null if reads are not mass-aware
    int rows_in_shared, int room,          // of content.cu: the state's rows, and versions
    int first_batch, int first_chunk       // of the launch
) {
    const Call call = CALL;
    const int chunk = first_chunk + blockIdx.y, first = chunk * CHUNK;
    const Unit unit(call, first_batch + gridDim.z - 1 - blockIdx.z, blockIdx.x);
    const long long number = unit.chunk_at(chunk), at = number * CHUNK;  // the chunk's first token, in arrays with CHUNK
    writes += at * W, read_events += at * R;
#if CHUNK == 1
    // a token's accesses never meet
    const long long token = unit.row_of(first);
    const bool live = unit.live(first);
    for (int k = threadIdx.x; k < W; k += THREADS) {
        const int row = live && k < WRITES ? write_row[token * WRITES + k] : -1;
        writes[k] = {0, DEAD, {1, 0}};
        if (row < 0) continue;
        const Sum w = write_weight[token * WRITES + k];
        writes[k] = {row, LAST, {call.retention(w, unit.gamma_of(first)), w}};
    }
    for (int k = threadIdx.x; k < R; k += THREADS) {
        const int row = live && k < READS ? read_row[token * READS + k] : -1;
        const bool there = row >= 0;
        read_events[k] = {there ? place_of_row(row) : NOTHING, there ? read_weight[token * READS + k] : Sum(0)};
        if (reads) reads[at * R + k] = {there ? row : 0, there ? 0 : DEAD, {1, 0}};
    }
#else
    constexpr int PLACES = 2 * power_of_two(ENTRIES);
    __shared__ alignas(16) int keys[PLACES];
    __shared__ alignas(16) unsigned written[PLACES], read[PLACES];  // masks of tokens
    __shared__ unsigned short begin[PLACES];                        // of the slot's chain
    __shared__ Affine change_at[ENTRIES];                           // by the entries of chains
    __shared__ WarpTallies tallies;

    struct Access {
        int token, k, row, place;
        Sum weight;
        bool live;
    };
    struct Token {
        int number;
        bool live;
        long long row;
    };
    const auto token_of = [&](unsigned width) {
        const int number = int(threadIdx.x / width), t = first + number;
        return Token{number, in_chunk(number, width) && unit.live(t), unit.row_of(t)};
    };
    const auto fetch = [&](const Token& token, unsigned width, int top_k, const int* rows, const Sum* weights) {
        Access own{token.number, int(threadIdx.x % width), -1, 0, 0, false};
        if (token.live && own.k < top_k) {
            const long long from = token.row * top_k + own.k;
            own.row = rows[from], own.weight = weights[from];
        }
        own.live = own.row >= 0;
        return own;
    };
    const Token of_write = token_of(W), of_read = W == R ? of_write : token_of(R);
    Access w = fetch(of_write, W, WRITES, write_row, write_weight);
    Access r = fetch(of_read, R, READS, read_row, read_weight);
    const Sum gamma_here = gamma && of_write.live ? widen(gamma[of_write.row]) : one_gamma;
    struct alignas(16) Four {
        int at[4];
    };
    tallies.clear();
    static_assert(PLACES / 4 <= THREADS && CHAINS <= THREADS, "one a thread");
    if (threadIdx.x < PLACES / 4) {
        reinterpret_cast<Four*>(keys)[threadIdx.x] = {-1, -1, -1, -1};
        reinterpret_cast<Four*>(written)[threadIdx.x] = {};
        reinterpret_cast<Four*>(read)[threadIdx.x] = {};
    }
    __syncthreads();

    // 1. a place for every slot, and its masks
    const auto find = [&](Access& own, unsigned* marks) {
        if (!own.live) return;
        own.place = own.row & (PLACES - 1);
        for (;;) {
            const int seen = atomicCAS(keys + own.place, -1, own.row);
            if (seen == -1 || seen == own.row) break;
            own.place = (own.place + 1) & (PLACES - 1);
        }
        atomicOr(marks + own.place, 1u << own.token);
    };
    find(w, written);
    find(r, read);
    const Affine change{w.live ? call.retention(w.weight, gamma_here) : Sum(1), w.live ? w.weight : Sum(0)};
    __syncthreads();

    // 2. every access: its slot's chain, its rank there, whether it comes first
    struct Role {
        bool mixed, listed, leads, last;
        int size, rank;
    };
    const auto role_of = [&](const Access& own, bool reads) {
        Role role;
        const unsigned writers = own.live ? written[own.place] : 0, readers = own.live ? read[own.place] : 0;
        const unsigned before = (1u << own.token) - 1;
        const unsigned before_writes = (writers & -writers) - 1;  // tokens before the first write
        role.mixed = (writers & (writers - 1)) | (writers ? readers & before_writes : 0);
        role.listed = role.mixed | (reads && readers & (readers - 1));
        role.size = (role.mixed ? __popc(writers) : 0) + __popc(readers);
        role.rank = (role.mixed ? __popc(writers & before) + (reads ? int(writers >> own.token & 1) : 0) : 0) +
                    __popc(readers & before);
        role.leads = role.listed & (role.rank == 0);
        role.last = !reads & (writers >> own.token == 1);
        return role;
    };
    const Role write_role = role_of(w, false), read_role = role_of(r, true);
    Tally own{0, 0}, total;
    if (write_role.leads) own.add(mixed_chain(write_role.size));
    if (read_role.leads) own.add(read_role.mixed ? mixed_chain(read_role.size) : read_chain(read_role.size));
    if (write_role.mixed) own.add(write_version());
    if (read_role.mixed) own.add(read_version());
    const Tally before = tallies.before_thread(own, total);

    // 3. where chains begin: those with writes first
    chains += number * CHAINS, entries += number * ENTRIES;
    const int mixed_chains = second_of(total.mixed), all_chains = mixed_chains + third_of(total.other);
    const int last_round = (all_chains ? all_chains - 1 : 0) / EACH_ROUND;
    const auto lead = [&](const Access& access, const Role& role, bool mixed, const Tally& before) {
        if (!role.leads) return;
        const int number = mixed ? second_of(before.mixed) : mixed_chains + third_of(before.other);
        const int begins = mixed ? first_of(before.mixed) : first_of(total.mixed) + second_of(before.other);
        begin[access.place] = begins;
        chains[number] =
            chain_of(access.row, begins, role.size, !mixed, number + EACH_ROUND < mixed_chains, last_round);
    };
    Tally before_read = before;
    if (write_role.leads) before_read.add(mixed_chain(write_role.size));
    lead(w, write_role, true, before);
    lead(r, read_role, read_role.mixed, before_read);
    const int rounds = last_round < SURE_ROUNDS ? SURE_ROUNDS : last_round + 1;
    if (int(threadIdx.x) >= all_chains && int(threadIdx.x) < rounds * EACH_ROUND)
        chains[threadIdx.x] = chain_of(-1, 0, 0, true, false, last_round);
    __syncthreads();

    // 4. the accesses, and what writes of chains do to the mass; a read leaves it as it is
    const int write_begin = write_role.mixed ? begin[w.place] : 0, read_begin = read_role.listed ? begin[r.place] : 0;
    const int write_place = write_begin + write_role.rank, read_place = read_begin + read_role.rank;
    const int write_number = first_of(before.other), read_number = third_of(before.mixed);
    const auto entry_for = [&](const Access& access, int version, bool reads) {
        const int place = version < room ? place_of_version(rows_in_shared, version) : version | ENTRY_ELSEWHERE;
        return entry_of(place_of_token(rows_in_shared, access.token), place, access.k == 0, reads);
    };
    if (write_role.mixed) {
        change_at[write_place] = change;
        entries[write_place].row = entry_for(w, write_number, false);
    }
    if (read_role.listed) {
        change_at[read_place] = {1, 0};
        entries[read_place] = {entry_for(r, read_number, true), r.weight};
    }
    int tag = w.live ? (write_role.last ? LAST : 0) : DEAD;
    if (write_role.mixed) tag |= chained(write_number, write_place, write_begin);
    if (in_chunk(w.token, W)) writes[threadIdx.x] = {w.live ? w.row : 0, tag, change};
    if (in_chunk(r.token, R)) {
        int code = r.live ? place_of_row(r.row) | (read_role.listed ? VERSION | LISTED : 0) : NOTHING;
        if (read_role.mixed) code = version_code(read_number, rows_in_shared, room);
        read_events[threadIdx.x] = {code, r.live ? r.weight : Sum(0)};
        read_places[at * R + threadIdx.x] = (unsigned short)(read_place);
    }
    __syncthreads();

    // 5. along chains, up to an access
    const auto change_before = [&](const Role& role, int begin, int place) {
        Affine sum{1, 0};
        if (role.mixed)
#pragma unroll 1
            for (int i = begin; i < place; i++) {
                const Affine next = change_at[i];
                sum = {next.a * sum.a, next(sum.b)};
            }
        return sum;
    };
    if (write_role.mixed) earlier[at * W + write_number] = change_before(write_role, write_begin, write_place);
    if (reads && in_chunk(r.token, R)) {
        tag = r.live ? listed(read_place) : DEAD;
        if (read_role.mixed) tag = chained(read_number, read_place, read_begin);
        reads[at * R + threadIdx.x] = {r.live ? r.row : 0, tag, change_before(read_role, read_begin, read_place)};
    }
#endif
}
