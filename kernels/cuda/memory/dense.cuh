// Few slots: where a chunk's accesses touch most of a head's slots, its reads and writes are products of dense matrices.
//
// R~ and W~ (tokens, slots) have r~ and eta~ of every access at its token and slot, and 0 elsewhere. With them and with
// kept(0, all) of every slot, the equations of chunk.cuh are, for all tokens and slots of a chunk at once,
//
//     y  = R~ s + A v           s after  = kept s + W~^T v
//     dv = W~ d + A^T dy        d before = kept d + R~^T dy
//     <dy, s> of every read: dy s^T           <d, v> of every write: v d^T
//
// The tensor cores multiply, and keep the digits of float32 (tf32.cuh). dense_couplings.cu computes A, r~, eta~ and kept,
// dense_content*.cu the rest. No chain and no list is followed, so the time does not depend on who shares a slot.
#pragma once
#include "memory/mass.cuh"

#if !defined(SLOTS_PADDED) || !defined(DENSE_RECORD_BYTES)
#error "SLOTS_PADDED (M, in whole products) and DENSE_RECORD_BYTES must be defined, as dense.py does"
#endif

static_assert(sizeof(Acc) == 4 && CHUNK % 16 == 0 && SLOTS_PADDED % 8 == 0, "a product has 16 x 8 numbers in float32");

// A warp reads 4 rows x 8 numbers of a matrix, or pairs of 8 rows: no bank is asked twice where rows are 8 or 24 banks apart.
DEVICE constexpr int apart(int numbers) { return (numbers + 15) / 16 * 16 + 8; }
constexpr int STRIDE = apart(SLOTS_PADDED), MATRIX = CHUNK * STRIDE;
constexpr int COUPLING_STRIDE = CHUNK + 4;

// Where an access stands in R~ or W~.
using Place = unsigned short;
constexpr Place HEAVY_PLACE = 1 << 15, NOWHERE = HEAVY_PLACE - 1;  // of a heavy write; of an access that does nothing
static_assert(MATRIX < NOWHERE, "places take 15 bits");
DEVICE constexpr int place_of(int token, int row) { return token * STRIDE + row; }

struct alignas(16) Four {
    Acc at[4];
};

// What dense_couplings.cu leaves of a chunk for dense_content*.cu.
struct DenseRecord {
    alignas(16) Acc coupling[CHUNK * COUPLING_STRIDE];  // A_tj; 0 for j after t
    Acc read[CHUNK * R];                                // r~
    // what content_backward_recompute needs begins here
    Acc write[CHUNK * W];                               // eta~
    Acc kept[SLOTS_PADDED];                             // kept(0, all) of every slot
    Place read_place[CHUNK * R], write_place[CHUNK * W];
};
constexpr int BYTES_BEFORE_WRITES = (CHUNK * COUPLING_STRIDE + CHUNK * R) * sizeof(Acc);
static_assert(sizeof(DenseRecord) == DENSE_RECORD_BYTES, "dense.py and this file count the same bytes");
