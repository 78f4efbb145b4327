// Segments: where there are few (batch, head)s, each is cut into segments of whole chunks, which blocks of their own work
// through at the same time. What a segment makes of a row's number is z -> a z + b, forward of its mass and in reverse of
// the mass' adjoint, and a and b do not depend on z:
//
//     forward    mass_carry: a, b ──▶ mass_combine: z at each segment's begin ──▶ mass_forward, every segment
//     reverse    mass_backward with CARRY: a, b ──▶ mass_combine: dz at each segment's end ──▶ mass_backward
//
// So it is with contents: s -> kept s + carried, kept the product of (1 - eta) over the segment's writes to the slot, which
// mass_forward leaves, and carried what content_forward makes of zeros; in reverse the adjoint, with the same kept. The
// first segment does start from zeros, in reverse the last, and so is worked through once only:
//
//     forward    content_forward from zeros ──▶ content_combine: s at each segment's begin ──▶ content_forward
//                segments 0 .. n-2                                                            segments 1 .. n-1
//     reverse    content_reverse from zeros ──▶ content_combine: d at each segment's end ──▶ content_reverse
//                segments 1 .. n-1                     │                                      segments 0 .. n-2
//                                                      └▶ content_meet: <d, s> there, from which mass_backward starts
//
// Masses cost less, and need more blocks to hide their waits: forward, a segment of contents is several of masses.
//
// Who computes what: mass_carry as mass_forward (mass.cu), but a chunk's last writes alone, with a and b of the rows in
// shared memory; mass_combine: a thread a row of a (batch, head); content_combine: a thread a number of its state;
// content_meet: a warp a row of a segment.
//
// Compiled with: what chunk.cuh asks for.
#include "memory/mass.cuh"
#include "runtime/reduce.cuh"

constexpr int ITEMS = items(W);  // of a thread
constexpr int RING = 4;          // chunks under way

extern "C" __global__ void __launch_bounds__(256) mass_carry(
    CALL_PARAMETERS, int segments, int chunks_of_segment,
    const Link* __restrict__ writes, const Affine* __restrict__ earlier,  // (B*H, chunks, CHUNK, W)
    Affine* __restrict__ carried                                          // (B*H, segments, rows)
) {
    const Call call = CALL;
    const Part part(call, true, segments, chunks_of_segment);
    const Unit unit(call, part.unit);
    Affine* const of_row = reinterpret_cast<Affine*>(on_chip());
    for (int row = threadIdx.x; row < rows; row += THREADS) of_row[row] = {1, 0};
    const int chunks = part.end - part.begin;
    const long long first = unit.chunk_at(part.begin) * CHUNK * W;
    writes += first + threadIdx.x, earlier += first;

    Link write[RING][ITEMS];
    Affine before[RING][ITEMS];
    const auto fetch = [&](int s, int chunk) {
#pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            write[s][item] = {0, DEAD, {1, 0}};
            if (chunk < chunks && threadIdx.x + item * THREADS < CHUNK * W)
                write[s][item] = writes[(long long)(chunk) * (CHUNK * W) + item * THREADS];
        }
    };
    const auto fetch_earlier = [&](int s, int chunk) {
#pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            before[s][item] = {1, 0};
            if (CHUNK > 1 && write[s][item].last() && write[s][item].chained())
                before[s][item] = earlier[(long long)(chunk) * (CHUNK * W) + tag_version(int(write[s][item].tag))];
        }
    };
#pragma unroll
    for (int s = 0; s < RING; s++) fetch(s, s);
#pragma unroll
    for (int s = 0; s < RING / 2; s++) fetch_earlier(s, s);
    for (int start = 0; start < chunks; start += RING) {
#pragma unroll
        for (int s = 0; s < RING; s++) {
            __syncthreads();
#pragma unroll
            for (int item = 0; item < ITEMS; item++) {
                const Link& last = write[s][item];
                if (!last.last()) continue;
                const Affine own = last.change, by_chunk{own.a * before[s][item].a, own(before[s][item].b)};
                const Affine old = of_row[last.row];
                of_row[last.row] = {by_chunk.a * old.a, by_chunk(old.b)};
            }
            fetch_earlier((s + RING / 2) % RING, start + s + RING / 2);
            fetch(s, start + s + RING);
        }
    }
    __syncthreads();
    for (int row = threadIdx.x; row < rows; row += THREADS) carried[(long long)(blockIdx.x) * rows + row] = of_row[row];
}

extern "C" __global__ void __launch_bounds__(256) mass_combine(
    long long numbers, int rows, int segments, int reverse,  // numbers: B*H * rows
    const Affine* __restrict__ carried,                      // (B*H, segments, rows)
    Sum initial,                                             // before the first segment
    Sum* __restrict__ starts                                 // (B*H, segments, rows): before each
) {
    const long long number = (long long)(blockIdx.x) * THREADS + threadIdx.x;
    if (number >= numbers) return;
    const long long unit = number / rows, first = unit * segments * rows + number % rows;
    Sum z = initial;
    for (int i = 0; i < segments; i++) {
        const long long at = first + (long long)(reverse ? segments - 1 - i : i) * rows;
        starts[at] = z;
        z = carried[at](z);
    }
}

extern "C" __global__ void __launch_bounds__(256) content_combine(
    const Sum* __restrict__ kept,  // (B*H, segments, parts, rows): factors of each segment
    int parts, int rows, int segments, int channels, int reverse,
    long long count,               // B*H * rows * C
    Sum* carried                   // (B*H, segments, rows, C): carried, then where each segment starts from
) {
    const long long i = blockIdx.x * (long long)(THREADS) + threadIdx.x;
    if (i >= count) return;
    const long long numbers = (long long)(rows)*channels, unit = i / numbers * segments, number = i % numbers;
    Sum start = 0;
    for (int step = 0; step < segments; step++) {
        const long long segment = unit + (reverse ? segments - 1 - step : step);
        Sum& here = carried[segment * numbers + number];
        Sum end = 0;
        if (step + 1 < segments) {  // of the last one, nothing is carried
            const Sum* factor = kept + segment * parts * rows + number / channels;
            Sum product = factor[0];
            for (int part = 1; part < parts; part++) product *= factor[part * rows];
            end = product * start + here;
        }
        here = start;
        start = end;
    }
}

extern "C" __global__ void __launch_bounds__(256) content_meet(
    const Sum* __restrict__ starts, const Sum* __restrict__ ends,  // (B*H, segments, rows, C): s at the begin, d at the end
    int segments, int rows, int channels, long long count,         // B*H * segments * rows
    Sum* __restrict__ met                                          // (B*H, segments, rows): <d, s> at the end
) {
    const long long i = (blockIdx.x * (long long)(THREADS) + threadIdx.x) / 32;
    if (i >= count) return;
    Sum sum = 0;
    if (int(i / rows % segments) + 1 < segments) {  // at the end of the last one d is 0
        const Sum *d = ends + i * channels, *s = starts + (i + rows) * channels;
        for (int c = threadIdx.x % 32; c < channels; c += 32) sum += d[c] * s[c];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) met[i] = sum;
}
