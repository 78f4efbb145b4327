// Rows of a sparse state by their keys: copied out, copied in, entered into a larger table, exchanged between memories.
//
// Who computes what: a warp a key, or a pair of rows; of enter_rows a thread a row.
//
//     gather_rows     rows by keys, those in the host's memory read over the bus in the same launch
//     scatter_rows    the other way; keys that are not there are added
//     enter_rows      all rows into a new table
//     exchange_rows   rows of the GPU that were not asked for against rows of the host that were
//
// Compiled with: THREADS.
#include "sparse/rows.cuh"

#ifndef THREADS
#error "THREADS must be defined"
#endif

// Twin: ROWS_PARAMS of rows.py.
struct RowsParams {
    const RowTable* table;
    const long long* keys;  // (N,)
    unsigned* rows;         // (N, words)
    const int *here, *there;  // (N,) of exchange_rows: rows on the GPU and on the host
    long long count;        // N; of enter_rows, as of the table
    int words;              // of a row without what fills it up, of 4 bytes
};

DEVICE long long warp_of_grid() { return (blockIdx.x * (long long)(THREADS) + threadIdx.x) / 32; }

DEVICE void copy_words(const void* from, void* to, int words) {
    for (int word = threadIdx.x % 32; word < words; word += 32)
        static_cast<unsigned*>(to)[word] = static_cast<const unsigned*>(from)[word];
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_rows(const __grid_constant__ RowsParams p) {
    const long long n = warp_of_grid();
    if (n >= p.count) return;
    const RowTable table = *p.table;
    const int number = table.find(p.keys[n]);
    if (threadIdx.x % 32 == 0) table.note_use(number);
    copy_words(number < 0 ? table.initial : table.row(number), p.rows + n * p.words, p.words);
}

extern "C" __global__ void __launch_bounds__(THREADS) scatter_rows(const __grid_constant__ RowsParams p) {
    const long long n = warp_of_grid();
    if (n >= p.count) return;
    const RowTable table = *p.table;
    int number = -1;
    if (threadIdx.x % 32 == 0) {
        bool added;
        number = table.find_or_add(p.keys[n], added);
        table.note_use(number);
    }
    number = __shfl_sync(~0u, number, 0);
    if (number >= 0) copy_words(p.rows + n * p.words, table.row(number), p.words);
}

extern "C" __global__ void __launch_bounds__(THREADS) enter_rows(const __grid_constant__ RowsParams p) {
    const RowTable table = *p.table;
    const long long number = blockIdx.x * (long long)(THREADS) + threadIdx.x;
    if (number >= *table.count) return;
    const long long key = table.key_of_row[number];
    for (unsigned at = table.first(key);; at = (at + 1) & table.mask) {
        const unsigned long long before = atomicCAS(
            reinterpret_cast<unsigned long long*>(&table.entries[at].key), ~0ull, (unsigned long long)(key)
        );
        if (before != ~0ull) continue;
        table.entries[at].row = int(number);
        return;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) exchange_rows(const __grid_constant__ RowsParams p) {
    const long long n = warp_of_grid();
    if (n >= p.count) return;
    const RowTable table = *p.table;
    const int here = p.here[n], there = p.there[n];
    const int used_here = table.used[here], used_there = table.used[there];
    if (used_there <= used_here) return;
    unsigned *const one = reinterpret_cast<unsigned*>(table.row(here)),
                    *const other = reinterpret_cast<unsigned*>(table.row(there));
    for (int word = threadIdx.x % 32; word < p.words; word += 32) {
        const unsigned kept = one[word];
        one[word] = other[word];
        other[word] = kept;
    }
    __syncwarp();  // all lanes have seen when the rows were used
    if (threadIdx.x % 32) return;
    const long long key_here = table.key_of_row[here], key_there = table.key_of_row[there];
    table.entries[table.entry_of(key_here)].row = there;
    table.entries[table.entry_of(key_there)].row = here;
    table.key_of_row[here] = key_there;
    table.key_of_row[there] = key_here;
    table.used[here] = used_there;
    table.used[there] = used_here;
}
