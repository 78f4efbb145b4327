// A pass over the contents of few slots (dense.cuh): what the three passes of content.cu are as products of dense matrices.
//
// Who computes what: one block a (batch, head), chunk after chunk; a warp has SLOTS_OF_WARP slots and 16 channels, in
// registers (dense_state.cuh). A pass goes, for every chunk,
//
//     1  scatter: r~ and eta~ of the accesses to R~ and W~
//     2  multiply: the warp's slots with R~ for y (backward: W~, dv); with dy (v) for the dots; then the slots change
//     3  gather: y is summed over the warps' slots, dots over their channels; R~ and W~ are 0 again
//
// with a barrier between. The next chunk's inputs are copied meanwhile.
//
// Every sum has a fixed order and no atomics are used: the same inputs give the same bits.
#pragma once
#include "memory/dense_state.cuh"

// On a multiprocessor, by the registers that a thread needs.
constexpr int BLOCKS = 65536 / (SLOTS_OF_WARP > 32 || CHUNK > 16 ? 128 : 96) / DENSE_THREADS;

struct DenseParams {
    MemoryParams memory;
    const DenseRecord* records;  // (B*H, chunks)
    const ELEMENT *values, *dy;  // (B, T, H, C)
    ELEMENT *y, *dv;             // likewise
    Acc* dy_dot_s;               // (B*H, chunks, CHUNK, R): of every read with s before the chunk
    Acc* d_dot_v;                // (B*H, chunks, CHUNK, W): of every write with d after the chunk
    Acc *before_heavy, *after_heavy;  // (B, T, H, C): that s, and that d, of the slot of a token's heavy write
};

template <bool SUMS, bool DOTS> struct PassShared {
    DenseRecord record[2];                        // of two chunks
    alignas(16) TokenRows rows[DOTS ? 4 : 2];     // of two chunks, those that change slots; then those of the dots
    alignas(16) Acc change[MATRIX], look_up[SUMS ? MATRIX : 4];
    Four sums[SUMS ? (PARTS - 1) * SLICES * TOKEN_TILES * 32 + 1 : 1];  // of all parts of the slots but the first
    alignas(16) Acc dots[DOTS ? SLICES : 1][DOTS ? MATRIX : 4];

    DEVICE Four* sums_of(int part, int slice) { return sums + ((part - 1) * SLICES + slice) * TOKEN_TILES * 32; }
};

// Copies a chunk's rows of ``from`` (B, T, H, C) to shared memory; 0 for tokens that are not there or masked, whatever they
// hold: 0 times a number that is none would be none.
DEVICE void copy_rows(const Sequence& sequence, int chunk, const ELEMENT* from, TokenRows& to) {
    constexpr int EACH = 16 / sizeof(ELEMENT), COPIES = CHANNELS / EACH;
    static_assert(CHANNELS % EACH == 0, "16 bytes are copied at once");
    share_out<CHUNK * COPIES, DENSE_THREADS>([&](int i) {
        const int token = i / COPIES, channel = i % COPIES * EACH, t = chunk * CHUNK + token;
        ELEMENT* const row = &to[token][channel];
        if (sequence.live(t))
            copy_async<16>(row, from + sequence.token(t) * CHANNELS + channel);
        else
            *reinterpret_cast<int4*>(row) = {};
    });
}

// Sets a matrix at the places of N accesses to their numbers, or to 0; a thread has four of them.
template <int N>
DEVICE void scatter_side(int thread, Acc* matrix, const Place* places, const Acc* numbers, bool set) {
    struct alignas(8) FourPlaces {
        Place at[4];
    };
    const auto scatter_four = [&](int i) {
        const FourPlaces place = reinterpret_cast<const FourPlaces*>(places)[i];
        Four number{};
        if (set) number = reinterpret_cast<const Four*>(numbers)[i];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int at = place.at[e] & ~HEAVY_PLACE;
            if (at != NOWHERE) matrix[at] = number.at[e];
        }
    };
    share_out<N / 4, DENSE_THREADS>(scatter_four, thread);
}

// BACKWARD: from the last chunk to the first, with reads and writes exchanged. SUMS: y or dv is wanted. DOTS: dots are.
template <bool BACKWARD, bool SUMS, bool DOTS> struct DensePass {
    using Shared = PassShared<SUMS, DOTS>;
    const DenseParams& p;
    Shared& shared;
    const Sequence sequence;
    const DenseLane lane;
    DenseState state;

    DEVICE DensePass(const DenseParams& p, unsigned block)
        : p(p), shared(*reinterpret_cast<Shared*>(dynamic_shared())), sequence(p.memory, block) {}

    // What the record has of the accesses that change slots, and of those that look slots up.
    DEVICE static const Acc* changes(const DenseRecord& record) { return BACKWARD ? record.read : record.write; }
    DEVICE static const Place* change_places(const DenseRecord& record) {
        return BACKWARD ? record.read_place : record.write_place;
    }
    DEVICE static const Acc* look_ups(const DenseRecord& record) { return BACKWARD ? record.write : record.read; }
    DEVICE static const Place* look_up_places(const DenseRecord& record) {
        return BACKWARD ? record.write_place : record.read_place;
    }
    static constexpr int CHANGES = CHUNK * (BACKWARD ? R : W), LOOK_UPS = CHUNK * (BACKWARD ? W : R);

    DEVICE void copy(int chunk) {
        const DenseRecord& from = p.records[sequence.chunk(chunk)];
        DenseRecord& to = shared.record[chunk & 1];
        constexpr int FIRST = SUMS ? 0 : BYTES_BEFORE_WRITES / 16;
        share_out<sizeof(DenseRecord) / 16 - FIRST, DENSE_THREADS>([&](int i) {
            copy_async<16>(reinterpret_cast<int4*>(&to) + FIRST + i, reinterpret_cast<const int4*>(&from) + FIRST + i);
        });
        copy_rows(sequence, chunk, BACKWARD ? p.dy : p.values, shared.rows[chunk & 1]);
        if (DOTS) copy_rows(sequence, chunk, BACKWARD ? p.values : p.dy, shared.rows[2 + (chunk & 1)]);
        end_group_of_copies();
    }
    // Sets the matrices at the chunk's accesses, or sets them to 0 there again. The two halves of the threads begin with a
    // side each.
    DEVICE void scatter(const DenseRecord& record, bool set) {
        const int thread = threadIdx.x, other = unsigned(thread + DENSE_THREADS / 2) % DENSE_THREADS;
        scatter_side<CHANGES>(thread, shared.change, change_places(record), changes(record), set);
        if (SUMS) scatter_side<LOOK_UPS>(other, shared.look_up, look_up_places(record), look_ups(record), set);
    }
    // The slots of heavy writes, before (backward: after) the chunk.
    DEVICE void store_heavy(int chunk, const Acc* room) const {
        const Place* const places = shared.record[chunk & 1].write_place;
        const int number = threadIdx.x % 32;  // of a token, then of a channel
        unsigned heavy = __ballot_sync(~0u, number < CHUNK && places[number * W] & HEAVY_PLACE);
        const bool has_channel = number < SLICE && lane.channel + number < CHANNELS;
        Acc* const to = (BACKWARD ? p.after_heavy : p.before_heavy) + lane.channel + number;
        for (; heavy; heavy &= heavy - 1) {
            const int token = 31 - __clz(int(heavy & -heavy)), slot = (places[token * W] & ~HEAVY_PLACE) - token * STRIDE;
            if (has_channel && slot / SLOTS_OF_WARP == lane.part)
                to[sequence.token(chunk * CHUNK + token) * CHANNELS] = room[place_of(number, slot)];
        }
        __syncwarp();
    }
    DEVICE void multiply(int chunk, TokenSums& sums) {
        const DenseRecord& record = shared.record[chunk & 1];
        if (DOTS) {
            Acc* const room = shared.dots[lane.slice];
            state.leave(lane, room);
            store_heavy(chunk, room);
            multiply_in_place(lane, room, shared.rows[2 + (chunk & 1)]);
        }
        const RowsOfWarp rows(lane, shared.rows[chunk & 1]);
        if (SUMS) {
            state.look_up(lane, shared.look_up, sums);
            if (lane.part == 0)
                sums.add_coupled<BACKWARD>(lane, record.coupling, rows);
            else
                sums.leave(shared.sums_of(lane.part, lane.slice));
        }
        state.change(lane, shared.change, record.kept, rows);
    }
    DEVICE void store_sums(int chunk, TokenSums& sums) {
        if (lane.part) return;
        for (int part = 1; part < PARTS; part++) sums.add(shared.sums_of(part, lane.slice));
        ELEMENT* const to = (BACKWARD ? p.dv : p.y) + sequence.token(chunk * CHUNK) * CHANNELS;
        const unsigned stride = p.memory.heads * CHANNELS, tokens = sequence.tokens - chunk * CHUNK;
        sums.for_each(lane, [&](unsigned token, int channel, Acc sum) {
            if (token < tokens && channel < CHANNELS) narrow(sum, to[token * stride + channel]);
        });
    }
    DEVICE void store_dots(int chunk) const {
        const DenseRecord& record = shared.record[chunk & 1];
        Acc* const dots_to = (BACKWARD ? p.d_dot_v : p.dy_dot_s) + sequence.chunk(chunk) * LOOK_UPS;
        share_out<LOOK_UPS, DENSE_THREADS>([&](int i) {
            const int place = look_up_places(record)[i] & ~HEAVY_PLACE;
            Acc sum = 0;
#pragma unroll
            for (int slice = 0; slice < SLICES && place != NOWHERE; slice++) sum += shared.dots[slice][place];
            dots_to[i] = sum;
        });
    }
    DEVICE void run() {
        const int chunks = sequence.chunks();
        const auto number = [&](int i) { return BACKWARD ? chunks - 1 - i : i; };
#pragma unroll 1
        for (int i = threadIdx.x; i < int(sizeof(Shared) / 16); i += DENSE_THREADS)
            reinterpret_cast<int4*>(&shared)[i] = {};
        __syncthreads();
        copy(number(0));
        for (int i = 0; i < chunks; i++) {
            const int chunk = number(i);
            wait_for_copies<0>();
            __syncthreads();
            if (i + 1 < chunks) copy(number(i + 1));
            scatter(shared.record[chunk & 1], true);
            __syncthreads();
            TokenSums sums;
            multiply(chunk, sums);
            __syncthreads();
            if (SUMS) store_sums(chunk, sums);
            if (DOTS) store_dots(chunk);
            scatter(shared.record[chunk & 1], false);
        }
    }
};
