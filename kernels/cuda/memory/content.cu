// The contents of the slots, given every write's eta and every read's weight: three passes over the tokens.
//
//     content_forward             y, and the contents from chunk to chunk
//     content_backward_recompute  the contents again, for what the backward needs of them: <dy_t, s> of every read, and s of
//                                 heavy writes (mass.cuh), with s before the chunk
//     content_backward            dv, and the adjoint d of the contents from the last chunk to the first; <d, v_t> of every
//                                 write and d of heavy ones, with d after the chunk
//     content_backward_both       the two of the backward in one launch
//
// chunk.cuh has the equations. couplings.cu turns the dot products into those that the masses need.
//
// Who computes what: one block a (batch, head) and slice of CHANNELS channels, with the slice of the state in shared
// memory (or, if M is too large, in device memory). It takes a chunk of tokens at a time. A group of 4 lanes has TILE
// channels a lane and, of one token, a part of the accesses:
//
//     group     0          1          2          3         ..  63
//     token     0          1          0          1         ..  31         CHUNK = 32: two groups a token
//     accesses  0 1 2 3    0 1 2 3    4 5 6 7    4 5 6 7   ..
//
//     1  look up: reads, and by couplings the chunk's values        (backward: writes, and dy)
//     2  change:  writes that alone change their slots; then lists, one a group, of slots with several writes  (reads)
//
// with a barrier between. Loads for the next phase are under way meanwhile. If all tokens share a slot, its list has a
// chunk's entries; they are loads and sums that do not wait for one another.
//
// Every sum has a fixed order and no atomics are used: the same inputs give the same bits.
//
// Compiled with: what chunk.cuh, tile.cuh and state_slice.cuh ask for, and BLOCKS.
#include "memory/lists.cuh"

#ifndef BLOCKS
#error "BLOCKS (to be held by a multiprocessor) must be defined"
#endif

struct ContentParams {
    const ChunkRecord* records;          // (B*H, chunks)
    const ELEMENT *values, *dy;          // (B, T, H, C)
    Acc* before_heavy;                   // (B, T, H, C): content, before the chunk, of the slot of a token's heavy write
    Acc* after_heavy;                    // likewise: its adjoint after the chunk
    const Acc* given;                    // (B*H, segments, rows, C): contents, or their adjoint, to start from; null: 0
    Acc* working;                        // likewise: worked on, if not IN_SHARED
    Acc* final_state;                    // likewise: what is left at the end, or null; only if IN_SHARED
    const Acc* dstate;                   // (B*H, rows, C), or null: the adjoint after the last token
    ELEMENT *y, *dv;                     // (B, T, H, C)
    Acc* dy_dot_s;                       // (slices, B*H, chunks, CHUNK, R): of every read, over the slice
    Acc* d_dot_v;                        // (slices, B*H, chunks, CHUNK, W): of every write, over the slice
    Acc* final_q;                        // (slices, B*H, rows): <dstate, s> after the last token, if there is a dstate
    const Span* spans;                   // of a packed row, or null, as in MemoryParams
    int tokens, heads, channels, rows;   // T, H, C; rows of a sequence's state, or 0 (StateRows)
    int all_chunks;                      // of all sequences and heads
    int segments, chunks_of_segment;
    int first_segment, launched_segments;
    int local_only;  // every segment starts from 0; only the one that truly does so leaves more than final_state
    int one_state;   // segments go on with the same state, launch after launch
};

DEVICE void store_token_row(const Lane& lane, const StateSlice& state, int chunk, const Tile& x) {
    if (lane.part == 0 && lane.takes_part()) state.set(state.token_row(chunk, lane.token), x);
}

// The two passes forward in time. RECOMPUTE: that of the backward.
template <bool RECOMPUTE> struct ForwardPass {
    const ContentParams& p;
    const Lane& lane;
    StateSlice& state;
    using Changes = Lists<true>;
    const ChunkRecord* const records;
    const Prefetcher prefetcher;
    const OwnAccesses accesses;
    const TokenChannels<const ELEMENT> values;
    SlotList second;
    GroupAccesses<OWN_WRITES> write;
    GroupAccesses<OWN_READS> read, next_read;
    TileInput<ELEMENT> value, next_value;  // of the group's token; the chunk's own value spares a look at shared memory
    TileInput<ELEMENT> dy, next_dy;

    DEVICE ForwardPass(const ContentParams& p, const Lane& lane, StateSlice& state)
        : p(p), lane(lane), state(state), records(computed_once(p.records + lane.first_chunk)),
          prefetcher(lane, p, records, Changes(), RECOMPUTE ? p.dy : nullptr), accesses(lane, records),
          values(lane, p.values) {}

    DEVICE const ChunkRecord& record_of(int chunk) const { return records[unsigned(chunk)]; }
    DEVICE void load_for_change(int chunk, int next) {
        if (lane.takes_part()) write.load(accesses.writes(read.once_here(lane, chunk)));
        second = Changes::load(lane, records, chunk, next);
    }
    // ``after``: the chunk, as once_here has it.
    DEVICE void load_for_look_up(int chunk, int after) {
        if (!lane.takes_part()) return;
        next_read.load(accesses.reads(lane, after));
        if (RECOMPUTE) next_dy.clear();
        if (RECOMPUTE && lane.has(chunk)) next_dy.load(lane, p.dy + lane.at(chunk));
    }
    DEVICE void take_for_look_up() {  // when the chunk before has been looked up
        read = next_read, dy = next_dy;
    }
    DEVICE int coupled(int chunk) const { return shared_headers(chunk)->coupled(); }
    DEVICE void copy_couplings(int chunk, int coupled) const {
        if (!RECOMPUTE) ::copy_couplings(record_of(chunk).by_reader, coupled);
    }
    // A phase before it is stored, so that nobody waits for it.
    DEVICE void load_value(int chunk) {
        next_value.clear();
        if (lane.has(chunk)) next_value.load(lane, values.at(chunk));
    }
    DEVICE void store_value(int chunk) { store_token_row(lane, state, chunk, next_value.widened()); }
    DEVICE void start() {
        if (Changes::copier() >= 0) Changes::copy_headers(record_of(0), 0);
        end_group_of_copies();
        copy_couplings(0, MOST_COUPLED);  // nobody knows yet how many there are
        load_for_look_up(0, 0);
        take_for_look_up();
        load_value(0);
        store_value(0);
        value = next_value;
        for (int chunk = 1; chunk < PREFETCHED; chunk++) prefetcher(chunk);
        wait_for_copies<0>();
        __syncthreads();
    }
    DEVICE void change_in_place(int chunk) {
        if (!lane.takes_part()) return;
        int codes[OWN_WRITES];
        Tile s[OWN_WRITES];
        write.codes(lane, true, codes);
        state.load_all(lane, codes, s);
        if (RECOMPUTE && lane.leads(chunk) && codes[0] & HEAVY) store_channels(lane, s[0], p.before_heavy + lane.at(chunk));
        const Tile v = value.widened();
#pragma unroll
        for (int e = 0; e < OWN_WRITES; e++) {
            s[e].approach(write.event[e].coefficient, v);
            if (codes[e]) state.store(lane, codes[e], s[e]);
        }
    }
    DEVICE void change_by_list(int chunk, const SlotList& list) {
        const int code = code_of(list.row);
        const Tile before = state.load(lane, code);
        Tile s = before;
        s.scale(list.kept);
        for_each_entry(lane, state, chunk, list, [&](int token, Acc eta, const Tile& v) {
            if (RECOMPUTE && token & HEAVY)
                store_channels(lane, before, p.before_heavy + lane.at(chunk, token & ~HEAVY));
            s.add(eta, v);
        });
        state.store(lane, code, s);
    }

    // look_up(chunk, meanwhile): what the pass does with the reads; it calls meanwhile() when it has asked for their rows.
    template <class LookUp> DEVICE void run(const LookUp& look_up) {
        start();
        const int last = lane.chunks - 1;
        for (int chunk = 0; chunk <= last; chunk++) {
            const int next = min(chunk + 1, last), in_use = LAZY_ZERO ? next * CHUNK * WRITES : lane.rows;
            if (LAZY_ZERO) state.first_unset_row = chunk * CHUNK * WRITES;
            const auto load_ahead = [&] {
                prefetcher(chunk + PREFETCHED);
                load_value(read.once_here(lane, next));
                load_for_change(chunk, next);
                if (STAGGERED) load_for_look_up(next, next);
            };
            if (!STAGGERED) load_ahead();
            // 1. what looks slots up
            look_up(chunk, [&] {
                if (STAGGERED) load_ahead();
            });
            write.prefetch_rows(lane, state, state.first_unset_row);
            wait_for_copies<0>();
            __syncthreads();
            // 2. what changes them
            copy_couplings(next, coupled(next));
            if (!STAGGERED) load_for_look_up(next, write.once_here(lane, next));
            Changes::change_all(lane, record_of(chunk), chunk, second, [&] { change_in_place(chunk); },
                [&](const SlotList& list) { change_by_list(chunk, list); });
            take_for_look_up();
            read.prefetch_rows(lane, state, in_use);
            if (chunk < last) store_value(next);
            value = next_value;
            wait_for_copies<0>();
            __syncthreads();
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) content_forward(const __grid_constant__ ContentParams p) {
    const Lane lane(p, p.spans ? blockIdx.x : block_from_last());
    StateSlice state(lane, p.working);
    state.start(lane, p.given);
    const bool wanted = !(p.local_only && lane.segment);
    ForwardPass<false> pass(p, lane, state);
    const TokenChannels<ELEMENT> y(lane, p.y, first_of_sum(lane));
    pass.run([&](int chunk, const auto& meanwhile) {
        const bool computes = wanted && lane.takes_part();
        if (!STAGGERED && !computes) return;
        int codes[OWN_READS];
        Tile seen[OWN_READS], sum;
        pass.read.codes(lane, false, codes);
        state.load_all(lane, codes, seen);
        Coupled coupled(lane, state, chunk);
        meanwhile();
        coupled.load_rows_ahead();
        if (!computes) return;
        sum.clear();
#pragma unroll
        for (int e = 0; e < OWN_READS; e++) sum.add(pass.read.event[e].coefficient, seen[e]);
        coupled.add_to(sum, pass.record_of(chunk).by_reader);
        store_sum(lane, chunk, sum, y.at(chunk));
    });
    state.finish(lane, p.final_state);
}

// <dstate, s> of every row after the last token. ``blocks``: of the pass.
DEVICE void store_final_q(const ContentParams& p, const Lane& lane, const StateSlice& state, unsigned blocks) {
    const Acc* d = p.dstate + state.origin;
    const long long of_slice = (long long)(blocks / lane.slices) * lane.rows;
    Acc* q = p.final_q + lane.slice * PIECES * of_slice + lane.first_row;  // one segment
#pragma unroll 4
    for (int first = 0; first < lane.rows; first += GROUPS) {
        const int row = first + lane.group;
        Tile s, end;
        s.clear(), end.clear();
        if (row < lane.rows) s = state.load(lane, code_of(row)), end = load_channels(lane, d + (long long)(row)*lane.channels);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            const Acc sum = sum_over_lanes(end.dot(s, piece));
            if (row < lane.rows && lane.lane == 0) q[lane.half_of(piece) * of_slice + row] = sum;
        }
    }
}

// Block ``block`` of the recompute, of so many.
DEVICE void recompute(const ContentParams& p, unsigned block, unsigned blocks) {
    const Lane lane(p, block);
    StateSlice state(lane, p.working);
    state.start(lane, p.given);
    Acc* const dy_dot_s = p.dy_dot_s + lane.before_slice * (CHUNK * R) + lane.access(OWN_READS);
    ForwardPass<true> pass(p, lane, state);
    const auto look_up = [&](int chunk, const auto& meanwhile) {
        int codes[OWN_READS];
        Tile seen[OWN_READS];
        Acc dots[PIECES][OWN_READS];
        pass.read.codes(lane, false, codes);
        state.load_all(lane, codes, seen);
        meanwhile();
        const Tile dy = pass.dy.widened();
#pragma unroll
        for (int e = 0; e < OWN_READS; e++)
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) dots[piece][e] = seen[e].dot(dy, piece);
        store_dots(lane, dots, dy_dot_s + at_chunk(chunk, CHUNK * R), at_chunk(p.all_chunks, CHUNK * R));
    };
    pass.run(look_up);
    if (p.dstate) store_final_q(p, lane, state, blocks);
}

// The pass backward in time, over the adjoint of the contents.
struct BackwardPass {
    const ContentParams& p;
    const Lane& lane;
    const StateSlice& adjoint;
    const bool wanted;  // dv and the dots
    using Changes = Lists<false>;
    const ChunkRecord* const records;
    const Prefetcher prefetcher;
    SlotList second;
    Acc* const d_dot_v;
    GroupAccesses<OWN_WRITES> write, next_write;
    GroupAccesses<OWN_READS> read;
    TileInput<ELEMENT> value, next_value, dy;

    DEVICE BackwardPass(const ContentParams& p, const Lane& lane, const StateSlice& adjoint)
        : p(p), lane(lane), adjoint(adjoint), wanted(!(p.local_only && lane.segment + 1 < p.segments)),
          records(computed_once(p.records + lane.first_chunk)), prefetcher(lane, p, records, Changes(), p.dy),
          d_dot_v(p.d_dot_v + lane.before_slice * (CHUNK * W) + lane.access(OWN_WRITES)) {}

    DEVICE const ChunkRecord& record_of(int chunk) const { return records[unsigned(chunk)]; }
    DEVICE void load_for_change(int chunk, int next) {
        if (lane.takes_part()) read.load(record_of(write.once_here(lane, chunk)).reads + lane.first_access(OWN_READS));
        second = Changes::load(lane, records, chunk, next);
    }
    DEVICE int coupled(int chunk) const { return shared_headers(chunk)->coupled(); }
    DEVICE void copy_couplings(int chunk, int coupled) const { ::copy_couplings(record_of(chunk).by_writer, coupled); }
    // ``after``: the chunk, as once_here has it.
    DEVICE void load_for_look_up(int chunk, int after) {
        if (!lane.takes_part()) return;
        next_write.load(record_of(after).writes + lane.first_access(OWN_WRITES));
        next_value.clear();
        if (lane.has(chunk)) next_value.load(lane, p.values + lane.at(chunk));
    }
    DEVICE void take_for_look_up() {  // when the chunk before has been looked up
        write = next_write, value = next_value;
    }
    // A phase before it is stored, so that nobody waits for it.
    DEVICE void load_dy(int chunk) {
        dy.clear();
        if (lane.has(chunk)) dy.load(lane, p.dy + lane.at(chunk));
    }
    DEVICE void store_dy(int chunk) { store_token_row(lane, adjoint, chunk, dy.widened()); }
    DEVICE void start(int end) {
        if (Changes::copier() >= 0) Changes::copy_headers(record_of(end), end);
        end_group_of_copies();
        copy_couplings(end, MOST_COUPLED);  // nobody knows yet how many there are
        load_for_look_up(end, end);
        take_for_look_up();
        load_dy(end);
        store_dy(end);
        for (int chunk = end - 1; chunk > end - PREFETCHED; chunk--) prefetcher(chunk);
        wait_for_copies<0>();
        __syncthreads();
    }
    // Writes look the adjoint up: dots with v, dv. Those that alone write their slot scale it. ``meanwhile``: as above.
    template <class Meanwhile> DEVICE void look_up(int chunk, const Meanwhile& meanwhile) {
        int codes[OWN_WRITES];
        Tile d[OWN_WRITES];
        Acc dots[PIECES][OWN_WRITES];
        write.codes(lane, false, codes);
        adjoint.load_all(lane, codes, d);
        Coupled coupled(lane, adjoint, chunk);
        meanwhile();
        coupled.load_rows_ahead();
        const Tile v = value.widened();
        if (wanted && lane.leads(chunk) && codes[0] & HEAVY) store_channels(lane, d[0], p.after_heavy + lane.at(chunk));
        Tile sum;  // dv
        sum.clear();
#pragma unroll
        for (int e = 0; e < OWN_WRITES; e++) {
            const Acc eta = write.event[e].coefficient;
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) dots[piece][e] = d[e].dot(v, piece);
            if (codes[e] == 0) continue;
            sum.add(eta, d[e]);
            d[e].scale(1 - eta);
            if (write.event[e].code > 0) adjoint.store(lane, codes[e], d[e]);
        }
        if (!wanted) return;
        store_dots(lane, dots, d_dot_v + at_chunk(chunk, CHUNK * W), at_chunk(p.all_chunks, CHUNK * W));
        if (!lane.takes_part()) return;
        coupled.add_to(sum, record_of(chunk).by_writer);
        store_sum(lane, chunk, sum, p.dv + lane.at(chunk) + first_of_sum(lane));
    }
    DEVICE void change_in_place(int chunk) {
        if (!lane.takes_part()) return;
        const Tile dy = adjoint[adjoint.token_row(chunk, lane.token)];
        int codes[OWN_READS];
        Tile d[OWN_READS];
        read.codes(lane, true, codes);
        adjoint.load_all(lane, codes, d);
#pragma unroll
        for (int e = 0; e < OWN_READS; e++) {
            d[e].add(read.event[e].coefficient, dy);
            if (codes[e]) adjoint.store(lane, codes[e], d[e]);
        }
    }
    DEVICE void change_by_list(int chunk, const SlotList& list) {
        const int code = code_of(list.row);
        Tile d = adjoint.load(lane, code);
        d.scale(list.kept);
        for_each_entry(lane, adjoint, chunk, list, [&](int, Acc weight, const Tile& dy) { d.add(weight, dy); });
        adjoint.store(lane, code, d);
    }
    DEVICE void run() {
        const int end = lane.chunks - 1;
        start(end);
        for (int chunk = end; chunk >= 0; chunk--) {
            const int next = max(chunk - 1, 0);
            const auto load_ahead = [&] {
                prefetcher(chunk - PREFETCHED);
                load_dy(write.once_here(lane, next));
                load_for_change(chunk, next);
                if (STAGGERED) load_for_look_up(next, next);
            };
            if (!STAGGERED) load_ahead();
            // 1. what looks the adjoint up
            look_up(chunk, [&] {
                if (STAGGERED) load_ahead();
            });
            read.prefetch_rows(lane, adjoint, lane.rows);
            wait_for_copies<0>();
            __syncthreads();
            // 2. what changes it
            copy_couplings(next, coupled(next));
            if (!STAGGERED) load_for_look_up(next, read.once_here(lane, next));
            Changes::change_all(lane, record_of(chunk), chunk, second, [&] { change_in_place(chunk); },
                [&](const SlotList& list) { change_by_list(chunk, list); });
            take_for_look_up();
            write.prefetch_rows(lane, adjoint, lane.rows);
            if (chunk > 0) store_dy(next);
            wait_for_copies<0>();
            __syncthreads();
        }
    }
};

// Block ``block`` of the pass backward, of so many. ``end``: the adjoint to start from, or null.
DEVICE void go_back(const ContentParams& p, unsigned block, unsigned blocks, const Acc* end) {
    const Lane lane(p, p.spans ? block : blocks - 1 - block);
    const StateSlice adjoint(lane, p.working);
    adjoint.start(lane, end);
    BackwardPass(p, lane, adjoint).run();
    adjoint.finish(lane, p.final_state);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
content_backward_recompute(const __grid_constant__ ContentParams p) {
    recompute(p, blockIdx.x, gridDim.x);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) content_backward(const __grid_constant__ ContentParams p) {
    go_back(p, blockIdx.x, gridDim.x, p.given);
}

// Both in one launch, because neither needs the other: where one leaves multiprocessors idle at its end, the other's blocks
// are there. The pass backward takes longer, so its blocks begin first. Only if IN_SHARED, without segments.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
content_backward_both(const __grid_constant__ ContentParams p) {
    const unsigned blocks = gridDim.x / 2;
    if (blockIdx.x < blocks)
        go_back(p, blockIdx.x, blocks, p.dstate);
    else
        recompute(p, blockIdx.x - blocks, blocks);
}
