// Rows of a sparse state: a table leads from the key of a slot, (b * H + h) * M + slot, to a row.
//
// Rows lie in pages, and a page in the GPU's memory or in pinned memory of the host, which the GPU reads and writes over
// the bus by itself. So whoever has a row's address need not know where it is. A row is C contents, and what is missing to
// a multiple of 16 bytes. Its mass is in the table: with 64 channels a row then fills whole lines of 128 bytes.
//
// A token waits for three things one after the other: its slots, their entries in the table, their rows. So an entry has
// all that is known before the row comes: its address, its mass, and its number, which only notes need. Two entries are
// seen at a time, 64 bytes that the memory brings together.
//
// The table has a place for every slot where slots are few, and no two keys meet there. Else it is open addressing with
// linear probing from an even place, at most half full. Different blocks add different keys at the same time; nobody takes
// one out: rows leave for a disk between launches, and all others are then entered anew. Which row a key gets depends on
// timing, and nothing depends on that.
#pragma once
#include "runtime/common.cuh"

constexpr int PAGE_BITS = 10;  // twin: PAGE_ROWS of rows.py

struct alignas(32) Entry {
    long long key;   // -1: free
    char* row;       // null while the entry is being made
    long long mass;  // an accumulator's bytes, and what is missing to 8
    int number;      // of the row

};
// The row of a key, its entry, and the mass there; null where a key has none.
struct Found {
    char* row;
    Entry* at;
    long long mass;
};

// In device memory: it may change between two launches of a graph. Twin: ROW_TABLE of rows.py.
struct RowTable {
    Entry* entries;
    char** pages;
    const char* initial;    // the row of a slot that was never written
    long long initial_mass;  // its mass, as in an entry
    long long* key_of_row;  // (rows,)
    int* used;              // (rows,): when a row was last asked for
    bool* changed;          // (rows,): since it came from the disk
    int* count;             // of rows that are taken
    unsigned mask;          // entries - 1; all bits where a key is its place
    int shift;              // 64 - log2(entries), or 0: a key is its place
    int row_bytes, capacity;

    DEVICE char* row(int number) const {
        return pages[number >> PAGE_BITS] + (long long)(number & ((1 << PAGE_BITS) - 1)) * row_bytes;
    }
    DEVICE unsigned first(long long key) const {
        const auto spread = (unsigned long long)(key) * 0x9E3779B97F4A7C15ull;  // 2**64 over the golden ratio
        return unsigned(shift ? spread >> shift : key) & ~1u;
    }
    // Key, row and mass, from the L2 cache: another block may have made an entry since the L1 cache saw it free. Mass
    // comes with the key, so that nobody waits for it behind newer loads, as those of rows are.
    DEVICE Found seen(unsigned at, long long& key) const {
        const int4 words = __ldcg(reinterpret_cast<const int4*>(entries + at));
        Found found{nullptr, entries + at, __ldcg(&entries[at].mass)};
        memcpy(&key, &words, sizeof key);
        memcpy(&found.row, &words.z, sizeof found.row);
        return found;
    }
    // The row of a key.
    DEVICE Found find(long long key) const {
        for (unsigned at = first(key);; at = (at + 2) & mask) {
            long long key_of_one, key_of_other;
            const Found one = seen(at, key_of_one), other = seen(at + 1, key_of_other);
            if (key_of_one == key) return one;
            if (key_of_other == key) return other;
            if (key_of_one == -1 || key_of_other == -1) return {nullptr, nullptr, 0};
        }
    }
    // An entry for a key that has none, without its row. One thread alone asks for a key.
    DEVICE Entry* add(long long key) const {
        for (unsigned at = first(key);; at = (at + 1) & mask) {
            long long taken;
            seen(at, taken);
            if (taken != -1) continue;
            const unsigned long long before = atomicCAS(
                reinterpret_cast<unsigned long long*>(&entries[at].key), ~0ull, (unsigned long long)(key)
            );
            if (before == ~0ull) return entries + at;  // else another key was quicker
        }
    }
    // What an entry leads to.
    DEVICE void set(Entry* entry, int number) const {
        entry->number = number;
        entry->row = row(number);
    }
    // The row of a key, added if it is not there, with the mass of a slot that was never written. One thread alone asks
    // for a key. Null: there is no room.
    DEVICE Found find_or_add(long long key, bool& added) const {
        Found found = find(key);
        added = false;
        if (found.row) return found;
        const int number = atomicAdd(count, 1);
        if (number >= capacity) return found;
        added = true;
        key_of_row[number] = key;
        found = {row(number), add(key), initial_mass};
        found.at->mass = initial_mass;
        set(found.at, number);
        return found;
    }
    // The mass of a key's slot.
    template <class Acc> DEVICE Acc mass_of(const Found& found) const {
        const long long bytes = found.row ? found.mass : initial_mass;
        Acc value;
        memcpy(&value, &bytes, sizeof value);
        return value;
    }
    // Note that a row was asked for ``now``; its number.
    DEVICE int note(const Found& found, int now) const {
        const int number = found.at->number;
        used[number] = now;
        return number;
    }
    DEVICE static int milliseconds() {
        unsigned long long nanoseconds;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
        return int(nanoseconds >> 20 & 0x7fffffff);
    }
};
