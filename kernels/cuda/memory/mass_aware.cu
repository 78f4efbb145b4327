// Mass-aware reads: a token's reads share its weight by the masses of their slots,
//
//     n = r mass,   weight = n sum(r) / (sum(n) + eps)
//
// with the masses that mass_forward.cu found, and the gradients of that.
//
// Who computes what: one block a chunk of a (batch, head) (chunk.cuh); thread token * R + k has read k of a token.
//
// Compiled with: what chunk.cuh asks for.
#include "memory/mass.cuh"

struct MassAwareParams {
    MemoryParams memory;
    const SlotAccess* reads;  // (B*H, chunks, CHUNK, R)
    const Acc* read_mass;     // likewise
    Acc* read_share;          // (B, T, H, READS): the weight that a read has by mass
    const Acc* dy_dot_s;      // (B*H, chunks, CHUNK, R)
    MassAdjoint* gains;       // likewise: what a read adds to q and dz
    Acc* dr;                  // (B, T, H, READS)
};

// This thread's read.
struct Read {
    const MemoryParams& memory;
    long long number;      // of the chunk, in arrays (B*H, chunks)
    long long first, row;  // the token's first read, in arrays (B*H, chunks, CHUNK, R) and (B, T, H, READS)
    int k;
    bool inside, live;

    DEVICE explicit Read(const MemoryParams& memory) : memory(memory), k(threadIdx.x % R) {
        const unsigned heads = memory.heads, chunks = chunks_of(memory.tokens);
        if (memory.span_chunks) {
            const SpanChunk at = memory.span_chunks[blockIdx.x / heads];
            find(Sequence(memory, at.span, blockIdx.x % heads), at.chunk);
        } else {
            find(Sequence(memory, blockIdx.x / chunks), blockIdx.x % chunks);
        }
    }
    DEVICE void find(const Sequence& sequence, int chunk) {
        const int t = chunk * CHUNK + threadIdx.x / R;
        number = sequence.chunk(chunk), first = number * CHUNK * R + threadIdx.x - k, row = sequence.token(t) * READS;
        inside = threadIdx.x < CHUNK * R && k < READS && t < sequence.tokens;
        live = inside && sequence.live(t);
    }
    DEVICE long long at() const { return first + k; }
    DEVICE const Acc* weights() const { return memory.read_weight + row; }  // r of the token
};

extern "C" __global__ void __launch_bounds__(THREADS) mass_aware_forward(const __grid_constant__ MassAwareParams p) {
    const Read read(p.memory);
    if (!read.inside) return;
    const Acc *r = read.weights(), *mass = p.read_mass + read.first;
    Acc total = 0, weighted = p.memory.eps;
    for (int j = 0; j < READS; j++) total += r[j], weighted += r[j] * mass[j];
    p.read_share[read.row + read.k] = r[read.k] * (total * mass[read.k] / weighted);
}

extern "C" __global__ void __launch_bounds__(THREADS) mass_aware_backward(const __grid_constant__ MassAwareParams p) {
    const Read read(p.memory);
    if (!read.inside) {
        if (threadIdx.x < CHUNK * R) p.gains[read.at()] = {0, 0};
        return;
    }
    const auto dot = [&](int j) {  // <dy, s>; 0 for a slot that nothing is written to, whatever dy is
        return p.reads[read.first + j].live() ? p.dy_dot_s[read.first + j] : Acc(0);
    };
    const Acc *r = read.weights(), *mass = p.read_mass + read.first;
    Acc total = 0, weighted = p.memory.eps, through = 0;
#pragma unroll 1
    for (int j = 0; j < READS; j++) {
        const Acc n = r[j] * mass[j];
        total += r[j], weighted += n, through += dot(j) * n;
    }
    through /= weighted;
    const Acc dweight = dot(read.k), dn = (dweight - through) * total / weighted;
    const Acc weight = r[read.k] * (total * mass[read.k] / weighted);
    p.gains[read.at()] = {weight * dweight, read.live ? dn * r[read.k] : Acc(0)};
    p.dr[read.row + read.k] = read.live ? dn * mass[read.k] + through : Acc(0);
}
