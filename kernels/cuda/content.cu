// The contents of the slots, given every write's eta and every read's weight: three passes over the tokens.
//
//     forward   s[row] += eta (v_t - s[row]),  y_t = sum r s[row]
//     replay    the same writes again, for what the backward needs of s:  <dy_t, s[row]> of every read, and the content
//               that the first write of a token found
//     reverse   the adjoint d of s, from the last token to the first:
//               d[row] += r dy_t;  then of every write <d[row], v_t>, dv_t += eta d[row], d[row] *= 1 - eta
//
// Who computes what: one block a (batch, head) and slice of CHANNELS channels, with the slice of the state in shared
// memory (or, if M is too large, in device memory). It takes a chunk of tokens at a time (chunk.cuh); a group of 4 lanes
// has VECTOR channels a lane and, of one token, a part of the accesses:
//
//     group     0          1          2          3         ..  63
//     token     0          0          1          1         ..  31         CHUNK = 32: two groups a token
//     accesses  0 1 2 3    4 5 6 7    0 1 2 3    4 5 6 7   ..
//
//     1  the writes that are alone                 every group its token's       (reverse: the reads)
//        then chains                               a chain a group
//     2  the reads, from slots and versions        every group its token's       (reverse: the writes)
//
// with a barrier between. The inputs of the next chunk are on their way meanwhile. A chunk takes a few hundred cycles
// where few accesses meet; if all tokens share a slot, its chain takes as long as token after token would.
//
// Every sum has a fixed order and no atomics are used: the same inputs give the same bits.
//
// Compiled with: what chunk.cuh asks for, CHANNELS, IN_SHARED, FRESH (rows in device memory begin unset: link.cu's
// renumbered), ALIGNED, BLOCKS (to be held by a multiprocessor).
#include "content.cuh"

// for (first of a batch), for (e of a batch) over a group's accesses: unrolled where they are held in registers
#define BATCH_OF(OWN) Accesses<OWN>::BATCH
#define BATCHES(OWN, first) for (int first = 0; first < OWN; first += BATCH_OF(OWN))
#define EVENTS_OF(OWN, e) _Pragma("unroll") for (int e = 0; e < BATCH_OF(OWN); e++)

constexpr int AHEAD = 3;  // chunks that are asked for from device memory before they are needed

#define SIZES int tokens, int heads, int channels, int rows
#define LISTS Chain *chains, TokenEvent *entries, Counts *list_counts
#define EVENTS const TokenEvent *__restrict__ writes, const TokenEvent *__restrict__ reads

// What all passes begin with.
#define BEGIN(STATE_FROM)                                                              \
    const Place place(tokens, heads, channels, rows);                                  \
    const Lists lists{chains, entries, list_counts};                                      \
    const int state_bytes = IN_SHARED ? rows * CHANNELS * int(sizeof(Sum)) : 0;        \
    State state(place, on_chip(), working);                                            \
    const Workshop workshop(place, on_chip() + state_bytes, space, spare);             \
    state.start(place, STATE_FROM)

// Has a chunk's inputs brought to the L2 cache, line by line: each warp some of them.
DEVICE void ask_for(
    const Place& place, const Lists& lists, int chunk, EVENTS, const ELEMENT* values, const ELEMENT* dy, const Sum* found
) {
    if (chunk < 0 || chunk >= place.chunks) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const long long at = place.chunk_at(chunk);
    const auto lines = [&](const void* from, int bytes) {
        if (lane * 128 < bytes) prefetch(reinterpret_cast<const char*>(from) + lane * 128);
    };
    if (warp == 0) lines(writes + at * CHUNK * W, CHUNK * W * int(sizeof(TokenEvent)));
    if (warp == 1) lines(reads + at * CHUNK * R, CHUNK * R * int(sizeof(TokenEvent)));
    if (CHUNK > 1 && warp == 2) lines(lists.entries_of(at), ENTRIES / 2 * int(sizeof(TokenEvent)));
    if (CHUNK > 1 && warp == 3) lines(lists.chains_of(at), CHAINS / 2 * int(sizeof(Chain)));
    if (CHUNK > 1 && warp == 4) lines(lists.counts + at, 1);
    const int t = chunk * CHUNK + lane;
    if (lane >= CHUNK || t >= place.tokens) return;
    const long long row = place.row_of(t) - place.own;
    if (warp == 5) prefetch(values + row);
    if (dy && warp == 6) prefetch(dy + row);
    if (found && warp == 7) prefetch(found + row);
}

DEVICE Counts counts_of(const Place& place, const Lists& lists, int chunk) {
    return lists.counts_of(place.chunk_at(chunk), chunk >= 0 && chunk < place.chunks);
}

// What an access finds: its slot, or a version; anything, if it does nothing.
DEVICE Vector find(const Place& place, const State& state, const Workshop& workshop, int most, int code) {
    if (IN_SHARED) return *(code < NOTHING ? workshop.version(version_at(code), most) : state.row(code));
    return code < NOTHING ? *workshop.version(version_at(code), most) : state.find(place, code);
}

// The two passes forward in time. read(chunk, reads of the token, slot_of): what it does with them.
template <bool REPLAY, class Read>
DEVICE void forward_pass(
    const Place& place, State& state, const Workshop& workshop, const Lists& lists, EVENTS, const ELEMENT* values,
    const ELEMENT* dy, Sum* found, const Read& read
) {
#pragma unroll 1
    for (int chunk = 1; chunk < AHEAD; chunk++) ask_for(place, lists, chunk, writes, reads, values, REPLAY ? dy : nullptr, nullptr);
    Inputs<OWN_W> now, next;
    Counts counts = counts_of(place, lists, 0), next_counts = counts_of(place, lists, 1);
    now.fetch(place, 0, writes, values);
    workshop.leave_row(place, now.value);
    workshop.fetch_lists(lists, place.chunk_at(0), counts.mixed_chains, counts.mixed_entries);
    wait_for_copies<0>();
    __syncthreads();
    for (int chunk = 0; chunk < place.chunks; chunk++) {
        ask_for(place, lists, chunk + AHEAD, writes, reads, values, REPLAY ? dy : nullptr, nullptr);
        if (FRESH) state.fresh = chunk * CHUNK * WRITES;
        // 1. writes that are alone on their slot, then chains
        BATCHES(OWN_W, first) {
            Vector old[BATCH_OF(OWN_W)];
            EVENTS_OF(OWN_W, e) old[e] = state.find(place, int(now.accesses.get(first + e).row));
            EVENTS_OF(OWN_W, e) {
                const TokenEvent event = now.accesses.get(first + e);
                const int code = int(event.row);
                if (REPLAY && first + e == 0 && place.part == 0 && in_place(code))
                    store_channels(place, old[e], found + place.row_of(chunk * CHUNK + place.token));
                old[e].approach(event.coefficient, now.value);
                if (in_place(code)) state.store(place, row_at(code), old[e]);
            }
        }
        const Counts after = counts_of(place, lists, chunk + 2);
        Inputs<OWN_R> here;  // asked for when registers are free; chains hide some of the wait
        here.fetch(place, chunk, reads, REPLAY ? dy : nullptr);
        next.fetch(place, chunk + 1, writes, values);
        const int most = workshop.bytes_of_more(
            counts.mixed_chains, counts.mixed_entries, next_counts.mixed_chains, next_counts.mixed_entries);
        const TokenEvent* list = workshop.entries(counts.mixed_chains);
#pragma unroll 1
        for (int c = place.group; c < counts.mixed_chains; c += GROUPS) {
            const Chain chain = workshop.chains()[c];
            Vector s = state.load(place, chain.row);
            const int last = chain.begin + chain.count - 1;
            TokenEvent entry = list[chain.begin], next_entry = list[chain.begin + 1];
            Vector value = workshop.row(entry_token(int(entry.row)));
#pragma unroll 1
            for (int i = chain.begin + 2; i <= last + 2; i++) {
                const TokenEvent after = list[smaller_of(i, last)];
                const Vector next_value = workshop.row(entry_token(int(next_entry.row)));
                const int what = int(entry.row);
                if (entry_reads(what)) {
                    *workshop.version(entry_version(what), most) = s;
                } else {
                    if (REPLAY && entry_k(what) == 0)
                        store_channels(place, s, found + place.row_of(chunk * CHUNK + entry_token(what)));
                    s.approach(entry.coefficient, value);
                }
                entry = next_entry, next_entry = after, value = next_value;
            }
            state.store(place, chain.row, s);
        }
        __syncthreads();
        // 2. reads; meanwhile what the next chunk needs arrives
        if (FRESH) state.fresh = place.rows;
        workshop.fetch_lists(lists, place.chunk_at(chunk + 1), next_counts.mixed_chains, next_counts.mixed_entries);
        read(chunk, here, [&](int code) { return find(place, state, workshop, most, code); });
        now = next, counts = next_counts;
        workshop.leave_row(place, now.value);
        next_counts = after;
        wait_for_copies<0>();
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS) content_forward(
    EVENTS, LISTS, const ELEMENT* __restrict__ values,  // (B, T, H, C)
    SIZES, int space, Sum* spare,                       // see Workshop
    const Sum* given, Sum* working, Sum* final_state,   // (B*H, rows, C) each, or null; working only if not IN_SHARED
    ELEMENT* __restrict__ y                             // (B, T, H, C)
) {
    BEGIN(given);
    const auto read = [&](int chunk, const Inputs<OWN_R>& here, const auto& slot_of) {
        Vector sum;
        sum.clear();
        BATCHES(OWN_R, first) {
            Vector seen[BATCH_OF(OWN_R)];
            EVENTS_OF(OWN_R, e) seen[e] = slot_of(int(here.accesses.get(first + e).row));
            EVENTS_OF(OWN_R, e) {
                const TokenEvent event = here.accesses.get(first + e);
                if (event.row != NOTHING) sum.add(event.coefficient, seen[e]);
            }
        }
        sum = sum_over_parts(sum);
        if (place.part == 0 && place.has(chunk)) store_channels(place, sum, y + place.row_of(chunk * CHUNK + place.token));
    };
    forward_pass<false>(place, state, workshop, lists, writes, reads, values, nullptr, nullptr, read);
    state.finish(place, final_state);
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS) content_replay(
    EVENTS, LISTS, const ELEMENT* __restrict__ values, const ELEMENT* __restrict__ dy, SIZES, int space, Sum* spare,
    const Sum* given, Sum* working,
    const Sum* dstate,         // (B*H, rows, C), or null
    Sum* __restrict__ dread,   // (slices, B*H, chunks, CHUNK, R): <dy, s> over the slice
    Sum* __restrict__ found,   // (B, T, H, C): the content that a token's first write found
    Sum* __restrict__ last     // (slices, B*H, rows): <dstate, s> after the last token, if there is a dstate
) {
    BEGIN(given);
    dread += ((long long)(place.slice) * place.units() + place.unit) * place.chunks * CHUNK * R;
    const auto read = [&](int chunk, const Inputs<OWN_R>& here, const auto& slot_of) {
        Sum* to = dread + (((long long)(chunk)*CHUNK + place.token) * SPREAD + place.part) * OWN_R;
        BATCHES(OWN_R, first) {
            Vector seen[BATCH_OF(OWN_R)];
            Sum dots[BATCH_OF(OWN_R)];
            EVENTS_OF(OWN_R, e) seen[e] = slot_of(int(here.accesses.get(first + e).row));
            EVENTS_OF(OWN_R, e) dots[e] = seen[e].dot(here.value);
            store_dots(place, dots, to + first);
        }
    };
    forward_pass<true>(place, state, workshop, lists, writes, reads, values, dy, found, read);
    if (!dstate) return;
    const Sum* d = dstate + (long long)(place.unit) * rows * channels + place.slice * CHANNELS + place.own;
    last += ((long long)(place.slice) * place.units() + place.unit) * rows;
    for (int first = 0; first < rows; first += GROUPS) {
        const int row = first + place.group;
        Sum sum = 0;
        if (row < rows) sum = load_channels(place, d + (long long)(row)*channels).dot(state.load(place, row));
        sum = sum_over_lanes(sum);
        if (row < rows && place.own == 0) last[row] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS) content_reverse(
    EVENTS, LISTS, const ELEMENT* __restrict__ values, const ELEMENT* __restrict__ dy,
    const Sum* __restrict__ found, SIZES, int space, Sum* spare, const Sum* dstate, Sum* working, Sum* dgiven,
    ELEMENT* __restrict__ dv,    // (B, T, H, C)
    Sum* __restrict__ dwritten,  // (slices, B*H, chunks, CHUNK, W): <d, v> over the slice
    Sum* __restrict__ dfound     // (slices, B*H, chunks, CHUNK): <d, found> of the token's first write
) {
    BEGIN(dstate);  // of the adjoint
    const long long part = ((long long)(place.slice) * place.units() + place.unit) * place.chunks * CHUNK;
    const int end = place.chunks - 1;
#pragma unroll 1
    for (int chunk = end - 1; chunk > end - AHEAD; chunk--) ask_for(place, lists, chunk, writes, reads, values, dy, found);
    Inputs<OWN_R> now, next;
    Counts counts = counts_of(place, lists, end), next_counts = counts_of(place, lists, end - 1);
    now.fetch(place, end, reads, dy);
    workshop.leave_row(place, now.value);
    workshop.fetch_lists(lists, place.chunk_at(end), counts.all_chains, counts.all_entries);
    wait_for_copies<0>();
    __syncthreads();
    for (int chunk = end; chunk >= 0; chunk--) {
        ask_for(place, lists, chunk - AHEAD, writes, reads, values, dy, found);
        // 1. reads that are alone on their slot, then chains
        BATCHES(OWN_R, first) {
            Vector d[BATCH_OF(OWN_R)];
            EVENTS_OF(OWN_R, e) d[e] = state.find(place, int(now.accesses.get(first + e).row));
            EVENTS_OF(OWN_R, e) {
                const TokenEvent event = now.accesses.get(first + e);
                const int code = int(event.row);
                d[e].add(event.coefficient, now.value);
                if (in_place(code) && !in_reverse_listed(code)) state.store(place, row_at(code), d[e]);
            }
        }
        const Counts after = counts_of(place, lists, chunk - 2);
        Inputs<OWN_W> here;
        here.fetch(place, chunk, writes, values);
        Vector found_here;
        found_here.clear();
        if (place.part == 0 && place.has(chunk) && here.accesses.get(0).row != NOTHING)
            found_here = load_channels(place, found + place.row_of(chunk * CHUNK + place.token));
        next.fetch(place, chunk - 1, reads, dy);
        const int most = workshop.bytes_of_more(
            counts.all_chains, counts.all_entries, next_counts.all_chains, next_counts.all_entries);
        const TokenEvent* list = workshop.entries(counts.all_chains);
#pragma unroll 1
        for (int c = place.group; c < counts.all_chains; c += GROUPS) {
            const Chain chain = workshop.chains()[c];
            Vector d = state.load(place, chain.row);
            int i = chain.begin + chain.count - 1;
            TokenEvent entry = list[i], next_entry = list[i > 0 ? i - 1 : 0];
            Vector value = workshop.row(entry_token(int(entry.row)));
#pragma unroll 1
            for (; i >= chain.begin; i--) {
                const TokenEvent after = list[i > 1 ? i - 2 : 0];
                const Vector next_value = workshop.row(entry_token(int(next_entry.row)));
                const int what = int(entry.row);
                if (entry_reads(what)) {
                    d.add(entry.coefficient, value);
                } else {
                    *workshop.version(entry_version(what), most) = d;
                    d.scale(1 - entry.coefficient);
                }
                entry = next_entry, next_entry = after, value = next_value;
            }
            state.store(place, chain.row, d);
        }
        __syncthreads();
        // 2. writes
        workshop.fetch_lists(lists, place.chunk_at(chunk - 1), next_counts.all_chains, next_counts.all_entries);
        const long long at = part + (long long)(chunk)*CHUNK + place.token;
        Vector sum;
        sum.clear();
        BATCHES(OWN_W, first) {
            Vector d[BATCH_OF(OWN_W)];
            Sum dots[BATCH_OF(OWN_W)];
            EVENTS_OF(OWN_W, e) d[e] = find(place, state, workshop, most, int(here.accesses.get(first + e).row));
            EVENTS_OF(OWN_W, e) {
                const TokenEvent event = here.accesses.get(first + e);
                const int code = int(event.row);
                if (code != NOTHING) sum.add(event.coefficient, d[e]);
                dots[e] = d[e].dot(here.value);
                if (first + e == 0) {
                    const Sum dot_found = sum_over_lanes(d[0].dot(found_here));
                    if (place.part == 0 && place.own == 0 && place.token < CHUNK) dfound[at] = dot_found;
                }
                d[e].scale(1 - event.coefficient);
                if (in_place(code)) state.store(place, row_at(code), d[e]);
            }
            store_dots(place, dots, dwritten + (at * SPREAD + place.part) * OWN_W + first);
        }
        sum = sum_over_parts(sum);
        if (place.part == 0 && place.has(chunk)) store_channels(place, sum, dv + place.row_of(chunk * CHUNK + place.token));
        now = next, counts = next_counts;
        workshop.leave_row(place, now.value);
        next_counts = after;
        wait_for_copies<0>();
        __syncthreads();
    }
    state.finish(place, dgiven);
}
