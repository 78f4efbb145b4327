// The masses of the slots, forward:
//
//     z[row] = alpha z[row] + w,  eta = w / (z[row] + eps);  mass-aware reads weigh by z[row] (weigh.cu)
//
// eta goes into the events and into the chains' entries that link.cu made, for content.cu to work through.
//
// Only z goes from chunk to chunk (chunk.cuh): a block works through the chunks of a (batch, head), or of a segment of
// it (segments.cu), one after another, with its numbers of the rows in shared memory (device memory if there are too
// many rows). What it needs is asked for chunks ahead.
//
// Who computes what: thread token * W + k has write k of a token (several if K is above 64):
//
//     1  each row's last write of the chunk: z[row], from its change and that of the writes before it (link.cu); it
//        leaves the mass that the chunk found to the chain's other writes
//     2  every write: eta; meanwhile 1 of the next chunk
//
// Compiled with: what chunk.cuh asks for, MASS_AWARE, IN_SHARED, FRESH (as content.cu), SEGMENTED (0 or 1; 1 only with
// IN_SHARED).
#include "memory/mass.cuh"

constexpr int ITEMS = items(W);  // of a thread
constexpr int RING = 4;          // chunks under way

// A number for each row: in shared memory, or in device memory.
struct Rows {
    Sum* at;
    unsigned on_chip_at;

    DEVICE Rows(Sum* at) : at(at), on_chip_at(IN_SHARED ? address_on_chip(at) : 0) {}
    DEVICE Sum get(int row) const {
        if (!IN_SHARED) return at[row];
        Sum x;
        load_on_chip(on_chip_at + row * unsigned(sizeof(Sum)), x);
        return x;
    }
    DEVICE void set(int row, Sum x) const {
        if (IN_SHARED)
            store_on_chip(on_chip_at + row * unsigned(sizeof(Sum)), x);
        else
            at[row] = x;
    }
};

// The products of 1 - eta over a row's writes, in shared memory. A row's last write of a chunk multiplies, one chunk
// later, when those before it in its chain have left their factors.
struct Keeper {
    const Rows& kept;
    Sum* factors;  // of two chunks, by the entries of chains; 1 of reads. Null: no products are wanted
    Link last[ITEMS];
    Sum own[ITEMS];

    DEVICE Keeper(const Rows& kept, Sum* factors) : kept(kept), factors(factors) {
        if (SEGMENTED && factors) {
            for (int i = threadIdx.x; CHUNK > 1 && i < 2 * ENTRIES; i += THREADS) factors[i] = 1;
#pragma unroll
            for (int item = 0; item < ITEMS; item++) last[item] = {0, DEAD, {1, 0}};
            __syncthreads();
        }
    }
    // After a chunk's barrier, of each of its writes.
    DEVICE void note(int item, int parity, const Link& write, Sum factor) {
        if (SEGMENTED && factors) {
            settle(item, 1 - parity);
            last[item] = write, own[item] = factor;
            if (CHUNK > 1 && write.chained()) factors[parity * ENTRIES + tag_place(int(write.tag))] = factor;
        }
    }
    // Of the chunk before.
    DEVICE void settle(int item, int parity) {
        const Link& write = last[item];
        if (!SEGMENTED || !factors || !write.last()) return;
        Sum product = own[item];
        if (CHUNK > 1 && write.chained()) {
            product = 1;
            Sum* const of_chunk = factors + parity * ENTRIES;
            for (int i = tag_begin(int(write.tag)); i <= tag_place(int(write.tag)); i++)
                product *= of_chunk[i], of_chunk[i] = 1;
        }
        kept.set(int(write.row), kept.get(int(write.row)) * product);
    }
};

extern "C" __global__ void __launch_bounds__(256) mass_forward(
    CALL_PARAMETERS,
    const Sum* given,                 // (B*H, segments, rows), or null
    Sum* working, Sum* final_mass,    // (B*H, rows) each, or null; working only if not IN_SHARED
    Sum* __restrict__ kept,           // (B*H, segments, rows), or null: product of 1 - eta; only if SEGMENTED
    int segments, int chunks_of_segment,
    const Link* __restrict__ writes, const Affine* __restrict__ earlier,  // (B*H, chunks, CHUNK, W), see link.cu
    const Link* __restrict__ reads,                                       // (B*H, chunks, CHUNK, R) if MASS_AWARE
    TokenEvent* __restrict__ write_events,                                // (B*H, chunks, CHUNK, W)
    Sum* __restrict__ old_mass,                                           // likewise: before each write
    Sum* __restrict__ read_mass,                                          // (B*H, chunks, CHUNK, R) if MASS_AWARE
    int rows_in_shared, int room                                          // of content.cu: the state's rows, versions
) {
    const Call call = CALL;
    const Part part(call, SEGMENTED, segments, chunks_of_segment);
    const Unit unit(call, part.unit);
    const long long of_part = (long long)(blockIdx.x) * rows;
    const Rows z(IN_SHARED ? reinterpret_cast<Sum*>(on_chip()) : working + of_part);
    const Rows kept_of(z.at + (SEGMENTED ? rows : 0));
    __shared__ Sum found_mass[2 * (CHUNK > 1 ? ENTRIES : 1)];  // by where a chain begins: the mass that a chunk found
    const unsigned found = address_on_chip(found_mass);
    const auto found_of = [&](int s, const Link& link) {  // in a chunk of the ring
        return found + unsigned(sizeof(Sum)) * (s % 2 * ENTRIES + tag_begin(int(link.tag)));
    };
    const int chunks = part.end - part.begin;
    const long long first = unit.chunk_at(part.begin) * CHUNK;
    writes += first * W + threadIdx.x, earlier += first * W;
    write_events += first * W + threadIdx.x, old_mass += first * W + threadIdx.x;
    TokenEvent* entries_here = CHUNK > 1 ? entries + unit.chunk_at(part.begin) * ENTRIES : nullptr;
    if (MASS_AWARE) reads += first * R, read_mass += first * R;

    struct Stage {
        Link write[ITEMS];
        Affine before[ITEMS];  // what the chunk's earlier writes do
    };
    Stage ring[RING];
    const auto fetch = [&](Stage& to, int chunk, int ahead) {  // ``ahead`` of where the pointers stand
#pragma unroll
        for (int item = 0; item < ITEMS; item++)
            if (chunk < chunks && threadIdx.x + item * THREADS < CHUNK * W)
                to.write[item] = writes[ahead * CHUNK * W + item * THREADS];
    };
    const auto fetch_earlier = [&](Stage& to, int chunk, int ahead) {
#pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            to.before[item] = {1, 0};
            if (CHUNK > 1 && chunk < chunks && to.write[item].chained())
                to.before[item] = earlier[ahead * CHUNK * W + tag_version(int(to.write[item].tag))];
        }
    };
#pragma unroll
    for (int s = 0; s < RING; s++) {
#pragma unroll
        for (int item = 0; item < ITEMS; item++) ring[s].write[item] = {0, DEAD, {1, 0}};
        fetch(ring[s], s, s);
    }
    if (IN_SHARED)
#pragma unroll 1
        for (int row = threadIdx.x; row < rows; row += THREADS) {
            z.set(row, given ? given[of_part + row] : initial);
            if (SEGMENTED && kept) kept_of.set(row, 1);
        }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < RING / 2; s++) fetch_earlier(ring[s], s, s);

    __shared__ Sum factors[SEGMENTED && CHUNK > 1 ? 2 * ENTRIES : 1];
    Keeper keeper(kept_of, kept ? factors : nullptr);
    for (int start = 0; start < chunks; start += RING) {
#pragma unroll
        for (int s = 0; s < RING; s++) {
            const int chunk = start + s;
            if (chunk >= chunks) break;
            Stage& now = ring[s];
            // 1. rows go on to the next chunk
            Sum old[ITEMS];
#pragma unroll
            for (int item = 0; item < ITEMS; item++) {
                const Link& write = now.write[item];
                const int row = int(write.row);
                old[item] = initial;
                if (write.last() && !(FRESH && row >= chunk * CHUNK * WRITES)) old[item] = z.get(row);
                const Sum mass = write.change(now.before[item](old[item]));
                if (write.last()) z.set(row, mass);
                if (CHUNK > 1 && write.last() && write.chained()) store_on_chip(found_of(s, write), old[item]);
            }
            fetch_earlier(ring[(s + RING / 2) % RING], chunk + RING / 2, s + RING / 2);
            __syncthreads();
            // 2. what the accesses found
#pragma unroll
            for (int item = 0; item < ITEMS; item++) {
                const Link& write = now.write[item];
                if (CHUNK > 1 && write.chained() && !write.last()) load_on_chip(found_of(s, write), old[item]);
                const Sum mass = now.before[item](old[item]), w = write.change.b;
                const Sum eta = w / (write.change(mass) + eps);  // 0 if nothing is written
                if (threadIdx.x + item * THREADS < CHUNK * W) {
                    old_mass[s * CHUNK * W + item * THREADS] = mass;
                    write_events[s * CHUNK * W + item * THREADS] = {write.code(rows_in_shared, room), eta};
                }
                if (CHUNK > 1 && write.chained())
                    entries_here[s * ENTRIES + tag_place(int(write.tag))].coefficient = eta;
                keeper.note(item, s % 2, write, 1 - eta);
            }
            if (MASS_AWARE) {  // a token reads what it wrote
                for (int i = threadIdx.x; i < CHUNK * R; i += THREADS) {
                    const Link read = reads[s * CHUNK * R + i];
                    Sum mass = initial;
                    if (CHUNK > 1 && read.chained()) {
                        load_on_chip(found_of(s, read), mass);
                        mass = read.change(mass);
                    } else if (read.live()) {
                        mass = z.get(int(read.row));
                    }
                    read_mass[s * CHUNK * R + i] = mass;
                }
                __syncthreads();
            }
            fetch(now, chunk + RING, s + RING);
        }
        writes += RING * CHUNK * W, earlier += RING * CHUNK * W;
        write_events += RING * CHUNK * W, old_mass += RING * CHUNK * W;
        if (CHUNK > 1) entries_here += RING * ENTRIES;
        if (MASS_AWARE) reads += RING * CHUNK * R, read_mass += RING * CHUNK * R;
    }
    __syncthreads();
#pragma unroll
    for (int item = 0; item < ITEMS; item++) keeper.settle(item, (chunks - 1) % 2);
    if (IN_SHARED && final_mass && part.end == call.chunks())
        for (int row = threadIdx.x; row < rows; row += THREADS) final_mass[unit.number * rows + row] = z.get(row);
    __syncthreads();
    if (SEGMENTED && kept)
        for (int row = threadIdx.x; row < rows; row += THREADS) kept[of_part + row] = kept_of.get(row);
}
