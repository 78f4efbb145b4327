// The masses of the slots, and all of the memory's gradients that do not depend on channels: two passes over the tokens.
//
//     forward   z[row] = alpha(w) z[row] + w,  eta = w / (z[row] + eps);  mass-aware reads weigh by z[row]
//     backward  the same in reverse, with the adjoint of z
//
// The forward puts the coefficients into the events that link.cu made, for content.cu to work through. The backward is
// given <d, v> of every write and <dy, s> of every read, with s a slot's content and d its adjoint, but not the content
// that a write found, which no pass keeps. It needs of it only <d, found>, and that follows from what it has: q = <d, s>
// of a slot changes by known amounts,
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
// rows). It takes a chunk of tokens at a time (chunk.cuh): thread token * W + k has write k of a token and read k, and
// a thread a chain. What does not need masses is computed a chunk ahead, and meanwhile the next is on its way:
//
//     1  writes alone on their slot; chains         (backward: reads alone; chains)
//     2  what the rest finds; results               (backward: writes)
//
// Compiled with: what chunk.cuh asks for, MASS_AWARE, IN_SHARED, FRESH (as content.cu).
#include "chunk.cuh"

constexpr int items(int width) { return (CHUNK * width + THREADS - 1) / THREADS; }
constexpr int ITEMS_W = items(W), ITEMS_R = items(R);  // accesses of a thread: 1, or more if K is above 64

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
    DEVICE bool live(int t) const {
        return t >= 0 && t < tokens && (!mask || mask[(long long)(blockIdx.x / heads) * tokens + t]);
    }
    DEVICE Sum gamma_of(int t) const { return gamma ? widen(gamma[row_of(t)]) : one_gamma; }
};

#define CALL_PARAMETERS                                                                                                  \
    int tokens, int heads, int rows, const int *write_row, const int *read_row, const Sum *write_weight,                 \
        const Sum *read_weight, const ELEMENT *gamma, Sum one_gamma, const bool *mask, Sum eps,                          \
        Sum initial, int gsu, Sum proxy_eps, Sum smallest, Chain *chains, TokenEvent *entries, Counts *list_counts
#define CALL                                                                                                             \
    {tokens, heads, rows, write_row, read_row, write_weight, read_weight, gamma, one_gamma, mask, eps,                   \
     initial, {gsu, proxy_eps, smallest}}

// Where the block stands: chunks of its (batch, head).
struct Chunks {
    int number;  // of them

    DEVICE int chunks() const { return number; }
    DEVICE long long chunk_at(int chunk) const { return (long long)(blockIdx.x) * number + chunk; }
};

extern "C" __global__ void __launch_bounds__(256) mass_forward(
    CALL_PARAMETERS,
    const Sum* given, Sum* working, Sum* final_mass,  // (B*H, rows) each, or null; working only if not IN_SHARED
    TokenEvent* write_events, TokenEvent* read_events,  // (B*H, chunks, CHUNK, W or R): coefficients are put in
    Sum* __restrict__ old_mass,                       // (B*H, chunks, CHUNK, W): before each write
    Sum* __restrict__ read_mass                       // (B*H, chunks, CHUNK, R), or null
) {
    const Call call = CALL;
    const Lists lists{chains, entries, list_counts};
    const Chunks all{chunks_of(tokens)};
    const long long unit = blockIdx.x;
    Sum* const z = IN_SHARED ? reinterpret_cast<Sum*>(on_chip()) : working + unit * rows;
    if (IN_SHARED)
        for (int row = threadIdx.x; row < rows; row += THREADS) z[row] = given ? given[unit * rows + row] : call.initial;

    __shared__ Sum alpha_of[ENTRIES], w_of[ENTRIES], found[ENTRIES];  // by place in chains; found: mass before the access
    __shared__ Sum at_read[MASS_AWARE ? CHUNK * R : 1], r_of[MASS_AWARE ? CHUNK * R : 1];
    struct Access {
        int code, place;
        Sum weight, gamma;
    };
    // asks for a chunk's accesses
    const auto fetch = [&](int chunk, Access (&writes)[ITEMS_W], Access (&reads)[ITEMS_R], Counts& counts, Chain& chain) {
        const auto side = [&](Access& own, int i, int width, int top_k, const int* rows, const Sum* weights, TokenEvent* events) {
            const int token = i / width, k = i % width, t = chunk * CHUNK + token;
            own = {NOTHING, 0, 0, 1};
            if (token >= CHUNK || k >= top_k || !call.live(t)) return;
            const long long at = call.row_of(t) * top_k + k;
            own.weight = weights[at];
            if (CHUNK > 1) {
                const Linked<Sum> linked = reinterpret_cast<Linked<Sum>*>(events)[(all.chunk_at(chunk) * CHUNK + token) * width + k];
                own.code = int(linked.row), own.place = int(linked.place);
            } else if (rows[at] >= 0 && !(FRESH && rows[at] >= (t + 1) * WRITES)) {
                own.code = place_of(rows[at], false);
            }
        };
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            const int i = threadIdx.x + item * THREADS;
            side(writes[item], i, W, WRITES, call.write_row, call.write_weight, write_events);
            if (writes[item].code != NOTHING) writes[item].gamma = call.gamma_of(chunk * CHUNK + i / W);
        }
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++)
            side(reads[item], threadIdx.x + item * THREADS, R, READS, call.read_row, call.read_weight, read_events);
        counts = lists.counts_of(all, chunk);
        if (CHUNK > 1 && int(threadIdx.x) < counts.mixed_chains) chain = lists.chains_of(all.chunk_at(chunk))[threadIdx.x];
    };
    // alpha instead of gamma, and what chains need
    const auto prepare = [&](Access (&writes)[ITEMS_W], Access (&reads)[ITEMS_R]) {
#pragma unroll
        for (Access& own : writes) {
            own.gamma = call.retention(own.weight, own.gamma);
            if (CHUNK > 1 && own.code < NOTHING) alpha_of[own.place] = own.gamma, w_of[own.place] = own.weight;
        }
#pragma unroll
        for (Access& own : reads)
            if (CHUNK > 1 && own.code < NOTHING) alpha_of[own.place] = 1, w_of[own.place] = 0;
    };
    Access writes[ITEMS_W], reads[ITEMS_R], next_writes[ITEMS_W], next_reads[ITEMS_R];
    Counts counts, next_counts;
    Chain chain{}, next_chain{};
    fetch(0, writes, reads, counts, chain);
    prepare(writes, reads);
    __syncthreads();
    for (int chunk = 0; chunk < all.number; chunk++) {
        fetch(chunk + 1, next_writes, next_reads, next_counts, next_chain);
        // 1. z = alpha z + w: alone, then along chains
        const auto mass_of = [&](int row) { return FRESH && row >= chunk * CHUNK * WRITES ? call.initial : z[row]; };
        Sum before[ITEMS_W];
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            before[item] = call.initial;
            if (!in_place(writes[item].code)) continue;
            const int row = row_at(writes[item].code);
            before[item] = mass_of(row);
            z[row] = writes[item].gamma * before[item] + writes[item].weight;
        }
        if (CHUNK > 1 && int(threadIdx.x) < counts.mixed_chains) {
            Sum mass = mass_of(chain.row);
            for (int i = chain.begin; i < chain.begin + chain.count; i++) {
                found[i] = mass;
                mass = alpha_of[i] * mass + w_of[i];
            }
            z[chain.row] = mass;
        }
        __syncthreads();
        // 2. eta, the weights of the reads
        const long long first = all.chunk_at(chunk) * CHUNK;
        TokenEvent* const list = lists.entries_of(all.chunk_at(chunk));
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            const int i = threadIdx.x + item * THREADS;
            if (i >= CHUNK * W) continue;
            const Access& own = writes[item];
            if (CHUNK > 1 && own.code < NOTHING) before[item] = found[own.place];
            const Sum eta = own.code == NOTHING ? Sum(0) : own.weight / (own.gamma * before[item] + own.weight + call.eps);
            write_events[first * W + i] = {own.code, eta};
            if (CHUNK > 1 && own.code < NOTHING) list[own.place].coefficient = eta;
            old_mass[first * W + i] = before[item];
        }
        if (MASS_AWARE) {
#pragma unroll
            for (int item = 0; item < ITEMS_R; item++) {
                const int i = threadIdx.x + item * THREADS;
                if (i >= CHUNK * R) continue;
                const Access& own = reads[item];
                at_read[i] = in_place(own.code) ? z[row_at(own.code)] : own.code == NOTHING ? call.initial : found[CHUNK > 1 ? own.place : 0];
                r_of[i] = own.weight;
                read_mass[first * R + i] = at_read[i];
            }
            __syncthreads();
        }
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++) {
            const int i = threadIdx.x + item * THREADS;
            if (i >= CHUNK * R) continue;
            const Access& own = reads[item];
            Sum weight = own.weight;
            if (MASS_AWARE) {
                Sum total = 0, weighted = 0;
                for (int j = i / R * R; j < i / R * R + READS; j++) total += r_of[j], weighted += r_of[j] * at_read[j];
                weight *= total * at_read[i] / (weighted + call.eps);
            }
            read_events[first * R + i] = {own.code, weight};
            const bool listed = own.code < NOTHING || (in_place(own.code) && in_reverse_listed(own.code));
            if (CHUNK > 1 && listed) list[own.place].coefficient = weight;
        }
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) writes[item] = next_writes[item];
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++) reads[item] = next_reads[item];
        counts = next_counts, chain = next_chain;
        prepare(writes, reads);
        __syncthreads();
    }
    if (IN_SHARED && final_mass)
        for (int row = threadIdx.x; row < rows; row += THREADS) final_mass[unit * rows + row] = z[row];
}

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

// In terms of the numbers below a write takes the adjoint dz of its mass, and q, to (in reverse time)
//
//     q = b, plus q unless <d, found> is known;   pull = p - g q,   dz = alpha (dz - pull)
//
// and dw = u - h q + dz' + slope (dz' - pull), with dz' the adjoint before and ``slope`` the mass found times alpha'(w).
struct Numbers {
    Sum alpha, b, g, p, u, h, slope, slope_gamma;
};

extern "C" __global__ void __launch_bounds__(256) mass_backward(
    CALL_PARAMETERS, int slices, const TokenEvent* __restrict__ write_events, const TokenEvent* __restrict__ read_events,
    const Sum* __restrict__ old_mass, const Sum* __restrict__ read_mass,
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
    const Lists lists{chains, entries, list_counts};
    const Chunks all{chunks_of(tokens)};
    const long long unit = blockIdx.x, stride = (long long)(gridDim.x) * all.number * CHUNK;
    Sum* const dz = IN_SHARED ? reinterpret_cast<Sum*>(on_chip()) : working + unit * 2 * rows;
    Sum* const q = dz + rows;
    if (IN_SHARED || last)
        for (int row = threadIdx.x; row < rows; row += THREADS) {
            q[row] = last ? sum_of_slices(last + unit * rows + row, slices, (long long)(gridDim.x) * rows) : Sum(0);
            dz[row] = dfinal_mass ? dfinal_mass[unit * rows + row] : Sum(0);
        }

    // for chains, by number token * W + k or token * R + k of the access; then what a write found
    __shared__ Sum alpha_of[CHUNK * W], b_of[CHUNK * W], g_of[CHUNK * W], p_of[CHUNK * W], q_of[CHUNK * W], dz_of[CHUNK * W];
    __shared__ Sum gain_of[CHUNK * R], dmass_of[CHUNK * R], dot_of[MASS_AWARE ? CHUNK * R : 1], n_of[MASS_AWARE ? CHUNK * R : 1];
    __shared__ Sum slope_of[CHUNK * W];  // of gamma, times what it acts on
    __shared__ int entry_at[ENTRIES];
    constexpr int ENTRY_ITEMS = CHUNK > 1 ? (ENTRIES + THREADS - 1) / THREADS : 1;

    struct Write {
        int code;
        Sum w, gamma, before, dot, dot_found;
    };
    struct Read {
        int code;
        Sum r, dot, mass;
    };
    struct List {
        Counts counts;
        Chain chain;
        int entry[ENTRY_ITEMS];
    };
    const auto fetch = [&](int chunk, Write (&writes)[ITEMS_W], Read (&reads)[ITEMS_R], List& list) {
        const long long first = all.chunk_at(chunk) * CHUNK;
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            const int i = threadIdx.x + item * THREADS, k = i % W, t = chunk * CHUNK + i / W;
            Write& own = writes[item];
            own = {NOTHING, 0, 1, 1, 0, 0};
            if (i >= CHUNK * W || k >= WRITES || !call.live(t)) continue;
            own.code = int(write_events[first * W + i].row);
            own.w = call.write_weight[call.row_of(t) * WRITES + k];
            own.gamma = call.gamma_of(t);
            own.before = old_mass[first * W + i];
            own.dot = sum_of_slices(dwritten + first * W + i, slices, stride * W);
            if (k == 0) own.dot_found = sum_of_slices(dfound + first + i / W, slices, stride);
        }
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++) {
            const int i = threadIdx.x + item * THREADS, k = i % R, t = chunk * CHUNK + i / R;
            Read& own = reads[item];
            own = {NOTHING, 0, 0, 0};
            if (i >= CHUNK * R || k >= READS || !call.live(t)) continue;
            own.code = int(read_events[first * R + i].row);
            own.r = call.read_weight[call.row_of(t) * READS + k];
            if (own.code != NOTHING) own.dot = sum_of_slices(dread + first * R + i, slices, stride * R);
            if (MASS_AWARE) own.mass = read_mass[first * R + i];
        }
        if constexpr (CHUNK > 1) {
            list.counts = lists.counts_of(all, chunk);
            if (int(threadIdx.x) < list.counts.all_chains) list.chain = lists.chains_of(all.chunk_at(chunk))[threadIdx.x];
#pragma unroll
            for (int item = 0; item < ENTRY_ITEMS; item++) {
                const int i = threadIdx.x + item * THREADS;
                if (i < list.counts.all_entries) list.entry[item] = int(lists.entries_of(all.chunk_at(chunk))[i].row);
            }
        }
    };
    // What needs no adjoint; the gradients of the reads.
    const auto prepare = [&](int chunk, const Write (&writes)[ITEMS_W], const Read (&reads)[ITEMS_R], const List& list, Numbers (&numbers)[ITEMS_W], Sum (&gain)[ITEMS_R], Sum (&dmass)[ITEMS_R]) {
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            const int i = threadIdx.x + item * THREADS;
            const Write& own = writes[item];
            Numbers& n = numbers[item];
            n.alpha = call.retention(own.w, own.gamma);
            Sum slope, slope_gamma;
            call.retention.slopes(own.w, own.gamma, n.alpha, slope, slope_gamma);
            const Sum kept_mass = n.alpha * own.before + call.eps, mass = kept_mass + own.w;
            const Sum eta = own.w / mass, kappa = kept_mass / mass;
            n.slope = own.before * slope, n.slope_gamma = own.before * slope_gamma;
            if (i % W == 0) {  // <d, found> is known
                const Sum deta = (own.dot - own.dot_found) / mass, pull = eta * deta;
                n.b = kappa * own.dot_found, n.g = 0, n.p = pull, n.h = 0, n.u = deta - pull;
            } else {
                n.g = kept_mass > 0 ? eta / kept_mass : Sum(0);
                n.b = -eta * own.dot, n.p = n.g * (kappa * own.dot), n.h = 1 / mass, n.u = kappa * own.dot / mass;
            }
            if (CHUNK > 1 && i < CHUNK * W) alpha_of[i] = n.alpha, b_of[i] = n.b, g_of[i] = n.g, p_of[i] = n.p;
        }
        if (MASS_AWARE) {
#pragma unroll
            for (int item = 0; item < ITEMS_R; item++) {
                const int i = threadIdx.x + item * THREADS;
                if (i < CHUNK * R) dot_of[i] = reads[item].dot, n_of[i] = reads[item].r * reads[item].mass, gain_of[i] = reads[item].r;
            }
            __syncthreads();
        }
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++) {
            const int i = threadIdx.x + item * THREADS, k = i % R, t = chunk * CHUNK + i / R;
            const Read& own = reads[item];
            Sum dweight = own.dot;
            gain[item] = own.r * own.dot, dmass[item] = 0;
            if (MASS_AWARE && i < CHUNK * R && k < READS && call.live(t)) {
                Sum total = 0, weighted = call.eps, through = 0;
                for (int j = i - k; j < i - k + READS; j++) total += gain_of[j], weighted += n_of[j], through += dot_of[j] * n_of[j];
                through /= weighted;
                const Sum dn = (own.dot - through) * total / weighted;
                gain[item] *= total * own.mass / weighted;
                dweight = dn * own.mass + through;
                dmass[item] = dn * own.r;
            }
            if (t >= 0 && i < CHUNK * R && k < READS && t < tokens) dr[call.row_of(t) * READS + k] = dweight;
        }
        if (MASS_AWARE) __syncthreads();
        if constexpr (CHUNK > 1) {
#pragma unroll
            for (int item = 0; item < ITEMS_R; item++) {
                const int i = threadIdx.x + item * THREADS;
                if (i < CHUNK * R) gain_of[i] = gain[item], dmass_of[i] = dmass[item];
            }
#pragma unroll
            for (int item = 0; item < ENTRY_ITEMS; item++) {
                const int i = threadIdx.x + item * THREADS;
                if (i < list.counts.all_entries) entry_at[i] = list.entry[item];
            }
        }
    };
    // A write, in reverse: q and dz from after it to before it; the q that dw needs.
    const auto unwrite = [](const Numbers& n, bool found_known, Sum& q, Sum& dz) {
        q = found_known ? n.b : q + n.b;
        dz = n.alpha * (dz - (n.p - n.g * q));
    };
    const auto add_dgamma = [&](int chunk) {
        const int t = chunk * CHUNK + int(threadIdx.x);
        if (int(threadIdx.x) >= CHUNK || t >= tokens) return;
        Sum sum = 0;
        for (int k = 0; k < WRITES; k++) sum += slope_of[threadIdx.x * W + k];
        dgamma[call.row_of(t)] = sum;
    };

    Write writes[ITEMS_W], next_writes[ITEMS_W];
    Read reads[ITEMS_R], next_reads[ITEMS_R];
    List list{}, next_list{};
    Numbers numbers[ITEMS_W];
    Sum gain[ITEMS_R], dmass[ITEMS_R];
    const int end = all.number - 1;
    fetch(end, writes, reads, list);
    prepare(end, writes, reads, list, numbers, gain, dmass);
    __syncthreads();
    for (int chunk = end; chunk >= 0; chunk--) {
        fetch(chunk - 1, next_writes, next_reads, next_list);
        // 1. reads alone on their slot, then along chains
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++) {
            const int code = reads[item].code;
            if (!in_place(code) || in_reverse_listed(code)) continue;
            q[row_at(code)] += gain[item];
            if (MASS_AWARE) dz[row_at(code)] += dmass[item];
        }
        if (CHUNK > 1 && int(threadIdx.x) < list.counts.all_chains) {
            Sum slot_q = q[list.chain.row], slot_dz = dz[list.chain.row];
            for (int i = list.chain.begin + list.chain.count - 1; i >= list.chain.begin; i--) {
                const int what = entry_at[i];
                if (entry_reads(what)) {
                    const int read = entry_token(what) * R + entry_k(what);
                    slot_q += gain_of[read];
                    if (MASS_AWARE) slot_dz += dmass_of[read];
                } else {
                    const int write = entry_token(what) * W + entry_k(what);
                    const Numbers n{alpha_of[write], b_of[write], g_of[write], p_of[write], 0, 0, 0, 0};
                    dz_of[write] = slot_dz;
                    unwrite(n, entry_k(what) == 0, slot_q, slot_dz);
                    q_of[write] = slot_q;
                }
            }
            q[list.chain.row] = slot_q, dz[list.chain.row] = slot_dz;
        }
        if (chunk < end) add_dgamma(chunk + 1);
        __syncthreads();
        // 2. writes
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            const int i = threadIdx.x + item * THREADS, k = i % W, t = chunk * CHUNK + i / W, code = writes[item].code;
            if (i >= CHUNK * W) continue;
            const Numbers& n = numbers[item];
            Sum dz_after = 0, q_before = 0;
            if (in_place(code)) {
                const int row = row_at(code);
                Sum dz_before = dz_after = dz[row];
                q_before = q[row];
                unwrite(n, k == 0, q_before, dz_before);
                q[row] = q_before, dz[row] = dz_before;
            } else if (code != NOTHING) {
                dz_after = dz_of[i], q_before = q_of[i];
            }
            const Sum through = dz_after - (n.p - n.g * q_before);
            slope_of[i] = code == NOTHING ? Sum(0) : through * n.slope_gamma;
            if (k < WRITES && t < tokens)
                dw[call.row_of(t) * WRITES + k] = code == NOTHING ? Sum(0) : n.u - n.h * q_before + dz_after + through * n.slope;
        }
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) writes[item] = next_writes[item];
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++) reads[item] = next_reads[item];
        list = next_list;
        prepare(chunk - 1, writes, reads, list, numbers, gain, dmass);
        __syncthreads();
    }
    if (all.number) add_dgamma(0);
    if (dgiven_mass)
        for (int row = threadIdx.x; row < rows; row += THREADS) dgiven_mass[unit * rows + row] = dz[row];
}
