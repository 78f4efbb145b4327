// The beam search of one row by one warp, for when there are few rows and the latency of one is all that counts.
//
// Same mathematics and the same selection as decode.cu, where a row is one thread's: as many steps one after the other
// as its sorting networks have exchanges. Here a list is sorted by counting: a key's place is the number of keys
// before it, and slots differ, so no two keys share a place. A digit is then one round through shared memory.
//
// Who computes what: first a lane takes a value of a digit and ranks it among that digit's; then, digit by digit, it
// takes a candidate (i, j) of the staircase, best address i and value j of the digit, and ranks it among all of them.
#pragma once
#include "runtime/common.cuh"

// In shared memory. U, P: digits and their values; K: addresses kept.
template <class Sum, int U, int P, int K> struct WarpSearch {
    static constexpr unsigned SLOTS = whole_power(P, U);
    static constexpr int OWN = (K + 31) / 32;  // addresses of a lane: lane, lane + 32, ...
    static constexpr unsigned PARTIAL = whole_power(P, U - 1);  // addresses without the last digit
    static constexpr int LONGEST = PARTIAL < K ? int(PARTIAL) : K;

    // Row j of the staircase holds the pairs (i, j) with (i + 1) * (j + 1) <= K.
    DEVICE static constexpr int row_length(int j) { return smaller_of(LONGEST, K / (j + 1)); }
    DEVICE static constexpr int count_candidates() {
        int count = 0;
        for (int j = 0; j < smaller_of(P, K); j++) count += row_length(j);
        return count;
    }
    static constexpr int CANDIDATES = count_candidates(), TRIED = (CANDIDATES + 31) / 32;  // of a lane
    static constexpr int UNROLLED = CANDIDATES <= 32 ? CANDIDATES : 8;

    alignas(16) Key<Sum> digit[U * P];  // each digit's values, best first
    alignas(16) Key<Sum> candidate[CANDIDATES];
    alignas(16) Key<Sum> best[K];  // best first

    // Fills ``best`` for the row at ``logits`` (U, P). Called by all lanes of one warp.
    template <class Logit> DEVICE void run(const Logit* __restrict__ logits, int lane) {
        for (int v = lane; v < U * P; v += 32) {
            const int u = v / P;
            Sum x[P];
            load(logits + u * P, x);
            const Sum mine = widen(logits[v]);
            Sum top = x[0];
#pragma unroll
            for (int p = 1; p < P; p++) top = larger(top, x[p]);
            const Key<Sum> own(minus(top, mine), v % P);
            int place = 0;
#pragma unroll
            for (int p = 0; p < P; p++) place += Key<Sum>(minus(top, x[p]), p) < own;
            unsigned share = v % P;  // of the slot
#pragma unroll
            for (int below = 0; below + 1 < U; below++) share *= below < u ? P : 1;
            digit[u * P + place] = Key<Sum>(own.penalty(), share);
        }
        int i[TRIED], j[TRIED];
#pragma unroll
        for (int e = 0; e < TRIED; e++) {
            i[e] = lane + 32 * e, j[e] = 0;
#pragma unroll
            for (int row = 0; row + 1 < smaller_of(P, K); row++)
                if (j[e] == row && i[e] >= row_length(row)) i[e] -= row_length(row), j[e]++;
        }
        __syncwarp();
        int n = smaller_of(P, K);  // addresses so far
        for (int k = lane; k < n; k += 32) best[k] = digit[k];
        __syncwarp();
        for (int u = 1; u < U; u++) {
            Key<Sum> own[TRIED];
#pragma unroll
            for (int e = 0; e < TRIED; e++) {
                const int c = lane + 32 * e;
                if (c < CANDIDATES) candidate[c] = own[e] = i[e] < n ? best[i[e]] + digit[u * P + j[e]] : Key<Sum>::worst();
            }
            __syncwarp();
            int place[TRIED] = {};
#pragma unroll UNROLLED
            for (int c = 0; c < CANDIDATES; c++) {
                const Key<Sum> other = candidate[c];
#pragma unroll
                for (int e = 0; e < TRIED; e++) place[e] += other < own[e];
            }
#pragma unroll
            for (int e = 0; e < TRIED; e++)
                if (lane + 32 * e < CANDIDATES && i[e] < n && place[e] < K) best[place[e]] = own[e];
            n = smaller_of(n * P, K);
            __syncwarp();
        }
    }

    // The weights of this lane's addresses; 0 where it has none.
    DEVICE void weigh(int lane, bool renorm, Sum (&weight)[OWN]) const {
        Sum total = lane < U ? 0 : 1;  // what the softmax of a digit divides by
        if (lane < U)
            for (int p = 0; p < P; p++) total += exponential(-digit[lane * P + p].penalty());
#pragma unroll
        for (int other = 16; other > 0; other /= 2) total *= __shfl_xor_sync(~0u, total, other);
        const Sum scale = 1 / total;
        Sum kept = 0;
#pragma unroll
        for (int e = 0; e < OWN; e++) {
            const int k = lane + 32 * e;
            weight[e] = k < K ? exponential(-best[k].penalty()) * scale : Sum(0);
            kept += weight[e];
        }
        if (!renorm) return;
        kept = sum_over_warp(kept);
#pragma unroll
        for (int e = 0; e < OWN; e++) weight[e] /= kept;  // of K = 1: exactly 1
    }
};
