// Causal softmax attention of 16-bit numbers without its matrix of weights in device memory.
//
//   flash_forward            y_t  = sum_s p_ts v_s          p_ts = exp(scale q_t . k_s) / sum_r exp(scale q_t . k_r)
//   flash_row_sums           r_t  = dy_t . y_t              which is sum_s p_ts dp_ts, with dp_ts = dy_t . v_s
//   flash_keys_backward      dv_s = sum_t p_ts dy_t         dk_s = scale sum_t ds_ts q_t,   ds_ts = p_ts (dp_ts - r_t)
//   flash_queries_backward   dq_t = scale sum_s ds_ts k_s
//
// Same mathematics as ramnet_np/layers/softmax_attention.py; the algorithm is that of Dao, arXiv 2307.08691. Query t of T
// stands at key S + t of S + T and sees ``window`` keys up to it.
//
// A warp owns 16 or 32 queries (or keys), in registers; its block walks over the keys (or queries) that they meet, a tile
// at a time, in shared memory. Products run on the tensor cores, with float32 sums (flash_tile.cuh). The weights of a tile
// are made, used and forgotten in registers. The backward makes them again from log_sums, one number per query.
//
// dk, dv and dq come from two walks, so that every sum is one warp's own: the scores are computed once more than with
// atomics, and the same inputs give the same bits.
#include "layers/flash_tile.cuh"

#if !defined(D_K) || !defined(D_V) || !defined(QUERIES) || !defined(KEYS)
#error "D_K and D_V, d_k and d_v rounded up to a multiple of 64, QUERIES and KEYS, of a block, must be defined"
#endif

constexpr int WARPS = THREADS / 32;
// A warp owns 16 M queries, or 16 MK keys: each load of a tile's rows from shared memory serves so many products.
constexpr int M = QUERIES / (16 * WARPS), MK = KEYS / (16 * WARPS);
// Rows of a tile that the backward takes at once, as registers allow.
constexpr int PART = 32, PART_OF_QUERIES = MK > 1 ? 16 : 32;
constexpr float LOG2_E = 1.44269504088896341f;  // exp(x) is 2 to the power x log2 e, which is one instruction

struct FlashParams {
    const ELEMENT *q, *k, *v, *dy;  // (B, T, H, d_k), (B, S + T, H, d_k), (B, S + T, H, d_v), (B, T, H, d_v)
    ELEMENT* y;                     // (B, T, H, d_v)
    float *log_sums, *row_sums;     // (B, H, T): log2 of the sum of 2 to the power scale log2 e q . k; and r
    ELEMENT *dq, *dk, *dv;          // (B, T, H, d_k) twice, (B, T, H, d_v): dk and dv of the last T keys
    int tokens, past, heads, d_k, d_v, window;  // T, S, H, .., W
    long long rows;                             // B T H
    float scale;
};

// What the blocks of one sequence and head read and write.
struct Group {
    const FlashParams& p;
    int index;

    template <class T> DEVICE Rows<T> rows(T* array, int rows, int channels) const {
        return Rows<T>(array, index, p.heads, rows, channels);
    }
    template <class T> DEVICE Rows<T> by_queries(T* array, int channels) const { return rows(array, p.tokens, channels); }
    template <class T> DEVICE Rows<T> by_keys(T* array, int channels) const {
        return rows(array, p.past + p.tokens, channels);
    }
    DEVICE float* numbers(float* array) const { return array + index * (long long)(p.tokens); }  // one per query
};

// Which of ``count`` queries from ``query`` on see which of ``count`` keys from ``key`` on.
struct Sight {
    int newest, window;  // the key at which the first query stands

    DEVICE Sight(const FlashParams& p, int query) : newest(p.past + query), window(p.window) {}

    DEVICE bool has(int query, int key) const { return key <= newest + query && key > newest + query - window; }
    DEVICE bool has_all(int queries, int key, int keys) const {
        return key + keys - 1 <= newest && key > newest + queries - 1 - window;
    }
    DEVICE bool has_none(int queries, int key, int keys) const {
        return key > newest + queries - 1 || key + keys - 1 <= newest - window;
    }
};

// The first key that the queries from ``query`` on see, and the end of what ``count`` of them see.
DEVICE int first_key(const FlashParams& p, int query) { return max(0, p.past + query - p.window + 1); }
DEVICE int end_of_keys(const FlashParams& p, int query, int count) {
    return p.past + smaller_of(query + count, p.tokens);
}

// The largest score and the sum of the weights so far, of a lane's two rows in each of M fragments. A lane has the sum of
// its own columns only, until the end.
struct Softmax {
    float largest[M][2], total[M][2];

    DEVICE Softmax() {
        for (int m = 0; m < M; m++)
            for (int half = 0; half < 2; half++) largest[m][half] = -infinity(0.f), total[m][half] = 0;
    }
};

// The maximum or sum over the four lanes that share a row.
DEVICE float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
DEVICE float row_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// Scores become weights relative to the largest score so far; what was summed before is scaled to it.
template <int N>
DEVICE void soften(float (&scores)[M][N][4], float (&y)[M][D_V / 8][4], Softmax& softmax, float scale) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = softmax.largest[m][half];
#pragma unroll
            for (int n = 0; n < N; n++)
                largest = fmaxf(largest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            largest = row_max(largest);
            const float base = largest == -infinity(0.f) ? 0 : largest * scale;  // a row may see nothing of this tile
            const float kept = power_of_two(softmax.largest[m][half] * scale - base);
            softmax.largest[m][half] = largest;
            float total = softmax.total[m][half] * kept;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++)
                    total += scores[m][n][i] = power_of_two(fmaf(scores[m][n][i], scale, -base));
            softmax.total[m][half] = total;
#pragma unroll
            for (int d = 0; d < D_V / 8; d++) y[m][d][2 * half] *= kept, y[m][d][2 * half + 1] *= kept;
        }
}

// Divides sums of values by the sums of their weights, and writes log_sums.
DEVICE void finish(float (&y)[M][D_V / 8][4], const Softmax& softmax, float scale, float* log_sums, int first, int tokens) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float total = row_sum(softmax.total[m][half]), inverse = 1 / total;
            const int query = first + row_of(m, 2 * half);
            if (lane() % 4 == 0 && query < tokens) log_sums[query] = softmax.largest[m][half] * scale + log2f(total);
#pragma unroll
            for (int d = 0; d < D_V / 8; d++) y[m][d][2 * half] *= inverse, y[m][d][2 * half + 1] *= inverse;
        }
}

// Scores of pairs that are not seen become minus infinity, of which the weight is 0.
template <int ROWS, int N, class Seen> DEVICE void hide(float (&scores)[ROWS][N][4], const Seen& seen) {
#pragma unroll
    for (int m = 0; m < ROWS; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (!seen(row_of(m, i), column_of(n, i))) scores[m][n][i] = -infinity(0.f);
}

// The block's group and its first query. The last queries see the most keys: they come first, so that no long block is
// left over at the end.
DEVICE int first_query(const FlashParams& p, int& group) {
    const int blocks = (p.tokens + QUERIES - 1) / QUERIES;
    group = blockIdx.x / blocks;
    return (blocks - 1 - int(blockIdx.x % blocks)) * QUERIES;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) flash_forward(const __grid_constant__ FlashParams p) {
    Group group{p, 0};
    const int block_first = first_query(p, group.index), first = block_first + 16 * M * warp_of_thread();
    const Rows<const ELEMENT> k = group.by_keys(p.k, p.d_k), v = group.by_keys(p.v, p.d_v);
    const OwnRows<M, D_K> queries(group.by_queries(p.q, p.d_k), first);
    const float scale = p.scale * LOG2_E;
    const Sight sight(p, first);
    const unsigned shared = shared_address(dynamic_shared());
    constexpr int STAGE = Tile<D_K>::BYTES + Tile<D_V>::BYTES;
    float y[M][D_V / 8][4] = {};
    Softmax softmax;
    for_tiles(
        first_key(p, block_first), end_of_keys(p, block_first, QUERIES),
        [&](int key, int stage) {
            Tile<D_K>{shared + stage * STAGE}.fetch(k, key);
            Tile<D_V>{shared + stage * STAGE + Tile<D_K>::BYTES}.fetch(v, key);
        },
        [&](int key, int stage) {
            if (sight.has_none(16 * M, key, TILE)) return;
            float scores[M][TILE / 8][4] = {};
            rows_by_rows(scores, queries, Tile<D_K>{shared + stage * STAGE}, 0);
            if (!sight.has_all(16 * M, key, TILE))
                hide(scores, [&](int row, int column) { return sight.has(row, key + column); });
            soften(scores, y, softmax, scale);
            rows_by_tile(y, scores, Tile<D_V>{shared + stage * STAGE + Tile<D_K>::BYTES}, 0);
        }
    );
    finish(y, softmax, scale, group.numbers(p.log_sums), first, p.tokens);
    write_rows<M, D_V>(y, group.by_queries(p.y, p.d_v), first);
}

// One row (a token's head) by as many lanes as have 8 channels each.
extern "C" __global__ void __launch_bounds__(THREADS) flash_row_sums(const __grid_constant__ FlashParams p) {
    constexpr int LANES = D_V / 8;
    const long long row = (blockIdx.x * (long long)(THREADS) + threadIdx.x) / LANES;
    const int channel = threadIdx.x % LANES * 8;
    float sum = 0;
    if (row < p.rows && channel < p.d_v) {
        float y[8], dy[8];
        load<8>(p.y + row * p.d_v + channel, y);
        load<8>(p.dy + row * p.d_v + channel, dy);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += y[i] * dy[i];
    }
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    if (row >= p.rows || channel) return;
    const long long token = row / p.heads;  // of all sequences
    p.row_sums[(token / p.tokens * p.heads + row % p.heads) * p.tokens + token % p.tokens] = sum;
}

// Scores and dp become p and ds. ``log_sum(m, n, i)`` and ``row_sum(m, n, i)`` are those of an element's query.
template <int ROWS, int N, class LogSum, class RowSum>
DEVICE void soften_backward(
    float (&scores)[ROWS][N][4], float (&d)[ROWS][N][4], float scale, const LogSum& log_sum, const RowSum& row_sum
) {
#pragma unroll
    for (int m = 0; m < ROWS; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                scores[m][n][i] = power_of_two(fmaf(scores[m][n][i], scale, -log_sum(m, n, i)));
                d[m][n][i] = scores[m][n][i] * (d[m][n][i] - row_sum(m, n, i));
            }
}

template <int ROWS, int N> DEVICE void multiply(float (&c)[ROWS][N][4], float factor) {
#pragma unroll
    for (int m = 0; m < ROWS; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[m][n][i] *= factor;
}

// A warp owns keys; scores stand transposed, so that p and ds are left factors as they come.
extern "C" __global__ void __launch_bounds__(THREADS, 2) flash_keys_backward(const __grid_constant__ FlashParams p) {
    const int blocks = (p.tokens + KEYS - 1) / KEYS;
    const Group group{p, int(blockIdx.x / blocks)};
    const int block_first = p.past + blockIdx.x % blocks * KEYS, first = block_first + 16 * MK * warp_of_thread();
    const Rows<const ELEMENT> q = group.by_queries(p.q, p.d_k), dy = group.by_queries(p.dy, p.d_v);
    const OwnRows<MK, D_K> keys(group.by_keys(p.k, p.d_k), first);
    const OwnRows<MK, D_V> values(group.by_keys(p.v, p.d_v), first);
    const float *log_sums = group.numbers(p.log_sums), *row_sums = group.numbers(p.row_sums);
    const float scale = p.scale * LOG2_E;
    const unsigned shared = shared_address(dynamic_shared());
    constexpr int DY = Tile<D_K>::BYTES, LOG_SUMS = DY + Tile<D_V>::BYTES, STAGE = LOG_SUMS + 2 * TILE * 4;
    float dk[MK][D_K / 8][4] = {}, dv[MK][D_V / 8][4] = {};
    for_tiles(
        block_first - p.past, min(p.tokens, block_first - p.past + KEYS - 1 + p.window),
        [&](int query, int stage) {
            const unsigned at = shared + stage * STAGE;
            Tile<D_K>{at}.fetch(q, query);
            Tile<D_V>{at + DY}.fetch(dy, query);
            const int i = threadIdx.x % TILE;
            const bool there = query + i < p.tokens;
            const float* numbers = threadIdx.x < TILE ? log_sums : row_sums;
            copy_4_bytes(at + LOG_SUMS + 4 * threadIdx.x, numbers + (there ? query + i : 0), there);
        },
        [&](int tile_first, int stage) {
            const unsigned at = shared + stage * STAGE;
#pragma unroll 1
            for (int part = 0; part < TILE; part += PART_OF_QUERIES) {
                const int query = tile_first + part;
                const Sight sight(p, query);
                if (sight.has_none(PART_OF_QUERIES, first, 16 * MK)) continue;
                float scores[MK][PART_OF_QUERIES / 8][4] = {}, d[MK][PART_OF_QUERIES / 8][4] = {};
                rows_by_rows(scores, keys, Tile<D_K>{at}, part);
                rows_by_rows(d, values, Tile<D_V>{at + DY}, part);
                if (!sight.has_all(PART_OF_QUERIES, first, 16 * MK))
                    hide(scores, [&](int row, int column) { return sight.has(column, first + row); });
                const float* numbers = reinterpret_cast<float*>(dynamic_shared() + stage * STAGE + LOG_SUMS) + part;
                soften_backward(
                    scores, d, scale, [&](int, int n, int i) { return numbers[column_of(n, i)]; },
                    [&](int, int n, int i) { return numbers[TILE + column_of(n, i)]; }
                );
                rows_by_tile(dv, scores, Tile<D_V>{at + DY}, part);
                rows_by_tile(dk, d, Tile<D_K>{at}, part);
            }
        }
    );
    multiply(dk, p.scale);
    write_rows<MK, D_K>(dk, group.by_queries(p.dk, p.d_k), first - p.past);
    write_rows<MK, D_V>(dv, group.by_queries(p.dv, p.d_v), first - p.past);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) flash_queries_backward(const __grid_constant__ FlashParams p) {
    Group group{p, 0};
    const int block_first = first_query(p, group.index), first = block_first + 16 * M * warp_of_thread();
    const Rows<const ELEMENT> k = group.by_keys(p.k, p.d_k), v = group.by_keys(p.v, p.d_v);
    const OwnRows<M, D_K> queries(group.by_queries(p.q, p.d_k), first);
    const OwnRows<M, D_V> dy(group.by_queries(p.dy, p.d_v), first);
    const float scale = p.scale * LOG2_E;
    const Sight sight(p, first);
    float log_sum[M][2], row_sum[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = first + row_of(m, 2 * half);
            log_sum[m][half] = query < p.tokens ? group.numbers(p.log_sums)[query] : 0;
            row_sum[m][half] = query < p.tokens ? group.numbers(p.row_sums)[query] : 0;
        }
    const unsigned shared = shared_address(dynamic_shared());
    constexpr int STAGE = Tile<D_K>::BYTES + Tile<D_V>::BYTES;
    float dq[M][D_K / 8][4] = {};
    for_tiles(
        first_key(p, block_first), end_of_keys(p, block_first, QUERIES),
        [&](int key, int stage) {
            Tile<D_K>{shared + stage * STAGE}.fetch(k, key);
            Tile<D_V>{shared + stage * STAGE + Tile<D_K>::BYTES}.fetch(v, key);
        },
        [&](int tile_first, int stage) {
            const Tile<D_K> k_tile{shared + stage * STAGE};
            const Tile<D_V> v_tile{shared + stage * STAGE + Tile<D_K>::BYTES};
#pragma unroll 1
            for (int part = 0; part < TILE; part += PART) {
                const int key = tile_first + part;
                if (sight.has_none(16 * M, key, PART)) continue;
                float scores[M][PART / 8][4] = {}, d[M][PART / 8][4] = {};
                rows_by_rows(scores, queries, k_tile, part);
                rows_by_rows(d, dy, v_tile, part);
                if (!sight.has_all(16 * M, key, PART))
                    hide(scores, [&](int row, int column) { return sight.has(row, key + column); });
                soften_backward(
                    scores, d, scale, [&](int m, int, int i) { return log_sum[m][i / 2]; },
                    [&](int m, int, int i) { return row_sum[m][i / 2]; }
                );
                rows_by_tile(dq, d, k_tile, part);
            }
        }
    );
    multiply(dq, p.scale);
    write_rows<M, D_K>(dq, group.by_queries(p.dq, p.d_k), first);
}
