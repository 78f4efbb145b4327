// Softmax attention of one token over a cache, whose keys and values lie in room for more tokens. How many are there is
// read on the device, so that a CUDA graph goes on counting.
//
//   attend_pieces  one warp a piece of PIECE keys of a row, which is a head of a sequence: their softmax by themselves
//   join_pieces    one warp 32 channels of a row of y
//
// Same mathematics as softmax_attention_step in ramnet_np/layers/softmax_attention.py. Piece i has the largest scaled score
// c_i, and c is the largest of all c_i:
//
//   t_i = sum_s exp(scale q . k_s - c_i)    u_i = sum_s exp(scale q . k_s - c_i) v_s              over the keys of piece i
//   y   = sum_i exp(c_i - c) u_i / sum_i exp(c_i - c) t_i
//
// A piece has the same keys whatever the room is, so the bits of y depend on the tokens alone.
#include "layers/element.cuh"

#ifndef PIECE
#error "PIECE must be defined: the keys of a warp, a multiple of 32"
#endif

struct AttentionStepParams {
    const ELEMENT *q, *k, *v;     // (B, H, d_k) twice, (B, H, d_v): of the token
    ELEMENT *keys, *values;       // (B, room, H, d_k), (B, room, H, d_v); the token's own are put in
    const long long* used;        // tokens that are there before this one, fewer than the room
    Acc *largest, *totals, *sums; // (B H, pieces) twice, (B H, pieces, d_v): c, t and u
    ELEMENT* y;                   // (B, H, d_v)
    long long rows;               // B H
    int heads, d_k, d_v, room, pieces;
    Acc scale;
};

// The keys or values of one row: those of its tokens.
struct Cached {
    ELEMENT* first;
    int stride;

    DEVICE Cached(ELEMENT* all, const AttentionStepParams& p, long long row, int channels)
        : first(all + (row / p.heads * p.room * p.heads + row % p.heads) * channels), stride(p.heads * channels) {}
    DEVICE ELEMENT* operator[](int token) const { return first + token * (long long)(stride); }
};

template <int EACH> DEVICE Acc dot(const ELEMENT* a, const ELEMENT* b, int channels) {
    Acc x[EACH], y[EACH], sum = 0;
#pragma unroll 8
    for (int c = 0; c < channels; c += EACH) {
        load<EACH>(a + c, x);
        load<EACH>(b + c, y);
#pragma unroll
        for (int i = 0; i < EACH; i++) sum += x[i] * y[i];
    }
    return sum;
}

DEVICE Acc warp_max(Acc x) {
    for (int distance = 16; distance; distance /= 2) x = max_(x, __shfl_xor_sync(~0u, x, distance));
    return x;
}

extern "C" __global__ void attend_pieces(const __grid_constant__ AttentionStepParams p) {
    const long long warp = (blockIdx.x * (long long)(blockDim.x) + threadIdx.x) / 32, row = warp / p.pieces;
    const int lane = threadIdx.x % 32, first = int(warp % p.pieces) * PIECE, newest = int(*p.used);
    if (row >= p.rows || first > newest) return;
    const Cached keys(p.keys, p, row, p.d_k), values(p.values, p, row, p.d_v);
    // 1. the token takes its place
    if (newest < first + PIECE) {
#pragma unroll 1
        for (int c = lane; c < p.d_k; c += 32) keys[newest][c] = p.k[row * p.d_k + c];
#pragma unroll 1
        for (int c = lane; c < p.d_v; c += 32) values[newest][c] = p.v[row * p.d_v + c];
        __syncwarp();
    }
    // 2. a lane's keys, and the softmax of the piece
    Acc weight[PIECE / 32], largest = -infinity(Acc(0)), total = 0;
    const ELEMENT* q = p.q + row * p.d_k;
#pragma unroll
    for (int i = 0; i < PIECE / 32; i++) {
        const int token = first + 32 * i + lane;
        weight[i] = -infinity(Acc(0));
        if (token > newest) continue;
        weight[i] = (p.d_k % VECTOR ? dot<1>(q, keys[token], p.d_k) : dot<VECTOR>(q, keys[token], p.d_k)) * p.scale;
        largest = max_(largest, weight[i]);
    }
    largest = warp_max(largest);
#pragma unroll
    for (int i = 0; i < PIECE / 32; i++) total += weight[i] = exp_(weight[i] - largest);
    total = warp_sum(total);
    if (lane == 0) p.largest[warp] = largest, p.totals[warp] = total;
    // 3. a lane's channels of the values, whose weights the other lanes have
#pragma unroll 1
    for (int channel = 0; channel < p.d_v; channel += 32) {
        const int c = smaller_of(channel + lane, p.d_v - 1);
        Acc sum = 0;
#pragma unroll
        for (int i = 0; i < PIECE / 32; i++)
#pragma unroll
            for (int j = 0; j < 32; j++) {
                const int token = smaller_of(first + 32 * i + j, newest);  // the newest again has weight 0
                sum += __shfl_sync(~0u, weight[i], j) * widen(values[token][c]);
            }
        if (channel + lane < p.d_v) p.sums[warp * p.d_v + c] = sum;
    }
}

extern "C" __global__ void join_pieces(const __grid_constant__ AttentionStepParams p) {
    const int warps = (p.d_v + 31) / 32, lane = threadIdx.x % 32, pieces = int(*p.used) / PIECE + 1;
    const long long warp = (blockIdx.x * (long long)(blockDim.x) + threadIdx.x) / 32, row = warp / warps;
    if (row >= p.rows) return;
    const long long first = row * p.pieces;
    const int c = int(warp % warps) * 32 + lane;
    Acc largest = -infinity(Acc(0)), total = 0, sum = 0;
    for (int i = lane; i < pieces; i += 32) largest = max_(largest, p.largest[first + i]);
    largest = warp_max(largest);
    if (c >= p.d_v) return;
#pragma unroll 8
    for (int i = 0; i < pieces; i++) {
        const Acc weight = exp_(p.largest[first + i] - largest);
        total += weight * p.totals[first + i];
        sum += weight * p.sums[(first + i) * p.d_v + c];
    }
    p.y[row * p.d_v + c] = narrowed(sum / total);
}
