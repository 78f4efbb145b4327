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
// with a barrier between. The inputs of the next chunk are on their way meanwhile. If all tokens share a slot, its chain
// takes as long as token after token would.
//
// Every sum has a fixed order and no atomics are used: the same inputs give the same bits.
//
// Compiled with: what chunk.cuh asks for, CHANNELS, IN_SHARED, FRESH (rows in device memory begin unset: link.cu's
// renumbered), ALIGNED, BLOCKS (to be held by a multiprocessor).
#include "memory/content.cuh"

// for (first of a batch), for (e of a batch) over a group's accesses
#define BATCH_OF(OWN) Accesses<OWN>::BATCH
#define BATCHES(OWN, first) for (int first = 0; first < OWN; first += BATCH_OF(OWN))
#define EVENTS_OF(OWN, e) _Pragma("unroll") for (int e = 0; e < BATCH_OF(OWN); e++)

#define SIZES                                                                                                            \
    int tokens, int heads, int channels, int rows_of_state, int segments, int chunks_of_segment, int first_segment,      \
        int launched
#define PLACE_OF_LANE(block)                                                                                             \
    const Place place(block, tokens, heads, channels, rows_of_state, {segments, chunks_of_segment, first_segment, launched})
#define LISTS const Chain *chains, const TokenEvent *entries
#define EVENTS const TokenEvent *__restrict__ writes, const TokenEvent *__restrict__ reads

constexpr int AHEAD = 3;  // chunks that are asked for from device memory before they are needed

// Has a chunk's inputs brought to the L2 cache: each lane at most one line, the same of every chunk.
struct Ask {
    const char* line;
    int stride;  // bytes from chunk to chunk; 0: none

    DEVICE Ask(const Place& place, EVENTS, LISTS, const ELEMENT* values, const ELEMENT* dy, const Sum* found)
        : line(nullptr), stride(0) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const auto lines = [&](const void* first, int bytes, int used) {
            if (lane * 128 >= used) return;
            line = reinterpret_cast<const char*>(first) + place.chunk_at(0) * bytes + lane * 128, stride = bytes;
        };
        constexpr int EVENT = sizeof(TokenEvent), CHAIN = sizeof(Chain);
        if (warp == 0) lines(writes, CHUNK * W * EVENT, CHUNK * W * EVENT);
        if (warp == 1) lines(reads, CHUNK * R * EVENT, CHUNK * R * EVENT);
        if (CHUNK == 1) return;
        if (warp == 2) lines(entries, ENTRIES * EVENT, ENTRIES * EVENT / 2);  // of lists, as much as most chunks use
        if (warp == 3) lines(chains, CHAINS * CHAIN, (found ? SURE_ROUNDS : 1) * GROUPS * CHAIN);
        const auto rows = [&](const void* first, int size) {
            if (lane >= CHUNK) return;
            const long long row = place.row_of(0, lane) - place.lane * VECTOR;
            line = reinterpret_cast<const char*>(first) + row * size, stride = place.stride * size;
        };
        if (warp == 5) rows(values, sizeof(ELEMENT));
        if (warp == 6 && dy) rows(dy, sizeof(ELEMENT));
        if (warp == 7 && found) rows(found, sizeof(Sum));
    }
    DEVICE void operator()(const Place& place, int chunk) const {
        if (chunk >= 0 && (chunk + 1) * CHUNK <= place.tokens && stride) prefetch(line + (long long)(chunk)*stride);
    }
};

// The two passes forward in time. read(chunk, the token's reads, dy): what it does with them.
template <bool REPLAY, class Read>
DEVICE void forward_pass(
    const Place& place, Rows& rows, EVENTS, LISTS, const ELEMENT* values, const ELEMENT* dy, Sum* found, const Read& read
) {
    const Ask ask(place, writes, reads, chains, entries, values, REPLAY ? dy : nullptr, nullptr);
    const int rows_in_shared = IN_SHARED ? place.rows : 0;
    writes += place.access_of(OWN_W), reads += place.access_of(OWN_R);
    chains += place.chunk_at(0) * CHAINS + place.group, entries += place.chunk_at(0) * ENTRIES;
    const int last = place.chunks - 1;
    Accesses<OWN_W> write;
    Channels<ELEMENT> value;
    Link link{};
    const auto fetch = [&](int chunk) {
        if (place.takes_part()) {
            write.fetch(writes + at_chunk(chunk, CHUNK * W));
            value.clear();
            if (place.has(chunk)) value.fetch(place, values + place.row_of(chunk));
        }
        if (CHUNK > 1)
            Link::fetch<1>(place, header_of(place, chunk), entries + at_chunk(chunk, ENTRIES), link.coming);
    };
    Vector v;  // that of the chunk
    const auto leave_row = [&] {
        v = value.widened();
        if (CHUNK > 1 && place.part == 0 && place.takes_part()) rows[place_of_token(rows_in_shared, place.token)] = v;
    };
    if (CHUNK > 1) {
        for (int chunk = 0; chunk < 2; chunk++) fetch_headers<1>(place, chains, chunk);
        wait_for_copies<0>();
        __syncwarp();
        link.chain = header_of(place, 0);
    }
    fetch(0);
    leave_row();
    link.entry = link.coming;
    for (int chunk = 1; chunk < AHEAD; chunk++) ask(place, chunk);
    __syncthreads();
    for (int chunk = 0; chunk <= last; chunk++) {
        const int next = smaller_of(chunk + 1, last);
        ask(place, chunk + AHEAD);
        Accesses<OWN_R> token_reads;
        Channels<ELEMENT> token_dy;
        token_dy.clear();
        if (place.takes_part()) token_reads.fetch(reads + at_chunk(chunk, CHUNK * R));
        if (REPLAY && place.has(chunk)) token_dy.fetch(place, dy + place.row_of(chunk));
        if (FRESH) rows.fresh = chunk * CHUNK * WRITES;
        // 1. writes that are alone on their slot, then chains
        if (place.takes_part()) {
            BATCHES(OWN_W, first) {
                int codes[BATCH_OF(OWN_W)];
                Vector s[BATCH_OF(OWN_W)];
                write.codes(place, first, codes);
                rows.find_alone(place, codes, s);
                EVENTS_OF(OWN_W, e) {
                    if (REPLAY && first + e == 0 && place.part == 0 && !has_version(int(write.get(0).row)) && place.has(chunk))
                        store_channels(place, s[e], found + place.row_of(chunk));  // 0 if it does nothing
                    s[e].approach(write.get(first + e).coefficient, v);
                    if (codes[e]) rows.store(place, codes[e], s[e]);
                }
            }
        }
        fetch(next);  // into the same registers
        ask_for(place, rows, token_reads, place.rows);
        if (CHUNK > 1) {
            const TokenEvent* list = entries + at_chunk(chunk, ENTRIES);
            const auto follow = [&] {
                const Chain chain = link.chain;
                const int count = chain.reads_only() ? 0 : chain.count();
                Vector s = rows.load(place, count ? place_of_row(chain.row) : 0);  // of others, the slot may be written
                follow_chain<1>(place, rows, list, link, count, [&](int what, Sum eta, const Vector& v) {
                    if (entry_reads(what)) rows.store_version(entry_version(what), s);
                    if (REPLAY && !entry_reads(what) && entry_first(what))
                        store_channels(place, s, found + place.row_of(chunk, entry_token(what) - place_of_token(rows_in_shared, 0)));
                    if (!entry_reads(what)) s.approach(eta, v);
                });
                if (count) rows.store(place, place_of_row(chain.row), s);
            };
            follow();
            for (int c = GROUPS; __any_sync(~0u, link.chain.more_mixed()); c += GROUPS) {  // rare
                link.fetch_round<1>(place, chains + at_chunk(chunk, CHAINS) + c, list);
                follow();
            }
            link.chain = header_of(place, next);
        }
        __syncthreads();
        // 2. reads; meanwhile what the next chunk needs arrives
        if (CHUNK > 1) fetch_headers<1>(place, chains, chunk + 2);
        const int in_use = FRESH ? next * CHUNK * WRITES : place.rows;
        ask_for(place, rows, write, in_use);
        if (CHUNK > 1) rows.ask(place, place_of_row(link.chain.row), in_use);
        if (FRESH) rows.fresh = place.rows;
        read(chunk, token_reads, token_dy.widened());
        link.entry = link.coming;
        leave_row();
        if (CHUNK > 1) wait_for_copies<0>();
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS) content_forward(
    EVENTS, LISTS, const ELEMENT* __restrict__ values,  // (B, T, H, C)
    SIZES, Sum* spare,                        // see Rows
    const Sum* given, Sum* working, Sum* final_state,   // (B*H, rows, C) each, or null; working only if not IN_SHARED
    ELEMENT* __restrict__ y,                            // (B, T, H, C)
    int carry                                           // of segments but the first, only the final state is wanted
) {
    PLACE_OF_LANE(block_from_last());
    const bool wanted = !(carry && place.segment);
    Rows rows(place, spare, working);
    rows.start(place, given);
    const auto read = [&](int chunk, const Accesses<OWN_R>& reads, const Vector&) {
        if (!wanted) return;
        Vector sum;
        sum.clear();
        if (place.takes_part()) {
            BATCHES(OWN_R, first) {
                int codes[BATCH_OF(OWN_R)];
                Vector seen[BATCH_OF(OWN_R)];
                reads.codes(place, first, codes);
                rows.find(place, codes, any_spared(codes), seen);
                EVENTS_OF(OWN_R, e) sum.add(reads.get(first + e).coefficient, seen[e]);
            }
        }
        sum = sum_over_parts(sum);
        if (place.part == 0 && place.has(chunk)) store_channels(place, sum, y + place.row_of(chunk));
    };
    forward_pass<false>(place, rows, writes, reads, chains, entries, values, nullptr, nullptr, read);
    rows.finish(place, final_state);
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS) content_replay(
    EVENTS, LISTS, const ELEMENT* __restrict__ values, const ELEMENT* __restrict__ dy, SIZES, Sum* spare,
    const Sum* given, Sum* working,
    const Sum* dstate,         // (B*H, rows, C), or null
    Sum* __restrict__ dread,   // (slices, B*H, chunks, CHUNK, R): <dy, s> over the slice
    Sum* __restrict__ found,   // (B, T, H, C): the content that a token's first write found
    Sum* __restrict__ last     // (slices, B*H, rows): <dstate, s> after the last token, if there is a dstate
) {
    PLACE_OF_LANE(blockIdx.x);
    Rows rows(place, spare, working);
    rows.start(place, given);
    dread += place.before_slice * (CHUNK * R) + place.access_of(OWN_R);
    const auto read = [&](int chunk, const Accesses<OWN_R>& reads, const Vector& dy) {
        BATCHES(OWN_R, first) {
            int codes[BATCH_OF(OWN_R)];
            Vector seen[BATCH_OF(OWN_R)];
            Sum dots[BATCH_OF(OWN_R)];
            reads.codes(place, first, codes);
            rows.find(place, codes, any_spared(codes), seen);
            EVENTS_OF(OWN_R, e) dots[e] = seen[e].dot(dy);
            store_dots(place, dots, dread + at_chunk(chunk, CHUNK * R) + first);
        }
    };
    forward_pass<true>(place, rows, writes, reads, chains, entries, values, dy, found, read);
    if (!dstate) return;
    const Sum* d = dstate + rows.origin;
    last += ((long long)(place.slice) * (gridDim.x / place.slices) + place.unit) * place.rows;  // one segment
    for (int first = 0; first < place.rows; first += GROUPS) {
        const int row = first + place.group;
        Sum sum = 0;
        if (row < place.rows) sum = load_channels(place, d + (long long)(row)*channels).dot(rows.load(place, place_of_row(row)));
        sum = sum_over_lanes(sum);
        if (row < place.rows && place.lane == 0) last[row] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS) content_reverse(
    EVENTS, LISTS, const ELEMENT* __restrict__ values, const ELEMENT* __restrict__ dy,
    const Sum* __restrict__ found, SIZES, Sum* spare, const Sum* dstate, Sum* working, Sum* dgiven,
    ELEMENT* __restrict__ dv,    // (B, T, H, C)
    Sum* __restrict__ dwritten,  // (slices, B*H, chunks, CHUNK, W): <d, v> over the slice
    Sum* __restrict__ dfound,    // (slices, B*H, chunks, CHUNK): <d, found> of the token's first write
    int carry                    // of segments but the last, only dgiven is wanted
) {
    PLACE_OF_LANE(block_from_last());
    const bool wanted = !(carry && place.segment + 1 < segments);
    Rows rows(place, spare, working);  // of the adjoint
    rows.start(place, dstate);
    const Ask ask(place, writes, reads, chains, entries, values, dy, found);
    const int rows_in_shared = IN_SHARED ? place.rows : 0;
    dwritten += place.before_slice * (CHUNK * W) + place.access_of(OWN_W);
    dfound += (place.before_slice + place.chunk_at(0)) * CHUNK + place.token;
    writes += place.access_of(OWN_W), reads += place.access_of(OWN_R);
    chains += place.chunk_at(0) * CHAINS + place.group, entries += place.chunk_at(0) * ENTRIES;
    Accesses<OWN_R> read;
    Channels<ELEMENT> token_dy;
    Link link{};
    const auto fetch = [&](int chunk) {
        if (!place.takes_part()) return;
        read.fetch(reads + at_chunk(chunk, CHUNK * R));
        token_dy.clear();
        if (place.has(chunk)) token_dy.fetch(place, dy + place.row_of(chunk));
    };
    const auto fetch_chain = [&](int chunk) {
        Link::fetch<-1>(place, header_of(place, chunk), entries + at_chunk(chunk, ENTRIES), link.coming);
    };
    const auto leave_row = [&] {
        if (place.part == 0 && place.takes_part()) rows[place_of_token(rows_in_shared, place.token)] = token_dy.widened();
    };
    const int end = place.chunks - 1;
    const auto no_less = [](int chunk) { return chunk < 0 ? 0 : chunk; };
    fetch(end);
    if (CHUNK > 1) {
        for (int chunk = end; chunk > end - 2; chunk--) fetch_headers<SURE_ROUNDS>(place, chains, chunk);
        wait_for_copies<0>();
        __syncwarp();
        link.chain = header_of(place, end);
        fetch_chain(end);
        link.entry = link.coming;
        leave_row();
    }
    for (int chunk = end - 1; chunk > end - AHEAD; chunk--) ask(place, chunk);
    __syncthreads();
    for (int chunk = end; chunk >= 0; chunk--) {
        ask(place, chunk - AHEAD);
        if (CHUNK > 1) {
            fetch_chain(no_less(chunk - 1));
            if (SURE_ROUNDS > 1)
                Link::fetch<-1>(place, header_of(place, chunk, 1), entries + at_chunk(chunk, ENTRIES), link.second);
        }
        Accesses<OWN_W> write;
        Channels<ELEMENT> value;
        Vector found_here;
        value.clear(), found_here.clear();
        if (place.takes_part()) write.fetch(writes + at_chunk(chunk, CHUNK * W));
        if (place.has(chunk)) value.fetch(place, values + place.row_of(chunk));
        // 1. reads that are alone on their slot, then chains
        if (place.takes_part()) {
            const Vector dy_here = token_dy.widened();
            BATCHES(OWN_R, first) {
                int codes[BATCH_OF(OWN_R)];
                Vector d[BATCH_OF(OWN_R)];
                read.codes(place, first, codes);
                rows.find_alone(place, codes, d);
                EVENTS_OF(OWN_R, e) {
                    d[e].add(read.get(first + e).coefficient, dy_here);
                    if (codes[e]) rows.store(place, codes[e], d[e]);
                }
            }
        }
        ask_for(place, rows, write, place.rows);
        if (place.part == 0 && place.has(chunk) && wanted)
            found_here = load_channels(place, found + place.row_of(chunk));
        if (CHUNK > 1) {
            const TokenEvent* list = entries + at_chunk(chunk, ENTRIES);
            const auto follow = [&] {
                const Chain chain = link.chain;
                Vector d = rows.load(place, place_of_row(chain.row));
                follow_chain<-1>(place, rows, list, link, chain.count(), [&](int what, Sum coefficient, const Vector& dy) {
                    if (!entry_reads(what)) rows.store_version(entry_version(what), d);
                    if (entry_reads(what)) d.add(coefficient, dy);
                    else d.scale(1 - coefficient);
                });
                if (chain.count()) rows.store(place, place_of_row(chain.row), d);
            };
            follow();
            const int last_round = link.chain.last_round();
            for (int round = 1; round <= last_round; round++) {
                if (round < SURE_ROUNDS)
                    link.chain = header_of(place, chunk, 1), link.entry = link.second;
                else
                    link.fetch_round<-1>(place, chains + at_chunk(chunk, CHAINS) + round * GROUPS, list);
                follow();
            }
            link.chain = header_of(place, no_less(chunk - 1));
        }
        constexpr bool HELD = Accesses<OWN_W>::HELD;
        bool spared = false;
        if (HELD) {  // waits for the writes, before more is asked for
            int codes[BATCH_OF(OWN_W)];
            write.codes(place, 0, codes);
            spared = any_spared(codes);
        }
        __syncthreads();
        // 2. writes
        if (CHUNK > 1) fetch_headers<SURE_ROUNDS>(place, chains, chunk - 2);
        fetch(no_less(chunk - 1));  // into the same registers
        ask_for(place, rows, read, place.rows);
        if (CHUNK > 1) rows.ask(place, place_of_row(link.chain.row), place.rows);
        const Vector v = value.widened();
        Vector sum;
        sum.clear();
        BATCHES(OWN_W, first) {
            int codes[BATCH_OF(OWN_W)];
            Vector d[BATCH_OF(OWN_W)];
            Sum dots[BATCH_OF(OWN_W)];
            write.codes(place, first, codes);
            rows.find(place, codes, HELD ? spared : any_spared(codes), d);
            if (first == 0 && wanted) {
                const Sum dot_found = sum_over_lanes(d[0].dot(found_here));
                if (place.part == 0 && place.lane == 0 && place.takes_part()) dfound[at_chunk(chunk, CHUNK)] = dot_found;
            }
            EVENTS_OF(OWN_W, e) {
                dots[e] = d[e].dot(v);
                if (codes[e] == NOTHING) continue;
                const Sum eta = write.get(first + e).coefficient;
                sum.add(eta, d[e]);
                d[e].scale(1 - eta);
                if (in_place(codes[e])) rows.store(place, codes[e], d[e]);
            }
            if (wanted) store_dots(place, dots, dwritten + at_chunk(chunk, CHUNK * W) + first);
        }
        if (wanted) sum = sum_over_parts(sum);
        if (wanted && place.part == 0 && place.has(chunk)) store_channels(place, sum, dv + place.row_of(chunk));
        if (CHUNK > 1) {
            link.entry = link.coming;
            leave_row();
            wait_for_copies<0>();
        }
        __syncthreads();
    }
    rows.finish(place, dgiven);
}
