// The gradient of an embedding table: for every row the sum over the tokens that took it, in their order.
//
//   embedding_order    one block OWNED rows of the table: lists the tokens that took each of them. All its threads look
//                      through the ids; one thread a row writes that row's list.
//   embedding_sums     one block ROWS rows and COLUMNS columns of them, one warp a row. Where more than MANY tokens took
//                      a row, all warps share them: each adds every ROWS-th, then one adds the partial sums.
//
// Same mathematics as ramnet_np/layers/embedding.py. Atomics count integers only, whose sum has no order.
#include "runtime/reduce.cuh"

#ifdef ELEMENT

#ifndef ROWS
#error "ROWS must be defined: the rows of a block, one a warp"
#endif
#ifndef COLUMNS
#error "COLUMNS must be defined: the columns of a block, one a lane: 32"
#endif
#ifndef MANY
#error "MANY must be defined: from how many tokens on the warps of a block share a row's"
#endif

using Acc = AccOf<ELEMENT>::type;

extern "C" __global__ void embedding_sums(
    const ELEMENT* dy,   // (N, D)
    const int* order,    // (N,) tokens, those of a row side by side
    const int* starts,   // (V + 1,) where each row's tokens begin
    int table_rows, int width,
    Acc* dtable  // (V, D)
) {
    __shared__ Acc partials[ROWS][COLUMNS];
    const int lane = threadIdx.x % COLUMNS, warp = threadIdx.x / COLUMNS, c = blockIdx.y * COLUMNS + lane;
    const bool inside = c < width;
    dy += inside ? c : 0;
    dtable += inside ? c : 0;
    for (int w = 0; w < ROWS; w++) {
        const int row = blockIdx.x * ROWS + w;
        if (row >= table_rows) return;
        const int begin = starts[row], end = starts[row + 1];
        if (end - begin <= MANY) {
            if (warp != w) continue;
            Acc total = 0;
#pragma unroll 4
            for (int i = begin; i < end; i++) total += widen(dy[order[i] * (long long)(width)]);
            if (inside) dtable[row * (long long)(width)] = total;
            continue;
        }
        Acc total = 0;
#pragma unroll 4
        for (int i = begin + warp; i < end; i += ROWS) total += widen(dy[order[i] * (long long)(width)]);
        partials[warp][lane] = total;
        __syncthreads();
        if (warp == w && inside) {
            total = 0;
            for (int other = 0; other < ROWS; other++) total += partials[other][lane];
            dtable[row * (long long)(width)] = total;
        }
        __syncthreads();
    }
}

#else

#ifndef OWNED
#error "OWNED must be defined with THREADS, or ELEMENT: the rows of the table that a block looks for"
#endif
#ifndef THREADS
#error "THREADS must be defined: the threads of a block"
#endif

// Blocks of THREADS. Ids outside [0, V) are left out.
extern "C" __global__ void __launch_bounds__(THREADS) embedding_order(
    const int* ids,  // (N,)
    int tokens, int table_rows,
    int* order,  // (N,)
    int* starts  // (V + 1,)
) {
    __shared__ int counts[OWNED], before, scratch[32], queue_ids[THREADS], queue_tokens[THREADS], warp_counts[32];
    const int first = blockIdx.x * OWNED, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (threadIdx.x < OWNED) counts[threadIdx.x] = 0;
    __syncthreads();
    // 1. how many tokens took earlier rows, and how many each of these
    int earlier = 0;
    for (int i = threadIdx.x; i < tokens; i += THREADS) {
        const int id = ids[i];
        if (id < 0) continue;
        earlier += id < first;
        if (first <= id && id < first + OWNED && id < table_rows) atomicAdd(counts + id - first, 1);
    }
    earlier = block_sum(earlier, scratch);
    if (threadIdx.x == 0) before = earlier;
    __syncthreads();
    int next = before;  // where this thread's row goes on, if it owns one
    const bool owner = threadIdx.x < OWNED && first + int(threadIdx.x) < table_rows;
    if (owner) {
        for (int row = 0; row < threadIdx.x; row++) next += counts[row];
        starts[first + threadIdx.x] = next;
        if (first + threadIdx.x == table_rows - 1) starts[table_rows] = next + counts[threadIdx.x];
    }
    // 2. THREADS ids at a time: those of these rows are queued in order, then every owner takes its own
    int upcoming = threadIdx.x < tokens ? ids[threadIdx.x] : -1;
    for (int begin = 0; begin < tokens; begin += THREADS) {
        const int i = begin + threadIdx.x, id = upcoming;
        upcoming = i + THREADS < tokens ? ids[i + THREADS] : -1;  // on its way while this round is sorted
        const bool ours = first <= id && id < first + OWNED && id < table_rows;
        const unsigned votes = __ballot_sync(~0u, ours);
        if (lane == 0) warp_counts[warp] = __popc(votes);
        __syncthreads();
        int at = __popc(votes & ((1u << lane) - 1)), queued = 0;
        for (int other = 0; other < THREADS / 32; other++) {
            if (other < warp) at += warp_counts[other];
            queued += warp_counts[other];
        }
        if (ours) {
            queue_ids[at] = id;
            queue_tokens[at] = i;
        }
        __syncthreads();
        if (owner) {
            for (int q = 0; q < queued; q++) {
                if (queue_ids[q] == first + int(threadIdx.x)) order[next++] = queue_tokens[q];
            }
        }
    }
}

#endif
