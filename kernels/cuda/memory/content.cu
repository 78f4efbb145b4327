// The contents of the slots, given every write's eta and every read's weight: three passes over the tokens.
//
//     content_forward             s[row] += eta (v_t - s[row]),   y_t = sum r s[row]
//     content_backward_recompute  the same writes again, for what the backward needs of s: <dy_t, s[row]> of every read,
//                                 and the content before a token's first write
//     content_backward            the adjoint d of s, from the last token to the first:
//                                 d[row] += r dy_t;  then for every write <d[row], v_t>, dv_t += eta d[row],
//                                 d[row] *= 1 - eta
//
// memory/plain.cu has the same steps token after token.
//
// Who computes what: one block a (batch, head) and slice of CHANNELS channels, with the slice of the state in shared
// memory (or, if M is too large, in device memory). It takes a chunk of tokens at a time (chunk.cuh). A group of 4 lanes
// has TILE channels a lane and, of one token, a part of the accesses:
//
//     group     0          1          2          3         ..  63
//     token     0          0          1          1         ..  31         CHUNK = 32: two groups a token
//     accesses  0 1 2 3    4 5 6 7    0 1 2 3    4 5 6 7   ..
//
//     1  unconflicted writes                       every group its token's       (backward: reads)
//        then chains                               a chain a group
//     2  lookups: reads, from slots and versions   every group its token's       (backward: writes)
//
// with a barrier between. Loads for the next chunk are under way meanwhile. If all tokens share a slot, its chain takes as
// long as token after token would.
//
// Every sum has a fixed order and no atomics are used: the same inputs give the same bits.
//
// Compiled with: what chunk.cuh, tile.cuh and state_slice.cuh ask for, and BLOCKS.
#include "memory/chain_cursor.cuh"

#ifndef BLOCKS
#error "BLOCKS (to be held by a multiprocessor) must be defined"
#endif

struct ContentParams {
    const TokenEvent *writes, *reads;   // (B*H, chunks, CHUNK, W), (B*H, chunks, CHUNK, R)
    const Chain* chains;                // (B*H, chunks, CHAINS)
    const TokenEvent* entries;          // (B*H, chunks, ENTRIES)
    const ELEMENT *values, *dy;         // (B, T, H, C)
    Acc* before_first;                  // (B, T, H, C): the content before a token's first write
    Acc* spill;                         // (blocks, versions of a chunk, CHANNELS)
    const Acc* given;                   // (B*H, segments, rows, C): contents, or their adjoint, to start from; null: 0
    Acc* working;                       // likewise: worked on, if not IN_SHARED
    Acc* final_state;                   // likewise: what is left at the end, or null; only if IN_SHARED
    const Acc* dstate;                  // (B*H, rows, C), or null: the adjoint after the last token
    ELEMENT *y, *dv;                    // (B, T, H, C)
    Acc* dy_dot_s;                      // (slices, B*H, chunks, CHUNK, R): of every read, over the slice
    Acc* d_dot_v;                       // (slices, B*H, chunks, CHUNK, W): of every write, over the slice
    Acc* d_dot_before;                  // (slices, B*H, chunks, CHUNK): of a token's first write, over the slice
    Acc* final_q;                       // (slices, B*H, rows): <dstate, s> after the last token, if there is a dstate
    const Span* spans;                  // of a packed row, or null, as in MemoryParams
    int tokens, heads, channels, rows;  // T, H, C; rows of a sequence's state, or 0 (StateRows)
    int all_chunks;                     // of all sequences and heads
    int segments, chunks_of_segment;
    int first_segment, launched_segments;
    int local_only;  // every segment starts from 0; only the one that truly does so leaves more than final_state
};

// The two passes forward in time. RECOMPUTE: that of the backward.
template <bool RECOMPUTE> struct ForwardPass {
    const ContentParams& p;
    const Lane& lane;
    StateSlice& state;
    const Prefetcher prefetcher;
    const TokenEvent *const writes, *const reads, *const entries;
    const Chain* const chains;
    GroupAccesses<OWN_WRITES> write;
    TileInput<ELEMENT> value;
    ChainCursor cursor{};
    Tile v;  // of this chunk

    DEVICE ForwardPass(const ContentParams& p, const Lane& lane, StateSlice& state)
        : p(p), lane(lane), state(state), prefetcher(lane, p, RECOMPUTE ? p.dy : nullptr, nullptr),
          writes(p.writes + lane.access(OWN_WRITES)), reads(p.reads + lane.access(OWN_READS)),
          entries(p.entries + lane.first_chunk * ENTRIES), chains(p.chains + lane.first_chunk * CHAINS + lane.group) {}

    DEVICE void load_inputs(int chunk, const TokenEvent* list) {
        if (lane.takes_part()) {
            write.load(writes + at_chunk(chunk, CHUNK * W));
            value.clear();
            if (lane.has(chunk)) value.load(lane, p.values + lane.at(chunk));
        }
        ChainCursor::load<1>(lane, header_of(lane, chunk), list, cursor.coming);
    }
    DEVICE void take_inputs() {
        v = value.widened();
        if (lane.part == 0 && lane.takes_part()) state[token_row(lane.token)] = v;
    }
    DEVICE int token_row(int token) const { return shared_row_of_token(IN_SHARED ? lane.rows : 0, token); }

    DEVICE void start() {
        for (int chunk = 0; chunk < 2; chunk++) copy_headers<1>(lane, chains, chunk);
        wait_for_copies<0>();
        __syncwarp();
        cursor.chain = header_of(lane, 0);
        load_inputs(0, entries);
        take_inputs();
        cursor.entry = cursor.coming;
        for (int chunk = 1; chunk < PREFETCHED; chunk++) prefetcher(lane, chunk);
    }
    DEVICE void apply_unconflicted(int chunk) {
        if (!lane.takes_part()) return;
        int codes[OWN_WRITES];
        Tile s[OWN_WRITES];
        write.codes(lane, codes);
        state.load_unconflicted(lane, codes, s);
        if (RECOMPUTE && lane.leads(chunk) && !has_version(int(write.event[0].code)))
            store_channels(lane, s[0], p.before_first + lane.at(chunk));  // 0 if it does nothing
#pragma unroll
        for (int e = 0; e < OWN_WRITES; e++) {
            s[e].approach(write.event[e].coefficient, v);
            if (codes[e]) state.store(lane, codes[e], s[e]);
        }
    }
    DEVICE void follow_chain(int chunk, const TokenEvent* list) {
        const Chain chain = cursor.chain;
        const int count = chain.read_only() ? 0 : chain.count();
        // a read-only chain's slot may be written now, as an unconflicted write
        Tile s = state.load(lane, count ? shared_row_of_slot(chain.row) : 0);
        cursor.follow<1>(lane, state, list, count, [&](int entry, Acc eta, const Tile& v) {
            if (entry_is_read(entry)) state.store_version(entry_version_row(entry), s);
            if (RECOMPUTE && !entry_is_read(entry) && entry_is_first(entry))
                store_channels(lane, s, p.before_first + lane.at(chunk, entry_token_row(entry) - token_row(0)));
            if (!entry_is_read(entry)) s.approach(eta, v);
        });
        if (count) state.store(lane, shared_row_of_slot(chain.row), s);
    }
    DEVICE void follow_chains(int chunk, const TokenEvent* list) {
        follow_chain(chunk, list);
        for (int c = GROUPS; __any_sync(~0u, cursor.chain.more_with_writes()); c += GROUPS) {
            cursor.load_round<1>(lane, chains + at_chunk(chunk, CHAINS) + c + opposite_group(lane), list);
            follow_chain(chunk, list);
        }
    }

    // look_up(chunk, the token's reads, dy): what the pass does with the reads.
    template <class LookUp> DEVICE void run(const LookUp& look_up) {
        start();
        __syncthreads();
        const int last = lane.chunks - 1;
        const TokenEvent* list = entries;  // of the chunk
        for (int chunk = 0; chunk <= last; chunk++) {
            const int next = min(chunk + 1, last);
            prefetcher(lane, chunk + PREFETCHED);
            GroupAccesses<OWN_READS> token_reads;
            TileInput<ELEMENT> token_dy;
            token_dy.clear();
            if (lane.takes_part()) token_reads.load(reads + at_chunk(chunk, CHUNK * R));
            if (RECOMPUTE && lane.has(chunk)) token_dy.load(lane, p.dy + lane.at(chunk));
            if (LAZY_ZERO) state.first_unset_row = chunk * CHUNK * WRITES;
            // 1. what changes slots
            apply_unconflicted(chunk);
            const TokenEvent* const next_list = list + (next - chunk) * ENTRIES;
            load_inputs(next, next_list);  // into the same registers
            token_reads.prefetch_rows(lane, state, lane.rows);
            follow_chains(chunk, list);
            list = next_list;
            cursor.chain = header_of(lane, next);
            __syncthreads();
            // 2. what looks slots up; meanwhile the next chunk's inputs arrive
            copy_headers<1>(lane, chains, chunk + 2);
            const int in_use = LAZY_ZERO ? next * CHUNK * WRITES : lane.rows;
            write.prefetch_rows(lane, state, in_use);
            state.prefetch_row(lane, shared_row_of_slot(cursor.chain.row), in_use);
            if (LAZY_ZERO) state.first_unset_row = lane.rows;
            look_up(chunk, token_reads, token_dy.widened());
            cursor.entry = cursor.coming;
            take_inputs();
            wait_for_copies<0>();
            __syncthreads();
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) content_forward(const __grid_constant__ ContentParams p) {
    const Lane lane(p, p.spans ? blockIdx.x : block_from_last());
    StateSlice state(lane, p.spill, p.working);
    state.start(lane, p.given);
    const bool wanted = !(p.local_only && lane.segment);
    ForwardPass<false>(p, lane, state).run([&](int chunk, const GroupAccesses<OWN_READS>& reads, const Tile&) {
        if (!wanted) return;
        Tile sum;
        sum.clear();
        if (lane.takes_part()) {
            int codes[OWN_READS];
            Tile seen[OWN_READS];
            reads.codes(lane, codes);
            state.look_up(lane, codes, any_spilled(codes), seen);
#pragma unroll
            for (int e = 0; e < OWN_READS; e++) sum.add(reads.event[e].coefficient, seen[e]);
        }
        sum = sum_over_parts(sum);
        if (lane.leads(chunk)) store_channels(lane, sum, p.y + lane.at(chunk));
    });
    state.finish(lane, p.final_state);
}

// <dstate, s> of every row after the last token.
DEVICE void store_final_q(const ContentParams& p, const Lane& lane, const StateSlice& state) {
    const Acc* d = p.dstate + state.origin;
    Acc* q = p.final_q + (long long)(lane.slice) * (gridDim.x / lane.slices) * lane.rows + lane.first_row;  // one segment
#pragma unroll 4
    for (int first = 0; first < lane.rows; first += GROUPS) {
        const int row = first + lane.group;
        Acc sum = 0;
        if (row < lane.rows) {
            const Tile s = state.load(lane, shared_row_of_slot(row));
            sum = load_channels(lane, d + (long long)(row)*lane.channels).dot(s);
        }
        sum = sum_over_lanes(sum);
        if (row < lane.rows && lane.lane == 0) q[row] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
content_backward_recompute(const __grid_constant__ ContentParams p) {
    const Lane lane(p, blockIdx.x);
    StateSlice state(lane, p.spill, p.working);
    state.start(lane, p.given);
    Acc* const dy_dot_s = p.dy_dot_s + lane.before_slice * (CHUNK * R) + lane.access(OWN_READS);
    ForwardPass<true>(p, lane, state).run([&](int chunk, const GroupAccesses<OWN_READS>& reads, const Tile& dy) {
        int codes[OWN_READS];
        Tile seen[OWN_READS];
        Acc dots[OWN_READS];
        reads.codes(lane, codes);
        state.look_up(lane, codes, any_spilled(codes), seen);
#pragma unroll
        for (int e = 0; e < OWN_READS; e++) dots[e] = seen[e].dot(dy);
        store_dots(lane, dots, dy_dot_s + at_chunk(chunk, CHUNK * R));
    });
    if (p.dstate) store_final_q(p, lane, state);
}

// The pass backward in time, over the adjoint of the contents.
struct BackwardPass {
    const ContentParams& p;
    const Lane& lane;
    const StateSlice& adjoint;
    const bool wanted;  // dv and the dots
    const Prefetcher prefetcher;
    const TokenEvent *const writes, *const reads, *const entries;
    const Chain* const chains;
    Acc *const d_dot_v, *const d_dot_before;
    GroupAccesses<OWN_READS> read;
    TileInput<ELEMENT> token_dy;
    ChainCursor cursor{};

    DEVICE BackwardPass(const ContentParams& p, const Lane& lane, const StateSlice& adjoint)
        : p(p), lane(lane), adjoint(adjoint), wanted(!(p.local_only && lane.segment + 1 < p.segments)),
          prefetcher(lane, p, p.dy, p.before_first), writes(p.writes + lane.access(OWN_WRITES)),
          reads(p.reads + lane.access(OWN_READS)), entries(p.entries + lane.first_chunk * ENTRIES),
          chains(p.chains + lane.first_chunk * CHAINS + lane.group),
          d_dot_v(p.d_dot_v + lane.before_slice * (CHUNK * W) + lane.access(OWN_WRITES)),
          d_dot_before(p.d_dot_before + (lane.before_slice + lane.first_chunk) * CHUNK + lane.token) {}

    DEVICE void load_inputs(int chunk) {
        if (!lane.takes_part()) return;
        read.load(reads + at_chunk(chunk, CHUNK * R));
        token_dy.clear();
        if (lane.has(chunk)) token_dy.load(lane, p.dy + lane.at(chunk));
    }
    DEVICE void load_entries(int chunk) {
        ChainCursor::load<-1>(lane, header_of(lane, chunk), entries + at_chunk(chunk, ENTRIES), cursor.coming);
    }
    DEVICE void take_inputs() const {
        if (lane.part == 0 && lane.takes_part())
            adjoint[shared_row_of_token(IN_SHARED ? lane.rows : 0, lane.token)] = token_dy.widened();
    }

    DEVICE void start(int end) {
        load_inputs(end);
        for (int chunk = end; chunk > end - 2; chunk--) copy_headers<MIN_ROUNDS>(lane, chains, chunk);
        wait_for_copies<0>();
        __syncwarp();
        cursor.chain = header_of(lane, end);
        load_entries(end);
        cursor.entry = cursor.coming;
        take_inputs();
        for (int chunk = end - 1; chunk > end - PREFETCHED; chunk--) prefetcher(lane, chunk);
    }
    DEVICE void apply_unconflicted() {
        if (!lane.takes_part()) return;
        const Tile dy = token_dy.widened();
        int codes[OWN_READS];
        Tile d[OWN_READS];
        read.codes(lane, codes);
        adjoint.load_unconflicted(lane, codes, d);
#pragma unroll
        for (int e = 0; e < OWN_READS; e++) {
            d[e].add(read.event[e].coefficient, dy);
            if (codes[e]) adjoint.store(lane, codes[e], d[e]);
        }
    }
    DEVICE void follow_chain(int chunk) {
        const Chain chain = cursor.chain;
        Tile d = adjoint.load(lane, shared_row_of_slot(chain.row));
        const auto visit = [&](int entry, Acc coefficient, const Tile& dy) {
            if (!entry_is_read(entry)) adjoint.store_version(entry_version_row(entry), d);
            if (entry_is_read(entry)) d.add(coefficient, dy);
            else d.scale(1 - coefficient);
        };
        cursor.follow<-1>(lane, adjoint, entries + at_chunk(chunk, ENTRIES), chain.count(), visit);
        if (chain.count()) adjoint.store(lane, shared_row_of_slot(chain.row), d);
    }
    DEVICE void follow_chains(int chunk) {
        follow_chain(chunk);
        const int last_round = cursor.chain.last_round();
        for (int round = 1; round <= last_round; round++) {
            const Chain* const header = chains + at_chunk(chunk, CHAINS) + round * GROUPS;
            if (round < MIN_ROUNDS)
                cursor.chain = header_of(lane, chunk, 1), cursor.entry = cursor.second;
            else
                cursor.load_round<-1>(lane, header, entries + at_chunk(chunk, ENTRIES));
            follow_chain(chunk);
        }
    }
    // Writes look the adjoint up: dots with v and with the content before, dv; those in place scale it.
    DEVICE void look_up_writes(int chunk, const GroupAccesses<OWN_WRITES>& write, bool spilled, const Tile& v, const Tile& before) {
        int codes[OWN_WRITES];
        Tile d[OWN_WRITES], sum;
        Acc dots[OWN_WRITES];
        sum.clear();
        write.codes(lane, codes);
        adjoint.look_up(lane, codes, spilled, d);
        if (wanted) {
            const Acc dot_before = sum_over_lanes(d[0].dot(before));
            if (lane.part == 0 && lane.lane == 0 && lane.takes_part()) d_dot_before[at_chunk(chunk, CHUNK)] = dot_before;
        }
#pragma unroll
        for (int e = 0; e < OWN_WRITES; e++) {
            dots[e] = d[e].dot(v);
            if (codes[e] == NOTHING) continue;
            const Acc eta = write.event[e].coefficient;
            sum.add(eta, d[e]);
            d[e].scale(1 - eta);
            if (in_place(codes[e])) adjoint.store(lane, codes[e], d[e]);
        }
        if (!wanted) return;
        store_dots(lane, dots, d_dot_v + at_chunk(chunk, CHUNK * W));
        sum = sum_over_parts(sum);
        if (lane.leads(chunk)) store_channels(lane, sum, p.dv + lane.at(chunk));
    }

    DEVICE void run() {
        const int end = lane.chunks - 1;
        start(end);
        __syncthreads();
        for (int chunk = end; chunk >= 0; chunk--) {
            const int next = max(chunk - 1, 0);
            prefetcher(lane, chunk - PREFETCHED);
            load_entries(next);
            if (MIN_ROUNDS > 1)
                ChainCursor::load<-1>(lane, header_of(lane, chunk, 1), entries + at_chunk(chunk, ENTRIES), cursor.second);
            GroupAccesses<OWN_WRITES> write;
            TileInput<ELEMENT> value;
            Tile before;
            value.clear(), before.clear();
            if (lane.takes_part()) write.load(writes + at_chunk(chunk, CHUNK * W));
            if (lane.has(chunk)) value.load(lane, p.values + lane.at(chunk));
            // 1. what changes the adjoint
            apply_unconflicted();
            write.prefetch_rows(lane, adjoint, lane.rows);
            if (lane.leads(chunk) && wanted) before = load_channels(lane, p.before_first + lane.at(chunk));
            follow_chains(chunk);
            cursor.chain = header_of(lane, next);
            int codes[OWN_WRITES];
            write.codes(lane, codes);
            const bool spilled = any_spilled(codes);  // waits for the writes, before more loads are issued
            __syncthreads();
            // 2. what looks the adjoint up
            copy_headers<MIN_ROUNDS>(lane, chains, chunk - 2);
            load_inputs(next);  // into the same registers
            read.prefetch_rows(lane, adjoint, lane.rows);
            adjoint.prefetch_row(lane, shared_row_of_slot(cursor.chain.row), lane.rows);
            look_up_writes(chunk, write, spilled, value.widened(), before);
            cursor.entry = cursor.coming;
            take_inputs();
            wait_for_copies<0>();
            __syncthreads();
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) content_backward(const __grid_constant__ ContentParams p) {
    const Lane lane(p, p.spans ? blockIdx.x : block_from_last());
    const StateSlice adjoint(lane, p.spill, p.working);
    adjoint.start(lane, p.given);
    BackwardPass(p, lane, adjoint).run();
    adjoint.finish(lane, p.final_state);
}
