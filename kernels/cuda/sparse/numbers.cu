// Numbers for the slots that a segment touches: in every head 0, 1, 2, in the order of their first use. Nothing is sorted.
//
// An access has a place in its head: first the writes, token by token, then those of masked tokens, then the reads. A slot
// has a cell in a table, which keeps the first place that touches it. A slot's number is then how many slots of the head
// have a first place before its own: a sum over places, each of which counts 1 if it is a first one.
//
// The table has a cell for every slot of every head or, where these are many, it is a hash table, at most half full. Which
// cell a slot gets there depends on timing; its first place and its number do not. The atomics are on integers only.
//
// Who computes what: a thread an access, the writes' first, or a cell; one kernel after the other:
//
//     note_uses      accesses   the cell of every access, the first place of every cell
//     mark_firsts    cells      1 for every place that is a first one
//                               CuPy adds these up
//     number_cells   cells      numbers, and keys in their order; where heads begin there, and how many slots they write
//     take_numbers   accesses   the number of every access
//     note_tokens    accesses   the first token that uses each slot, where someone asks for it
//
// Compiled with: THREADS.
#include "runtime/common.cuh"

#ifndef THREADS
#error "THREADS must be defined"
#endif

struct alignas(16) Cell {
    long long key;   // (b * H + h) * M + slot, or -1: free
    unsigned first;  // place of its first use, 2**32 - 1 before there is one
    int number;
};

// The writes or the reads. Twin: SIDE of numbers.py.
struct Side {
    const int* index;     // (B, T, H, K): slots
    int* numbers;         // (B, T, H, K): of the accesses; their cells before
    unsigned accesses;
    int top_k;            // K
    unsigned live_from, masked_from;  // the first place of this side in a head, and of its masked tokens
};

// Twin: NUMBERS_PARAMS of numbers.py.
struct NumbersParams {
    Side write, read;
    const bool* mask;     // (B, T), or null: of the writes
    Cell* cells;
    int* marks;           // (B*H, places): 1 at a first place, else 0
    const int* sums;      // (B*H, places): of the marks up to each place, with all heads before
    long long* keys;      // (N,) out
    long long* bounds;    // (2 B*H + 1,) out: where a head's keys begin, and N; how many of its slots are written
    unsigned* first_tokens;  // (N,) out, of note_tokens: 2**32 - 1 before
    long long cell_count, slots;  // of the table; M
    long long places;     // of a head
    int tokens, heads, all_heads;  // T, H, B*H
    int shift;            // 64 - log2(cell_count), or 0: a key is its cell
};

DEVICE unsigned thread_of_grid() { return blockIdx.x * THREADS + threadIdx.x; }

// The side of an access, by its number among all, which then is that among the side's.
DEVICE Side side_of(const NumbersParams& p, unsigned& i) {
    const bool reads = i >= p.write.accesses;
    i -= reads ? p.write.accesses : 0;
    return reads ? p.read : p.write;
}

// The cell of a key, made if there is none; ``seen``: what it was.
DEVICE long long cell_of(const NumbersParams& p, long long key, Cell& seen) {
    long long at = p.shift ? (unsigned long long)(key) * 0x9E3779B97F4A7C15ull >> p.shift : key;
    for (;; at = at + 1 == p.cell_count ? 0 : at + 1) {
        const int4 words = __ldcg(reinterpret_cast<const int4*>(p.cells + at));
        memcpy(&seen, &words, sizeof seen);
        if (seen.key == key) return at;
        if (seen.key != -1) continue;
        const unsigned long long before = atomicCAS(
            reinterpret_cast<unsigned long long*>(&p.cells[at].key), ~0ull, (unsigned long long)(key)
        );
        if (before == ~0ull || before == (unsigned long long)(key)) return at;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) note_uses(const __grid_constant__ NumbersParams p) {
    unsigned i = thread_of_grid();
    const bool writes = i < p.write.accesses;
    const Side side = side_of(p, i);
    if (i >= side.accesses) return;
    const unsigned token_head = i / side.top_k, k = i % side.top_k;
    const unsigned row = token_head / p.heads, head = token_head % p.heads;  // row: b * T + t
    const unsigned b = row / p.tokens, t = row % p.tokens;
    const bool live = !writes || !p.mask || p.mask[row];
    const unsigned place = (live ? side.live_from : side.masked_from) + t * side.top_k + k;
    Cell seen;
    const long long at = cell_of(p, (b * (long long)(p.heads) + head) * p.slots + side.index[i], seen);
    if (place < seen.first) atomicMin(&p.cells[at].first, place);
    side.numbers[i] = int(at);
}

extern "C" __global__ void __launch_bounds__(THREADS) mark_firsts(const __grid_constant__ NumbersParams p) {
    const unsigned at = thread_of_grid();
    if (at >= p.cell_count || p.cells[at].key == -1) return;
    p.marks[p.cells[at].key / p.slots * p.places + p.cells[at].first] = 1;
}

extern "C" __global__ void __launch_bounds__(THREADS) number_cells(const __grid_constant__ NumbersParams p) {
    const unsigned at = thread_of_grid();
    if (at < p.all_heads) {  // there are at least as many cells
        const int* const own = p.sums + at * p.places;
        const int before = at ? own[-1] : 0;
        p.bounds[at] = before;
        p.bounds[p.all_heads + 1 + at] = own[p.write.masked_from - 1] - before;
        if (at == p.all_heads - 1) p.bounds[p.all_heads] = own[p.places - 1];
    }
    if (at >= p.cell_count || p.cells[at].key == -1) return;
    const long long key = p.cells[at].key, head = key / p.slots;
    const int before = p.sums[head * p.places + p.cells[at].first] - 1;
    p.keys[before] = key;
    p.cells[at].number = before - (head ? p.sums[head * p.places - 1] : 0);
}

extern "C" __global__ void __launch_bounds__(THREADS) take_numbers(const __grid_constant__ NumbersParams p) {
    unsigned i = thread_of_grid();
    const Side side = side_of(p, i);
    if (i < side.accesses) side.numbers[i] = p.cells[side.numbers[i]].number;
}

extern "C" __global__ void __launch_bounds__(THREADS) note_tokens(const __grid_constant__ NumbersParams p) {
    unsigned i = thread_of_grid();
    const Side side = side_of(p, i);
    if (i >= side.accesses) return;
    const unsigned token_head = i / side.top_k, row = token_head / p.heads, head = token_head % p.heads;
    const unsigned b = row / p.tokens, t = row % p.tokens;
    unsigned* const first = p.first_tokens + p.bounds[b * p.heads + head] + side.numbers[i];
    if (t < *first) atomicMin(first, t);
}
