// <dy_t, v_j> of all pairs of a chunk's tokens, over all channels: by the tensor cores in float32 (tf32.cuh), else by threads.
#pragma once
#include "memory/chunk.cuh"
#include "memory/tf32.cuh"

constexpr int EACH = 16 / sizeof(ELEMENT);                      // elements that are copied at once
constexpr int CHANNELS_AT_ONCE = 16 * EACH < 64 ? 16 * EACH : 64;  // in shared memory; rows there are longer by EACH
constexpr int PAIRS = CHUNK < 16 ? 1 : CHUNK / 16;  // a thread has PAIRS x PAIRS dots <dy_t, v_j>, or a warp 16 x 8
constexpr int SIDE = CHUNK / PAIRS;                 // threads along t, and along j
constexpr bool TENSOR_CORES = sizeof(Acc) == 4 && CHUNK >= 16;

using TokenRows = ELEMENT[CHUNK][CHANNELS_AT_ONCE + EACH];

struct TokenDots {
    Acc dy_dot_v[CHUNK][CHUNK + 1];
    alignas(16) TokenRows dy, v;  // a part of the channels of all tokens
};

// The rows of dy and v, (B, T, H, C), of which a chunk's are multiplied.
struct RowsOfChunk {
    const Sequence& sequence;
    const int chunk, channels;
    const ELEMENT *dy, *values;
};

// Starts to copy channels from ``first`` on of all tokens, of ``from`` (B, T, H, C); 0 where there are
// none, and for masked tokens.
DEVICE void copy_channels(TokenRows& to, const RowsOfChunk& rows, const ELEMENT* from, int first) {
    const int channels = rows.channels;
    const bool whole = channels % EACH == 0;
    const ELEMENT zero{};
#pragma unroll
    for (int i = threadIdx.x; i < CHUNK * CHANNELS_AT_ONCE / EACH; i += THREADS) {
        const int token = i / (CHANNELS_AT_ONCE / EACH), channel = i % (CHANNELS_AT_ONCE / EACH) * EACH;
        const int t = rows.chunk * CHUNK + token, there = rows.sequence.live(t) ? channels - first - channel : 0;
        const ELEMENT* const here = from + rows.sequence.token(t) * channels + first + channel;
        if (whole && there > 0)
            copy_async<16>(&to[token][channel], here);
        else
#pragma unroll 1
            for (int c = 0; c < EACH; c++) to[token][channel + c] = c < there ? here[c] : zero;
    }
}
DEVICE void copy_channels(TokenDots& dots, const RowsOfChunk& rows, int first) {
    copy_channels(dots.dy, rows, rows.dy, first);
    copy_channels(dots.v, rows, rows.values, first);
    end_group_of_copies();
}

// <dy_t, v_j> of pairs of tokens, each thread its own.
struct PairsOfThread {
    const int t = threadIdx.x / SIDE, j = threadIdx.x % SIDE;
    Acc sum[PAIRS][PAIRS] = {};

    DEVICE void add(const TokenDots& dots) {
        if (t >= SIDE) return;
#pragma unroll
        for (int channel = 0; channel < CHANNELS_AT_ONCE; channel += EACH) {
            Acc dy[PAIRS][EACH], v[PAIRS][EACH];
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
                load<EACH>(&dots.dy[t + SIDE * i][channel], dy[i]);
                load<EACH>(&dots.v[j + SIDE * i][channel], v[i]);
            }
#pragma unroll
            for (int a = 0; a < PAIRS; a++)
#pragma unroll
                for (int b = 0; b < PAIRS; b++)
#pragma unroll
                    for (int c = 0; c < EACH; c++) sum[a][b] += dy[a][c] * v[b][c];
        }
    }
    DEVICE void store(TokenDots& dots) const {
        if (t >= SIDE) return;
#pragma unroll
        for (int a = 0; a < PAIRS; a++)
#pragma unroll
            for (int b = 0; b < PAIRS; b++) dots.dy_dot_v[t + SIDE * a][j + SIDE * b] = sum[a][b];
    }
};

// The same on the tensor cores: a warp has 16 tokens t by 8 tokens j, if any j is not after all t.
struct PairsOfWarp {
    static constexpr int ALONG_J = (CHUNK + 7) / 8;  // warps
    const int t = threadIdx.x / 32 / ALONG_J * 16, j = threadIdx.x / 32 % ALONG_J * 8;
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4;
    float sum[4] = {}, small[4] = {};

    DEVICE bool needed() const { return t < CHUNK && j < t + 16; }
    DEVICE void add(const TokenDots& dots) {
        if (!needed()) return;
#pragma unroll
        for (int channel = column; channel < CHANNELS_AT_ONCE; channel += 8) {
            float a[4], b[2];
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = widen(dots.dy[t + row + i % 2 * 8][channel + i / 2 * 4]);
#pragma unroll
            for (int i = 0; i < 2; i++) b[i] = widen(dots.v[j + row][channel + i * 4]);
            multiply_add_float32<sizeof(ELEMENT) == 2>(sum, small, a, b);
        }
    }
    DEVICE void store(TokenDots& dots) const {
        if (!needed()) return;
#pragma unroll
        for (int i = 0; i < 4; i++) dots.dy_dot_v[t + row + i / 2 * 8][j + 2 * column + i % 2] = sum[i] + small[i];
    }
};

// The first channels are on their way already.
template <class Pairs> DEVICE void multiply_channels(TokenDots& dots, const RowsOfChunk& rows) {
    Pairs pairs;
    for (int first = 0;;) {
        wait_for_copies<0>();
        __syncthreads();
        pairs.add(dots);
        first += CHANNELS_AT_ONCE;
        if (first >= rows.channels) break;
        __syncthreads();
        copy_channels(dots, rows, first);
    }
    pairs.store(dots);
}
DEVICE void multiply_channels(TokenDots& dots, const RowsOfChunk& rows) {
    if constexpr (TENSOR_CORES)
        multiply_channels<PairsOfWarp>(dots, rows);
    else
        multiply_channels<PairsOfThread>(dots, rows);
    __syncthreads();
}
