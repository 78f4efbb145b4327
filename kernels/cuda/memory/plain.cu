// The memory as the paper states it, token after token: read this beside ramnet_np/core/memory.py.
//
//     alpha = retention(w, gamma)
//     z     = alpha z + w                  mass
//     eta   = w / (z + eps)
//     s     = s + eta (v - s)              content
//     y     = sum over the read slots of r s
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

// 1. write, what does not depend on channels: the masses and eta
DEVICE void write_masses(const Head& head, const TokenData& data, long long token) {
    const Acc gamma = head.gamma(token);
    for (int k = threadIdx.x; k < head.p.writes; k += THREADS) {
        const int row = data.write_row[k];
        data.eta[k] = 0;
        if (row < 0) continue;
        const Acc w = data.w[k], before = head.mass[row];
        const Acc z = Retention<Acc>::alpha(w, gamma) * before + w;
        head.mass[row] = z;
        data.eta[k] = w / (z + head.p.eps);
        if (head.p.mass_before) head.p.mass_before[token * head.p.writes + k] = before;
    }
}

// 2. write: the contents
template <bool RECOMPUTE> DEVICE void write_contents(const Head& head, const TokenData& data, long long token) {
    const int channels = head.p.channels;
    for_each_access(head, data.write_row, head.p.writes, head.content, [&](int k, int row, int c, Acc s) {
        if (c >= channels) return;
        if (RECOMPUTE && k == 0) head.p.before_first[token * channels + c] = s;
        if (row < 0) return;
        const Acc v = widen(head.p.values[token * channels + c]);
        head.content[(long long)(row)*channels + c] = s + data.eta[k] * (v - s);
    });
}

// What a read counts for: r, or, if reads are mass-aware, its share by mass, n sum(r) / (sum(n) + eps) with n = r z.
DEVICE void weigh_reads(const Head& head, const TokenData& data) {
    const int reads = head.p.reads;
    for (int k = threadIdx.x; k < reads; k += THREADS) {
        const int row = data.read_row[k];
        data.weight[k] = MASS_AWARE ? data.r[k] * head.mass_of(row) : data.r[k];
    }
    if (!MASS_AWARE) return;
    __syncthreads();
    const Acc scale = sum_of(data.r, reads) / (sum_of(data.weight, reads) + head.p.eps);
    __syncthreads();
    for (int k = threadIdx.x; k < reads; k += THREADS) data.weight[k] *= scale;
}

// 3. read
DEVICE void read_contents(const Head& head, const TokenData& data, long long token) {
    const int channels = head.p.channels;
    for (int c = head.first_channel(); c < channels; c += Head::CHANNELS_AT_ONCE) data.parts[head.team * channels + c] = 0;
    for_each_access(head, data.read_row, head.p.reads, head.content, [&](int k, int row, int c, Acc s) {
        if (row >= 0 && c < channels) data.parts[head.team * channels + c] += data.weight[k] * s;
    });
    __syncthreads();
    for (int c = threadIdx.x; c < channels; c += THREADS)
        narrow(sum_over_teams(data, c, channels), head.p.y[token * channels + c]);
}

extern "C" __global__ void __launch_bounds__(THREADS) plain_forward(const __grid_constant__ PlainParams p) {
    const Head head(p);
    const TokenData data(p);
    data.copy(p, head.token(0));
    for (int t = 0; t < p.tokens; t++) {
        const long long token = head.token(t);
        wait_for_copies<0>();
        __syncthreads();
        if (!head.live(t)) {
            for (int c = threadIdx.x; c < p.channels; c += THREADS) narrow(Acc(0), p.y[token * p.channels + c]);
        } else {
            write_masses(head, data, token);
            __syncthreads();
            write_contents<false>(head, data, token);
            weigh_reads(head, data);  // a token reads what it wrote
            __syncthreads();
            read_contents(head, data, token);
        }
        __syncthreads();
        if (t + 1 < p.tokens) data.copy(p, head.token(t + 1));
    }
}

// ---- backward ----

// Forward once more, for what the backward needs of the contents: <dy, s> of every read, which stands in dr meanwhile, the
// content before a token's first write, and the mass before each write.
DEVICE void recompute_token(const Head& head, const TokenData& data, long long token) {
    const PlainParams& p = head.p;
    write_masses(head, data, token);
    __syncthreads();
    write_contents<true>(head, data, token);
    __syncthreads();
    for_each_access(head, data.read_row, p.reads, head.content, [&](int k, int row, int c, Acc s) {
        add_to_dot(head, data, k, c, row >= 0 && c < p.channels ? s * widen(p.dy[token * p.channels + c]) : Acc(0));
    });
    __syncthreads();
    for (int k = threadIdx.x; k < p.reads; k += THREADS) p.dr[token * p.reads + k] = data.dot(k);
}

// <adjoint, content> of every row after the last token.
DEVICE void start_q(const Head& head, const Acc* adjoint, Acc* q) {
    const int channels = head.p.channels;
    for (int row = head.warp; row < head.p.rows; row += WARPS) {
        Acc sum = 0;
        for (int c = head.lane; c < channels; c += 32)
            sum += adjoint[(long long)(row)*channels + c] * head.content[(long long)(row)*channels + c];
        sum = warp_sum(sum);
        if (head.lane == 0) q[row] = sum;
    }
}

// 3. walked back, what does not depend on channels: y = sum of weight s, so q += weight <dy, s>, and dr.
DEVICE void read_back(const Head& head, const TokenData& data, long long token, Acc* q, Acc* dmass) {
    const PlainParams& p = head.p;
    weigh_reads(head, data);  // the masses are those after this token
    Acc* const dr = p.dr + token * p.reads;
    Acc through = 0, scale = 1;
    if (MASS_AWARE) {
        __syncthreads();
        for (int k = threadIdx.x; k < p.reads; k += THREADS) {
            const int row = data.read_row[k];
            data.dots[k] = data.r[k] * head.mass_of(row), data.terms[k] = dr[k] * data.dots[k];
        }
        __syncthreads();
        const Acc weighted = sum_of(data.dots, p.reads) + p.eps;
        through = sum_of(data.terms, p.reads) / weighted, scale = sum_of(data.r, p.reads) / weighted;
    }
    for (int k = threadIdx.x; k < p.reads; k += THREADS) {
        const int row = data.read_row[k];
        const Acc dot = dr[k], dn = (dot - through) * scale;
        if (MASS_AWARE) dr[k] = through + dn * head.mass_of(row);
        if (row < 0) continue;
        q[row] += data.weight[k] * dot;
        if (MASS_AWARE) dmass[row] += dn * data.r[k];
    }
}

// What a write's alpha and z make of eta again, for step 2.
DEVICE void restore_eta(const Head& head, const TokenData& data, long long token, Acc gamma) {
    const PlainParams& p = head.p;
    for (int k = threadIdx.x; k < p.writes; k += THREADS) {
        const int row = data.write_row[k];
        const Acc w = data.w[k], before = row < 0 ? Acc(0) : p.mass_before[token * p.writes + k];
        data.eta[k] = row < 0 ? Acc(0) : w / (Retention<Acc>::alpha(w, gamma) * before + w + p.eps);
    }
}

// 2. walked back: s = s + eta (v - s), so dv += eta d, and d *= 1 - eta; <d, v> of every write, and <d, before> of the first.
DEVICE void write_contents_back(const Head& head, const TokenData& data, long long token, Acc* adjoint, Acc& dot_before) {
    const PlainParams& p = head.p;
    const int channels = p.channels;
    for (int c = head.first_channel(); c < channels; c += Head::CHANNELS_AT_ONCE) data.parts[head.team * channels + c] = 0;
    for_each_access(head, data.write_row, p.writes, adjoint, [&](int k, int row, int c, Acc d) {
        const bool inside = row >= 0 && c < channels;
        add_to_dot(head, data, k, c, inside ? d * widen(p.values[token * channels + c]) : Acc(0));
        if (k == 0) dot_before += warp_sum(inside ? d * p.before_first[token * channels + c] : Acc(0));
        if (!inside) return;
        data.parts[head.team * channels + c] += data.eta[k] * d;
        adjoint[(long long)(row)*channels + c] = d * (1 - data.eta[k]);
    });
}

// 1. walked back: z = alpha z' + w and eta = w / (z + eps). The adjoint of eta is <d, v> - <d, before>. <d, before> follows
// from q = <d, s> = (1 - eta) <d, before> + eta <d, v>, but for a token's first write, the only one whose 1 - eta can be
// tiny, it is known (``dot_before``): see mass_backward.cu.
DEVICE void write_masses_back(
    const Head& head, const TokenData& data, long long token, Acc gamma, Acc dot_before, Acc* q, Acc* dmass
) {
    const PlainParams& p = head.p;
    for (int k = threadIdx.x; k < p.writes; k += THREADS) {
        const int row = data.write_row[k];
        data.terms[k] = 0;
        Acc& dw = p.dw[token * p.writes + k];
        dw = 0;
        if (row < 0) continue;
        const Acc w = data.w[k], before = p.mass_before[token * p.writes + k], dot = data.dot(k);
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
DEVICE void walk_back_token(const Head& head, const TokenData& data, long long token, Acc* adjoint, Acc* dmass, Acc* q) {
    const PlainParams& p = head.p;
    const int channels = p.channels;
    const Acc gamma = head.gamma(token);
    read_back(head, data, token, q, dmass);
    restore_eta(head, data, token, gamma);
    __syncthreads();
    for_each_access(head, data.read_row, p.reads, adjoint, [&](int k, int row, int c, Acc d) {
        if (row >= 0 && c < channels)
            adjoint[(long long)(row)*channels + c] = d + data.weight[k] * widen(p.dy[token * channels + c]);
    });
    __syncthreads();
    __shared__ Acc first_dots[COLUMNS];
    Acc dot_before = 0;
    write_contents_back(head, data, token, adjoint, dot_before);
    if (head.team == 0 && head.lane == 0) first_dots[head.column] = dot_before;
    __syncthreads();
    dot_before = first_dots[0];
    for (int column = 1; column < COLUMNS; column++) dot_before += first_dots[column];
    write_masses_back(head, data, token, gamma, dot_before, q, dmass);
    for (int c = threadIdx.x; c < channels; c += THREADS) narrow(sum_over_teams(data, c, channels), p.dv[token * channels + c]);
    __syncthreads();
    const Acc dgamma = sum_of(data.terms, p.writes);
    if (threadIdx.x == 0) narrow(dgamma, p.dgamma[token]);
}

// The gradients of a masked token: nothing was written or read.
DEVICE void zero_gradients(const PlainParams& p, long long token) {
    for (int k = threadIdx.x; k < p.writes; k += THREADS) p.dw[token * p.writes + k] = 0;
    for (int k = threadIdx.x; k < p.reads; k += THREADS) p.dr[token * p.reads + k] = 0;
    for (int c = threadIdx.x; c < p.channels; c += THREADS) narrow(Acc(0), p.dv[token * p.channels + c]);
    if (threadIdx.x == 0) narrow(Acc(0), p.dgamma[token]);
}

extern "C" __global__ void __launch_bounds__(THREADS) plain_backward(const __grid_constant__ PlainParams p) {
    const Head head(p);
    const TokenData data(p);
    const long long first_row = (long long)(blockIdx.x) * p.rows;
    Acc *const adjoint = p.dcontent + first_row * p.channels, *const dmass = p.dmass + first_row, *const q = p.q + first_row;
    data.copy(p, head.token(0));
    for (int t = 0; t < p.tokens; t++) {
        wait_for_copies<0>();
        __syncthreads();
        if (head.live(t)) recompute_token(head, data, head.token(t));
        __syncthreads();
        data.copy(p, head.token(t + 1 < p.tokens ? t + 1 : t));  // after the last: the last again, to walk back from
    }
    if (p.has_dstate) start_q(head, adjoint, q);
    for (int t = p.tokens - 1; t >= 0; t--) {
        wait_for_copies<0>();
        __syncthreads();
        if (head.live(t))
            walk_back_token(head, data, head.token(t), adjoint, dmass, q);
        else
            zero_gradients(p, head.token(t));
        __syncthreads();
        if (t > 0) data.copy(p, head.token(t - 1));
    }
}
