// Segments: where there are few (batch, head)s, each is cut into segments of whole chunks, which blocks of their own work
// through at the same time. Over a segment, a row's mass becomes a z + b, where a and b do not depend on z. So a pass over
// the segments, with a and b alone, gives what each one starts from. Backward q and dz of a row take the place of z, and an
// AdjointMap (mass.cuh) that of a and b:
//
//     forward    mass_local_end: a, b ──▶ mass_combine: z at each segment's start ──▶ mass_forward, every segment
//     backward   mass_backward with LOCAL_ONLY: maps ──▶ adjoint_combine: q, dz at each segment's end ──▶ mass_backward
//
// Contents likewise: s becomes product s + local end. The product is that of 1 - eta over the segment's writes to the slot,
// which mass_forward leaves. The local end is what content_forward makes of zeros. Backward the adjoint has the same
// product. The first segment (backward: the last) does start from zeros, so it is worked through once only:
//
//     forward    content_forward from zeros ───▶ content_combine: s at each segment's start ──▶ content_forward
//                segments 0 .. n-2                                                             segments 1 .. n-1
//     backward   content_backward from zeros ──▶ content_combine: d at each segment's end ──▶ content_backward
//                segments 1 .. n-1                                                            segments 0 .. n-2
//
// The masses cost less and need more blocks to hide their waits: forward, a segment of the contents is several segments of
// the masses, and backward they have segments of their own.
//
// Who computes what: mass_local_end as mass_forward (mass_forward.cu), but a chunk's last writes alone, with a and b of the
// rows in shared memory; mass_combine, adjoint_combine: a thread per row of a (batch, head); content_combine: a thread per
// number of its state.
//
// Compiled with: what chunk.cuh asks for.
#include "memory/mass.cuh"

struct LocalEndParams {
    MemoryParams memory;
    const MassAccess* writes;     // (B*H, chunks, CHUNK, W)
    const Affine* change_before;  // likewise
    Affine* local_end;            // (B*H, segments, rows)
    int segments, chunks_of_segment;
};

struct CombineParams {
    const Affine* local_masses;      // (B*H, segments, rows): what each segment but the last makes of a mass
    Acc* mass_starts;                // (B*H, segments, rows): what each starts from
    const AdjointMap* adjoint_maps;  // (B*H, segments, rows): what each but the first makes of q and dz
    MassAdjoint* adjoint_ends;       // (B*H, segments, rows): what each starts from
    const Acc* decay_products;       // (B*H, segments * parts, rows): products of 1 - eta
    Acc* contents;                   // (B*H, segments, rows, C): local ends, then what each segment starts from
    long long count;                 // of threads with work
    Acc initial;                     // mass before the first segment
    int rows, segments, parts, channels, backward;
};

constexpr int RING = 8;  // chunks whose loads are under way

// A thread's write of one chunk, loaded ahead.
struct Stage {
    MassAccess write;
    Affine before;

    DEVICE void load_write(const MassAccess* writes, bool there) {
        write = MassAccess::dead();
        if (there && threadIdx.x < CHUNK * W) write = load_read_only(writes);
    }
    // ``change_before``: of the chunk
    DEVICE void load_change_before(const Affine* change_before) {
        before = {1, 0};
        if (write.last() && write.chained()) before = load_read_only(change_before + number_of(int(write.tag)));
    }
    // ``of_row``: by place_of_row.
    DEVICE void apply(Affine* of_row) const {
        if (!write.last()) return;
        const int place = place_of_row(int(write.row));
        const Affine by_chunk{write.change.a * before.a, write.change(before.b)}, old = of_row[place];
        of_row[place] = {by_chunk.a * old.a, by_chunk(old.b)};
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) mass_local_end(const __grid_constant__ LocalEndParams p) {
    if (blockIdx.x % unsigned(p.segments) + 1 == unsigned(p.segments)) return;  // nothing comes after the last
    const ChunkRange range(p.memory, true, p.segments, p.chunks_of_segment);
    const Sequence& sequence = range.sequence;
    Affine* const of_row = reinterpret_cast<Affine*>(dynamic_shared());
    for (int row = threadIdx.x; row < p.memory.rows; row += THREADS) of_row[place_of_row(row)] = {1, 0};
    const int chunks = range.end - range.begin;
    const long long first = sequence.chunk(range.begin) * CHUNK * W;
    const MassAccess* const writes = p.writes + first + threadIdx.x;
    const Affine* const change_before = p.change_before + first;

    Stage ring[RING];
#pragma unroll
    for (int s = 0; s < RING; s++) ring[s].load_write(writes + s * CHUNK * W, s < chunks);
#pragma unroll
    for (int s = 0; s < RING / 2; s++) ring[s].load_change_before(change_before + s * CHUNK * W);
    for (int start = 0; start < chunks; start += RING) {
#pragma unroll
        for (int s = 0; s < RING; s++) {
            const long long half = start + s + RING / 2, next = start + s + RING;
            __syncthreads();
            ring[s].apply(of_row);
            ring[(s + RING / 2) % RING].load_change_before(change_before + half * CHUNK * W);
            ring[s].load_write(writes + next * CHUNK * W, next < chunks);
        }
    }
    __syncthreads();
    for (int row = threadIdx.x; row < p.memory.rows; row += THREADS)
        p.local_end[(long long)(blockIdx.x) * p.memory.rows + row] = of_row[place_of_row(row)];
}

extern "C" __global__ void __launch_bounds__(THREADS) mass_combine(const __grid_constant__ CombineParams p) {
    const long long i = (long long)(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= p.count) return;
    const long long sequence = i / p.rows, first = sequence * p.segments * p.rows + i % p.rows;
    Acc z = p.initial;
    for (int segment = 0; segment < p.segments; segment++) {
        const long long at = first + (long long)(segment) * p.rows;
        p.mass_starts[at] = z;
        if (segment + 1 < p.segments) z = load_read_only(p.local_masses + at)(z);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) adjoint_combine(const __grid_constant__ CombineParams p) {
    const long long i = (long long)(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= p.count) return;
    const long long sequence = i / p.rows, first = sequence * p.segments * p.rows + i % p.rows;
    MassAdjoint end{0, 0};
    for (int segment = p.segments - 1; segment >= 0; segment--) {
        const long long at = first + (long long)(segment) * p.rows;
        p.adjoint_ends[at] = end;
        if (segment > 0) end = load_read_only(p.adjoint_maps + at)(end);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) content_combine(const __grid_constant__ CombineParams p) {
    const long long i = blockIdx.x * (long long)(THREADS) + threadIdx.x;
    if (i >= p.count) return;
    const long long numbers = (long long)(p.rows) * p.channels, first = i / numbers * p.segments, number = i % numbers;
    Acc start = 0;
    for (int step = 0; step < p.segments; step++) {
        const long long segment = first + (p.backward ? p.segments - 1 - step : step);
        Acc& here = p.contents[segment * numbers + number];
        Acc end = 0;
        if (step + 1 < p.segments) {  // nothing starts from the end of the last one
            const Acc* factor = p.decay_products + segment * p.parts * p.rows + number / p.channels;
            Acc product = load_read_only(factor);
            for (int part = 1; part < p.parts; part++) product *= load_read_only(factor + part * p.rows);
            end = product * start + here;
        }
        here = start;
        start = end;
    }
}
