// The memory as the paper states it, token after token: read this beside ramnet_np/core/memory.py.
//
//     alpha = retention(w, gamma)
//     z     = alpha z + w                  mass
//     eta   = w / (z + eps)
//     s     = s + eta (v - s)              content
//     y     = sum over the read slots of r s
//
// The steps have the numbers of memory.py: 3 write, 4 read. Its steps 1 and 2 have no part of their own here: rows are the
// state's, and each write computes its alpha.
//
// The chunked kernels (chunk.cuh) compute the same, many tokens at a time; these serve what they do not: K above 64. The
// state is in device memory, so any M will do.
//
// plain.cuh says who computes what. A token's write slots are distinct, and so are its read slots: within a step no two
// threads touch the same number, and between steps the block waits for all its threads. Every sum has a fixed order: the
// same inputs give the same bits.
//
// Compiled with: what plain.cuh asks for.
#include "memory/plain.cuh"

// ---- forward ----

// 3. write: the masses and eta, which do not depend on channels
DEVICE void write_masses(const Head& head, const TokenData& data, const Accesses& now, long long token) {
    const Acc gamma = head.gamma(token);
    for (int k = threadIdx.x; k < head.p.writes; k += THREADS) {
        const int row = now.write_row[k];
        data.eta[k] = 0;
        if (row < 0) continue;
        const Acc w = now.w[k], before = head.mass[row];
        const Acc z = Retention<Acc>::alpha(w, gamma) * before + w;
        head.mass[row] = z;
        data.eta[k] = w / (z + head.p.eps);
        if (head.p.mass_before) head.p.mass_before[token * head.p.writes + k] = before;
    }
}

// 3. write: the contents. RECOMPUTE: it also stores the content before the first write
template <bool RECOMPUTE> DEVICE void write_contents(const Head& head, const TokenData& data, const Accesses& now, long long token) {
    for_each_batch(head, now.write_row, head.p.writes, head.content, [&](Batch& s) {
        if (s.v >= VECTORS) return;
        const Vector value = Head::at(head.p.values, token, s.v);
        if (RECOMPUTE && s.k(0) == 0) store<VECTOR>(s.x[0].at, head.p.before_first + token * CHANNELS + s.v * VECTOR);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (s.row[i] < 0) continue;
            s.x[i].approach(data.eta[s.k(i)], value);
            s.store(i, head.content);
        }
    });
}

// 4. read: the weight of every read: r, or, if reads are mass-aware, n sum(r) / (sum(n) + eps) with n = r z
DEVICE void mass_aware_reads(const Head& head, const TokenData& data, const Accesses& now) {
    const int reads = head.p.reads;
    for (int k = threadIdx.x; k < reads; k += THREADS)
        data.weight[k] = MASS_AWARE ? now.r[k] * head.mass_of(now.read_row[k]) : now.r[k];
    if (!MASS_AWARE) return;
    __syncthreads();
    const Acc scale = sum_of(now.r, reads) / (sum_of(data.weight, reads) + head.p.eps);
    __syncthreads();
    for (int k = threadIdx.x; k < reads; k += THREADS) data.weight[k] *= scale;
}

// 4. read: y
DEVICE void read_contents(const Head& head, const TokenData& data, const Accesses& now, long long token) {
    for_each_batch(head, now.read_row, head.p.reads, head.content, [&](const Batch& s) {
        Vector sum{};
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (s.row[i] >= 0) sum.add(data.weight[s.k(i)], s.x[i]);
        if (s.v < VECTORS) data.add_to_part(head, s.v, s.base == head.team, sum);
    });
    __syncthreads();
    for (int c = threadIdx.x; c < CHANNELS; c += THREADS) narrow(data.sum_over_teams(c), head.p.y[token * CHANNELS + c]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) plain_forward(const __grid_constant__ PlainParams p) {
    const Head head(p);
    const TokenData data(p);
    data.copy(head, 0);
    for (int t = 0; t < head.tokens; t++) {
        const Accesses now = data.of(t);
        const long long token = head.token(t);
        wait_for_copies<0>();
        __syncthreads();
        data.copy(head, t + 1);
        if (!head.live(t)) {
            for (int c = threadIdx.x; c < CHANNELS; c += THREADS) narrow(Acc(0), p.y[token * CHANNELS + c]);
            continue;
        }
        write_masses(head, data, now, token);
        __syncthreads();
        write_contents<false>(head, data, now, token);
        mass_aware_reads(head, data, now);  // a token reads what it wrote
        __syncthreads();
        read_contents(head, data, now, token);
    }
}

// ---- backward ----

// First the whole forward once more (recompute_token). Then the tokens from the last to the first, each through the steps
// in reverse. d is the adjoint of a slot's content. q = <d, s> is one number for each slot. It is kept up to date, so the
// gradient of eta can do without the overwritten content:
//
//     4. read     dr = <dy, s>,  q += r <dy, s>,  d += r dy
//     3. write    deta = <d, v> - <d, s before>,  dv += eta d,  d *= 1 - eta;  from deta the gradients of z, w and gamma

// The forward once more, for what the backward needs: <dy, s> of every read, which dr holds until step 4 is walked back;
// the content before a token's first write; the mass before each write.
DEVICE void recompute_token(const Head& head, const TokenData& data, const Accesses& now, long long token) {
    const PlainParams& p = head.p;
    write_masses(head, data, now, token);
    __syncthreads();
    write_contents<true>(head, data, now, token);
    __syncthreads();
    for_each_batch(head, now.read_row, p.reads, head.content, [&](const Batch& s) {
        Vector dy{};
        if (s.v < VECTORS) dy = Head::at(p.dy, token, s.v);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            data.add_to_dot(head, s.k(i), s.k(i) < p.reads, s.v == head.lane, s.x[i].dot(dy));
    });
    __syncthreads();
    for (int k = threadIdx.x; k < p.reads; k += THREADS) p.dr[token * p.reads + k] = data.dots[k];
}

// q = <adjoint, content> of every row after the last token
DEVICE void start_q(const Head& head, const Acc* adjoint, Acc* q) {
    for (int row = threadIdx.x / 32; row < head.state.rows; row += THREADS / 32) {
        Acc sum = 0;
        for (int c = threadIdx.x % 32; c < CHANNELS; c += 32)
            sum += adjoint[(long long)(row)*CHANNELS + c] * head.content[(long long)(row)*CHANNELS + c];
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) q[row] = sum;
    }
}

// 4. walked back: q, dr and the adjoints of the masses. y = sum of weight s, so q += weight <dy, s>
DEVICE void read_masses_back(const Head& head, const TokenData& data, const Accesses& now, long long token, Acc* dmass, Acc* q) {
    const PlainParams& p = head.p;
    mass_aware_reads(head, data, now);  // the masses are those after this token
    Acc* const dr = p.dr + token * p.reads;
    Acc through = 0, scale = 1;
    if (MASS_AWARE) {
        for (int k = threadIdx.x; k < p.reads; k += THREADS) {
            data.dots[k] = now.r[k] * head.mass_of(now.read_row[k]);
            data.terms[k] = dr[k] * data.dots[k];
        }
        __syncthreads();
        const Acc weighted = sum_of(data.dots, p.reads) + p.eps;
        through = sum_of(data.terms, p.reads) / weighted, scale = sum_of(now.r, p.reads) / weighted;
    }
    for (int k = threadIdx.x; k < p.reads; k += THREADS) {
        const int row = now.read_row[k];
        const Acc dot = dr[k], dn = (dot - through) * scale;
        if (MASS_AWARE) dr[k] = through + dn * head.mass_of(row);
        if (row < 0) continue;
        q[row] += data.weight[k] * dot;
        if (MASS_AWARE) dmass[row] += dn * now.r[k];
    }
}

// 3. walked back: eta once more
DEVICE void restore_eta(const Head& head, const TokenData& data, const Accesses& now, long long token, Acc gamma) {
    const PlainParams& p = head.p;
    for (int k = threadIdx.x; k < p.writes; k += THREADS) {
        const bool there = now.write_row[k] >= 0;
        const Acc w = now.w[k], before = there ? p.mass_before[token * p.writes + k] : Acc(0);
        data.eta[k] = there ? w / (Retention<Acc>::alpha(w, gamma) * before + w + p.eps) : Acc(0);
    }
}

// 4. walked back: d += weight dy
DEVICE void read_contents_back(const Head& head, const TokenData& data, const Accesses& now, long long token, Acc* adjoint) {
    for_each_batch(head, now.read_row, head.p.reads, adjoint, [&](Batch& d) {
        if (d.v >= VECTORS) return;
        const Vector dy = Head::at(head.p.dy, token, d.v);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (d.row[i] < 0) continue;
            d.x[i].add(data.weight[d.k(i)], dy);
            d.store(i, adjoint);
        }
    });
}

// 3. walked back, the contents: <d, v> of every write; s = s + eta (v - s), so dv += eta d and d *= 1 - eta. Returns this
// lane's part of <d, before> of the first write.
DEVICE Acc write_contents_back(const Head& head, const TokenData& data, const Accesses& now, long long token, Acc* adjoint) {
    const PlainParams& p = head.p;
    Acc dot_before = 0;
    for_each_batch(head, now.write_row, p.writes, adjoint, [&](Batch& d) {
        Vector value{}, sum{};
        if (d.v < VECTORS) value = Head::at(p.values, token, d.v);
        if (d.k(0) == 0 && d.row[0] >= 0) dot_before += d.x[0].dot(Head::at(p.before_first, token, d.v));
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            data.add_to_dot(head, d.k(i), d.k(i) < p.writes, d.v == head.lane, d.x[i].dot(value));
            if (d.row[i] < 0) continue;
            const Acc eta = data.eta[d.k(i)];
            sum.add(eta, d.x[i]);
            d.x[i].scale(1 - eta);
            d.store(i, adjoint);
        }
        if (d.v < VECTORS) data.add_to_part(head, d.v, d.base == head.team, sum);
    });
    return dot_before;
}

// 3. walked back, the masses: z = alpha z' + w and eta = w / (z + eps). The adjoint of eta is <d, v> - <d, before>, and
// <d, before> follows from q = <d, s> = (1 - eta) <d, before> + eta <d, v>. A token's first write is the only one whose w
// can be near 1. For it <d, before> is known, ``dot_before``: see mass_backward.cu.
DEVICE void write_masses_back(
    const Head& head, const TokenData& data, const Accesses& now, long long token, Acc gamma, Acc dot_before, Acc* dmass, Acc* q
) {
    const PlainParams& p = head.p;
    for (int k = threadIdx.x; k < p.writes; k += THREADS) {
        const int row = now.write_row[k];
        Acc& dw = p.dw[token * p.writes + k];
        data.terms[k] = 0, dw = 0;
        if (row < 0) continue;
        const Acc w = now.w[k], before = p.mass_before[token * p.writes + k], dot = data.dots[k];
        const Acc alpha = Retention<Acc>::alpha(w, gamma), kept = alpha * before + p.eps, total = kept + w;
        const Acc eta = w / total, kappa = kept / total;  // kappa = 1 - eta
        q[row] = k == 0 ? kappa * dot_before : q[row] - eta * dot;
        // deta / (z + eps), times kappa for all but the first write
        const Acc e = k == 0 ? (dot - dot_before) / total : (kappa * dot - q[row]) / total;
        const Acc pull = k == 0 ? eta * e : kept > 0 ? eta / kept * (kappa * dot - q[row]) : Acc(0);
        const Acc dz = dmass[row] - pull, dalpha = dz * before;
        const Slopes<Acc> slope = Retention<Acc>::slopes(w, gamma, alpha, p.proxy_eps);
        dw = (k == 0 ? e - pull : e) + dmass[row] + dalpha * slope.w;
        data.terms[k] = dalpha * slope.gamma;
        dmass[row] = dz * alpha;
        head.mass[row] = before;
    }
}

// The gradients of a token that is not masked.
DEVICE void walk_back_token(
    const Head& head, const TokenData& data, const Accesses& now, long long token, Acc* adjoint, Acc* dmass, Acc* q
) {
    const PlainParams& p = head.p;
    const Acc gamma = head.gamma(token);
    read_masses_back(head, data, now, token, dmass, q);
    restore_eta(head, data, now, token, gamma);
    __syncthreads();
    read_contents_back(head, data, now, token, adjoint);
    __syncthreads();
    __shared__ Acc dot_before;
    const Acc part_before = warp_sum(write_contents_back(head, data, now, token, adjoint));
    if (threadIdx.x == 0) dot_before = part_before;  // team 0 is in warp 0, whose other lanes add 0
    __syncthreads();
    write_masses_back(head, data, now, token, gamma, dot_before, dmass, q);
    for (int c = threadIdx.x; c < CHANNELS; c += THREADS) narrow(data.sum_over_teams(c), p.dv[token * CHANNELS + c]);
    __syncthreads();
    const Acc dgamma = sum_of(data.terms, p.writes);
    if (threadIdx.x == 0) narrow(dgamma, p.dgamma[token]);
}

// The gradients of a masked token: nothing was written or read.
DEVICE void zero_gradients(const PlainParams& p, long long token) {
    for (int k = threadIdx.x; k < p.writes; k += THREADS) p.dw[token * p.writes + k] = 0;
    for (int k = threadIdx.x; k < p.reads; k += THREADS) p.dr[token * p.reads + k] = 0;
    for (int c = threadIdx.x; c < CHANNELS; c += THREADS) narrow(Acc(0), p.dv[token * CHANNELS + c]);
    if (threadIdx.x == 0) narrow(Acc(0), p.dgamma[token]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) plain_backward(const __grid_constant__ PlainParams p) {
    const Head head(p);
    const TokenData data(p);
    const long long first_row = head.state.first;
    Acc *const adjoint = p.dcontent + first_row * CHANNELS, *const dmass = p.dmass + first_row, *const q = p.q + first_row;
    data.copy(head, 0);
    for (int t = 0; t < head.tokens; t++) {
        wait_for_copies<0>();
        __syncthreads();
        data.copy(head, t + 1);
        if (head.live(t)) recompute_token(head, data, data.of(t), head.token(t));
    }
    if (p.has_dstate) start_q(head, adjoint, q);
    for (int t = head.tokens - 1; t >= 0; t--) {  // the last token's accesses are still here
        wait_for_copies<0>();
        __syncthreads();
        data.copy(head, t - 1);
        if (head.live(t))
            walk_back_token(head, data, data.of(t), head.token(t), adjoint, dmass, q);
        else
            zero_gradients(p, head.token(t));
    }
}
