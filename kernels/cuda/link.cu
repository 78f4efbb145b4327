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
// Who computes what: one block a chunk of a (batch, head); thread token * W + k has write k of a token and read k.
#include "mass.cuh"

DEVICE constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

// Six counts, of all accesses before one: entries and chains with writes, versions of their reads and of their writes,
// entries and chains of reads alone.
using Tally = unsigned long long;
enum Field { MIXED_ENTRIES = 0, MIXED_CHAINS = 10, READ_VERSIONS = 20, WRITE_VERSIONS = 30, READ_ENTRIES = 40, READ_CHAINS = 50 };
DEVICE int counted(Tally tally, Field field) { return int(tally >> field & 1023); }
DEVICE Tally one(Field field, int n = 1) { return Tally(n) << field; }

// The sum of ``own`` over all threads before this one; ``total``: over all.
DEVICE Tally tally_before(Tally own, Tally* of_warps, Tally& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Tally sum = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const Tally before = __shfl_up_sync(~0u, sum, distance);
        if (lane >= distance) sum += before;
    }
    if (lane == 31) of_warps[warp] = sum;
    __syncthreads();
    total = 0;
    Tally warps_before = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) {
        if (i == warp) warps_before = total;
        total += of_warps[i];
    }
    return warps_before + sum - own;
}

extern "C" __global__ void __launch_bounds__(256) link_accesses(
    CALL_PARAMETERS,
    Link* __restrict__ writes,             // (B*H, chunks, CHUNK, W)
    Affine* __restrict__ earlier,          // likewise, of writes in chains: the change by those before it
    TokenEvent* __restrict__ read_events,  // (B*H, chunks, CHUNK, R), the coefficients those that were given
    short* __restrict__ read_places,       // likewise, of listed reads: among the entries
    Link* __restrict__ reads,              // likewise, or null if reads are not mass-aware
    int rows_in_shared, int room           // of content.cu: the state's rows, and versions
) {
    const Call call = CALL;
    const int chunk = blockIdx.x % call.chunks(), first = chunk * CHUNK;
    const Unit unit(call, blockIdx.x / call.chunks());
    const long long at = (long long)(blockIdx.x) * CHUNK;  // the chunk's first token, in arrays with CHUNK
    // a read finds nothing in a row that is first written after the chunk
    const int end = renumbered ? smaller_of(tokens, first + CHUNK) * WRITES : 0x7fffffff;
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
        const bool there = row >= 0 && row < end;
        read_events[k] = {there ? place_of_row(row) : NOTHING, there ? read_weight[token * READS + k] : Sum(0)};
        if (reads) reads[at * R + k] = {there ? row : 0, there ? 0 : DEAD, {1, 0}};
    }
#else
    constexpr int PLACES = 2 * power_of_two(ENTRIES);
    __shared__ alignas(16) int keys[PLACES];
    __shared__ alignas(16) unsigned written[PLACES], read[PLACES];  // masks of tokens
    __shared__ unsigned short begin[PLACES];                        // of the slot's chain
    __shared__ Affine change_at[ENTRIES];                           // by the entries of chains
    __shared__ Tally of_warps[THREADS / 32];

    struct Access {
        int token, k, row, place;
        Sum weight;
        bool live;
    };
    const auto fetch = [&](int width, int top_k, const int* rows, const Sum* weights, int end) {
        Access own{int(threadIdx.x) / width, int(threadIdx.x) % width, 0, 0, 0, false};
        const int t = first + own.token;
        if (own.token >= CHUNK || own.k >= top_k || !unit.live(t)) return own;
        const long long from = unit.row_of(t) * top_k + own.k;
        own.row = rows[from], own.weight = weights[from];
        own.live = own.row >= 0 && own.row < end;
        return own;
    };
    Access w = fetch(W, WRITES, write_row, write_weight, 0x7fffffff), r = fetch(R, READS, read_row, read_weight, end);
    const Sum gamma_here = w.live ? unit.gamma_of(first + w.token) : Sum(1);
    struct alignas(16) Four {
        int at[4];
    };
    for (int i = threadIdx.x; i < PLACES / 4; i += THREADS) {
        reinterpret_cast<Four*>(keys)[i] = {-1, -1, -1, -1};
        reinterpret_cast<Four*>(written)[i] = {};
        reinterpret_cast<Four*>(read)[i] = {};
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
        Role role{};
        if (!own.live) return role;
        const unsigned writers = written[own.place], readers = read[own.place], before = (1u << own.token) - 1;
        const unsigned before_writes = (writers & -writers) - 1;  // tokens before the first write
        role.mixed = writers & (writers - 1) || (writers && readers & before_writes);
        role.listed = role.mixed || (reads && readers & (readers - 1));
        role.size = (role.mixed ? __popc(writers) : 0) + __popc(readers);
        role.rank = (role.mixed ? __popc(writers & before) + (reads ? int(writers >> own.token & 1) : 0) : 0) +
                    __popc(readers & before);
        role.leads = role.listed && role.rank == 0;
        role.last = !reads && writers >> own.token == 1;
        return role;
    };
    const Role write_role = role_of(w, false), read_role = role_of(r, true);
    Tally own = 0;
    for (const Role& role : {write_role, read_role})
        if (role.leads)
            own += role.mixed ? one(MIXED_ENTRIES, role.size) + one(MIXED_CHAINS)
                              : one(READ_ENTRIES, role.size) + one(READ_CHAINS);
    if (write_role.mixed) own += one(WRITE_VERSIONS);
    if (read_role.mixed) own += one(READ_VERSIONS);
    Tally total;
    const Tally before = tally_before(own, of_warps, total);

    // 3. where chains begin: those with writes first
    chains += (long long)(blockIdx.x) * CHAINS, entries += (long long)(blockIdx.x) * ENTRIES;
    const int mixed_chains = counted(total, MIXED_CHAINS), all_chains = mixed_chains + counted(total, READ_CHAINS);
    const auto lead = [&](const Access& access, const Role& role, Tally before) {
        if (!role.leads) return;
        const int number = role.mixed ? counted(before, MIXED_CHAINS) : mixed_chains + counted(before, READ_CHAINS);
        const int begins = role.mixed ? counted(before, MIXED_ENTRIES)
                                      : counted(total, MIXED_ENTRIES) + counted(before, READ_ENTRIES);
        begin[access.place] = begins;
        chains[number] = chain_of(
            access.row, begins, role.size, !role.mixed, number + EACH_ROUND < all_chains,
            number + EACH_ROUND < mixed_chains);
    };
    Tally before_read = before;
    if (write_role.leads) before_read += one(MIXED_ENTRIES, write_role.size) + one(MIXED_CHAINS);
    lead(w, write_role, before);
    lead(r, read_role, before_read);
    for (int number = all_chains + threadIdx.x; number < CHAINS; number += THREADS)
        chains[number] = chain_of(0, 0, 0, true, false, false);
    __syncthreads();

    // 4. the accesses, and what writes of chains do to the mass; a read leaves it as it is
    const int write_begin = write_role.mixed ? begin[w.place] : 0, read_begin = read_role.listed ? begin[r.place] : 0;
    const int write_place = write_begin + write_role.rank, read_place = read_begin + read_role.rank;
    const int write_version = counted(before, WRITE_VERSIONS), read_version = counted(before, READ_VERSIONS);
    const auto entry_for = [&](const Access& access, int version, bool reads) {
        const int place = version < room ? place_of_version(rows_in_shared, version) : version | ENTRY_ELSEWHERE;
        return entry_of(place_of_token(rows_in_shared, access.token), place, access.k == 0, reads);
    };
    if (write_role.mixed) {
        change_at[write_place] = change;
        entries[write_place].row = entry_for(w, write_version, false);
    }
    if (read_role.listed) {
        change_at[read_place] = {1, 0};
        entries[read_place] = {entry_for(r, read_version, true), r.weight};
    }
    int tag = w.live ? (write_role.last ? LAST : 0) : DEAD;
    if (write_role.mixed) tag |= chained(write_version, write_place, write_begin);
    if (w.token < CHUNK) writes[threadIdx.x] = {w.row, tag, change};
    if (r.token < CHUNK) {
        int code = r.live ? place_of_row(r.row) | (read_role.listed ? REVERSE_LISTED : 0) : NOTHING;
        if (read_role.mixed) code = version_code(read_version, rows_in_shared, room);
        read_events[threadIdx.x] = {code, r.live ? r.weight : Sum(0)};
        read_places[at * R + threadIdx.x] = short(read_place);
    }
    __syncthreads();

    // 5. along chains, up to an access
    const auto change_before = [&](const Role& role, int begin, int place) {
        Affine sum{1, 0};
        if (role.mixed)
            for (int i = begin; i < place; i++) {
                const Affine next = change_at[i];
                sum = {next.a * sum.a, next(sum.b)};
            }
        return sum;
    };
    if (write_role.mixed) earlier[at * W + threadIdx.x] = change_before(write_role, write_begin, write_place);
    if (reads && r.token < CHUNK) {
        tag = r.live ? listed(read_place) : DEAD;
        if (read_role.mixed) tag = chained(read_version, read_place, read_begin);
        reads[at * R + threadIdx.x] = {r.row, tag, change_before(read_role, read_begin, read_place)};
    }
#endif
}
