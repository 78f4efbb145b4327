// A long sequence of few heads in segments that run at the same time. A slot's content at the end of a segment is an
// affine map of what it was at its beginning,
//
//     s_end = kept s_start + carried,   kept the product of (1 - eta) over the segment's writes to it,
//
// with ``carried`` what content.cu leaves in a segment that starts from zero. The same kept leads back in reverse: the
// adjoint at the beginning is kept d_end + carried, with carried from d_end = 0. So content.cu runs twice, first for
// what is carried, then, with the starts that follow here, for everything else.
//
// Compiled with: what chunk.cuh asks for.
#include "chunk.cuh"

// Who computes what: one block a segment, with kept of all rows in shared memory; thread token * W + k has write k of a
// token, where it is alone on its slot, and thread c chain c.
extern "C" __global__ void __launch_bounds__(256) segment_kept(
    const TokenEvent* __restrict__ writes,  // (segments, chunks, CHUNK, W)
    const Chain* __restrict__ chains, const TokenEvent* __restrict__ entries, int chunks, int rows,
    Sum* __restrict__ kept  // (segments, rows)
) {
    Sum* const of_row = reinterpret_cast<Sum*>(on_chip());
    for (int row = threadIdx.x; row < rows; row += THREADS) of_row[row] = 1;
    __syncthreads();
    const long long first = (long long)(blockIdx.x) * chunks;
    for (int chunk = 0; chunk < chunks; chunk++) {
        for (int i = threadIdx.x; i < CHUNK * W; i += THREADS) {
            const TokenEvent event = writes[(first + chunk) * CHUNK * W + i];
            if (in_place(int(event.row))) of_row[row_at(int(event.row))] *= 1 - event.coefficient;
        }
        for (int c = threadIdx.x; c < CHAINS; c += THREADS) {
            const Chain chain = chains[(first + chunk) * CHAINS + c];
            if (chain.count() == 0 || chain.reads_only()) continue;
            Sum product = of_row[chain.row];
            for (int i = chain.begin(); i < chain.begin() + chain.count(); i++) {
                const TokenEvent entry = entries[(first + chunk) * ENTRIES + i];
                if (!entry_reads(int(entry.row))) product *= 1 - entry.coefficient;
            }
            of_row[chain.row] = product;
        }
        __syncthreads();
    }
    for (int row = threadIdx.x; row < rows; row += THREADS) kept[(long long)(blockIdx.x) * rows + row] = of_row[row];
}

// Who computes what: one thread a number of the state, from segment to segment: first to last, or in reverse.
extern "C" __global__ void __launch_bounds__(256) segment_starts(
    const Sum* __restrict__ kept,  // (B*H, segments, rows)
    long long numbers, int segments, int channels, int reverse,  // numbers of a (batch, head): rows C
    long long count,               // B*H * rows * C
    Sum* carried                   // (B*H, segments, rows, C): carried, then where each segment starts from
) {
    const long long i = blockIdx.x * (long long)(THREADS) + threadIdx.x;
    if (i >= count) return;
    const long long unit = i / numbers * segments, number = i % numbers;
    Sum start = 0;
    for (int step = 0; step < segments; step++) {
        const long long segment = unit + (reverse ? segments - 1 - step : step);
        Sum& here = carried[segment * numbers + number];
        const Sum end = kept[segment * (numbers / channels) + number / channels] * start + here;
        here = start;
        start = end;
    }
}
