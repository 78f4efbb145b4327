// Rows of a sparse state: a table leads from the key of a slot, (b * H + h) * M + slot, to a row.
//
// Rows lie in pages, and a page in the GPU's memory or in pinned memory of the host, which the GPU reads and writes over
// the bus by itself. So whoever has a row's address need not know where it is. A row is C contents, its mass, and what is
// missing to a multiple of 16 bytes.
//
// The table is open addressing with linear probing, at most half full. Different blocks add different keys at the same
// time; nobody takes one out. Which row a key gets depends on timing, and nothing depends on that.
#pragma once
#include "runtime/common.cuh"

constexpr int PAGE_BITS = 10;  // twin: PAGE_ROWS of rows.py

struct alignas(16) Entry {
    long long key;  // -1: free
    int row;        // -1 while the entry is being made
    int unused;
};

// In device memory: it may change between two launches of a graph. Twin: ROW_TABLE of rows.py.
struct RowTable {
    Entry* entries;
    char** pages;
    const char* initial;    // the row of a slot that was never written
    long long* key_of_row;  // (rows,)
    int* used;              // (rows,): when a row was last asked for
    int* count;             // of rows that are taken
    unsigned mask;          // entries - 1
    int shift, row_bytes, capacity;

    DEVICE char* row(int number) const {
        return pages[number >> PAGE_BITS] + (long long)(number & ((1 << PAGE_BITS) - 1)) * row_bytes;
    }
    DEVICE unsigned first(long long key) const {
        return unsigned((unsigned long long)(key) * 0x9E3779B97F4A7C15ull >> shift);  // 2**64 over the golden ratio
    }
    // From the L2 cache: another block may have made an entry since the L1 cache saw it free.
    DEVICE Entry entry(unsigned at) const {
        const int4 words = __ldcg(reinterpret_cast<const int4*>(entries + at));
        Entry entry;
        memcpy(&entry, &words, sizeof entry);
        return entry;
    }
    // The entry of a key that is there.
    DEVICE unsigned entry_of(long long key) const {
        unsigned at = first(key);
        while (entry(at).key != key) at = (at + 1) & mask;
        return at;
    }
    // The row of a key, or -1.
    DEVICE int find(long long key) const {
        for (unsigned at = first(key);; at = (at + 1) & mask) {
            const Entry seen = entry(at);
            if (seen.key == key) return seen.row;
            if (seen.key == -1) return -1;
        }
    }
    // The row of a key, added if it is not there. One thread alone asks for a key. -1: there is no room.
    DEVICE int find_or_add(long long key, bool& added) const {
        added = false;
        for (unsigned at = first(key);; at = (at + 1) & mask) {
            Entry seen = entry(at);
            if (seen.key == key) return seen.row;
            if (seen.key != -1) continue;
            const unsigned long long before = atomicCAS(
                reinterpret_cast<unsigned long long*>(&entries[at].key), ~0ull, (unsigned long long)(key)
            );
            if (before != ~0ull) continue;  // another key was quicker
            const int number = atomicAdd(count, 1);
            if (number >= capacity) return -1;
            added = true;
            key_of_row[number] = key;
            entries[at].row = number;
            return number;
        }
    }
    DEVICE void note_use(int number) const {
        if (number >= 0) used[number] = milliseconds();
    }
    DEVICE static int milliseconds() {
        unsigned long long nanoseconds;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
        return int(nanoseconds >> 20 & 0x7fffffff);
    }
};
