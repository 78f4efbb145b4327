// One token, in place: decodes both addresses, then writes and reads, in one launch. step_plain.cu serves larger K and P.
//
// Who computes what: one block a (batch, head). Warp 0 finds the slots of the write, warp 1 those of the read. Then all
// rows are loaded at once: SPAN threads, a team, take a row 16 bytes each, and TEAMS teams share out the rows. While
// these are on their way, warps 0 and 1 compute weights and masses. A slot that is written and read is one team's: what
// it has written goes into its part of y from registers. Finally the partial sums of the teams are added.
//
//     warp 0     slots of the write │ load rows, weights, masses, eta │ write, partial sums │ y
//     warp 1     slots of the read  │ load rows, weights              │ write, partial sums │ y
//     the others                    │ load rows                       │ write, partial sums │ y
//
// Compiled with: ELEMENT, the type of logits, values and y; ORDER and RADIX, the sizes U and P; WRITES and READS, K of
// each; CHANNELS, the size C; THREADS of a block; UPDATE, the update rule; SPARSE, 1 for a sparse state, whose rows a table
// finds (sparse/rows.cuh), else 0; ROW, the type of the contents there. All else is the same then, and so are the bits.
#include "address/cape.cuh"
#include "address/search.cuh"
#include "memory/retention.cuh"
#include "runtime/overlap.cuh"
#include "runtime/shared.cuh"
#include "sparse/rows.cuh"

#ifndef ELEMENT
#error "ELEMENT must be defined as the type of logits, values and y"
#endif
#if !defined(ORDER) || !defined(RADIX) || !defined(WRITES) || !defined(READS) || !defined(CHANNELS) || !defined(THREADS)
#error "ORDER, RADIX, WRITES, READS, CHANNELS and THREADS must be defined"
#endif
#if !defined(SPARSE) || !defined(ROW)
#error "SPARSE and ROW must be defined"
#endif

using Acc = AccOf<ELEMENT>::type;

// Channels of a thread: 16 bytes, or as many as divide a row.
DEVICE constexpr int vector_length() {
    int length = 16 / sizeof(Acc);
    while (CHANNELS % length) length /= 2;
    return length;
}
constexpr int VECTOR = vector_length(), VECTORS = CHANNELS / VECTOR;  // of a row
constexpr int SPAN = VECTORS < THREADS ? VECTORS : THREADS;           // threads of a team: vectors of a row at a time
constexpr int ACCESSES = WRITES + READS;
constexpr int TEAMS = THREADS / SPAN < ACCESSES ? THREADS / SPAN : ACCESSES;
constexpr int OWN = (ACCESSES + TEAMS - 1) / TEAMS;  // accesses of a team: team, team + TEAMS, ...
constexpr int AT_ONCE = OWN < 8 ? OWN : 8;           // of those, in registers

using WriteSearch = WarpSearch<Acc, ORDER, RADIX, WRITES>;
using ReadSearch = WarpSearch<Acc, ORDER, RADIX, READS>;
constexpr unsigned M = WriteSearch::SLOTS;

// Twin: STEP_PARAMS of step.py. Pointers come first: they alone change from call to call.
struct StepParams {
    const ELEMENT *write_logits, *read_logits;  // (B, 1, H, U, P)
    const ELEMENT* values;                      // (B, 1, H, C)
    const ELEMENT* gamma;                       // (B, 1, H), or null: constant_gamma
    const bool* mask;                           // (B, 1), or null
    const long long* positions;                 // (B, 1), or null: 0
#if SPARSE
    const RowTable* table;                      // whose rows are updated
#else
    Acc *s, *z;                                 // (B, H, M, C) and (B, H, M), updated
#endif
    ELEMENT* y;                                 // (B, 1, H, C)
    long long batch_stride;                     // of positions
    Acc constant_gamma, eps;
    unsigned heads, cape_heads;
    int write_renorm, read_renorm, mass_aware;

    DEVICE bool live(unsigned sequence) const { return !mask || mask[sequence / heads]; }
    DEVICE Acc gamma_of(unsigned sequence) const {
        return gamma ? Acc(widen(gamma[sequence])) : constant_gamma;
    }
    DEVICE long long position_of(unsigned sequence) const {  // or another one with the same shift
        const Cape cape{positions, batch_stride, 0, 1, heads, cape_heads};
        return (M & (M - 1)) == 0 ? cape.low_half(sequence) : cape.position(sequence);
    }
};

// Where the contents and masses of a sequence's slots are: for access e (the writes, then the reads) of a slot, what it
// was before and where it goes to.
#if SPARSE
struct Memory {
    const ROW* from[ACCESSES];
    Found found[ACCESSES];

    // A read may find a row that the block's write is adding: it is loaded for nothing, as the write serves the read.
    DEVICE Found find(const RowTable& table, int e, long long key) {
        bool added = false;
        found[e] = e < WRITES ? table.find_or_add(key, added) : table.find(key);
        from[e] = reinterpret_cast<const ROW*>(!found[e].row || added ? table.initial : found[e].row);
        return found[e];
    }
    DEVICE const ROW* content(int e, int) const { return from[e]; }
    DEVICE ROW* new_content(int e, int) const { return reinterpret_cast<ROW*>(found[e].row); }
    DEVICE Acc* new_mass(int e, int) const { return reinterpret_cast<Acc*>(&found[e].at->mass); }

    // By one warp: which rows were asked for ``now``, and which of them change.
    DEVICE void note(const StepParams& p, int lane, int now) const {
        const RowTable& table = *p.table;
        for (int e = lane; e < ACCESSES; e += 32) {
            if (!found[e].row) continue;
            const int number = table.note(found[e], now);
            if (e < WRITES) table.changed[number] = true;
        }
    }
};
#else
struct Memory {
    Acc *s, *z;

    DEVICE const Acc* content(int, int slot) const { return s + (long long)(slot)*CHANNELS; }
    DEVICE Acc* new_content(int, int slot) const { return s + (long long)(slot)*CHANNELS; }
    DEVICE Acc* new_mass(int, int slot) const { return z + slot; }
    DEVICE void note(const StepParams&, int, int) const {}
};
#endif

// What the threads of a block share.
struct Shared {
    WriteSearch write_search;
    ReadSearch read_search;
    alignas(16) int write_slot[WRITES], read_slot[READS];
    Acc gamma, mass[WRITES], eta[WRITES], weight[READS];
    alignas(16) Acc partial[TEAMS * SPAN * VECTOR];  // of y
};

// Where a thread works on contents: its team, and its vector among those that the team loads at a time.
struct Member {
    int team = threadIdx.x / SPAN, vector = threadIdx.x % SPAN;
};

// The rows that a thread has in registers: its vector of each, the slots, and the partners: of a write the number of the
// read of the same slot, of a read that of the write; -1 if there is none.
struct Rows {
    Stored<ROW, VECTOR> content[AT_ONCE];
    int slot[AT_ONCE], partner[AT_ONCE];
};

// The index of ``slot`` among others, -1 if it is not there.
template <int N> DEVICE int index_of(int slot, const int (&slots)[N]) {
    int index = -1;
#pragma unroll(N <= 16 ? N : 8)
    for (int k = 0; k < N; k++) index = slots[k] == slot ? k : index;
    return index;
}

// 1. One warp finds the slots of one side, whose first access has number ``first``, and starts to load their masses if
// they are needed. A token that is not live adds no rows.
template <class Search, int K>
DEVICE void find_slots(
    const StepParams& p, Search& search, const ELEMENT* logits, Memory& memory, int first, bool needed,
    int (&slot)[K], Acc (&mass)[Search::OWN]
) {
    const int lane = threadIdx.x % 32;
    const long long position = p.position_of(blockIdx.x);
#if SPARSE
    const RowTable table = *p.table;
    const bool live = p.live(blockIdx.x);
#endif
    search.run(logits, lane);
    const unsigned shift = Cape::shift_at(position, M);
#pragma unroll
    for (int e = 0; e < Search::OWN; e++) {
        const int k = lane + 32 * e;
        // by all lanes, as a lane that skipped this would leave the position unused
        const int own = wait_for_load(cape_shift(search.best[min(k, K - 1)].slot(), shift, M));
        if (k >= K) continue;
        slot[k] = own;
#if SPARSE
        if (!live) continue;
        const Found found = memory.find(table, first + k, blockIdx.x * (long long)(M) + slot[k]);
        if (needed) mass[e] = table.mass_of<Acc>(found);
#else
        if (needed) mass[e] = memory.z[slot[k]];
#endif
    }
}

// Starts to load the rows of the team's accesses first, first + 1, ...: of a slot that is written and read, once.
DEVICE void load_rows(
    const Shared& shared, const Memory& memory, Member member, int first, int vector, Rows& rows
) {
#pragma unroll
    for (int o = 0; o < AT_ONCE; o++) {
        const int e = member.team + TEAMS * (first + o);
        if (member.team >= TEAMS || e >= ACCESSES) continue;
        rows.slot[o] = e < WRITES ? shared.write_slot[e] : shared.read_slot[e - WRITES];
        rows.partner[o] =
            e < WRITES ? index_of(rows.slot[o], shared.read_slot) : index_of(rows.slot[o], shared.write_slot);
        if (e < WRITES || rows.partner[o] < 0)
            rows.content[o].load_from(memory.content(e, rows.slot[o]) + vector * VECTOR);
    }
}

// 2. Masses of the written slots, and eta, by warp 0.
DEVICE void write_masses(
    const StepParams& p, Shared& shared, const Acc (&before)[WriteSearch::OWN], int lane, const Memory& memory
) {
    Acc w[WriteSearch::OWN];
    shared.write_search.weigh(lane, p.write_renorm, w);
#pragma unroll
    for (int e = 0; e < WriteSearch::OWN; e++) {
        const int k = lane + 32 * e;
        if (k >= WRITES) continue;
        shared.mass[k] = Retention<Acc>::alpha(w[e], shared.gamma) * before[e] + w[e];
        *memory.new_mass(k, shared.write_slot[k]) = shared.mass[k];
        shared.eta[k] = w[e] / (shared.mass[k] + p.eps);
    }
}

// 2. Weights of the read slots, by warp 1; if the read is mass-aware, after the write's masses.
DEVICE void read_weights(const StepParams& p, Shared& shared, const Acc (&mass)[ReadSearch::OWN], int lane) {
    Acc r[ReadSearch::OWN], total = 0, weighted = 0;
    shared.read_search.weigh(lane, p.read_renorm, r);
#pragma unroll
    for (int e = 0; p.mass_aware && e < ReadSearch::OWN; e++) {
        const int k = lane + 32 * e;
        if (k >= READS) continue;
        const int written = index_of(shared.read_slot[k], shared.write_slot);
        total += r[e];
        r[e] *= written < 0 ? mass[e] : shared.mass[written];
        weighted += r[e];
    }
    const Acc scale = p.mass_aware ? warp_sum(total) / (warp_sum(weighted) + p.eps) : Acc(1);
#pragma unroll
    for (int e = 0; e < ReadSearch::OWN; e++)
        if (lane + 32 * e < READS) shared.weight[lane + 32 * e] = r[e] * scale;
}

// 3. The contents of a thread's vector in the rows of its team's accesses: written, stored, and read into ``sum``.
DEVICE void write_and_read(
    const Shared& shared, const Memory& memory, Member member, int vector, const Acc (&v)[VECTOR], Rows& rows,
    Acc (&sum)[VECTOR]
) {
#pragma unroll 1
    for (int first = 0; first < OWN; first += AT_ONCE) {
        if (first > 0) load_rows(shared, memory, member, first, vector, rows);
#pragma unroll
        for (int o = 0; o < AT_ONCE; o++) {
            const int e = member.team + TEAMS * (first + o);
            if (e >= ACCESSES || (e >= WRITES && rows.partner[o] >= 0)) continue;  // a read that its write serves
            Acc room[VECTOR];
            Acc(&content)[VECTOR] = rows.content[o].widened(room);
            if (e < WRITES) {
#pragma unroll
                for (int c = 0; c < VECTOR; c++) content[c] += shared.eta[e] * (v[c] - content[c]);
                store(content, memory.new_content(e, rows.slot[o]) + vector * VECTOR);
                if (rows.partner[o] < 0) continue;
            }
            const Acc r = shared.weight[e < WRITES ? rows.partner[o] : e - WRITES];
#pragma unroll
            for (int c = 0; c < VECTOR; c++) sum[c] += r * content[c];
        }
    }
}

// 4. y: what the teams have read. ``first``: the first of the row's vectors that they have worked on.
DEVICE void reduce_teams(const Shared& shared, int first, ELEMENT* y) {
    for (int c = threadIdx.x; c < SPAN * VECTOR && first * VECTOR + c < CHANNELS; c += THREADS) {
        Acc sum = 0;
#pragma unroll(TEAMS <= 16 ? TEAMS : 8)
        for (int t = 0; t < TEAMS; t++) sum += shared.partial[t * SPAN * VECTOR + c];
        narrow(sum, y[first * VECTOR + c]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) step(const __grid_constant__ StepParams p) {
    __shared__ Shared shared;
    const long long sequence = blockIdx.x;  // b * H + h
    const int warp = warp_of_thread(), lane = threadIdx.x % 32;
    const Member member;
#if SPARSE
    __shared__ Memory memory;
#else
    Memory memory{p.s + sequence * M * CHANNELS, p.z + sequence * M};
#endif
    const ELEMENT* values = p.values + sequence * CHANNELS;
    ELEMENT* y = p.y + sequence * CHANNELS;

    let_next_launch_begin();
    wait_for_launch_before();
    // 0. what is needed later is loaded first
    const bool live = p.live(sequence);
    Acc v[VECTOR];
    load(values + member.vector * VECTOR, v);
    const bool notes = SPARSE && warp == THREADS / 32 - 1;  // this warp has the least to do before rows are loaded
    const int now = notes ? RowTable::milliseconds() : 0;  // the clock takes long to answer

    // 1. Slots, and the masses that they have. All loads share one counter: what a warp has loaded and not used when it
    // asks for rows is waited for with them, if only because its register is wanted, and no weights are computed while
    // rows come. So positions and gamma are loaded by who uses them, and used here.
    const long long row = sequence * (ORDER * RADIX);
    Acc written_mass[WriteSearch::OWN], read_mass[ReadSearch::OWN];
    if (warp == 0) {
        const Acc gamma = p.gamma_of(sequence);
        find_slots(
            p, shared.write_search, p.write_logits + row, memory, 0, true, shared.write_slot, written_mass
        );
        if (lane == 0) shared.gamma = gamma;
    } else if (warp == 1)
        find_slots(
            p, shared.read_search, p.read_logits + row, memory, WRITES, p.mass_aware, shared.read_slot, read_mass
        );
    __syncthreads();
    if (!live) {
        for (int c = threadIdx.x; c < CHANNELS; c += THREADS) narrow(Acc(0), y[c]);
        return;
    }
    Rows rows;
    load_rows(shared, memory, member, 0, member.vector, rows);
    if (notes) memory.note(p, lane, now);

    // 2. weights and masses
    if (warp == 0) write_masses(p, shared, written_mass, lane, memory);
    if (p.mass_aware) __syncthreads();
    if (warp == 1) read_weights(p, shared, read_mass, lane);
    __syncthreads();

    // 3. contents, 4. y
    for (int first = 0; first < VECTORS; first += SPAN) {
        const int vector = first + member.vector;
        if (member.team < TEAMS && vector < VECTORS) {
            if (first > 0) {
                load(values + vector * VECTOR, v);
                load_rows(shared, memory, member, 0, vector, rows);
            }
            Acc sum[VECTOR] = {};
            write_and_read(shared, memory, member, vector, v, rows, sum);
            store(sum, shared.partial + (member.team * SPAN + member.vector) * VECTOR);
        }
        __syncthreads();
        reduce_teams(shared, first, y);
        if (first + SPAN < VECTORS) __syncthreads();
    }
}
