// Softmax attention of one token over a cache, whose keys and values lie in room for more tokens. How many are there is
// read on the device, so that a CUDA graph goes on counting.
//
//   attend_pieces  one warp a piece of PIECE keys of a row, which is a head of a sequence: their softmax by themselves
//   join_pieces    one thread a channel of y
//
// Same mathematics as softmax_attention_step in ramnet_np/layers/softmax_attention.py. With c_i the largest scaled score
// of piece i, and c the largest of all,
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

// Where in keys or values the row of a token begins.
DEVICE long long place(const AttentionStepParams& p, long long row, int token, int channels) {
    return ((row / p.heads * p.room + token) * p.heads + row % p.heads) * channels;
}

template <int EACH> DEVICE Acc dot(const ELEMENT* a, const ELEMENT* b, int channels) {
    Acc x[EACH], y[EACH], sum = 0;
    for (int c = 0; c < channels; c += EACH) {
        load<EACH>(a + c, x);
        load<EACH>(b + c, y);
#pragma unroll
        for (int i = 0; i < EACH; i++) sum += x[i] * y[i];
    }
    return sum;
}

extern "C" __global__ void attend_pieces(const __grid_constant__ AttentionStepParams p) {
    const long long warp = (blockIdx.x * (long long)(blockDim.x) + threadIdx.x) / 32, row = warp / p.pieces;
    const int lane = threadIdx.x % 32, first = int(warp % p.pieces) * PIECE, newest = int(*p.used);
    if (row >= p.rows || first > newest) return;
    // 1. the token takes its place
    if (newest < first + PIECE) {
        ELEMENT *key = p.keys + place(p, row, newest, p.d_k), *value = p.values + place(p, row, newest, p.d_v);
        for (int c = lane; c < p.d_k; c += 32) key[c] = p.k[row * p.d_k + c];
        for (int c = lane; c < p.d_v; c += 32) value[c] = p.v[row * p.d_v + c];
        __syncwarp();
    }
    // 2. a lane's keys, and the softmax of the piece
    Acc weight[PIECE / 32], largest = -infinity(Acc(0)), total = 0;
#pragma unroll
    for (int i = 0; i < PIECE / 32; i++) {
        const int token = first + 32 * i + lane;
        weight[i] = -infinity(Acc(0));
        if (token > newest) continue;
        const ELEMENT *q = p.q + row * p.d_k, *key = p.keys + place(p, row, token, p.d_k);
        weight[i] = (p.d_k % VECTOR ? dot<1>(q, key, p.d_k) : dot<VECTOR>(q, key, p.d_k)) * p.scale;
        largest = max_(largest, weight[i]);
    }
    for (int distance = 16; distance; distance /= 2) largest = max_(largest, __shfl_xor_sync(~0u, largest, distance));
#pragma unroll
    for (int i = 0; i < PIECE / 32; i++) total += weight[i] = exp_(weight[i] - largest);
    total = warp_sum(total);
    if (lane == 0) p.largest[warp] = largest, p.totals[warp] = total;
    // 3. a lane's channels of the values, whose weights are with the other lanes
    for (int channel = 0; channel < p.d_v; channel += 32) {
        const int c = smaller_of(channel + lane, p.d_v - 1);
        Acc sum = 0;
#pragma unroll
        for (int i = 0; i < PIECE / 32; i++)
#pragma unroll
            for (int j = 0; j < 32; j++) {
                const int token = smaller_of(first + 32 * i + j, newest);  // beyond it, of weight 0
                sum += __shfl_sync(~0u, weight[i], j) * widen(p.values[place(p, row, token, p.d_v) + c]);
            }
        if (channel + lane < p.d_v) p.sums[warp * p.d_v + c] = sum;
    }
}

extern "C" __global__ void join_pieces(const __grid_constant__ AttentionStepParams p) {
    const long long at = blockIdx.x * (long long)(blockDim.x) + threadIdx.x, row = at / p.d_v, piece = row * p.pieces;
    if (row >= p.rows) return;
    const int pieces = int(*p.used) / PIECE + 1, c = at % p.d_v;
    Acc largest = -infinity(Acc(0)), total = 0, sum = 0;
    for (int i = 0; i < pieces; i++) largest = max_(largest, p.largest[piece + i]);
#pragma unroll 8
    for (int i = 0; i < pieces; i++) {
        const Acc weight = exp_(p.largest[piece + i] - largest);
        total += weight * p.totals[piece + i];
        sum += weight * p.sums[(piece + i) * p.d_v + c];
    }
    p.y[at] = narrowed(sum / total);
}
