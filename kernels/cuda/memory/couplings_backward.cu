// The dot products that the masses need. content.cu has those with contents before the chunk and with adjoints after it.
// Between them lie the chunk's own tokens, which add <dy_t, v_j> of pairs (chunk.cuh has the equations):
//
//     at a read    <dy_t, content>     content = kept(0, t) s + sum over earlier writes i of kept(i, t) eta_i v_i
//     at a write   <adjoint, v_j>      adjoint = kept(j, all) d + sum over later reads t of kept(j, t) r_t dy_t
//     at a heavy write, a token's first, <adjoint, content before it>, from the same two
//
// Who computes what: see couplings.cuh; <dy_t, v_j>: see token_dots.cuh.
//
// Compiled with: what chunk.cuh and couplings.cuh ask for.
#include "memory/couplings.cuh"
#include "memory/token_dots.cuh"

struct BackwardShared {
    ChunkSlots slots;
    Acc dot[ENTRIES];  // as content.cu left it, where ``slots`` has the number of the access
    TokenDots tokens;
};

// <x, content before write or read ``token``'s> of a slot, for an x of which all dots are known: ``dot_s`` with the content
// before the chunk, ``dot_v(j)`` with the values. ``writers``: which writes came before.
template <class DotV> DEVICE Acc dot_with_content(const SlotOfAccess& slot, unsigned writers, Acc dot_s, const DotV& dot_v) {
    Acc sum = 0, kept = 1;
    while (writers) {
        const int j = last_token(writers);
        const Acc eta = slot.number[__popc(writers) - 1];
        sum += kept * eta * dot_v(j), kept *= 1 - eta;
        writers ^= 1u << j;
    }
    return sum + kept * dot_s;
}

// <adjoint after write ``token``, v of it>.
DEVICE Acc dot_with_adjoint(const BackwardShared& shared, const SlotOfAccess& slot, int token, Acc dot_d) {
    Acc sum = 0, kept = 1;
    for (unsigned later = (slot.writers | slot.readers) & ~(tokens_to(token) >> 1); later; later &= later - 1) {
        const int t = last_token(later & -later);
        if (t != token && slot.writers >> t & 1) kept *= 1 - slot.eta(t);
        if (slot.readers >> t & 1) sum += kept * slot.weight(t) * shared.tokens.dy_dot_v[t][token];
    }
    return sum + kept * dot_d;
}

// <adjoint after write ``token``, content before it>, the part of it that lane k of ``lanes`` has: the adjoint is a sum over
// later reads and, last, of the adjoint after the chunk.
DEVICE Acc dot_of_both(const BackwardShared& shared, const SlotOfAccess& slot, int token, int k, int lanes, Acc dot_d_s) {
    const unsigned later = slot.readers & ~(tokens_to(token) >> 1), earlier = slot.writers & (tokens_to(token) >> 1);
    const Acc* const dot = shared.dot + slot.begin;
    Acc sum = 0;
    int rank = 0;
    for (unsigned left = later; left; left &= left - 1, rank++) {
        if (rank % lanes != k) continue;
        const int t = last_token(left & -left);
        const auto dot_v = [&](int j) { return shared.tokens.dy_dot_v[t][j]; };
        sum += slot.weight(t) * slot.kept(token, t) * dot_with_content(slot, earlier, dot[slot.read_rank(t)], dot_v);
    }
    if (rank % lanes != k) return sum;
    const auto dot_v = [&](int j) { return dot[slot.write_rank(j)]; };
    return sum + slot.kept(token, CHUNK - 1) * dot_with_content(slot, earlier, dot_d_s, dot_v);
}

// The thread's two dots over all channels: what content.cu left, summed over slices.
struct DotsOfThread {
    Acc v = 0, s = 0;  // <d, v> of its write, <dy, s> of its read

    DEVICE explicit DotsOfThread(const ThreadOfChunk& thread) {
        const CouplingParams& p = thread.p;
        const long long tokens = (long long)(p.memory.all_chunks) * CHUNK;  // of a slice
        const Acc *d_dot_v = p.d_dot_v + thread.at * W + threadIdx.x, *dy_dot_s = p.dy_dot_s + thread.at * R + threadIdx.x;
        // asked for together, and before it is known which accesses are live
#pragma unroll 4
        for (int slice = 0; slice < p.slices; slice++, d_dot_v += tokens * W, dy_dot_s += tokens * R) {
            if (in_chunk(thread.write_token, W)) v += *d_dot_v;
            if (in_chunk(thread.read_token, R)) s += *dy_dot_s;
        }
        const SlotAccess &write = thread.write, &read = thread.read;
        const bool heavy = thread.write_k == 0 && write.heavy();
        v = in_token<W>(v, thread.write_token, thread.write_k, write.live() ? code_of(write.row, false, heavy) : 0);
        s = in_token<R>(s, thread.read_token, thread.read_k, read.live() ? code_of(read.row) : 0);
    }
    // The dot of access k of the token, from the thread that has its place; 0 if the access does nothing.
    template <int WIDTH> DEVICE static Acc in_token(Acc of_place, int token, int k, int code) {
        const int place = place_in_token<WIDTH>(token, k, code);
        const Acc dot = WIDTH > 32 ? of_place : __shfl_sync(~0u, of_place, int(threadIdx.x) % 32 - k + place);
        return code ? dot : Acc(0);
    }
};

constexpr int WRITE_LANES = W < 32 ? W : 32;  // of a token's writes, in one warp

DEVICE Acc sum_over_write_lanes(Acc x) {
#pragma unroll
    for (int distance = 1; distance < WRITE_LANES; distance *= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// Stores the dot of a token's first write, if that write is heavy. All lanes of the token take part.
DEVICE void store_dot_before(const BackwardShared& shared, const ThreadOfChunk& thread) {
    const CouplingParams& p = thread.p;
    const int lane = threadIdx.x % WRITE_LANES, first_lane = threadIdx.x % 32 - lane;
    const bool first = thread.write_k == 0 && in_chunk(thread.write_token, W), heavy = first && thread.write.heavy();
    const int tag = __shfl_sync(~0u, heavy ? thread.write.tag : DEAD, first_lane);
    Acc sum = 0;
    if (__any_sync(~0u, heavy)) {
        const long long row = thread.sequence.token(thread.chunk * CHUNK + thread.write_token) * p.channels;
        for (int c = lane; tag >= 0 && c < p.channels; c += WRITE_LANES)
            sum += p.after_heavy[row + c] * p.before_heavy[row + c];
        const Acc dot = sum_over_write_lanes(sum);
        sum = lane ? 0 : dot;
        if (tag >= 0 && tag & CHAINED)
            sum = dot_of_both(shared, {shared.slots, chain_begin(tag)}, thread.write_token, lane, WRITE_LANES, dot);
        sum = sum_over_write_lanes(sum);
    }
    if (first) p.d_dot_before[thread.at + thread.write_token] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(Acc) == 4 ? 5 : 3)
couple_backward(const __grid_constant__ CouplingParams p) {
    __shared__ BackwardShared of_block;
    BackwardShared& shared = computed_once(of_block);
    const ThreadOfChunk thread(p);
    const RowsOfChunk rows{thread.sequence, thread.chunk, p.channels, p.dy, p.values};
    copy_channels(shared.tokens, rows, 0);
    DotsOfThread dot(thread);
    thread.enter(shared.slots);
    const bool chained_read = thread.listed_read() && thread.read.chained();
    const SlotOfAccess write_slot(shared.slots, thread.chained_write() ? chain_begin(thread.write.tag) : 0);
    const SlotOfAccess read_slot(shared.slots, chained_read ? chain_begin(thread.read.tag) : 0);
    if (thread.chained_write()) shared.dot[write_slot.begin + write_slot.write_rank(thread.write_token)] = dot.v;
    if (chained_read) shared.dot[read_slot.begin + read_slot.read_rank(thread.read_token)] = dot.s;
    multiply_channels(shared.tokens, rows);
    if (thread.chained_write()) dot.v = dot_with_adjoint(shared, write_slot, thread.write_token, dot.v);
    if (chained_read) {
        const auto dot_with_value = [&](int j) { return shared.tokens.dy_dot_v[thread.read_token][j]; };
        dot.s = dot_with_content(read_slot, read_slot.writers & tokens_to(thread.read_token), dot.s, dot_with_value);
    }
    if (in_chunk(thread.write_token, W)) p.d_dot_v[thread.at * W + threadIdx.x] = dot.v;
    if (in_chunk(thread.read_token, R)) p.dy_dot_s[thread.at * R + threadIdx.x] = dot.s;
    store_dot_before(shared, thread);
}
