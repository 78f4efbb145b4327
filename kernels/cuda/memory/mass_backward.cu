// The adjoints of the masses, and every gradient of the memory that does not depend on channels: those of the weights and
// of gamma.
//
// The backward is given <d, v> of every write and <dy, s> of every read, where s is a slot's content and d its adjoint. It
// is not given the content before a write, which no pass keeps. It needs only <d, before> of it, and that follows from
// what it has: q = <d, s> of a slot changes by known amounts,
//
//     at a read   q += r <dy, s>                      (in reverse time, before the read)
//     at a write  q -= eta <d, v>,   and then q = (1 - eta) <d, before>.
//
// Only the product with 1 - eta is known, so nothing may be divided by 1 - eta, which can be tiny. With
// kappa = 1 - eta = (alpha z' + eps) / (z + eps), z' the mass before, the gradients are
//
//     e = kappa deta = kappa <d, v> - q
//     dz -= eta e / (alpha z' + eps),   dalpha = dz z',   dw = e / (z + eps) + dz (before) + dalpha alpha'(w)
//
// That is as exact as w stays away from 1. At most one weight of a token is above 1/2, its first. For that one couplings.cu
// does compute <d, before>. memory/plain.cu has the same steps token after token.
//
// Only q and dz, the adjoint of z, go from chunk to chunk (chunk.cuh). A block works through the chunks of a (batch, head),
// or of a segment of it (segments.cu), last to first, with its rows in shared memory (device memory if there are too many).
//
// Who computes what: half of the threads have writes, thread token * W + k write k of a token. The others have reads,
// thread token * R + k read k, and chains, thread c chain c:
//
//        write threads                               read threads
//     1  prepare the next chunk's writes: slopes of  reads that share no slot: q += r <dy, s>;
//        alpha                                       chains, access after access
//     2  apply this chunk's: q, dz, dw, dgamma       prepare the next chunk's reads: <dy, s>, dr
//
// q and dz at the end of a segment are not known before later segments are done, but what they are at its start is an
// AdjointMap of them (mass.cuh). LOCAL_ONLY computes just this map.
//
// Compiled with: what chunk.cuh, retention.cuh and adjoint.cuh ask for, and the definitions below.
#include "memory/adjoint.cuh"

#if !defined(MASS_AWARE) || !defined(MASS_IN_SHARED) || !defined(SEGMENTED) || !defined(LOCAL_ONLY)
#error "MASS_AWARE, MASS_IN_SHARED, SEGMENTED and LOCAL_ONLY must be 0 or 1"
#endif
static_assert((!SEGMENTED || MASS_IN_SHARED) && (!LOCAL_ONLY || SEGMENTED), "segments keep their masses in shared memory");

struct MassBackwardParams {
    MemoryParams memory;
    const Acc* d_dot_v;                  // of every write: (B*H, chunks, CHUNK, W)
    const Acc* d_dot_before;             // of a token's first write, if it is heavy: (B*H, chunks, CHUNK)
    const Acc* dy_dot_s;                 // of every read: (B*H, chunks, CHUNK, R)
    const MassAccess* writes;            // (B*H, chunks, CHUNK, W)
    const Acc* mass_before;              // likewise
    const SlotAccess* reads;             // (B*H, chunks, CHUNK, R)
    const MassAdjoint* gains;            // likewise: what a read adds, if MASS_AWARE
    const Acc* final_q;                  // (final_q_parts, B*H, rows): q at the end is their sum; or null for 0
    const Acc* dfinal_mass;              // (B*H, rows): dz at the end, or null for 0
    const MassAdjoint* ends;             // (B*H, segments, rows): in place of both, if SEGMENTED and not LOCAL_ONLY
    MassAdjoint* working;                // (B*H, rows) if not MASS_IN_SHARED, all 0
    Acc *dw, *dr;                        // (B, T, H, WRITES); (B, T, H, READS), if not MASS_AWARE
    ELEMENT* dgamma;                     // (B, T, H)
    Acc* dgiven_mass;                    // (B*H, rows), or null
    AdjointMap* maps;                    // (B*H, segments, rows), if LOCAL_ONLY
    int final_q_parts, segments, chunks_of_segment;
};

// The sum over the lanes that have writes of the same token, of up to a warp.
DEVICE Acc sum_over_token(Acc x) {
#pragma unroll
    for (int distance = 1; distance < (W < 32 ? W : 32); distance *= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// What the two halves of a block exchange.
struct Exchange {
    AdjointUpdate update_at[ENTRIES];  // by the entries of chains
    MassAdjoint seen_at[ENTRIES];      // what AdjointUpdate::apply returned
    Acc gamma_of_warp[THREADS / 32];
};

// A block's rows, and where its chunks and tokens stand.
struct Block {
    const MassBackwardParams& p;
    const ChunkRange& range;
    const Sequence& sequence;
    Exchange& exchange;
    MassAdjoint* const adjoint;  // of the rows, by place_of
    ShareOfEnd* const of_end;    // likewise, if LOCAL_ONLY

    // Tokens before this sequence, in arrays (B*H, chunks, CHUNK).
    DEVICE long long first_token() const { return sequence.chunk(0) * CHUNK; }
};

// Where a row stands among the block's rows.
DEVICE int place_of(int row) { return MASS_IN_SHARED ? place_of_row(row) : row; }

constexpr int PREFETCHED = 4;  // chunks whose inputs come to the L2 cache before they are needed; registers hold one

// Brings a chunk's inputs to the L2 cache: each thread at most one line of 128 bytes, the same in every chunk.
struct MassPrefetcher {
    const char* line = nullptr;
    unsigned stride = 0;  // bytes from chunk to chunk
    const ChunkRange& range;

    DEVICE explicit MassPrefetcher(const Block& block) : range(block.range) {
        constexpr int LINES = 2 * THREADS / 8;  // for each of eight arrays
        const MassBackwardParams& p = block.p;
        const int array = threadIdx.x / LINES, number = threadIdx.x % LINES;
        // Array n has ``each`` for a chunk, of which ``used`` are loaded.
        const auto one_of = [&](int n, const auto* first, int each, int used) {
            constexpr int BYTES = sizeof(*first);
            if (array != n || number * 128 >= used * BYTES) return;
            line = reinterpret_cast<const char*>(first) + number * 128, stride = each * BYTES;
        };
        const long long first = block.first_token();
        one_of(0, p.writes + first * W, CHUNK * W, CHUNK * W);
        one_of(1, p.mass_before + first * W, CHUNK * W, CHUNK * W);
        one_of(2, p.d_dot_v + first * W, CHUNK * W, CHUNK * W);
        one_of(3, p.d_dot_before + first, CHUNK, CHUNK);
        one_of(4, p.reads + first * R, CHUNK * R, CHUNK * R);
        one_of(5, p.memory.chains + block.sequence.chunk(0) * CHAINS, CHAINS, MIN_ROUNDS * CHAINS_PER_ROUND);
        if (MASS_AWARE) {
            one_of(6, p.gains + first * R, CHUNK * R, CHUNK * R);
            return;
        }
        one_of(6, p.dy_dot_s + first * R, CHUNK * R, CHUNK * R);
        if (array != 7 || number >= CHUNK) return;  // a token's weights are in one line, or two
        const unsigned of_token = block.p.memory.heads * unsigned(READS * sizeof(Acc));
        line = reinterpret_cast<const char*>(p.memory.read_weight + block.sequence.first * READS) + number * (unsigned long long)(of_token);
        stride = CHUNK * of_token;
    }
    DEVICE void operator()(int chunk) const {
        if (chunk >= range.begin && line) prefetch(line + unsigned(chunk) * (unsigned long long)(stride));
    }
};

struct WriteThreads {
    const Block& block;
    const int thread, token, k;
    const Acc *dots, *dots_before, *mass_before;
    const MassAccess* writes;
    const ELEMENT* gammas;
    Acc* dw;
    ELEMENT* dgamma;

    struct {
        MassAccess write;
        Acc mass_before, dot, dot_before;
        ELEMENT gamma;
    } raw;
    struct Ready {
        MassAccess write;
        AdjointUpdate update;
        WeightGradTerms terms;
    } now, next;

    DEVICE explicit WriteThreads(const Block& block)
        : block(block), thread(threadIdx.x % THREADS), token(thread / W), k(thread % W) {
        const MassBackwardParams& p = block.p;
        const long long first = block.first_token();
        dots = p.d_dot_v + first * W + thread, dots_before = p.d_dot_before + first + token;
        writes = p.writes + first * W + thread, mass_before = p.mass_before + first * W + thread;
        gammas = p.memory.gamma ? p.memory.gamma + block.sequence.first : nullptr;
        dw = p.dw + block.sequence.first * WRITES + k, dgamma = p.dgamma + block.sequence.first;
    }
    DEVICE int t_of(int chunk) const { return chunk * CHUNK + token; }

    DEVICE void load(int chunk) {
        raw.write = MassAccess::dead(), raw.mass_before = 0, raw.dot = 0, raw.dot_before = 0;
        if (chunk < block.range.begin || thread >= CHUNK * W) return;
        const unsigned at = unsigned(chunk) * (CHUNK * W);
        raw.write = load_read_only(writes + at), raw.mass_before = load_read_only(mass_before + at);
        raw.dot = load_read_only(dots + at);
        if (k == 0) raw.dot_before = load_read_only(dots_before + unsigned(chunk) * CHUNK);
        const int t = t_of(chunk);
        if (gammas && t < block.sequence.tokens) raw.gamma = gammas[unsigned(t) * unsigned(block.p.memory.heads)];
    }
    // From the inputs that are there; then loads those of the chunk after it.
    DEVICE Ready prepare(int chunk) {
        const Acc gamma = gammas ? wait_for_load(widen(raw.gamma)) : block.p.memory.constant_gamma;
        const Acc mass_before = wait_for_load(raw.mass_before), dot = wait_for_load(raw.dot);
        const Acc dot_before = wait_for_load(raw.dot_before);
        Ready ready;
        ready.write = raw.write;
        load(chunk - 1);
        if (ready.write.live())
            prepare_write(
                block.p.memory, ready.write, gamma, mass_before, k == 0 && ready.write.heavy(), dot, dot_before,
                ready.update, ready.terms);
        return ready;
    }
    DEVICE void publish() {
        if (now.write.chained()) block.exchange.update_at[entry_index(int(now.write.tag))] = now.update;
    }
    // dw, and this write's part of dgamma.
    DEVICE Acc apply(Acc& dweight) {
        const MassAccess& write = now.write;
        if (!write.live()) return 0;
        MassAdjoint seen;
        if (write.chained()) {
            seen = block.exchange.seen_at[entry_index(int(write.tag))];
        } else {
            const int place = place_of(int(write.row));
            MassAdjoint a = block.adjoint[place];
            seen = now.update.apply(a);
            block.adjoint[place] = a;
            if (LOCAL_ONLY) block.of_end[place].pass(now.update);
        }
        const Acc through = seen.dz - now.update.pull(seen.q);
        dweight = now.terms.u - now.terms.h * seen.q + seen.dz + through * now.terms.slope;
        return through * now.terms.slope_gamma;
    }
    // dgamma of tokens whose writes are more than a warp's.
    DEVICE void finish_gamma(int chunk) const {
        const int t = chunk * CHUNK + thread;
        if (LOCAL_ONLY || W <= 32 || chunk >= block.range.end || thread >= CHUNK || t >= block.sequence.tokens) return;
        constexpr int WARPS = THREADS / 32 / CHUNK ? THREADS / 32 / CHUNK : 1;  // of a token
        Acc sum = 0;
        for (int i = 0; i < WARPS; i++) sum += block.exchange.gamma_of_warp[thread * WARPS + i];
        narrow(sum, dgamma[unsigned(t) * unsigned(block.p.memory.heads)]);
    }

    DEVICE void start() {
        load(block.range.end - 1);
        now = prepare(block.range.end - 1);
        publish();
    }
    DEVICE void first_half(int chunk) {
        next = prepare(chunk - 1);
        finish_gamma(chunk + 1);
    }
    DEVICE void second_half(int chunk) {
        const MemoryParams& memory = block.p.memory;
        const int t = t_of(chunk);
        Acc dweight = 0;
        const Acc through_gamma = sum_over_token(apply(dweight));
        if (!LOCAL_ONLY && token < CHUNK && k < WRITES && t < block.sequence.tokens)
            dw[unsigned(t) * unsigned(memory.heads * WRITES)] = dweight;
        if (W > 32 && !LOCAL_ONLY) {
            if (thread % 32 == 0) block.exchange.gamma_of_warp[thread / 32] = through_gamma;
        } else if (!LOCAL_ONLY && k == 0 && token < CHUNK && t < block.sequence.tokens) {
            narrow(through_gamma, dgamma[unsigned(t) * unsigned(memory.heads)]);
        }
        now = next;
        publish();
    }
    DEVICE void finish() const { finish_gamma(block.range.begin); }
};

struct ReadThreads {
    const Block& block;
    const int thread, token, k, round;
    const Acc *dots, *weights;
    const SlotAccess* reads;
    const MassAdjoint* gains;
    const Chain* chains;
    Acc* dr;

    struct {
        SlotAccess read;
        Acc dot, weight;
        MassAdjoint gain;
    } raw;
    struct {
        SlotAccess read;
        MassAdjoint gain;
    } now;
    Chain chain, next_chain;

    DEVICE explicit ReadThreads(const Block& block)
        : block(block), thread(threadIdx.x % THREADS), token(thread / R), k(thread % R), round(thread / CHAINS_PER_ROUND) {
        const MassBackwardParams& p = block.p;
        const long long first = block.first_token();
        dots = p.dy_dot_s + first * R + thread;
        reads = p.reads + first * R + thread, weights = p.memory.read_weight + block.sequence.first * READS + k;
        dr = p.dr + block.sequence.first * READS + k;
        if (MASS_AWARE) gains = p.gains + first * R + thread;
        const int loaded = round < MIN_ROUNDS ? thread : thread % CHAINS_PER_ROUND;  // further rounds are rare
        chains = p.memory.chains + block.sequence.chunk(0) * CHAINS + loaded;
    }

    DEVICE void load(int chunk) {
        // before the first chunk, nobody looks at it
        next_chain = chains[unsigned(chunk < block.range.begin ? block.range.begin : chunk) * CHAINS];
        raw.read = SlotAccess::dead();
        if (chunk < block.range.begin || thread >= CHUNK * R) return;
        const unsigned at = unsigned(chunk) * (CHUNK * R);
        raw.read = load_read_only(reads + at);
        if (MASS_AWARE) {
            raw.gain = load_read_only(gains + at);
        } else {
            const int t = chunk * CHUNK + token;
            raw.dot = load_read_only(dots + at);
            if (t < block.sequence.tokens && k < READS)
                raw.weight = load_read_only(weights + unsigned(t) * unsigned(block.p.memory.heads * READS));
        }
    }
    DEVICE void prepare_chain(int chunk) {
        chain = next_chain;
        // Without this the compiler copies next_chain into new registers and stalls on its load.
        chain.wait_for_load();
        if (round < MIN_ROUNDS) return;
        const bool there = round <= chain.last_round() && chunk >= block.range.begin;
        chain = {-1, 0};
        if (there) {  // all threads of a warp, or none
            chain = chains[unsigned(chunk) * CHAINS + round * CHAINS_PER_ROUND];
            chain.wait_for_load();
        }
    }
    // What the read adds to q and dz of its slot; and dr, unless reads are mass-aware (mass_aware.cu).
    DEVICE void prepare_read(int chunk) {
        const MemoryParams& memory = block.p.memory;
        const SlotAccess read = raw.read;
        const int t = chunk * CHUNK + token;
        MassAdjoint gain{0, 0};
        if (MASS_AWARE) {
            if (read.live()) gain = raw.gain;
        } else {
            const Acc dot = read.live() ? raw.dot : Acc(0);  // <dy, s>; 0 for a slot that nothing is written to, whatever dy is
            if (read.live()) gain.q = raw.weight * dot;
            if (!LOCAL_ONLY && chunk >= block.range.begin && token < CHUNK && k < READS && t < block.sequence.tokens)
                dr[unsigned(t) * unsigned(memory.heads * READS)] = dot;
        }
        now = {read, gain};
        if (read.live() && read.listed()) block.exchange.update_at[entry_index(read.tag)] = AdjointUpdate::of_read(gain);
    }
    DEVICE void apply_unconflicted() const {
        if (!now.read.live() || now.read.listed()) return;
        MassAdjoint& a = block.adjoint[place_of(now.read.row)];
        a.q += now.gain.q;
        if (MASS_AWARE) a.dz += now.gain.dz;
    }
    DEVICE void follow_chain() const {
        if (!chain.count()) return;
        const int place = place_of(chain.row);
        MassAdjoint a = block.adjoint[place];
        const int last = chain.begin() + chain.count() - 1;
        AdjointUpdate next = block.exchange.update_at[last];
#pragma unroll 1  // unrolled, lanes with chains of other lengths would be at other copies, and so one after another
        for (int i = last; i >= chain.begin(); i--) {
            const AdjointUpdate update = next;
            if (i > chain.begin()) next = block.exchange.update_at[i - 1];  // asked for before it is needed
            block.exchange.seen_at[i] = update.apply(a);
            if (LOCAL_ONLY) block.of_end[place].pass(update);
        }
        block.adjoint[place] = a;
    }

    DEVICE void prepare(int chunk) {
        prepare_chain(chunk);
        prepare_read(chunk);
        load(chunk - 1);
    }
    DEVICE void start() {
        load(block.range.end - 1);
        prepare(block.range.end - 1);
    }
    DEVICE void first_half(int) {
        apply_unconflicted();
        follow_chain();
    }
    DEVICE void second_half(int chunk) { prepare(chunk - 1); }
    DEVICE void finish() const {}
};

template <class Threads> DEVICE void run(const Block& block) {
    Threads threads(block);
    const MassPrefetcher prefetcher(block);
    const int last = block.range.end - 1;
    for (int chunk = last - 2; chunk > last - PREFETCHED; chunk--) prefetcher(chunk);
    threads.start();
    __syncthreads();
    for (int chunk = last; chunk >= block.range.begin; chunk--) {
        prefetcher(chunk - PREFETCHED);
        threads.first_half(chunk);
        __syncthreads();
        threads.second_half(chunk);
        __syncthreads();
    }
    threads.finish();
}

extern "C" __global__ void __launch_bounds__(2 * THREADS, sizeof(Acc) == 4 ? 2 : 1)
mass_backward(const __grid_constant__ MassBackwardParams p) {
    __shared__ Exchange of_block;
    Exchange& exchange = computed_once(of_block);
    const ChunkRange range(p.memory, SEGMENTED, p.segments, p.chunks_of_segment);
    const Sequence& sequence = range.sequence;
    const int rows = sequence.rows;
    if (LOCAL_ONLY && range.begin == 0) return;  // nothing comes before
    const long long first_row = range.first_row, stride = (long long)(gridDim.x) * rows;
    MassAdjoint* const in_shared = &computed_once(*reinterpret_cast<MassAdjoint*>(dynamic_shared()));
    MassAdjoint* const adjoint = MASS_IN_SHARED ? in_shared : p.working + first_row;
    ShareOfEnd* const of_end = reinterpret_cast<ShareOfEnd*>(adjoint + places_of(rows));
    if (MASS_IN_SHARED || p.final_q)
        for (int row = threadIdx.x; row < rows; row += 2 * THREADS) {
            MassAdjoint end{0, 0};
            if (SEGMENTED) {
                if (!LOCAL_ONLY) end = p.ends[first_row + row];
            } else {
                if (p.dfinal_mass) end.dz = p.dfinal_mass[first_row + row];
#pragma unroll 1
                for (int i = 0; i < p.final_q_parts; i++) end.q += p.final_q[i * stride + first_row + row];
            }
            adjoint[place_of(row)] = end;
            if (LOCAL_ONLY) of_end[place_of(row)] = {1, 0};
        }
    const Block block{p, range, sequence, exchange, adjoint, of_end};
    if (threadIdx.x < THREADS)
        run<WriteThreads>(block);
    else
        run<ReadThreads>(block);
    __syncthreads();
    for (int row = threadIdx.x; row < rows; row += 2 * THREADS) {
        if (LOCAL_ONLY)
            p.maps[first_row + row] = {of_end[place_of(row)].a, of_end[place_of(row)].c, adjoint[place_of(row)]};
        else if (p.dgiven_mass && range.begin == 0)
            p.dgiven_mass[sequence.first_row + row] = adjoint[place_of(row)].dz;
    }
}
