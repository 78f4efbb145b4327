// What meets what: for every chunk of tokens the accesses that change a slot alone, and the chains of those that do not
// (chunk.cuh). Chunks do not depend on one another here, so all are worked through at once.
//
// A hash table in shared memory has a place for each slot that the chunk touches, with two masks of 32 tokens: which
// write it and which read it. Both say all of a slot's accesses in order, so nothing needs sorting: an access' rank in
// its chain is the number of bits below its own. Which access claims a place in the table depends on timing; nothing
// else does, and no result shows it.
//
// Beside that, what a write leaves of its slot's mass: alpha, which depends on nothing else either.
//
// Who computes what: one block a chunk of a (batch, head); thread token * W + k has write k of a token and read k.
#include "chunk.cuh"

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
    Linked<Sum>* write_events, Linked<Sum>* read_events,  // (B*H, chunks, CHUNK, W or R), with the place among the entries
    Sum* __restrict__ alphas,                             // (B*H, chunks, CHUNK, W): retention of each write
    int rows_in_shared, int room                          // of content.cu: the state's rows, and versions
) {
    const Call call = CALL;
    const int chunk = blockIdx.x % call.chunks(), first = chunk * CHUNK;
    const Unit unit(call, blockIdx.x / call.chunks());
    const long long at = (long long)(blockIdx.x) * CHUNK;  // the chunk's first token, in arrays with CHUNK
    // a read finds nothing in a row that is first written after the chunk
    const int end = renumbered ? smaller_of(tokens, first + CHUNK) * WRITES : 0x7fffffff;

    for (int i = threadIdx.x; i < CHUNK * W; i += THREADS) {
        const int t = first + i / W, k = i % W;
        const bool live = k < WRITES && unit.live(t);
        alphas[at * W + i] = live ? call.retention(write_weight[unit.row_of(t) * WRITES + k], unit.gamma_of(t)) : Sum(1);
    }
#if CHUNK == 1
    // a token's accesses never meet
    const auto leave = [&](int width, int top_k, const int* rows, int end, Linked<Sum>* events) {
        for (int k = threadIdx.x; k < width; k += THREADS) {
            const int row = k < top_k && unit.live(first) ? rows[unit.row_of(first) * top_k + k] : -1;
            events[at * width + k] = {row >= 0 && row < end ? place_of_row(row) : NOTHING, 0};
        }
    };
    leave(W, WRITES, write_row, 0x7fffffff, write_events);
    leave(R, READS, read_row, end, read_events);
#else
    constexpr int PLACES = 2 * power_of_two(ENTRIES);
    __shared__ int keys[PLACES];
    __shared__ unsigned written[PLACES], read[PLACES];  // masks of tokens
    __shared__ unsigned short begin[PLACES];            // of the slot's chain
    __shared__ Tally of_warps[THREADS / 32];
    for (int i = threadIdx.x; i < PLACES; i += THREADS) keys[i] = -1, written[i] = 0, read[i] = 0;
    __syncthreads();

    // 1. a place for every slot, and its masks
    struct Access {
        int token, k, row, place;
        bool live;
    };
    const auto find = [&](int width, int top_k, const int* rows, unsigned* marks, int end) {
        Access own{int(threadIdx.x) / width, int(threadIdx.x) % width, 0, 0, false};
        const int t = first + own.token;
        if (own.token >= CHUNK || own.k >= top_k || !unit.live(t)) return own;
        own.row = rows[unit.row_of(t) * top_k + own.k];
        own.live = own.row >= 0 && own.row < end;
        if (!own.live) return own;
        own.place = own.row & (PLACES - 1);
        for (;;) {
            const int seen = atomicCAS(keys + own.place, -1, own.row);
            if (seen == -1 || seen == own.row) break;
            own.place = (own.place + 1) & (PLACES - 1);
        }
        atomicOr(marks + own.place, 1u << own.token);
        return own;
    };
    const Access w = find(W, WRITES, write_row, written, 0x7fffffff), r = find(R, READS, read_row, read, end);
    __syncthreads();

    // 2. every access: its slot's chain, its rank there, whether it comes first
    struct Role {
        bool mixed, listed, leads;
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
    numbers += (long long)(blockIdx.x) * ENTRIES;
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

    // 4. the accesses
    const auto leave = [&](const Access& access, const Role& role, bool reads, int width, Linked<Sum>* events) {
        if (access.token >= CHUNK) return;
        int code = NOTHING, place = 0;
        if (access.live) {
            const int version = counted(before, reads ? READ_VERSIONS : WRITE_VERSIONS);
            const int version_place = version < room ? place_of_version(rows_in_shared, version) : version;
            if (role.mixed)
                code = VERSION | version_place | (version < room ? 0 : ELSEWHERE);
            else
                code = place_of_row(access.row) | (role.listed ? REVERSE_LISTED : 0);
            if (role.listed) {
                place = begin[access.place] + role.rank;
                entries[place].row = entry_of(
                    place_of_token(rows_in_shared, access.token), version_place | (version < room ? 0 : ENTRY_ELSEWHERE),
                    access.k == 0, reads);
                numbers[place] = access.token * width + access.k + (reads ? READS_NUMBER : 0);
            }
        }
        events[(at + access.token) * width + access.k] = {code, place};
    };
    leave(w, write_role, false, W, write_events);
    leave(r, read_role, true, R, read_events);
#endif
}
