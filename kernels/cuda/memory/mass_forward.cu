// The masses of the slots, forward:
//
//     z[row] = alpha z[row] + w,   eta = w / (z[row] + eps)
//
// couplings.cu takes eta from here to the contents. Mass-aware reads need z[row] as a token's writes left it (mass_aware.cu).
//
// Only z goes from chunk to chunk (chunk.cuh). A block works through the chunks of a (batch, head), or of a segment of it
// (segments.cu), one after another, with the rows' masses in shared memory (device memory if there are too many rows).
// Loads are issued RING chunks ahead.
//
// Who computes what: thread token * W + k has write k of a token:
//
//     1  each row's last write of the chunk: z[row], from its change and that of the writes before it (conflicts.cu). It
//        leaves the mass before the chunk to the chain's other writes
//     2  every write: eta. Meanwhile 1 of the next chunk
//
// Compiled with: what chunk.cuh asks for, and the definitions below.
#include "memory/mass.cuh"

#if !defined(GRADIENTS) || !defined(MASS_AWARE) || !defined(MASS_IN_SHARED) || !defined(LAZY_ZERO) || !defined(SEGMENTED)
#error "GRADIENTS (a backward follows), MASS_AWARE, MASS_IN_SHARED, LAZY_ZERO (rows begin unset, as content.cu) and SEGMENTED must be 0 or 1"
#endif
static_assert(!SEGMENTED || MASS_IN_SHARED, "segments keep their masses in shared memory");

struct MassForwardParams {
    MemoryParams memory;
    const Acc* given;                // (B*H, segments, rows), or null
    Acc *working, *final_mass;       // (B*H, rows) each, or null; working only if not MASS_IN_SHARED
    Acc* decay_products;             // (B*H, segments, rows): products of 1 - eta, or null; only if SEGMENTED
    const MassAccess* writes;        // (B*H, chunks, CHUNK, W), as conflicts.cu left them
    const Affine* change_before;     // likewise
    const MassAccess* reads;         // (B*H, chunks, CHUNK, R) if MASS_AWARE
    Acc *eta, *mass_before;          // (B*H, chunks, CHUNK, W); the mass before each write, only if GRADIENTS
    Acc* read_mass;                  // (B*H, chunks, CHUNK, R) if MASS_AWARE
    int segments, chunks_of_segment;
};

constexpr int RING = 8;  // chunks whose loads are under way

// A number per row, in shared memory or in device memory.
struct MassTable {
    Acc* at;
    unsigned address;

    DEVICE explicit MassTable(Acc* at) : at(at), address(MASS_IN_SHARED ? shared_address(at) : 0) {}
    DEVICE Acc get(int row) const {
        if (!MASS_IN_SHARED) return at[row];
        Acc x;
        load_shared(address + place_of_row(row) * unsigned(sizeof(Acc)), x);
        return x;
    }
    DEVICE void set(int row, Acc x) const {
        if (MASS_IN_SHARED)
            store_shared(address + place_of_row(row) * unsigned(sizeof(Acc)), x);
        else
            at[row] = x;
    }
};

// The products of 1 - eta over a row's writes. The last write to a row in a chunk multiplies all factors of its chain, one
// chunk late, because the earlier writes store theirs only after the barrier.
struct DecayProducts {
    MassTable product;
    Acc* factors;  // of two chunks, by the entries of chains; 1 for reads. Null: no products are wanted
    MassAccess last;
    Acc own;

    DEVICE DecayProducts(const MassTable& product, Acc* factors) : product(product), factors(factors) {
        if (SEGMENTED && factors) {
            for (int i = threadIdx.x; i < 2 * ENTRIES; i += THREADS) factors[i] = 1;
            last = MassAccess::dead();
            __syncthreads();
        }
    }
    // After a chunk's barrier, for each of its writes.
    DEVICE void record(int parity, const MassAccess& write, Acc factor) {
        if (SEGMENTED && factors) {
            flush(1 - parity);
            last = write, own = factor;
            if (write.chained()) factors[parity * ENTRIES + entry_index(int(write.tag))] = factor;
        }
    }
    // Multiplies the factors of the chunk before.
    DEVICE void flush(int parity) {
        if (SEGMENTED && factors && last.last()) {
            Acc all = own;
            if (last.chained()) {
                all = 1;
                Acc* const of_chunk = factors + parity * ENTRIES;
                const int first = chain_begin(int(last.tag));
                for (int i = first; i <= entry_index(int(last.tag)); i++) all *= of_chunk[i], of_chunk[i] = 1;
            }
            product.set(int(last.row), product.get(int(last.row)) * all);
        }
    }
};

// A thread's write of one chunk, loaded ahead.
struct Stage {
    MassAccess write;
    Affine before;  // what the chunk's earlier writes to the slot do
};

// Where the inputs and outputs of a thread stand, RING chunks at a time.
struct MassArrays {
    const MassAccess *writes, *reads;
    const Affine* change_before;
    Acc *eta, *mass_before, *read_mass;

    DEVICE MassArrays(const MassForwardParams& p, const Sequence& sequence, int first_chunk) {
        const long long first = sequence.chunk(first_chunk) * CHUNK;
        writes = p.writes + first * W + threadIdx.x, change_before = p.change_before + first * W;
        eta = p.eta + first * W + threadIdx.x, mass_before = p.mass_before + first * W + threadIdx.x;
        if (MASS_AWARE) reads = p.reads + first * R, read_mass = p.read_mass + first * R;
    }
    DEVICE void advance() {
        writes += RING * CHUNK * W, change_before += RING * CHUNK * W;
        eta += RING * CHUNK * W, mass_before += RING * CHUNK * W;
        if (MASS_AWARE) reads += RING * CHUNK * R, read_mass += RING * CHUNK * R;
    }
    // ``ahead``: chunks from where the pointers stand.
    DEVICE void load_write(Stage& to, bool there, int ahead) const {
        if (there && threadIdx.x < CHUNK * W) to.write = load_read_only(writes + ahead * CHUNK * W);
    }
    DEVICE void load_change_before(Stage& to, bool there, int ahead) const {
        to.before = {1, 0};
        if (there && to.write.chained())
            to.before = load_read_only(change_before + ahead * CHUNK * W + number_of(int(to.write.tag)));
    }
};

// The masses that a chunk finds, by where a chain begins; for two chunks, in shared memory.
struct ChainMasses {
    unsigned address;

    DEVICE unsigned of(int s, const MassAccess& access) const {
        return address + unsigned(sizeof(Acc)) * (s % 2 * ENTRIES + chain_begin(int(access.tag)));
    }
};

// Step 1. A row's last write takes the row's mass to the next chunk. Returns the mass before the chunk.
DEVICE Acc apply_last_write(const MassForwardParams& p, const MassTable& z, const ChainMasses& chain_mass, const Stage& now, int s, int chunk) {
    const MassAccess& write = now.write;
    const int row = int(write.row);
    Acc before_chunk = p.memory.initial_mass;
    if (write.last() && !(LAZY_ZERO && row >= chunk * CHUNK * WRITES)) before_chunk = z.get(row);
    const Acc mass = write.change(now.before(before_chunk));
    if (write.last()) z.set(row, mass);
    if (write.last() && write.chained()) store_shared(chain_mass.of(s, write), before_chunk);
    return before_chunk;
}

// Step 2. The mass before each write, and eta. Returns eta.
DEVICE Acc store_eta(
    const MassForwardParams& p, const MassArrays& arrays, const ChainMasses& chain_mass, const Stage& now, int s, Acc before_chunk
) {
    const MassAccess& write = now.write;
    if (write.chained() && !write.last()) load_shared(chain_mass.of(s, write), before_chunk);
    const Acc mass = now.before(before_chunk), w = write.change.b;
    const Acc eta = w / (write.change(mass) + p.memory.eps);  // 0 if nothing is written
    if (threadIdx.x < CHUNK * W) {
        if (GRADIENTS) arrays.mass_before[s * CHUNK * W] = mass;
        arrays.eta[s * CHUNK * W] = eta;
    }
    return eta;
}

// A token reads what it wrote.
DEVICE void store_read_masses(const MassForwardParams& p, const MassArrays& arrays, const MassTable& z, const ChainMasses& chain_mass, int s) {
    if (threadIdx.x >= CHUNK * R) return;
    const int i = s * CHUNK * R + threadIdx.x;
    const MassAccess read = load_read_only(arrays.reads + i);
    Acc mass = p.memory.initial_mass;
    if (read.chained()) {
        load_shared(chain_mass.of(s, read), mass);
        mass = read.change(mass);
    } else if (read.live()) {
        mass = z.get(int(read.row));
    }
    arrays.read_mass[i] = mass;
}

extern "C" __global__ void __launch_bounds__(THREADS) mass_forward(const __grid_constant__ MassForwardParams p) {
    __shared__ Acc found_mass[2 * ENTRIES];
    __shared__ Acc factors[SEGMENTED ? 2 * ENTRIES : 1];
    const ChunkRange range(p.memory, SEGMENTED, p.segments, p.chunks_of_segment);
    const Sequence& sequence = range.sequence;
    const int rows = sequence.rows, chunks = range.end - range.begin;
    const long long first_row = range.first_row;
    const MassTable z(MASS_IN_SHARED ? reinterpret_cast<Acc*>(dynamic_shared()) : p.working + first_row);
    const MassTable products(z.at + (SEGMENTED ? places_of(rows) : 0));
    const ChainMasses chain_mass{shared_address(found_mass)};
    MassArrays arrays(p, sequence, range.begin);

    Stage ring[RING];
#pragma unroll
    for (int s = 0; s < RING; s++) {
        ring[s].write = MassAccess::dead();
        arrays.load_write(ring[s], s < chunks, s);
    }
    if (MASS_IN_SHARED)
#pragma unroll 1
        for (int row = threadIdx.x; row < rows; row += THREADS) {
            z.set(row, p.given ? p.given[first_row + row] : p.memory.initial_mass);
            if (SEGMENTED && p.decay_products) products.set(row, 1);
        }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < RING / 2; s++) arrays.load_change_before(ring[s], s < chunks, s);

    DecayProducts decay(products, p.decay_products ? factors : nullptr);
    for (int start = 0; start < chunks; start += RING, arrays.advance()) {
#pragma unroll
        for (int s = 0; s < RING; s++) {
            const int chunk = start + s;
            if (chunk >= chunks) break;
            Stage& now = ring[s];
            // 1. rows go on to the next chunk
            const Acc before_chunk = apply_last_write(p, z, chain_mass, now, s, chunk);
            arrays.load_change_before(ring[(s + RING / 2) % RING], chunk + RING / 2 < chunks, s + RING / 2);
            __syncthreads();
            // 2. what each access finds
            decay.record(s % 2, now.write, 1 - store_eta(p, arrays, chain_mass, now, s, before_chunk));
            if (MASS_AWARE) {
                store_read_masses(p, arrays, z, chain_mass, s);
                __syncthreads();
            }
            arrays.load_write(now, chunk + RING < chunks, s + RING);
        }
    }
    __syncthreads();
    decay.flush((chunks - 1) % 2);
    if (MASS_IN_SHARED && p.final_mass && range.end == sequence.chunks())
        for (int row = threadIdx.x; row < rows; row += THREADS) p.final_mass[sequence.first_row + row] = z.get(row);
    __syncthreads();
    if (SEGMENTED && p.decay_products)
        for (int row = threadIdx.x; row < rows; row += THREADS) p.decay_products[first_row + row] = products.get(row);
}
