// Mass-aware reads: a token's reads share its weight by the masses of their slots,
//
//     n = r mass,   weight = n sum(r) / (sum(n) + eps)
//
// with the masses that mass.cu found, and the gradients of that.
//
// Who computes what: one block a chunk of a (batch, head) (chunk.cuh); thread token * R + k has read k of a token.
//
// Compiled with: what chunk.cuh asks for.
#include "memory/mass.cuh"

// A chunk of one (batch, head), and one of its reads.
struct Read {
    long long first, row;  // the token's first read, in arrays (B*H, chunks, CHUNK, R) and (B, T, H, READS)
    int k;
    bool inside;

    DEVICE Read(const Unit& unit, int chunk, int i) : k(i % R) {
        const int t = chunk * CHUNK + i / R;
        first = unit.chunk_at(chunk) * CHUNK * R + i - k, row = unit.row_of(t) * READS, inside = k < READS && t < unit.call.tokens;
    }
};

#define HERE                                                                                                             \
    const Call call = CALL;                                                                                              \
    const int chunk = blockIdx.x % call.chunks();                                                                        \
    const Unit unit(call, blockIdx.x / call.chunks())

extern "C" __global__ void __launch_bounds__(256) weigh_forward(
    CALL_PARAMETERS,
    const Link* __restrict__ reads, const Sum* __restrict__ read_mass,  // (B*H, chunks, CHUNK, R)
    TokenEvent* __restrict__ read_events                                // likewise
) {
    HERE;
    for (int i = threadIdx.x; i < CHUNK * R; i += THREADS) {
        const Read read(unit, chunk, i);
        TokenEvent& event = read_events[read.first + read.k];
        if (!read.inside || event.row == NOTHING) continue;
        const Sum *r = read_weight + read.row, *mass = read_mass + read.first;
        Sum total = 0, weighted = eps;
        for (int j = 0; j < READS; j++) total += r[j], weighted += r[j] * mass[j];
        const Sum weight = r[read.k] * (total * mass[read.k] / weighted);
        event.coefficient = weight;
        const int code = int(event.row);
        if (CHUNK > 1 && in_chain(code))
            entries[unit.chunk_at(chunk) * ENTRIES + tag_place(int(reads[read.first + read.k].tag))].coefficient = weight;
    }
}

extern "C" __global__ void __launch_bounds__(256) weigh_backward(
    CALL_PARAMETERS, int slices,
    const Sum* __restrict__ dread,                                                   // (slices, B*H, chunks, CHUNK, R)
    const TokenEvent* __restrict__ read_events, const Sum* __restrict__ read_mass,  // (B*H, chunks, CHUNK, R)
    Adjoint* __restrict__ gains,                                                    // likewise: what a read adds
    Sum* __restrict__ dr                                                            // (B, T, H, READS)
) {
    HERE;
    const long long in_slice = (long long)(gridDim.x) * CHUNK * R;
    for (int i = threadIdx.x; i < CHUNK * R; i += THREADS) {
        const Read read(unit, chunk, i);
        if (!read.inside) {
            gains[read.first + read.k] = {0, 0};
            continue;
        }
        const auto dot = [&](int j) {  // <dy, s>; 0 of a slot that nothing is written to, whatever dy is
            Sum sum = 0;
            if (read_events[read.first + j].row != NOTHING)
                for (int slice = 0; slice < slices; slice++) sum += dread[slice * in_slice + read.first + j];
            return sum;
        };
        const Sum *r = read_weight + read.row, *mass = read_mass + read.first;
        Sum total = 0, weighted = eps, through = 0;
#pragma unroll 1
        for (int j = 0; j < READS; j++) {
            const Sum n = r[j] * mass[j];
            total += r[j], weighted += n, through += dot(j) * n;
        }
        through /= weighted;
        const Sum dweight = dot(read.k), dn = (dweight - through) * total / weighted;
        const bool live = unit.live(chunk * CHUNK + i / R);
        gains[read.first + read.k] = {r[read.k] * (total * mass[read.k] / weighted) * dweight, live ? dn * r[read.k] : Sum(0)};
        dr[read.row + read.k] = live ? dn * mass[read.k] + through : Sum(0);
    }
}
