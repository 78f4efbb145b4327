// Rows for the slots that a sequence writes (masked tokens write none), where M is too large for an array of that size to be kept: a hash table a
// (batch, head), from slot to the number t * K + k of the first write to it, which becomes its row.
//
// Which write of several claims a place in the table depends on timing; the smallest number among them does not. So
// the rows are the same in every run. Integers only: atomics on them leave no trace in the results.
//
// Who computes what: one thread an access.

// Where the slot's entry is, or the empty place (-1) where the search for it ends.
__device__ __forceinline__ unsigned start_of(int slot, unsigned places) { return unsigned(slot) * 2654435769u % places; }

// The sizes of one side's accesses, (B, T, H, K), and of a table, places: a power of two, at least 2 T K of writes.
struct Access {
    long long unit, token, number;  // b * H + h, b * T + t, t * K + k

    __device__ __forceinline__ Access(long long i, int tokens, int heads, int top_k) {
        token = i / top_k / heads;
        unit = token / tokens * heads + i / top_k % heads;
        number = token % tokens * top_k + i % top_k;
    }
};

extern "C" __global__ void renumber_writes(
    const int* slots, long long count, int tokens, int heads, int top_k, unsigned places,
    int* keys,        // (B*H, places), all -1
    int* first,       // (B*H, places), all 2**31 - 1
    const bool* mask  // (B, T), or null
) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (i >= count) return;
    const Access access(i, tokens, heads, top_k);
    if (mask && !mask[access.token]) return;
    keys += access.unit * places;
    unsigned place = start_of(slots[i], places);
    for (;;) {
        const int seen = atomicCAS(keys + place, -1, slots[i]);
        if (seen == -1 || seen == slots[i]) break;
        place = (place + 1) % places;
    }
    atomicMin(first + access.unit * places + place, int(access.number));
}

extern "C" __global__ void renumber_look_up(
    const int* slots, long long count, int tokens, int heads, int top_k, unsigned places,
    const int* keys, const int* first,
    int* rows  // as slots; -1 for a slot that nothing is written to
) {
    const long long i = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
    if (i >= count) return;
    const Access access(i, tokens, heads, top_k);
    keys += access.unit * places;
    unsigned place = start_of(slots[i], places);
    while (keys[place] != slots[i] && keys[place] != -1) place = (place + 1) % places;
    rows[i] = keys[place] == -1 ? -1 : first[access.unit * places + place];
}
