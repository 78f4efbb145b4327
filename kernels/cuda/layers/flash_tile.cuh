// Products of the rows that a warp holds in registers with the rows of a tile in shared memory.
//
// A tile is TILE successive rows of D channels, of 16 bits. A warp holds 16 M rows of its own: row 16 m + g and
// 16 m + g + 8 in a lane (g, t and the fragments A, B, C: mma.cuh). The two products of attention are
//
//   rows_by_rows   c_ij  += sum_d own_id tile_jd     scores, from own rows and the rows of a tile
//   rows_by_tile   c_id  += sum_j w_ij tile_jd       sums of a tile's rows, from weights that are a product's result
#pragma once
#include "layers/element.cuh"
#include "layers/mma.cuh"
#include "runtime/shared.cuh"

#if !defined(TILE) || !defined(THREADS)
#error "TILE, the rows of a tile, and THREADS, those of a block, must be defined"
#endif

DEVICE int lane() { return threadIdx.x % 32; }

// Row and column, among those of the warp, of number i of the fragment C that is m-th down and n-th across.
DEVICE int row_of(int m, int i) { return 16 * m + lane() / 4 + i / 2 * 8; }
DEVICE int column_of(int n, int i) { return 8 * n + lane() % 4 * 2 + i % 2; }

// The rows of one sequence and head in an array (B, rows, H, channels).
template <class T> struct Rows {
    T* first;
    int rows, stride, channels;

    DEVICE Rows(T* array, int group, int heads, int rows, int channels)
        : first(array + (group / heads * (long long)(rows) * heads + group % heads) * channels),
          rows(rows),
          stride(heads * channels),
          channels(channels) {}

    DEVICE T* at(int row) const { return first + row * (long long)(stride); }
};

// A tile in shared memory. A row's pieces of 16 bytes are stored in another order in each of eight successive rows: so
// the eight rows that one matrix of ldmatrix takes lie in different banks, without padding.
template <int D> struct Tile {
    static constexpr int BYTES = TILE * D * 2;
    unsigned address;

    DEVICE unsigned at(int row, int piece) const { return address + row * (2 * D) + (piece ^ row % 8) * 16; }

    // Starts copies of the rows from ``first`` on, by all threads of the block; zeros where there is no row or channel.
    DEVICE void fetch(const Rows<const ELEMENT>& from, int first) const {
        constexpr int STEP = THREADS / (D / 8);  // rows that the block copies at a time
        const int row = threadIdx.x / (D / 8), piece = threadIdx.x % (D / 8);
        const ELEMENT* source = from.at(first + row) + 8 * piece;
        const int rows = 8 * piece < from.channels ? from.rows - first : 0;
#pragma unroll
        for (int next = 0; next < TILE; next += STEP, source += STEP * from.stride)
            copy_16_bytes(at(row, piece) + next * (2 * D), source, row + next < rows);
    }
};

// The warp's own 16 M rows as left factors, for as long as the block lasts: they come from device memory once.
template <int M, int D> struct OwnRows {
    unsigned a[M][D / 16][4];

    // The rows from ``first`` on; zeros where there is no row or channel.
    DEVICE OwnRows(const Rows<const ELEMENT>& from, int first) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int d = 0; d < D / 16; d++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int row = first + 16 * m + lane() / 4 + i % 2 * 8, channel = 16 * d + lane() % 4 * 2 + i / 2 * 8;
                    const bool there = row < from.rows && channel < from.channels;
                    a[m][d][i] = there ? *reinterpret_cast<const unsigned*>(from.at(row) + channel) : 0;
                }
    }
};

// c (16 M x 8 N) += own rows times the rows of the tile from ``first`` on
template <int M, int D, int N>
DEVICE void rows_by_rows(float (&c)[M][N][4], const OwnRows<M, D>& own, const Tile<D>& tile, int first) {
#pragma unroll
    for (int d = 0; d < D / 16; d++)
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            // a row of the tile is a column of B: two B of 8 rows each, channels 0-7 and 8-15 of the 16
            unsigned b[4];
            load_matrices(tile.at(first + 8 * n + lane() % 8 + lane() / 16 * 8, 2 * d + lane() / 8 % 2), b);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(c[m][n], own.a[m][d], b[0], b[1], ELEMENT());
                multiply_add(c[m][n + 1], own.a[m][d], b[2], b[3], ELEMENT());
            }
        }
}

// c (16 M x D) += weights (16 M x 8 N), rounded to 16 bits, times the rows of the tile from ``first`` on
template <int M, int D, int N>
DEVICE void rows_by_tile(float (&c)[M][D / 8][4], const float (&weights)[M][N][4], const Tile<D>& tile, int first) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[m][i] = packed(weights[m][n + i / 2][i % 2 * 2], weights[m][n + i / 2][i % 2 * 2 + 1], ELEMENT());
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            // a row of the tile is a row of B: rows 0-7 and 8-15 of the 16, two B of 8 channels each
            unsigned b[4];
            load_matrices_transposed(tile.at(first + 8 * n + lane() % 16, d + lane() / 16), b);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(c[m][d], a[m], b[0], b[1], ELEMENT());
                multiply_add(c[m][d + 1], a[m], b[2], b[3], ELEMENT());
            }
        }
    }
}

// Writes the warp's rows from ``first`` on, rounded to 16 bits; what lies outside of the array is left out.
template <int M, int D> DEVICE void write_rows(const float (&c)[M][D / 8][4], const Rows<ELEMENT>& to, int first) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int d = 0; d < D / 8; d++)
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const int row = first + row_of(m, i), channel = column_of(d, i);
                if (row < to.rows && channel < to.channels)
                    *reinterpret_cast<unsigned*>(to.at(row) + channel) = packed(c[m][d][i], c[m][d][i + 1], ELEMENT());
            }
}

// Calls compute(first, stage) for every tile of rows [begin, end), while the copies that fetch(first, stage) starts bring
// the next tile into the other of two stages.
template <class Fetch, class Compute>
DEVICE void for_tiles(int begin, int end, const Fetch& fetch, const Compute& compute) {
    fetch(begin, 0);
    end_group_of_copies();
    for (int first = begin, stage = 0; first < end; first += TILE, stage ^= 1) {
        wait_for_copies<0>();
        __syncthreads();  // this tile is there, and nobody reads the other stage any more
        if (first + TILE < end) fetch(first + TILE, stage ^ 1);
        end_group_of_copies();
        compute(first, stage);
    }
}
