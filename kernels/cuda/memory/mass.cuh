// What link.cu leaves for the kernels of the masses (mass.cu, weigh.cu) of a chunk's accesses.
#pragma once
#include "memory/chunk.cuh"

// z -> a z + b: what writes make of their slot's mass.
struct alignas(2 * sizeof(Sum)) Affine {
    Sum a, b;

    DEVICE Sum operator()(Sum z) const { return a * z + b; }
};

// At a slot, in reverse: q (mass.cu), and the adjoint of its mass.
struct alignas(2 * sizeof(Sum)) Adjoint {
    Sum q, dz;
};

// Where an access of a chain with writes stands: its version, its place among the chunk's entries, where its chain begins
// there. LAST: no later write of the chunk changes the slot. An access that does nothing is DEAD.
enum Tag : int { LAST = 1 << 29, CHAINED = 1 << 30, DEAD = int(1u << 31) };
DEVICE int chained(int version, int place, int begin) { return CHAINED | version | place << 9 | begin << 19; }
DEVICE int listed(int place) { return place << 9; }  // in a chain of reads alone, or in none
DEVICE int tag_version(int tag) { return tag & 511; }
DEVICE int tag_place(int tag) { return tag >> 9 & 1023; }
DEVICE int tag_begin(int tag) { return tag >> 19 & 1023; }

// A write, and by itself its change of the mass; or a read, and the change by the chunk's writes before it.
struct alignas(4 * sizeof(Sum)) Link {
    typename RowOf<Sum>::type row, tag;
    Affine change;  // of a write: alpha, w

    DEVICE bool live() const { return int(tag) >= 0; }
    DEVICE bool last() const { return int(tag) & LAST; }
    DEVICE bool chained() const { return int(tag) & CHAINED; }
    // Of a write, as events have it. rows_in_shared, room: of content.cu, the state's rows and versions
    DEVICE int code(int rows_in_shared, int room) const {
        const int alone = live() ? place_of_row(int(row)) : NOTHING;
        return chained() ? version_code(tag_version(int(tag)), rows_in_shared, room) : alone;
    }
};

// Which chunks of which (batch, head) a block works through: all of them, or a segment. Blocks: (B*H, segments).
struct Part {
    int unit, begin, end;

    DEVICE Part(const Call& call, bool segmented, int segments, int chunks_of_segment)
        : unit(blockIdx.x), begin(0), end(call.chunks()) {
        if (segmented) {
            unit = unsigned(blockIdx.x) / unsigned(segments);
            begin = (int(blockIdx.x) - unit * segments) * chunks_of_segment;
            end = smaller_of(end, begin + chunks_of_segment);
        }
    }
};
