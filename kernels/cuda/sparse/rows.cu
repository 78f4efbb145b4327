// Rows of a sparse state by their keys: copied out, copied in, entered into a new table, exchanged between memories.
//
// Who computes what: a warp a key, or a pair of rows; of enter_rows a thread a row.
//
//     gather_rows     rows by keys, those in the host's memory read over the bus in the same launch
//     scatter_rows    the other way; keys that are not there are added
//     enter_rows      all rows into a new table, with their masses from the one before
//     exchange_rows   rows of the GPU that were not asked for against rows of the host that were
//     move_rows       rows to places that others have left; the table is made anew then
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
    unsigned* rows;         // (N, words): contents, then the mass
    const int *here, *there;  // (N,) of exchange_rows: rows on the GPU and on the host; of move_rows: to and from
    Entry* old;             // of enter_rows: the table before, where masses are
    long long count;        // N; of enter_rows, as of the table
    unsigned old_mask;
    int old_shift;
    int words, mass_words;  // of 4 bytes, of gather_rows and scatter_rows
    int changed;            // of scatter_rows: whether the rows differ from what a disk has

    DEVICE int content_words() const { return words - mass_words; }
};

DEVICE long long warp_of_grid() { return (blockIdx.x * (long long)(THREADS) + threadIdx.x) / 32; }

// A warp copies a row, 16 bytes of it a lane: over the bus, few large requests take far less time than many small ones.
// Outside of a page a row has ``words`` words and lies anywhere.
DEVICE void copy_out(const void* row, unsigned* to, int words) {
    for (int word = threadIdx.x % 32 * 4; word < words; word += 32 * 4) {
        const uint4 four = *reinterpret_cast<const uint4*>(static_cast<const unsigned*>(row) + word);
        const unsigned part[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (word + i < words) to[word + i] = part[i];
    }
}
DEVICE void copy_in(const unsigned* from, void* row, int words) {
    for (int word = threadIdx.x % 32 * 4; word < words; word += 32 * 4) {
        unsigned part[4];
#pragma unroll
        for (int i = 0; i < 4; i++) part[i] = word + i < words ? from[word + i] : 0;
        *reinterpret_cast<uint4*>(static_cast<unsigned*>(row) + word) = uint4{part[0], part[1], part[2], part[3]};
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_rows(const __grid_constant__ RowsParams p) {
    const long long n = warp_of_grid();
    if (n >= p.count) return;
    const RowTable& table = *p.table;
    const int now = RowTable::milliseconds();
    const Found found = table.find(p.keys[n]);
    const bool is_there = found.row;
    unsigned* const to = p.rows + n * p.words;
    copy_out(is_there ? found.row : table.initial, to, p.content_words());
    if (threadIdx.x % 32) return;
    if (is_there) table.note(found, now);
    const long long mass = table.mass_of<long long>(found);
    to[p.content_words()] = unsigned(mass);
    if (p.mass_words == 2) to[p.content_words() + 1] = unsigned(mass >> 32);
}

extern "C" __global__ void __launch_bounds__(THREADS) scatter_rows(const __grid_constant__ RowsParams p) {
    const long long n = warp_of_grid();
    if (n >= p.count) return;
    const RowTable& table = *p.table;
    const int now = RowTable::milliseconds();
    const unsigned* const from = p.rows + n * p.words;
    char* row = nullptr;
    if (threadIdx.x % 32 == 0) {
        bool added;
        const Found found = table.find_or_add(p.keys[n], added);
        row = found.row;
        if (row) {
            table.changed[table.note(found, now)] = p.changed;
            const unsigned long long high = p.mass_words == 2 ? from[p.content_words() + 1] : 0;
            found.at->mass = high << 32 | from[p.content_words()];
        }
    }
    row = reinterpret_cast<char*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(row), 0));
    if (row) copy_in(from, row, p.content_words());
}

extern "C" __global__ void __launch_bounds__(THREADS) enter_rows(const __grid_constant__ RowsParams p) {
    const RowTable table = *p.table;
    const long long number = blockIdx.x * (long long)(THREADS) + threadIdx.x;
    if (number >= *table.count) return;
    const long long key = table.key_of_row[number];
    Entry* const entry = table.add(key);
    RowTable old = table;
    old.entries = p.old, old.mask = p.old_mask, old.shift = p.old_shift;
    entry->mass = old.find(key).at->mass;
    table.set(entry, int(number));
}

extern "C" __global__ void __launch_bounds__(THREADS) exchange_rows(const __grid_constant__ RowsParams p) {
    const long long n = warp_of_grid();
    if (n >= p.count) return;
    const RowTable table = *p.table;
    const int here = p.here[n], there = p.there[n];
    const int used_here = table.used[here], used_there = table.used[there];
    if (used_there <= used_here) return;
    uint4 *const one = reinterpret_cast<uint4*>(table.row(here)),
                 *const other = reinterpret_cast<uint4*>(table.row(there));
    for (int part = threadIdx.x % 32; part < table.row_bytes / 16; part += 32) {
        const uint4 kept = one[part], come = other[part];
        one[part] = come;
        other[part] = kept;
    }
    __syncwarp();  // all lanes have seen when the rows were used
    if (threadIdx.x % 32) return;
    const long long key_here = table.key_of_row[here], key_there = table.key_of_row[there];
    table.set(table.find(key_here).at, there);
    table.set(table.find(key_there).at, here);
    table.key_of_row[here] = key_there;
    table.key_of_row[there] = key_here;
    table.used[here] = used_there;
    table.used[there] = used_here;
    const bool changed = table.changed[here];
    table.changed[here] = table.changed[there];
    table.changed[there] = changed;
}

extern "C" __global__ void __launch_bounds__(THREADS) move_rows(const __grid_constant__ RowsParams p) {
    const long long n = warp_of_grid();
    if (n >= p.count) return;
    const RowTable table = *p.table;
    const int to = p.here[n], from = p.there[n];
    for (int part = threadIdx.x % 32; part < table.row_bytes / 16; part += 32)
        reinterpret_cast<uint4*>(table.row(to))[part] = reinterpret_cast<const uint4*>(table.row(from))[part];
    if (threadIdx.x % 32) return;
    table.key_of_row[to] = table.key_of_row[from];
    table.used[to] = table.used[from];
    table.changed[to] = table.changed[from];
}
