// The beam search of one row by one warp, for when there are few rows and the latency of one is all that counts.
//
// Same mathematics and the same selection as decode.cu, where a row is one thread's: as many steps one after the other
// as its sorting networks have exchanges. Here a list is sorted by counting: a key's rank is the number of keys before
// it, and slots differ, so no two keys share a rank. A digit is then one round through shared memory.
//
// Who computes what: first a lane takes a value of a digit and ranks it among that digit's; then, digit by digit, it
// takes a candidate (i, j) of the staircase, best address i and value j of the digit, and ranks it among all of them.
#pragma once
#include "address/sort.cuh"
#include "runtime/reduce.cuh"

// In shared memory. U, P: digits and their values; K: addresses kept.
template <class Acc, int U, int P, int K> struct WarpSearch {
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

    alignas(16) Key<Acc> digit[U * P];  // each digit's values, best first
    alignas(16) Key<Acc> candidate[CANDIDATES];
    alignas(16) Key<Acc> best[K];  // best first

    // Fills ``best`` for the row at ``logits`` (U, P). Called by all lanes of one warp.
    template <class Logit> DEVICE void run(const Logit* logits, int lane) {
        rank_values(logits, lane);
        int i[TRIED], j[TRIED];
        find_candidates(lane, i, j);
        __syncwarp();
        int n = smaller_of(P, K);  // addresses so far
        for (int k = lane; k < n; k += 32) best[k] = digit[k];
        __syncwarp();
        for (int u = 1; u < U; u++) {
            extend(u, n, lane, i, j);
            n = smaller_of(n * P, K);
            __syncwarp();
        }
    }

    // Fills ``digit``.
    template <class Logit> DEVICE void rank_values(const Logit* logits, int lane) {
        for (int v = lane; v < U * P; v += 32) {
            const int u = v / P;
            Acc x[P];
            load(logits + u * P, x);
            const Acc mine = widen(logits[v]);
            Acc top = x[0];
#pragma unroll
            for (int p = 1; p < P; p++) top = max_no_ftz(top, x[p]);
            const Key<Acc> own(sub_no_ftz(top, mine), v % P);
            int rank = 0;
#pragma unroll
            for (int p = 0; p < P; p++) rank += Key<Acc>(sub_no_ftz(top, x[p]), p) < own;
            unsigned share = v % P;  // of the slot
#pragma unroll
            for (int below = 0; below + 1 < U; below++) share *= below < u ? P : 1;
            digit[u * P + rank] = Key<Acc>(own.penalty(), share);
        }
    }

    // The pairs (i, j) of this lane's candidates, which are the same for every digit.
    DEVICE static void find_candidates(int lane, int (&i)[TRIED], int (&j)[TRIED]) {
#pragma unroll
        for (int e = 0; e < TRIED; e++) {
            i[e] = lane + 32 * e, j[e] = 0;
#pragma unroll
            for (int row = 0; row + 1 < smaller_of(P, K); row++)
                if (j[e] == row && i[e] >= row_length(row)) i[e] -= row_length(row), j[e]++;
        }
    }

    // From the n best addresses of the digits below u to the best with digit u.
    DEVICE void extend(int u, int n, int lane, const int (&i)[TRIED], const int (&j)[TRIED]) {
        Key<Acc> own[TRIED];
#pragma unroll
        for (int e = 0; e < TRIED; e++) {
            const int c = lane + 32 * e;
            if (c < CANDIDATES) candidate[c] = own[e] = i[e] < n ? best[i[e]] + digit[u * P + j[e]] : Key<Acc>::worst();
        }
        __syncwarp();
        int rank[TRIED] = {};
#pragma unroll UNROLLED
        for (int c = 0; c < CANDIDATES; c++) {
            const Key<Acc> other = candidate[c];
#pragma unroll
            for (int e = 0; e < TRIED; e++) rank[e] += other < own[e];
        }
#pragma unroll
        for (int e = 0; e < TRIED; e++)
            if (lane + 32 * e < CANDIDATES && i[e] < n && rank[e] < K) best[rank[e]] = own[e];
    }

    // The weights of this lane's addresses; 0 where it has none.
    DEVICE void weigh(int lane, bool renorm, Acc (&weight)[OWN]) const {
        Acc total = lane < U ? 0 : 1;  // what the softmax of a digit divides by
        if (lane < U)
            for (int p = 0; p < P; p++) total += exp_(-digit[lane * P + p].penalty());
#pragma unroll
        for (int other = 16; other > 0; other /= 2) total *= __shfl_xor_sync(~0u, total, other);
        const Acc scale = 1 / total;
        Acc kept = 0;
#pragma unroll
        for (int e = 0; e < OWN; e++) {
            const int k = lane + 32 * e;
            weight[e] = k < K ? exp_(-best[k].penalty()) * scale : Acc(0);
            kept += weight[e];
        }
        if (!renorm) return;
        kept = warp_sum(kept);
#pragma unroll
        for (int e = 0; e < OWN; e++) weight[e] /= kept;  // for K = 1: exactly 1
    }
};
