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
// Who computes what: one warp a (batch, head), with the masses in shared memory (device memory if there are too many
// rows). A token takes LANES lanes, one an event (or more, if K is above 32), and 32 / LANES tokens are read, and
// their parallel part computed, at once; only z's own recurrence goes token by token.
//
// Compiled with: ELEMENT (of gamma), WRITES and READS (K), GROUPS (of content.cu, for the padding), IN_SHARED.
#include "memory.cuh"

using Sum = SumOf<ELEMENT>::type;
using TokenEvent = Event<Sum>;

constexpr int W = padded(WRITES, GROUPS), R = padded(READS, GROUPS);
constexpr int MORE = W > R ? W : R;
constexpr int LANES = MORE > 16 ? 32 : MORE > 8 ? 16 : MORE > 4 ? 8 : 4;
constexpr int AT_ONCE = 32 / LANES;                                            // tokens
constexpr int OWN_W = (W + LANES - 1) / LANES, OWN_R = (R + LANES - 1) / LANES;  // events of a lane: lane, lane + LANES, ..

DEVICE Sum sum_over_token(Sum x) {
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// What holds for a whole call, and the parameters that both kernels start with.
struct Call {
    int tokens, heads, rows;          // T, H; rows that hold slots
    const int *write_row, *read_row;  // (B, T, H, K); a read's row may be -1: a slot that nothing is written to
    const Sum *write_weight, *read_weight;
    const ELEMENT* gamma;  // (B, T, H), or null:
    Sum one_gamma;
    const bool* mask;  // (B, T), or null
    int mass_aware;
    Sum eps, initial;  // initial: mass of a slot before its first write
    Retention<Sum> retention;

    DEVICE long long row_of(int t) const { return ((long long)(blockIdx.x / heads) * tokens + t) * heads + blockIdx.x % heads; }
    DEVICE bool kept(int t) const { return !mask || mask[(long long)(blockIdx.x / heads) * tokens + t]; }
    DEVICE Sum gamma_of(int t) const { return gamma ? widen(gamma[row_of(t)]) : one_gamma; }
};

#define CALL_PARAMETERS                                                                                                  \
    int tokens, int heads, int rows, const int *write_row, const int *read_row, const Sum *write_weight,                 \
        const Sum *read_weight, const ELEMENT *gamma, Sum one_gamma, const bool *mask, int mass_aware, Sum eps,          \
        Sum initial, int gsu, Sum proxy_eps, Sum smallest
#define CALL                                                                                                             \
    {tokens, heads, rows, write_row, read_row, write_weight, read_weight, gamma, one_gamma, mask, mass_aware, eps,       \
     initial, {gsu, proxy_eps, smallest}}

// The inputs of one lane for its token, loaded long before they are used.
struct Inputs {
    int write_row[OWN_W], read_row[OWN_R];
    Sum w[OWN_W], r[OWN_R], gamma;
    bool kept;

    DEVICE void load(const Call& call, int t, int k0) {
        kept = t >= 0 && t < call.tokens && call.kept(t);
        gamma = kept ? call.gamma_of(t) : Sum(1);
        const long long at = kept ? call.row_of(t) : 0;
#pragma unroll
        for (int e = 0; e < OWN_W; e++) {
            const int k = k0 + e * LANES;
            const bool live = kept && k < WRITES;
            write_row[e] = live ? call.write_row[at * WRITES + k] : -1;
            w[e] = live ? call.write_weight[at * WRITES + k] : Sum(0);
        }
#pragma unroll
        for (int e = 0; e < OWN_R; e++) {
            const int k = k0 + e * LANES;
            const bool live = kept && k < READS;
            read_row[e] = live ? call.read_row[at * READS + k] : -1;
            r[e] = live ? call.read_weight[at * READS + k] : Sum(0);
        }
    }
};

extern __shared__ double shared_memory[];

extern "C" __global__ void __launch_bounds__(32) mass_forward(
    CALL_PARAMETERS,
    const Sum* given, Sum* working, Sum* final_mass,  // (B*H, rows) each, or null; working only if not IN_SHARED
    TokenEvent* __restrict__ events,                  // (B*H, T, W + R)
    Sum* __restrict__ old_mass,                       // (B*H, T, WRITES): before each write
    Sum* __restrict__ read_mass                       // (B*H, T, READS), or null
) {
    const Call call = CALL;
    const long long unit = blockIdx.x;
    const int lane = threadIdx.x, k0 = lane % LANES, turn = lane / LANES;
    Sum* z = IN_SHARED ? reinterpret_cast<Sum*>(shared_memory) : working + unit * call.rows;
    if (IN_SHARED) {
        for (int row = lane; row < call.rows; row += 32) z[row] = given ? given[unit * call.rows + row] : call.initial;
        __syncwarp();
    }
    Inputs next;
    next.load(call, turn, k0);
    for (int t0 = 0; t0 < call.tokens; t0 += AT_ONCE) {
        const Inputs now = next;
        const int t = t0 + turn;
        next.load(call, t + AT_ONCE, k0);
        // 1. what needs no mass
        Sum alpha[OWN_W], before[OWN_W], after[OWN_W], at_read[OWN_R];
#pragma unroll
        for (int e = 0; e < OWN_W; e++) alpha[e] = call.retention(now.w[e], now.gamma), before[e] = after[e] = 1;
#pragma unroll
        for (int e = 0; e < OWN_R; e++) at_read[e] = call.initial;
        // 2. z = alpha z + w, token by token
#pragma unroll
        for (int token = 0; token < AT_ONCE; token++) {
            if (turn == token) {
#pragma unroll
                for (int e = 0; e < OWN_W; e++)
                    if (now.write_row[e] >= 0) {
                        before[e] = z[now.write_row[e]];
                        after[e] = alpha[e] * before[e] + now.w[e];
                        z[now.write_row[e]] = after[e];
                    }
            }
            __syncwarp();
            if (call.mass_aware) {
                if (turn == token) {
#pragma unroll
                    for (int e = 0; e < OWN_R; e++)
                        if (now.read_row[e] >= 0) at_read[e] = z[now.read_row[e]];
                }
                __syncwarp();
            }
        }
        // 3. eta, the weights of the reads, and the events
        Sum scale = 1;
        if (call.mass_aware) {
            Sum total = 0, weighted = 0;
#pragma unroll
            for (int e = 0; e < OWN_R; e++) total += now.r[e], weighted += now.r[e] * at_read[e];
            scale = sum_over_token(total) / (sum_over_token(weighted) + call.eps);
        }
        if (t >= call.tokens) continue;
        TokenEvent* to = events + (unit * call.tokens + t) * (W + R);
#pragma unroll
        for (int e = 0; e < OWN_W; e++) {
            const int k = k0 + e * LANES;
            const bool live = now.write_row[e] >= 0;
            if (k < W) to[k] = {live ? now.write_row[e] : call.rows, live ? now.w[e] / (after[e] + call.eps) : 0};
            if (k < WRITES) old_mass[(unit * call.tokens + t) * WRITES + k] = before[e];
        }
#pragma unroll
        for (int e = 0; e < OWN_R; e++) {
            const int k = k0 + e * LANES;
            const bool live = now.read_row[e] >= 0;
            const Sum weight = call.mass_aware ? scale * now.r[e] * at_read[e] : now.r[e];
            if (k < R) to[W + k] = {live ? now.read_row[e] : call.rows + 1, live ? weight : 0};
            if (call.mass_aware && k < READS) read_mass[(unit * call.tokens + t) * READS + k] = at_read[e];
        }
    }
    if (IN_SHARED && final_mass) {
        __syncwarp();
        for (int row = lane; row < call.rows; row += 32) final_mass[unit * call.rows + row] = z[row];
    }
}

// What the backward needs of one token beside its inputs.
struct Gradients {
    Sum before[OWN_W], dwritten[OWN_W], dfound, at_read[OWN_R], dread[OWN_R];

    DEVICE void load(
        const Call& call, int t, int k0, int slices, const Sum* old_mass, const Sum* read_mass, const Sum* dwritten_parts,
        const Sum* dfound_parts, const Sum* dread_parts, const Inputs& inputs
    ) {
        const long long at = (long long)(blockIdx.x) * call.tokens + t, all = (long long)(gridDim.x) * call.tokens;
        dfound = 0;
        if (inputs.kept && k0 == 0)
            for (int slice = 0; slice < slices; slice++) dfound += dfound_parts[slice * all + at];
#pragma unroll
        for (int e = 0; e < OWN_W; e++) {
            const int k = k0 + e * LANES;
            before[e] = 1, dwritten[e] = 0;
            if (!inputs.kept || k >= WRITES) continue;
            before[e] = old_mass[at * WRITES + k];
            for (int slice = 0; slice < slices; slice++) dwritten[e] += dwritten_parts[(slice * all + at) * W + k];
        }
#pragma unroll
        for (int e = 0; e < OWN_R; e++) {
            const int k = k0 + e * LANES;
            at_read[e] = call.initial, dread[e] = 0;
            if (!inputs.kept || inputs.read_row[e] < 0) continue;
            if (call.mass_aware) at_read[e] = read_mass[at * READS + k];
            for (int slice = 0; slice < slices; slice++) dread[e] += dread_parts[(slice * all + at) * R + k];
        }
    }
};

extern "C" __global__ void __launch_bounds__(32) mass_backward(
    CALL_PARAMETERS, int slices, const Sum* old_mass, const Sum* read_mass,
    const Sum* dwritten, const Sum* dfound, const Sum* dread,  // partial sums of content.cu
    const Sum* last,           // (slices, B*H, rows): <dstate, s> after the last token, or null for 0
    const Sum* dfinal_mass,    // (B*H, rows), or null for 0
    Sum* working,              // (B*H, 2, rows) if not IN_SHARED, all 0
    Sum* __restrict__ dw,      // (B, T, H, WRITES)
    Sum* __restrict__ dr,      // (B, T, H, READS)
    Sum* __restrict__ dgamma,  // (B, T, H)
    Sum* dgiven_mass           // (B*H, rows), or null
) {
    const Call call = CALL;
    const long long unit = blockIdx.x;
    const int lane = threadIdx.x, k0 = lane % LANES, turn = lane / LANES;
    Sum* dz = IN_SHARED ? reinterpret_cast<Sum*>(shared_memory) : working + unit * 2 * rows;
    Sum* q = dz + rows;
    if (IN_SHARED || last)
        for (int row = lane; row < rows; row += 32) {
            Sum sum = 0;
            if (last)
                for (int slice = 0; slice < slices; slice++) sum += last[(slice * (long long)(gridDim.x) + unit) * rows + row];
            q[row] = sum;
            dz[row] = dfinal_mass ? dfinal_mass[unit * rows + row] : 0;
        }
    __syncwarp();

    const int groups = (call.tokens + AT_ONCE - 1) / AT_ONCE;
    Inputs next;
    Gradients next_gradients;
    const auto load = [&](int t) {
        next.load(call, t, k0);
        next_gradients.load(call, t, k0, slices, old_mass, read_mass, dwritten, dfound, dread, next);
    };
    load((groups - 1) * AT_ONCE + turn);
    for (int group = groups - 1; group >= 0; group--) {
        const Inputs now = next;
        const Gradients g = next_gradients;
        const int t = group * AT_ONCE + turn;
        load(t - AT_ONCE);
        // 1. what needs no adjoint: through the mass-aware read, and of every write alpha, its slopes, eta, kappa
        Sum dweight[OWN_R], dmass[OWN_R], gain[OWN_R];
#pragma unroll
        for (int e = 0; e < OWN_R; e++) dweight[e] = g.dread[e], dmass[e] = 0, gain[e] = now.r[e] * g.dread[e];
        if (call.mass_aware) {
            Sum total = 0, weighted = 0, through = 0;
#pragma unroll
            for (int e = 0; e < OWN_R; e++) {
                const Sum n = now.r[e] * g.at_read[e];
                total += now.r[e], weighted += n, through += g.dread[e] * n;
            }
            total = sum_over_token(total);
            weighted = sum_over_token(weighted) + call.eps;
            through = sum_over_token(through) / weighted;
#pragma unroll
            for (int e = 0; e < OWN_R; e++) {
                const Sum dn = (g.dread[e] - through) * total / weighted;
                gain[e] = total * now.r[e] * g.at_read[e] / weighted * g.dread[e];
                dweight[e] = dn * g.at_read[e] + through;
                dmass[e] = dn * now.r[e];
            }
        }
        Sum alpha[OWN_W], slope_w[OWN_W], slope_gamma[OWN_W], eta[OWN_W], mass[OWN_W], kept_mass[OWN_W], kappa[OWN_W];
        Sum dweight_w[OWN_W], dgamma_t = 0;
#pragma unroll
        for (int e = 0; e < OWN_W; e++) {
            alpha[e] = call.retention(now.w[e], now.gamma);
            call.retention.slopes(now.w[e], now.gamma, alpha[e], slope_w[e], slope_gamma[e]);
            mass[e] = alpha[e] * g.before[e] + now.w[e] + call.eps;
            kept_mass[e] = alpha[e] * g.before[e] + call.eps;
            eta[e] = now.w[e] / mass[e];
            kappa[e] = kept_mass[e] / mass[e];
            dweight_w[e] = 0;
        }
        // 2. token by token, in reverse: reads, then writes
#pragma unroll
        for (int token = AT_ONCE - 1; token >= 0; token--) {
            if (turn == token) {
#pragma unroll
                for (int e = 0; e < OWN_R; e++)
                    if (now.read_row[e] >= 0) {
                        q[now.read_row[e]] += gain[e];
                        if (call.mass_aware) dz[now.read_row[e]] += dmass[e];
                    }
            }
            __syncwarp();
            if (turn == token) {
#pragma unroll
                for (int e = 0; e < OWN_W; e++)
                    if (now.write_row[e] >= 0) {
                        const int row = now.write_row[e];
                        Sum q_before, pull, through_eta;  // eta deta / mass, deta kappa / mass
                        if (k0 == 0 && e == 0) {
                            const Sum deta = g.dwritten[0] - g.dfound;
                            q_before = kappa[0] * g.dfound;
                            pull = eta[0] * (deta / mass[0]);
                            through_eta = deta / mass[0] - pull;
                        } else {
                            q_before = q[row] - eta[e] * g.dwritten[e];
                            const Sum scaled = kappa[e] * g.dwritten[e] - q_before;
                            pull = kept_mass[e] > 0 ? eta[e] * scaled / kept_mass[e] : 0;
                            through_eta = scaled / mass[e];
                        }
                        const Sum dz_later = dz[row], dz_after = dz_later - pull, dalpha = dz_after * g.before[e];
                        dweight_w[e] = through_eta + dz_later + dalpha * slope_w[e];
                        dgamma_t += dalpha * slope_gamma[e];
                        dz[row] = alpha[e] * dz_after;
                        q[row] = q_before;
                    }
            }
            __syncwarp();
        }
        // 3. out
        dgamma_t = sum_over_token(dgamma_t);
        if (t >= call.tokens) continue;
        const long long at = call.row_of(t);
#pragma unroll
        for (int e = 0; e < OWN_W; e++)
            if (k0 + e * LANES < WRITES) dw[at * WRITES + k0 + e * LANES] = dweight_w[e];
#pragma unroll
        for (int e = 0; e < OWN_R; e++)
            if (k0 + e * LANES < READS) dr[at * READS + k0 + e * LANES] = now.kept ? dweight[e] : 0;
        if (k0 == 0) dgamma[at] = dgamma_t;
    }
    if (dgiven_mass) {
        __syncwarp();
        for (int row = lane; row < rows; row += 32) dgiven_mass[unit * rows + row] = dz[row];
    }
}
