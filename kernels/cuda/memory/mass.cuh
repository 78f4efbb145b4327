// What conflicts.cu leaves of a chunk's accesses for the kernels of the masses (mass_forward.cu, mass_backward.cu,
// mass_aware.cu, segments.cu).
#pragma once
#include "memory/chunk.cuh"

// z -> a z + b: what writes make of their slot's mass.
struct alignas(2 * sizeof(Acc)) Affine {
    Acc a, b;

    DEVICE Acc operator()(Acc z) const { return a * z + b; }
};

// A slot in the backward: q = <d, s>, of its content s and the content's adjoint d, and the adjoint of its mass.
struct alignas(2 * sizeof(Acc)) MassAdjoint {
    Acc q, dz;
};

DEVICE float absolute(float x) { return fabsf(x); }
DEVICE double absolute(double x) { return fabs(x); }
DEVICE bool sign_bit(float x) { return __float_as_int(x) < 0; }
DEVICE bool sign_bit(double x) { return __double_as_longlong(x) < 0; }

// What a segment makes, in reverse time, of a slot's q and dz at its end.
struct alignas(4 * sizeof(Acc)) AdjointMap {
    Acc a, c;  // a with its sign bit set, also where it is 0: q does not depend on q at the end
    MassAdjoint of_zeros;

    DEVICE MassAdjoint operator()(const MassAdjoint& end) const {
        return {sign_bit(a) ? of_zeros.q : end.q + of_zeros.q, absolute(a) * end.dz + c * end.q + of_zeros.dz};
    }
};

// Where an access stands: its index among the chunk's entries, where its chain begins there and, of a write, its number
// among the chunk's writes in chains. CHAINED: its chain has writes. LAST: a write after which none of the chunk changes
// the slot. LISTED: a read in a chain, with writes or without. DEAD: an access that does nothing.
enum AccessTag : int { LAST = 1 << 29, LISTED = LAST, CHAINED = 1 << 30, DEAD = int(1u << 31) };
DEVICE int access_tag(int entry, int begin, int number) { return number | entry << 9 | begin << 19; }
DEVICE int number_of(int tag) { return tag & 511; }
DEVICE int entry_index(int tag) { return tag >> 9 & 1023; }
DEVICE int chain_begin(int tag) { return tag >> 19 & 1023; }

// A write and its own change of the mass, {alpha, w}; or a read and the change by the chunk's writes before it.
struct alignas(4 * sizeof(Acc)) MassAccess {
    RowOf<Acc>::type row, tag;
    Affine change;

    DEVICE static MassAccess dead() { return {0, DEAD, {1, 0}}; }
    DEVICE bool live() const { return int(tag) >= 0; }
    DEVICE bool last() const { return int(tag) & LAST; }
    DEVICE bool chained() const { return int(tag) & CHAINED; }
    // A write of more than half of its token's weight. At most a token's first is one.
    DEVICE bool heavy() const { return live() && change.b > Acc(0.5); }
};

// A read, without what the masses do to it.
struct alignas(8) SlotAccess {
    int row, tag;

    DEVICE static SlotAccess dead() { return {0, DEAD}; }
    DEVICE bool live() const { return tag >= 0; }
    DEVICE bool listed() const { return tag & LISTED; }
    DEVICE bool chained() const { return tag & CHAINED; }
};

// Where a row stands in an array in shared memory: rows change places, 32 by 32. A token's best slots differ in one or two
// digits, which are often not the digits that choose the bank, so without this six lanes of a warp meet in one; with it, three.
DEVICE constexpr int place_of_row(int row) { return row ^ ((row >> 4 ^ row >> 6) & 31); }
DEVICE constexpr int places_of(int rows) { return (rows + 31) / 32 * 32; }  // that an array has

// Whether a thread's token is one of the chunk; known to the compiler where all threads have one.
DEVICE constexpr bool in_chunk(int token, int width) { return CHUNK * width >= THREADS || token < CHUNK; }

// The chunks that a block of the masses works through: all of a sequence and head, or one segment of it. Blocks: (B*H,
// segments).
struct ChunkRange {
    const Sequence sequence;
    int begin, end;
    long long first_row;  // in arrays (B*H, segments, rows)

    DEVICE ChunkRange(const MemoryParams& memory, bool segmented, int segments, int chunks_of_segment)
        : sequence(memory, segmented ? unsigned(blockIdx.x) / unsigned(segments) : blockIdx.x), begin(0),
          end(sequence.chunks()), first_row(sequence.first_row) {
        if (segmented) {
            begin = int(unsigned(blockIdx.x) % unsigned(segments)) * chunks_of_segment;
            end = min(end, begin + chunks_of_segment);
            first_row = (long long)(blockIdx.x) * memory.rows;
        }
    }
};
