// The dot products that the masses need. content.cu has those with contents before the chunk and with adjoints after it.
// Between them lie the chunk's own tokens, which add <dy_t, v_j> of pairs (chunk.cuh has the equations):
//
//     at a read    <dy_t, content>     content = kept(0, t) s + sum over earlier writes i of kept(i, t) eta_i v_i
//     at a write   <adjoint, v_j>      adjoint = kept(j, all) d + sum over later reads t of kept(j, t) r_t dy_t
//     at a heavy write, a token's first, <adjoint, content before it>, from the same two
//
// Who computes what: see couplings.cuh; <dy_t, v_j>: see below.
//
// Compiled with: what chunk.cuh and couplings.cuh ask for.
#include "memory/couplings.cuh"
#include "memory/tf32.cuh"
#include "runtime/overlap.cuh"

constexpr int EACH = 16 / sizeof(ELEMENT);                      // elements that are copied at once
constexpr int CHANNELS_AT_ONCE = 16 * EACH < 64 ? 16 * EACH : 64;  // in shared memory; rows there are longer by EACH
constexpr int PAIRS = CHUNK < 16 ? 1 : CHUNK / 16;  // a thread has PAIRS x PAIRS dots <dy_t, v_j>, or a warp 16 x 8
constexpr int SIDE = CHUNK / PAIRS;                 // threads along t, and along j
constexpr bool TENSOR_CORES = sizeof(Acc) == 4 && CHUNK >= 16;

using TokenRows = ELEMENT[CHUNK][CHANNELS_AT_ONCE + EACH];

struct BackwardShared {
    ChunkSlots slots;
    Acc dot[ENTRIES];               // as content.cu left it, where ``slots`` has the number of the access
    Acc dy_dot_v[CHUNK][CHUNK + 1];
    alignas(16) TokenRows dy, v;    // a part of the channels of all tokens
};

// Starts to copy channels from ``first`` on of all tokens, of ``from`` (B, T, H, C); 0 where there are none.
DEVICE void copy_channels(TokenRows& to, const ThreadOfChunk& thread, const ELEMENT* from, int first) {
    const int channels = thread.p.channels;
    const bool whole = channels % EACH == 0;
    const ELEMENT zero{};
#pragma unroll
    for (int i = threadIdx.x; i < CHUNK * CHANNELS_AT_ONCE / EACH; i += THREADS) {
        const int token = i / (CHANNELS_AT_ONCE / EACH), channel = i % (CHANNELS_AT_ONCE / EACH) * EACH;
        const int t = thread.chunk * CHUNK + token, there = t < thread.sequence.tokens ? channels - first - channel : 0;
        const ELEMENT* const here = from + thread.sequence.token(t) * channels + first + channel;
        if (whole && there > 0)
            copy_async<16>(&to[token][channel], here);
        else
#pragma unroll 1
            for (int c = 0; c < EACH; c++) to[token][channel + c] = c < there ? here[c] : zero;
    }
}
DEVICE void copy_channels(BackwardShared& shared, const ThreadOfChunk& thread, int first) {
    copy_channels(shared.dy, thread, thread.p.dy, first);
    copy_channels(shared.v, thread, thread.p.values, first);
    end_group_of_copies();
}

// <dy_t, v_j> of pairs of tokens, each thread its own.
struct PairsOfThread {
    const int t = threadIdx.x / SIDE, j = threadIdx.x % SIDE;
    Acc sum[PAIRS][PAIRS] = {};

    DEVICE void add(const BackwardShared& shared) {
        if (t >= SIDE) return;
#pragma unroll
        for (int channel = 0; channel < CHANNELS_AT_ONCE; channel += EACH) {
            Acc dy[PAIRS][EACH], v[PAIRS][EACH];
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
                load<EACH>(&shared.dy[t + SIDE * i][channel], dy[i]);
                load<EACH>(&shared.v[j + SIDE * i][channel], v[i]);
            }
#pragma unroll
            for (int a = 0; a < PAIRS; a++)
#pragma unroll
                for (int b = 0; b < PAIRS; b++)
#pragma unroll
                    for (int c = 0; c < EACH; c++) sum[a][b] += dy[a][c] * v[b][c];
        }
    }
    DEVICE void store(BackwardShared& shared) const {
        if (t >= SIDE) return;
#pragma unroll
        for (int a = 0; a < PAIRS; a++)
#pragma unroll
            for (int b = 0; b < PAIRS; b++) shared.dy_dot_v[t + SIDE * a][j + SIDE * b] = sum[a][b];
    }
};

// The same on the tensor cores: a warp has 16 tokens t by 8 tokens j, if any j is not after all t.
struct PairsOfWarp {
    static constexpr int ALONG_J = (CHUNK + 7) / 8;  // warps
    const int t = threadIdx.x / 32 / ALONG_J * 16, j = threadIdx.x / 32 % ALONG_J * 8;
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4;
    float sum[4] = {}, small[4] = {};

    DEVICE bool needed() const { return t < CHUNK && j < t + 16; }
    DEVICE void add(const BackwardShared& shared) {
        if (!needed()) return;
#pragma unroll
        for (int channel = column; channel < CHANNELS_AT_ONCE; channel += 8) {
            float a[4], b[2];
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = widen(shared.dy[t + row + i % 2 * 8][channel + i / 2 * 4]);
#pragma unroll
            for (int i = 0; i < 2; i++) b[i] = widen(shared.v[j + row][channel + i * 4]);
            multiply_add_float32<sizeof(ELEMENT) == 2>(sum, small, a, b);
        }
    }
    DEVICE void store(BackwardShared& shared) const {
        if (!needed()) return;
#pragma unroll
        for (int i = 0; i < 4; i++) shared.dy_dot_v[t + row + i / 2 * 8][j + 2 * column + i % 2] = sum[i] + small[i];
    }
};

// The first channels are on their way already.
template <class Pairs> DEVICE void store_pairs(BackwardShared& shared, const ThreadOfChunk& thread) {
    Pairs pairs;
    for (int first = 0;;) {
        wait_for_copies<0>();
        __syncthreads();
        pairs.add(shared);
        first += CHANNELS_AT_ONCE;
        if (first >= thread.p.channels) break;
        __syncthreads();
        copy_channels(shared, thread, first);
    }
    pairs.store(shared);
}

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
        if (slot.readers >> t & 1) sum += kept * slot.weight(t) * shared.dy_dot_v[t][token];
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
        const auto dot_v = [&](int j) { return shared.dy_dot_v[t][j]; };
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
        if (!thread.write.live()) v = 0;
        if (!thread.read.live()) s = 0;
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
    const int tag = __shfl_sync(~0u, heavy ? int(thread.write.tag) : DEAD, first_lane);
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
    let_next_launch_begin();
    wait_for_launch_before();
    const ThreadOfChunk thread(p);
    copy_channels(shared, thread, 0);
    DotsOfThread dot(thread);
    thread.enter(shared.slots);
    const bool chained_read = thread.listed_read() && thread.read.chained();
    const SlotOfAccess write_slot(shared.slots, thread.chained_write() ? chain_begin(int(thread.write.tag)) : 0);
    const SlotOfAccess read_slot(shared.slots, chained_read ? chain_begin(thread.read.tag) : 0);
    if (thread.chained_write()) shared.dot[write_slot.begin + write_slot.write_rank(thread.write_token)] = dot.v;
    if (chained_read) shared.dot[read_slot.begin + read_slot.read_rank(thread.read_token)] = dot.s;
    if constexpr (TENSOR_CORES)
        store_pairs<PairsOfWarp>(shared, thread);
    else
        store_pairs<PairsOfThread>(shared, thread);
    __syncthreads();
    if (thread.chained_write()) dot.v = dot_with_adjoint(shared, write_slot, thread.write_token, dot.v);
    if (chained_read) {
        const auto dot_with_value = [&](int j) { return shared.dy_dot_v[thread.read_token][j]; };
        dot.s = dot_with_content(read_slot, read_slot.writers & tokens_to(thread.read_token), dot.s, dot_with_value);
    }
    if (in_chunk(thread.write_token, W)) p.d_dot_v[thread.at * W + threadIdx.x] = dot.v;
    if (in_chunk(thread.read_token, R)) p.dy_dot_s[thread.at * R + threadIdx.x] = dot.s;
    store_dot_before(shared, thread);
}
