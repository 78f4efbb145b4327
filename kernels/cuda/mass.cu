// The masses of the slots, and all of the memory's gradients that do not depend on channels: two scans over the tokens.
//
//     forward   z[row] = alpha(w) z[row] + w,  eta = w / (z[row] + eps);  mass-aware reads weigh by z[row]
//     backward  the same in reverse, with the adjoint of z
//
// The forward writes the events that content.cu works through. The backward is given <d, v> of every write and <dy, s>
// of every read, with s a slot's content and d its adjoint, but not the content that a write found, which no pass
// keeps. It needs of it only <d, found>, and that follows from what it has: q = <d, s> of a slot changes by known
// amounts,
//
//     at a read   q += r <dy, s>                      (in reverse time, before the read)
//     at a write  q -= eta <d, v>,  and then q = (1 - eta) <d, found>.
//
// Only the product with 1 - eta is known, so nothing may be divided by 1 - eta, which can be tiny; with
// kappa = 1 - eta = (alpha z' + eps) / (z + eps), z' the mass before, the gradients are
//
//     kappa deta = kappa <d, v> - q =: e
//     dz -= eta e / (alpha z' + eps),   dalpha = dz z',   dw = e / (z + eps) + dz (before) + dalpha alpha'(w)
//
// That is as exact as w stays away from 1. At most one weight of a token is above 1/2, its first; for that one the
// passes over the contents do compute <d, found>.
//
// Who computes what: one block a (batch, head), with the masses in shared memory (device memory if there are too many
// rows). Only z's own recurrence goes token by token, and its chain is kept short. The first warp follows it through a
// tile of TOKENS tokens; meanwhile the others prepare the next tile, from device memory into what the recurrence needs
// as numbers, and finish the one before:
//
//     first warp    ..        tile n - 1   tile n           tile n + 1
//     the others    ..        prepare n    prepare n + 1    prepare n + 2
//                             finish n-2   finish n - 1     finish n
//
// In the first warp a token takes LANES lanes, one an event (or several, if K is above 32).
//
// Compiled with: ELEMENT (of gamma), WRITES and READS (K), GROUPS (of content.cu, for the padding), MASS_AWARE, IN_SHARED.
#include "memory.cuh"

using Sum = SumOf<ELEMENT>::type;
using TokenEvent = Event<Sum>;

constexpr int W = padded(WRITES, GROUPS), R = padded(READS, GROUPS);
constexpr int MORE = W > R ? W : R;
constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }
constexpr int LANES = power_of_two(MORE) < 32 ? power_of_two(MORE) : 32;
constexpr int AT_ONCE = 32 / LANES;                                              // tokens
constexpr int OWN_W = (W + LANES - 1) / LANES, OWN_R = (R + LANES - 1) / LANES;  // events of a lane: lane, lane + LANES, ..
constexpr int IN_TILE = 512 / power_of_two(MORE);
constexpr int TOKENS = IN_TILE > 64 ? 64 : IN_TILE < 1 ? 1 : IN_TILE;
constexpr int THREADS = 544, HELPERS = THREADS - 32;  // an event of a tile a helper

// What holds for a whole call, and the parameters that both kernels start with.
struct Call {
    int tokens, heads, rows;          // T, H; rows that hold slots
    const int *write_row, *read_row;  // (B, T, H, K); a read's row may be -1: a slot that nothing is written to
    const Sum *write_weight, *read_weight;
    const ELEMENT* gamma;  // (B, T, H), or null:
    Sum one_gamma;
    const bool* mask;  // (B, T), or null
    Sum eps, initial;  // initial: mass of a slot before its first write
    Retention<Sum> retention;

    DEVICE long long row_of(int t) const { return ((long long)(blockIdx.x / heads) * tokens + t) * heads + blockIdx.x % heads; }
    DEVICE bool kept(int t) const { return !mask || mask[(long long)(blockIdx.x / heads) * tokens + t]; }
    DEVICE bool live(int t) const { return t < tokens && kept(t); }
    DEVICE Sum gamma_of(int t) const { return gamma ? widen(gamma[row_of(t)]) : one_gamma; }
};

#define CALL_PARAMETERS                                                                                                  \
    int tokens, int heads, int rows, const int *write_row, const int *read_row, const Sum *write_weight,                 \
        const Sum *read_weight, const ELEMENT *gamma, Sum one_gamma, const bool *mask, Sum eps,          \
        Sum initial, int gsu, Sum proxy_eps, Sum smallest
#define CALL                                                                                                             \
    {tokens, heads, rows, write_row, read_row, write_weight, read_weight, gamma, one_gamma, mask, eps,       \
     initial, {gsu, proxy_eps, smallest}}

// Numbers of the rows, in shared memory or, if they are too many, in device memory; 0 for ``rows``, the row of events
// that do nothing.
struct Numbers {
    Sum* at;
    int rows;

    DEVICE Sum get(int row) const { return row < rows ? at[row] : Sum(0); }
    DEVICE void set(int row, Sum x) const {
        if (row < rows) at[row] = x;
    }
};

// Runs prepare, follow and finish over the tiles 0 .. count - 1, as drawn above.
template <class Prepare, class Follow, class Finish>
DEVICE void pipeline(int count, const Prepare& prepare, const Follow& follow, const Finish& finish) {
    const int warp = warp_of_thread();
    for (int n = -1; n <= count; n++) {
        if (warp == 0) {
            if (n >= 0 && n < count) follow(n);
        } else {
            if (n + 1 < count) prepare(n + 1, int(threadIdx.x) - 32);
            if (n > 0) finish(n - 1, int(threadIdx.x) - 32);
        }
        __syncthreads();
    }
}

struct ForwardTile {
    int write_row[TOKENS][W], read_row[TOKENS][R];
    Sum alpha[TOKENS][W], w[TOKENS][W], before[TOKENS][W];  // before: mass that the write found
    Sum r[TOKENS][R], at_read[TOKENS][MASS_AWARE ? R : 1];
};

extern "C" __global__ void __launch_bounds__(544) mass_forward(
    CALL_PARAMETERS,
    const Sum* given, Sum* working, Sum* final_mass,  // (B*H, rows) each, or null; working only if not IN_SHARED
    TokenEvent* __restrict__ events,                  // (B*H, T, W + R)
    Sum* __restrict__ old_mass,                       // (B*H, T, WRITES): before each write
    Sum* __restrict__ read_mass                       // (B*H, T, READS), or null
) {
    const Call call = CALL;
    const long long unit = blockIdx.x;
    ForwardTile* tiles = reinterpret_cast<ForwardTile*>(on_chip());
    const Numbers z{IN_SHARED ? reinterpret_cast<Sum*>(tiles + 3) : working + unit * rows, rows};
    if (IN_SHARED)
        for (int row = threadIdx.x; row < rows; row += THREADS)
            z.at[row] = given ? given[unit * rows + row] : call.initial;

    // 1. what needs no mass
    const auto prepare = [&](int n, int helper) {
        ForwardTile& tile = tiles[n % 3];
        for (int i = helper; i < TOKENS * W; i += HELPERS) {
            const int token = i / W, k = i % W, t = n * TOKENS + token;
            const bool live = k < WRITES && call.live(t);
            const Sum w = live ? call.write_weight[call.row_of(t) * WRITES + k] : Sum(0);
            tile.write_row[token][k] = live ? call.write_row[call.row_of(t) * WRITES + k] : rows;
            tile.w[token][k] = w;
            tile.alpha[token][k] = live ? call.retention(w, call.gamma_of(t)) : Sum(1);
        }
        for (int i = helper; i < TOKENS * R; i += HELPERS) {
            const int token = i / R, k = i % R, t = n * TOKENS + token;
            const bool live = k < READS && call.live(t);
            tile.read_row[token][k] = live ? call.read_row[call.row_of(t) * READS + k] : -1;
            tile.r[token][k] = live ? call.read_weight[call.row_of(t) * READS + k] : Sum(0);
        }
    };
    // 2. z = alpha z + w, token by token
    const auto follow = [&](int n) {
        ForwardTile& tile = tiles[n % 3];
        const int turn = int(threadIdx.x) / LANES, k0 = int(threadIdx.x) % LANES;
        for (int first = 0; first < TOKENS; first += AT_ONCE) {
            const int own = first + turn;
            int row[OWN_W], read_row[OWN_R];
            Sum alpha[OWN_W], w[OWN_W], before[OWN_W], at_read[OWN_R];
#pragma unroll
            for (int e = 0; e < OWN_W; e++) {
                const int k = k0 + e * LANES;
                row[e] = k < W ? tile.write_row[own][k] : rows;
                alpha[e] = k < W ? tile.alpha[own][k] : Sum(1);
                w[e] = k < W ? tile.w[own][k] : Sum(0);
            }
            if (MASS_AWARE)
#pragma unroll
                for (int e = 0; e < OWN_R; e++) read_row[e] = k0 + e * LANES < R ? tile.read_row[own][k0 + e * LANES] : -1;
#pragma unroll
            for (int token = 0; token < AT_ONCE; token++) {
                if (turn == token) {
#pragma unroll
                    for (int e = 0; e < OWN_W; e++) before[e] = z.get(row[e]);
#pragma unroll
                    for (int e = 0; e < OWN_W; e++) z.set(row[e], alpha[e] * before[e] + w[e]);
                }
                __syncwarp();
                if (MASS_AWARE) {
                    if (turn == token)
#pragma unroll
                        for (int e = 0; e < OWN_R; e++) at_read[e] = read_row[e] < 0 ? call.initial : z.get(read_row[e]);
                    __syncwarp();
                }
            }
#pragma unroll
            for (int e = 0; e < OWN_W; e++)
                if (k0 + e * LANES < W) tile.before[own][k0 + e * LANES] = before[e];
            if (MASS_AWARE)
#pragma unroll
                for (int e = 0; e < OWN_R; e++)
                    if (k0 + e * LANES < R) tile.at_read[own][k0 + e * LANES] = at_read[e];
        }
    };
    // 3. eta, the weights of the reads, and the events
    const auto finish = [&](int n, int helper) {
        const ForwardTile& tile = tiles[n % 3];
        for (int i = helper; i < TOKENS * W; i += HELPERS) {
            const int token = i / W, k = i % W, t = n * TOKENS + token;
            if (t >= tokens) continue;
            const Sum w = tile.w[token][k], before = tile.before[token][k];
            const bool live = tile.write_row[token][k] < rows;
            events[(unit * tokens + t) * (W + R) + k] = {
                live ? tile.write_row[token][k] : rows + k / (W / GROUPS), live ? w / (tile.alpha[token][k] * before + w + call.eps) : Sum(0)};
            if (k < WRITES) old_mass[(unit * tokens + t) * WRITES + k] = before;
        }
        for (int i = helper; i < TOKENS * R; i += HELPERS) {
            const int token = i / R, k = i % R, t = n * TOKENS + token;
            if (t >= tokens) continue;
            const bool live = tile.read_row[token][k] >= 0;
            const Sum* r = tile.r[token];
            Sum weight = r[k];
            if (MASS_AWARE && live) {
                Sum total = 0, weighted = 0;
                for (int j = 0; j < READS; j++) total += r[j], weighted += r[j] * tile.at_read[token][j];
                weight *= total * tile.at_read[token][k] / (weighted + call.eps);
            }
            events[(unit * tokens + t) * (W + R) + W + k] = {live ? tile.read_row[token][k] : rows + GROUPS + k / (R / GROUPS), weight};
            if (MASS_AWARE && k < READS) read_mass[(unit * tokens + t) * READS + k] = tile.at_read[token][k];
        }
    };
    __syncthreads();
    pipeline((tokens + TOKENS - 1) / TOKENS, prepare, follow, finish);
    if (IN_SHARED && final_mass)
        for (int row = threadIdx.x; row < rows; row += THREADS) final_mass[unit * rows + row] = z.at[row];
}

// In terms of the numbers below a write takes the adjoint dz of its mass, and q, to (in reverse time)
//
//     q = after_q q + b,   pull = p - g q,   dz = alpha (dz - pull)
//
// and dw = u - h q + dz' + slope (dz' - pull), with dz' the adjoint before and ``slope`` the mass found times alpha'(w).
struct BackwardTile {
    int write_row[TOKENS][W], read_row[TOKENS][R];
    Sum alpha[TOKENS][W], b[TOKENS][W], g[TOKENS][W], p[TOKENS][W];
    Sum u[TOKENS][W], h[TOKENS][W], slope[TOKENS][W], slope_gamma[TOKENS][W];
    Sum q[TOKENS][W], dz[TOKENS][W];  // after and before the write
    Sum gain[TOKENS][R], dmass[TOKENS][MASS_AWARE ? R : 1];
};

DEVICE Sum sum_of_slices(const Sum* parts, int slices, long long stride) {
    Sum sum = 0;
    for (int slice = 0; slice < slices; slice += 4) {
        Sum part[4];  // loaded together
#pragma unroll
        for (int i = 0; i < 4; i++) part[i] = slice + i < slices ? parts[(slice + i) * stride] : Sum(0);
        sum += (part[0] + part[1]) + (part[2] + part[3]);
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(544) mass_backward(
    CALL_PARAMETERS, int slices, const Sum* __restrict__ old_mass, const Sum* __restrict__ read_mass,
    const Sum* __restrict__ dwritten, const Sum* __restrict__ dfound, const Sum* __restrict__ dread,  // parts of content.cu
    const Sum* last,           // (slices, B*H, rows): <dstate, s> after the last token, or null for 0
    const Sum* dfinal_mass,    // (B*H, rows), or null for 0
    Sum* working,              // (B*H, 2, rows) if not IN_SHARED, all 0
    Sum* __restrict__ dw,      // (B, T, H, WRITES)
    Sum* __restrict__ dr,      // (B, T, H, READS)
    Sum* __restrict__ dgamma,  // (B, T, H)
    Sum* dgiven_mass           // (B*H, rows), or null
) {
    const Call call = CALL;
    const long long unit = blockIdx.x, all = (long long)(gridDim.x) * tokens;
    BackwardTile* tiles = reinterpret_cast<BackwardTile*>(on_chip());
    Sum* numbers = IN_SHARED ? reinterpret_cast<Sum*>(tiles + 3) : working + unit * 2 * rows;
    const Numbers dz{numbers, rows}, q{numbers + rows, rows};
    if (IN_SHARED || last)
        for (int row = threadIdx.x; row < rows; row += THREADS) {
            q.set(row, last ? sum_of_slices(last + unit * rows + row, slices, (long long)(gridDim.x) * rows) : Sum(0));
            dz.set(row, dfinal_mass ? dfinal_mass[unit * rows + row] : Sum(0));
        }
    const int count = (tokens + TOKENS - 1) / TOKENS;
    const auto first_of = [&](int n) { return (count - 1 - n) * TOKENS; };  // tiles come last to first

    // 1. what needs no adjoint
    const auto prepare = [&](int n, int helper) {
        BackwardTile& tile = tiles[n % 3];
        for (int i = helper; i < TOKENS * W; i += HELPERS) {
            const int token = i / W, k = i % W, t = first_of(n) + token;
            const bool live = k < WRITES && call.live(t);
            const long long at = unit * tokens + t, row = call.row_of(t) * WRITES + k;
            const Sum w = live ? call.write_weight[row] : Sum(0), gamma_t = live ? call.gamma_of(t) : Sum(1);
            const Sum before = live ? old_mass[at * WRITES + k] : Sum(1);
            const Sum dot = live ? sum_of_slices(dwritten + at * W + k, slices, all * W) : Sum(0);  // <d, v>
            const Sum dot_found = live && k == 0 ? sum_of_slices(dfound + at, slices, all) : Sum(0);
            const Sum alpha = call.retention(w, gamma_t);
            Sum slope, slope_gamma;
            call.retention.slopes(w, gamma_t, alpha, slope, slope_gamma);
            const Sum kept_mass = alpha * before + call.eps, mass = kept_mass + w;
            const Sum eta = w / mass, kappa = kept_mass / mass;
            tile.write_row[token][k] = live ? call.write_row[row] : rows;
            tile.alpha[token][k] = alpha;
            tile.slope[token][k] = before * slope;
            tile.slope_gamma[token][k] = before * slope_gamma;
            if (k == 0) {  // <d, found> is known
                const Sum deta = (dot - dot_found) / mass, pull = eta * deta;
                tile.b[token][k] = kappa * dot_found;
                tile.g[token][k] = 0, tile.p[token][k] = pull;
                tile.h[token][k] = 0, tile.u[token][k] = deta - pull;
            } else {
                const Sum g = kept_mass > 0 ? eta / kept_mass : Sum(0);
                tile.b[token][k] = -eta * dot;
                tile.g[token][k] = g, tile.p[token][k] = g * (kappa * dot);
                tile.h[token][k] = 1 / mass, tile.u[token][k] = kappa * dot / mass;
            }
        }
        for (int i = helper; i < TOKENS * R; i += HELPERS) {
            const int token = i / R, k = i % R, t = first_of(n) + token;
            const bool live = k < READS && call.live(t);
            const long long at = unit * tokens + t, row = call.row_of(t) * READS;
            const int to = live ? call.read_row[row + k] : -1;
            const auto dot = [&](int j) {  // <dy, s>, 0 for a slot that nothing is written to
                return call.read_row[row + j] < 0 ? Sum(0) : sum_of_slices(dread + at * R + j, slices, all * R);
            };
            Sum dweight = live ? dot(k) : Sum(0), gain = live ? call.read_weight[row + k] * dweight : Sum(0), dmass = 0;
            if (MASS_AWARE && live) {
                Sum total = 0, weighted = call.eps, through = 0;
                for (int j = 0; j < READS; j++) {
                    const Sum r = call.read_weight[row + j], n_j = r * read_mass[at * READS + j];
                    total += r, weighted += n_j, through += dot(j) * n_j;
                }
                through /= weighted;
                const Sum z = read_mass[at * READS + k], dn = (dweight - through) * total / weighted;
                gain *= total * z / weighted;
                dweight = dn * z + through;
                dmass = dn * call.read_weight[row + k];
            }
            tile.read_row[token][k] = to < 0 ? rows : to;
            tile.gain[token][k] = to < 0 ? Sum(0) : gain;
            if (MASS_AWARE) tile.dmass[token][k] = to < 0 ? Sum(0) : dmass;
            if (k < READS && t < tokens) dr[row + k] = dweight;
        }
    };
    // 2. token by token, in reverse: reads, then writes
    const auto follow = [&](int n) {
        BackwardTile& tile = tiles[n % 3];
        const int turn = int(threadIdx.x) / LANES, k0 = int(threadIdx.x) % LANES;
        for (int first = TOKENS - AT_ONCE; first >= 0; first -= AT_ONCE) {
            const int own = first + turn;
            int row[OWN_W], read_row[OWN_R];
            Sum alpha[OWN_W], b[OWN_W], g[OWN_W], p[OWN_W], q_after[OWN_W], dz_before[OWN_W], gain[OWN_R], dmass[OWN_R];
#pragma unroll
            for (int e = 0; e < OWN_W; e++) {
                const int k = k0 + e * LANES;
                const bool has = k < W;
                row[e] = has ? tile.write_row[own][k] : rows;
                alpha[e] = has ? tile.alpha[own][k] : Sum(0);
                b[e] = has ? tile.b[own][k] : Sum(0), g[e] = has ? tile.g[own][k] : Sum(0);
                p[e] = has ? tile.p[own][k] : Sum(0);
            }
#pragma unroll
            for (int e = 0; e < OWN_R; e++) {
                const int k = k0 + e * LANES;
                read_row[e] = k < R ? tile.read_row[own][k] : rows;
                gain[e] = k < R ? tile.gain[own][k] : Sum(0);
                if (MASS_AWARE) dmass[e] = k < R ? tile.dmass[own][k] : Sum(0);
            }
#pragma unroll
            for (int token = AT_ONCE - 1; token >= 0; token--) {
                if (turn == token)
#pragma unroll
                    for (int e = 0; e < OWN_R; e++) {
                        q.set(read_row[e], q.get(read_row[e]) + gain[e]);
                        if (MASS_AWARE) dz.set(read_row[e], dz.get(read_row[e]) + dmass[e]);
                    }
                __syncwarp();
                if (turn == token) {
#pragma unroll
                    for (int e = 0; e < OWN_W; e++) {
                        q_after[e] = q.get(row[e]), dz_before[e] = dz.get(row[e]);
                        q_after[e] = k0 + e ? q_after[e] + b[e] : b[e];
                        q.set(row[e], q_after[e]);
                        dz.set(row[e], alpha[e] * (dz_before[e] - (p[e] - g[e] * q_after[e])));
                    }
                }
                __syncwarp();
            }
#pragma unroll
            for (int e = 0; e < OWN_W; e++)
                if (k0 + e * LANES < W) {
                    tile.q[own][k0 + e * LANES] = q_after[e];
                    tile.dz[own][k0 + e * LANES] = dz_before[e];
                }
        }
    };
    // 3. the gradients of weights and gamma
    const auto finish = [&](int n, int helper) {
        const BackwardTile& tile = tiles[n % 3];
        const auto dz_after = [&](int token, int k) {
            return tile.dz[token][k] - (tile.p[token][k] - tile.g[token][k] * tile.q[token][k]);
        };
        for (int i = helper; i < TOKENS * WRITES; i += HELPERS) {
            const int token = i / WRITES, k = i % WRITES, t = first_of(n) + token;
            if (t >= tokens) continue;
            const Sum through_eta = tile.u[token][k] - tile.h[token][k] * tile.q[token][k];
            const bool live = tile.write_row[token][k] < rows;
            const Sum dweight = through_eta + tile.dz[token][k] + dz_after(token, k) * tile.slope[token][k];
            dw[call.row_of(t) * WRITES + k] = live ? dweight : Sum(0);
        }
        for (int token = helper; token < TOKENS && first_of(n) + token < tokens; token += HELPERS) {
            Sum sum = 0;
            for (int k = 0; k < WRITES; k++)
                if (tile.write_row[token][k] < rows) sum += dz_after(token, k) * tile.slope_gamma[token][k];
            dgamma[call.row_of(first_of(n) + token)] = sum;
        }
    };
    __syncthreads();
    pipeline(count, prepare, follow, finish);
    if (dgiven_mass)
        for (int row = threadIdx.x; row < rows; row += THREADS) dgiven_mass[unit * rows + row] = dz.get(row);
}
