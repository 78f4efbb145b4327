// A chunk's accesses as dense_couplings*.cu see them: eta of its writes and weights of its reads as matrices (dense.cuh).
//
// Who computes what: one block a chunk. Thread token * W + k has write k of a token, thread token * R + k read k.
#pragma once
#include "memory/dense.cuh"

struct DenseCouplingParams {
    MemoryParams memory;
    const Acc* eta;              // (B*H, chunks, CHUNK, W)
    const Acc* read_weight;      // (B, T, H, READS)
    DenseRecord* records;        // (B*H, chunks)
    const ELEMENT *values, *dy;  // (B, T, H, C)
    Acc *dy_dot_s, *d_dot_v;     // (B*H, chunks, CHUNK, R), (.., W): as dense_content.cu left them; become those of the masses
    const Acc *before_heavy, *after_heavy;  // (B, T, H, C): as dense_content.cu left them
    Acc* d_dot_before;           // (B*H, chunks, CHUNK): of a token's first write, or 0 if it is not heavy
    int channels;                // C
    int first_batch, first_chunk;  // of the launch
};

struct AccessMatrices {
    alignas(16) Acc eta[MATRIX], weight[MATRIX];  // of writes and of reads; 0 elsewhere
};

// x (1 - eta), rounded once, so that no digits are lost where eta is almost 1.
DEVICE Acc forgotten(Acc x, Acc eta) { return fmaf(-x, eta, x); }

// An access of this thread: its place, and where it stands in arrays (B, T, H, K).
struct DenseAccess {
    const int token, k;
    int row;
    int place;
    long long from;
    bool live;

    DEVICE DenseAccess(const Sequence& sequence, int chunk, unsigned width, int top_k, const int* rows)
        : token(threadIdx.x / width), k(threadIdx.x % width), row(SLOTS_PADDED), from(0), live(false) {
        const int t = chunk * CHUNK + token;
        if (in_chunk(token, width) && k < top_k && sequence.live(t)) {
            from = sequence.token(t) * top_k + k;
            const int found = rows[from];
            live = found >= 0, row = live ? found : row;
        }
        place = place_of(in_chunk(token, width) ? token : 0, row);
    }
};

// A chunk and this thread's two accesses of it.
struct DenseThread {
    const SpanChunk at;
    const Sequence sequence;
    const int chunk;
    const long long number;  // of the chunk in arrays (B*H, chunks)
    const DenseAccess write, read;
    Acc eta, weight;
    bool heavy;  // whether the write is

    DEVICE explicit DenseThread(const DenseCouplingParams& p)
        : at(chunk_of_block(p)), sequence(p.memory, at.span, blockIdx.x), chunk(at.chunk), number(sequence.chunk(chunk)),
          write(sequence, chunk, W, WRITES, p.memory.write_row), read(sequence, chunk, R, READS, p.memory.read_row) {
        eta = write.live ? p.eta[number * (CHUNK * W) + threadIdx.x] : Acc(0);
        weight = read.live ? p.read_weight[read.from] : Acc(0);
        heavy = write.live && write.k == 0 && p.memory.write_weight[write.from] > Acc(0.5);
    }
    DEVICE void enter(AccessMatrices& matrices) const {
        clear(matrices.eta), clear(matrices.weight);
        __syncthreads();
        if (write.live) matrices.eta[write.place] = eta;
        if (read.live) matrices.weight[read.place] = weight;
        __syncthreads();
    }
};
