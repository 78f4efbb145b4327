// Rows for the slots that a sequence uses, where M is too large for an array of that size to be kept: a table a
// (batch, head), in which a slot has the number t * K + k of the first write to it, which becomes its row, and the last
// token that reads it.
//
// A write that no later read sees changes nothing but the state, which is not wanted here, and a read of a slot that
// nothing was written to before finds zeros. Both get no row, and nothing that comes after spends time on them: with many
// slots, that is most accesses.
//
// The table has a place for every slot, or, where M is beyond what accesses can touch, it is a hash table. Which write
// claims a place of that depends on timing; the smallest number and the last token do not. So the rows are the same in
// every run. Integers only: atomics on them leave no trace in the results.
//
// Who computes what: one thread an access; a kernel after the other:
//
//     renumber_writes   every slot's first write
//     renumber_reads    rows of the reads, and every slot's last one
//     renumber_seen     rows of the writes
//
// renumber_clear: 32 accesses a warp, which sets the rows of those among them that are first writes.

// The sizes of one side's accesses, (B, T, H, K), and of a table: places, or a power of two if there are keys.
struct Access {
    long long unit;      // b * H + h
    int token, number;   // t, t * K + k
    long long position;  // b * T + t

    __device__ __forceinline__ Access(long long i, int tokens, int heads, int top_k) {
        position = i / top_k / heads;
        token = int(position % tokens);
        unit = position / tokens * heads + i / top_k % heads;
        number = token * top_k + int(i % top_k);
    }
};

#define ACCESSES const int *slots, long long count, int tokens, int heads, int top_k
#define TABLE                                                                                                           \
    unsigned places, int *keys, /* (B*H, places), slots or -1; or null, then slot s is at place s */                     \
        Use* uses               /* (B*H, places) */

struct Use {
    unsigned first;  // number of the first write, or 2**32 - 1
    int last;        // last token that reads it, or -1
};

// Where a slot is: its place among all, or, if CLAIM is not set and there is none, -1.
template <bool CLAIM>
__device__ __forceinline__ long long place_of(const Access& access, int slot, unsigned places, int* keys) {
    const long long begin = access.unit * places;
    if (!keys) return begin + slot;
    unsigned place = unsigned(slot) * 2654435769u % places;
    for (;;) {
        int* const key = keys + begin + place;
        const int seen = CLAIM ? atomicCAS(key, -1, slot) : *key;
        if (seen == slot || (CLAIM && seen == -1)) return begin + place;
        if (seen == -1) return -1;
        place = (place + 1) % places;
    }
}

extern "C" __global__ void renumber_writes(ACCESSES, TABLE, const bool* mask /* (B, T), or null */) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (i >= count) return;
    const Access access(i, tokens, heads, top_k);
    if (mask && !mask[access.position]) return;
    atomicMin(&uses[place_of<true>(access, slots[i], places, keys)].first, unsigned(access.number));
}

extern "C" __global__ void renumber_reads(
    ACCESSES, TABLE, const bool* mask,
    int writes,  // of a token
    int* rows    // as slots; -1 for one that nothing was written to yet
) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (i >= count) return;
    const Access access(i, tokens, heads, top_k);
    int row = -1;
    if (!mask || mask[access.position]) {
        const long long place = place_of<false>(access, slots[i], places, keys);
        const unsigned number = place < 0 ? ~0u : uses[place].first;
        if (number < unsigned((access.token + 1) * writes)) {
            row = int(number);
            atomicMax(&uses[place].last, access.token);
        }
    }
    rows[i] = row;
}

extern "C" __global__ void renumber_seen(
    ACCESSES, TABLE, const bool* mask,
    int* rows  // as slots; -1 for a write that no later read sees
) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (i >= count) return;
    const Access access(i, tokens, heads, top_k);
    int row = -1;
    if (!mask || mask[access.position]) {
        const Use use = uses[place_of<false>(access, slots[i], places, keys)];
        if (use.last >= access.token) row = int(use.first);
    }
    rows[i] = row;
}

// Sets the rows that a state of numbers has in use to 0. In reverse, unlike forward, no number says where a row is new.
extern "C" __global__ void renumber_clear(
    const int* rows, long long count, int tokens, int heads, int top_k,  // of the writes, as renumber_seen left them
    long long rows_of_state, int words,                                  // of a row, of 4 bytes
    unsigned* state                                                      // (B*H, rows of the state, words)
) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    long long row = -1;
    if (i < count) {
        const Access access(i, tokens, heads, top_k);
        if (rows[i] == access.number) row = access.unit * rows_of_state + access.number;
    }
    for (unsigned left = __ballot_sync(~0u, row >= 0); left; left &= left - 1) {
        unsigned* const to = state + __shfl_sync(~0u, row, __ffs(left) - 1) * words;
        for (int word = threadIdx.x % 32; word < words; word += 32) to[word] = 0;
    }
}
