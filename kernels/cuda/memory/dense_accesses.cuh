// A chunk's accesses as dense_couplings*.cu see them: eta of its writes and weights of its reads as matrices (dense.cuh).
//
// Who computes what: one block a chunk. Thread token * W + k has write k of a token, thread token * R + k read k.
#pragma once
#include "memory/dense.cuh"

static_assert(CHUNK * W == THREADS && CHUNK * R == THREADS, "a thread has one access of each side");

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
    alignas(16) Acc eta_before[4 * STRIDE];       // 0: as if tokens before the chunk wrote nothing
    alignas(16) Acc eta[MATRIX], weight[MATRIX];  // of writes and of reads; 0 elsewhere
};

// x (1 - eta), rounded once, so that no digits are lost where eta is almost 1.
DEVICE Acc forgotten(Acc x, Acc eta) { return fmaf(-x, eta, x); }

// An access of this thread: its place, and where it stands in arrays (B, T, H, K). Its numbers are asked for together with
// its row, before it is known whether it is live.
struct DenseAccess {
    const int token, k, t;  // t: of the sequence
    const bool given;       // whether arrays (B, T, H, K) have it
    const long long from;
    int row, place;
    bool live;

    DEVICE DenseAccess(const Sequence& sequence, int chunk, unsigned width, int top_k, const int* rows)
        : token(threadIdx.x / width), k(threadIdx.x % width), t(chunk * CHUNK + token),
          given(in_chunk(token, width) && k < top_k && t < sequence.tokens), from(sequence.token(t) * top_k + k),
          row(given ? rows[from] : -1) {}
    DEVICE void find(const Sequence& sequence) {
        live = row >= 0 && sequence.live(t), place = live ? place_of(token, row) : NOWHERE;
    }
};

// A chunk and this thread's two accesses of it.
struct DenseThread {
    const SpanChunk at;
    const Sequence sequence;
    const int chunk;
    const long long number;  // of the chunk in arrays (B*H, chunks)
    DenseAccess write, read;
    Acc eta, weight;
    bool heavy;  // whether the write is

    DEVICE explicit DenseThread(const DenseCouplingParams& p)
        : at(chunk_of_block(p)), sequence(p.memory, at.span, blockIdx.x), chunk(at.chunk), number(sequence.chunk(chunk)),
          write(sequence, chunk, W, WRITES, p.memory.write_row), read(sequence, chunk, R, READS, p.memory.read_row) {
        eta = p.eta[number * (CHUNK * W) + threadIdx.x];
        weight = read.given ? p.read_weight[read.from] : Acc(0);
        heavy = write.given && write.k == 0 && p.memory.write_weight[write.from] > Acc(0.5);
        write.find(sequence), read.find(sequence);
        if (!write.live) eta = 0, heavy = false;
        if (!read.live) weight = 0;
    }
    DEVICE void enter(AccessMatrices& matrices) const {
        clear(matrices.eta_before), clear(matrices.eta), clear(matrices.weight);
        __syncthreads();
        if (write.live) matrices.eta[write.place] = eta;
        if (read.live) matrices.weight[read.place] = weight;
        __syncthreads();
    }
};
