// Rows for the slots that a sequence uses, where M is too large for an array of that size to be kept. A table per
// (batch, head) gives a slot the number t * K + k of the first write to it, which becomes its row, and the last token that
// reads it.
//
// A write that no later read sees changes nothing but the state, which is not wanted here, and a read of a slot that
// nothing was written to before finds zeros. Both get no row, and nothing that comes after spends time on them: with many
// slots, that is most accesses.
//
// The table has a cell for every slot, or, where M is beyond what accesses can touch, it is a hash table. Which write
// claims a cell of that depends on timing; the smallest number and the last token do not. So the rows are the same in
// every run. The atomics are on integers only, and leave no trace in the results.
//
// Who computes what: one thread per access, in one kernel after the other:
//
//     renumber_writes   every slot's first write
//     renumber_reads    rows of the reads, and every slot's last one
//     renumber_seen     rows of the writes
//
// renumber_clear: 32 accesses a warp, which sets the rows of those among them that are first writes to 0.
//
// Compiled with: THREADS.
#include "memory/span.cuh"

#ifndef THREADS
#error "THREADS must be defined"
#endif

struct Use {
    unsigned first;  // number of the first write, or 2**32 - 1
    int last;        // last token that reads it, or -1
};

struct RenumberParams {
    const int* slots;  // (B, T, H, K): of one side's accesses; renumber_clear: their rows
    const bool* mask;  // (B, T), or null
    int* rows;         // as slots; -1 for an access that needs none
    int* keys;         // (B*H, cells): slots or -1; or null, then slot s is in cell s
    Use* uses;         // (B*H, cells)
    unsigned* state;   // (B*H, rows_of_state, words) of renumber_clear
    const Span* spans;         // of a packed row, or null: sequence b is row b of the batch
    const int* span_of_token;  // (T,) of a packed row, or null
    long long count, rows_of_state;
    unsigned cells;  // a power of two if there are keys; of a packed row, 2 for every write of a sequence
    int tokens, heads, top_k;
    int writes;  // of a token
    int words;   // of a row of the state, of 4 bytes
};

// One access of (B, T, H, K).
struct Access {
    long long position;    // b * T + t
    long long first_row;   // of the sequence's rows of the state
    long long first_cell;  // of its table
    unsigned cells;        // there
    int token, number;     // t, t * K + k

    DEVICE Access(const RenumberParams& p, long long i) {
        const long long token_head = i / p.top_k;
        position = token_head / p.heads;
        const int at = p.spans ? p.span_of_token[position] : int(position / p.tokens);
        const int head = int(token_head - position * p.heads);
        const Span span = span_of(p.spans, at, p.tokens, 0);
        const StateRows rows(span, head, p.heads, p.spans ? 0 : int(p.rows_of_state), p.writes);
        token = int(position - span.begin), number = token * p.top_k + int(i - token_head * p.top_k);
        first_row = rows.first, cells = p.spans ? 2 * unsigned(rows.rows) : p.cells;
        first_cell = p.spans ? 2 * first_row : ((long long)(at)*p.heads + head) * p.cells;
    }
    DEVICE bool live(const RenumberParams& p) const { return !p.mask || p.mask[position]; }
};

// The cell of a slot. If CLAIM is not set and there is none, -1.
template <bool CLAIM> DEVICE long long cell_of(const RenumberParams& p, const Access& access, int slot) {
    const long long begin = access.first_cell;
    if (!p.keys) return begin + slot;
    unsigned cell = unsigned(slot) * 2654435769u % access.cells;
    for (;;) {
        int* const key = p.keys + begin + cell;
        const int seen = CLAIM ? atomicCAS(key, -1, slot) : *key;
        if (seen == slot || (CLAIM && seen == -1)) return begin + cell;
        if (seen == -1) return -1;
        cell = (cell + 1) % access.cells;
    }
}

DEVICE long long access_of_thread() { return blockIdx.x * (long long)(THREADS) + threadIdx.x; }

extern "C" __global__ void __launch_bounds__(THREADS) renumber_writes(const __grid_constant__ RenumberParams p) {
    const long long i = access_of_thread();
    if (i >= p.count) return;
    const Access access(p, i);
    if (access.live(p)) atomicMin(&p.uses[cell_of<true>(p, access, p.slots[i])].first, unsigned(access.number));
}

extern "C" __global__ void __launch_bounds__(THREADS) renumber_reads(const __grid_constant__ RenumberParams p) {
    const long long i = access_of_thread();
    if (i >= p.count) return;
    const Access access(p, i);
    int row = -1;
    if (access.live(p)) {
        const long long cell = cell_of<false>(p, access, p.slots[i]);
        const unsigned number = cell < 0 ? ~0u : p.uses[cell].first;
        if (number < unsigned((access.token + 1) * p.writes)) {
            row = int(number);
            atomicMax(&p.uses[cell].last, access.token);
        }
    }
    p.rows[i] = row;
}

extern "C" __global__ void __launch_bounds__(THREADS) renumber_seen(const __grid_constant__ RenumberParams p) {
    const long long i = access_of_thread();
    if (i >= p.count) return;
    const Access access(p, i);
    int row = -1;
    if (access.live(p)) {
        const Use use = p.uses[cell_of<false>(p, access, p.slots[i])];
        if (use.last >= access.token) row = int(use.first);
    }
    p.rows[i] = row;
}

// The backward, unlike the forward, has no number that says where a row is new.
extern "C" __global__ void __launch_bounds__(THREADS) renumber_clear(const __grid_constant__ RenumberParams p) {
    const long long i = access_of_thread();
    long long row = -1;
    if (i < p.count) {
        const Access access(p, i);
        if (p.slots[i] == access.number) row = access.first_row + access.number;
    }
    for (unsigned left = __ballot_sync(~0u, row >= 0); left; left &= left - 1) {
        unsigned* const to = p.state + __shfl_sync(~0u, row, __ffs(left) - 1) * p.words;
        for (int word = threadIdx.x % 32; word < p.words; word += 32) to[word] = 0;
    }
}
