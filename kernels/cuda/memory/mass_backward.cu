// The masses' adjoints, and all of the memory's gradients that do not depend on channels: those of the weights and of
// gamma.
//
// The backward is given <d, v> of every write and <dy, s> of every read, with s a slot's content and d its adjoint, but
// not the content that a write found, which no pass keeps. It needs of it only <d, found>, and that follows from what it
// has: q = <d, s> of a slot changes by known amounts,
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
// Only q and dz, the adjoint of z, go from chunk to chunk (chunk.cuh): a block works through the chunks of a
// (batch, head), or of a segment of it (segments.cu), last to first, with its numbers of the rows in shared memory (device
// memory if there are too many rows). What does not depend on later chunks is computed before.
//
// Who computes what: half of the threads have writes, thread token * W + k write k of a token; the others reads, thread
// token * R + k read k of a token (several if K is above 64), and chains, thread c chain c:
//
//        writes                                      reads and chains
//     1  what those of the next chunk need:          reads alone on their slot: q += r <dy, s>;
//        sums over slices, slopes of alpha           chains, access after access
//     2  q and dz of this chunk's: dw, dgamma        of the next chunk's: <dy, s>, dr
//
// dz at the end of a segment is not known before later segments are done, but at its begin is a dz + b, a and b not
// depending on dz. With CARRY, that is all that is computed.
//
// Compiled with: what chunk.cuh asks for, MASS_AWARE, IN_SHARED (as mass.cu), SLICES (of content.cu's channels),
// SEGMENTED (0 or 1; 1 only with IN_SHARED), CARRY (0, or 1 if SEGMENTED).
#include "memory/mass.cuh"

constexpr int ITEMS_W = items(W), ITEMS_R = items(R);  // of a thread

// The parts of a sum over slices: on their way in registers, up to so many.
constexpr int HELD = smaller_of(SLICES, 4);

struct Parts {
    Sum at[HELD];

    DEVICE void fetch(const Sum* parts, long long stride) {
#pragma unroll
        for (int i = 0; i < HELD; i++) at[i] = parts[i * stride];
    }
    DEVICE Sum sum(const Sum* parts, long long stride) const {
        Sum sum = at[0];
#pragma unroll
        for (int i = 1; i < HELD; i++) sum += at[i];
#pragma unroll 4
        for (int slice = HELD; slice < SLICES; slice++) sum += parts[slice * stride];
        return sum;
    }
};

// In terms of these a write takes q and dz, in reverse time, to
//
//     q = b, plus q unless <d, found> is known;   pull = p - g q,   dz = alpha (dz - pull).
//
// A read is a write that leaves all but q (and, if it is mass-aware, dz) as it is.
struct alignas(4 * sizeof(Sum)) Step {
    Sum alpha, b, g, p;  // alpha with a minus, also where it is 0: <d, found> is known

    DEVICE static Step of_read(const Adjoint& gain) { return {1, gain.q, 0, -gain.dz}; }
    DEVICE Sum pull(Sum q) const { return p - g * q; }
    // Returns q as it then is and dz as it was, both of which dw needs.
    DEVICE Adjoint undo(Adjoint& a) const {
        a.q = signbit_of(alpha) ? b : a.q + b;
        const Adjoint found = a;
        a.dz = absolute(alpha) * (a.dz - pull(a.q));
        return found;
    }
};
// And dw = u - h q + dz' + slope (dz' - pull), with dz' the adjoint before and ``slope`` the mass found times alpha'(w).
struct Slopes {
    Sum u, h, slope, slope_gamma;
};

// Of a live write. ``before``: the mass it found; dots: <d, v> and, of a token's first write, <d, found>.
DEVICE void numbers_of(
    const Call& call, const Link& write, Sum gamma, Sum before, bool first, Sum dot, Sum dot_found, Step& step, Slopes& slopes
) {
    const Sum alpha = write.change.a, w = write.change.b;
    Sum slope, slope_gamma;
    call.retention.slopes(w, gamma, alpha, slope, slope_gamma);
    const Sum kept_mass = alpha * before + call.eps, per_mass = reciprocal(kept_mass + w);
    const Sum eta = w * per_mass, kappa = kept_mass * per_mass;
    if (first) {  // <d, found> is known
        const Sum deta = (dot - dot_found) * per_mass, pull = eta * deta;
        step = {-alpha, kappa * dot_found, 0, pull};
        slopes = {deta - pull, 0, before * slope, before * slope_gamma};
    } else {
        const Sum g = kept_mass > 0 ? eta * reciprocal(kept_mass) : Sum(0);
        step = {alpha, -eta * dot, g, g * (kappa * dot)};
        slopes = {kappa * dot * per_mass, per_mass, before * slope, before * slope_gamma};
    }
}

// The sum over the lanes that have writes of the same token, of up to a warp.
DEVICE Sum sum_over_token(Sum x) {
#pragma unroll
    for (int distance = 1; distance < (W < 32 ? W : 32); distance *= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

extern "C" __global__ void __launch_bounds__(512, sizeof(Sum) == 4 ? 2 : 1) mass_backward(
    CALL_PARAMETERS,
    const Sum* __restrict__ dwritten,  // <d, v>: (SLICES, B*H, chunks, CHUNK, W)
    const Sum* __restrict__ dfound,    // <d, found> of a token's first write: (SLICES, B*H, chunks, CHUNK)
    const Sum* __restrict__ dread,     // <dy, s>: (SLICES, B*H, chunks, CHUNK, R)
    const Link* __restrict__ writes, const Sum* __restrict__ old_mass,  // (B*H, chunks, CHUNK, W)
    const TokenEvent* __restrict__ read_events, const unsigned short* __restrict__ read_places,  // (.., CHUNK, R)
    const Adjoint* __restrict__ gains,  // (B*H, chunks, CHUNK, R): what a read adds, if MASS_AWARE
    const Sum* last, int last_parts,    // (parts, B*H, segments, rows): q at the end is their sum; or null for 0
    const Sum* dfinal_mass,             // (B*H, segments, rows): dz at the end, or null for 0
    Adjoint* working,                   // (B*H, rows) if not IN_SHARED, all 0
    int segments, int chunks_of_segment,
    Sum* __restrict__ dw,               // (B, T, H, WRITES)
    Sum* __restrict__ dr,               // (B, T, H, READS), if not MASS_AWARE
    ELEMENT* __restrict__ dgamma,       // (B, T, H)
    Sum* dgiven_mass,                   // (B*H, rows), or null
    Affine* __restrict__ carried        // (B*H, segments, rows): dz at a segment's begin, if CARRY
) {
    const Call call = CALL;
    const Part part(call, SEGMENTED, segments, chunks_of_segment);
    const Unit unit(call, part.unit);
    const int thread = threadIdx.x % THREADS;
    const long long of_part = (long long)(blockIdx.x) * rows;
    Adjoint* const of_row = IN_SHARED ? reinterpret_cast<Adjoint*>(on_chip()) : working + of_part;
    Sum* const kept = reinterpret_cast<Sum*>(of_row + rows);  // what dz at the end is multiplied by, if CARRY
    if (IN_SHARED || last)
        for (int row = threadIdx.x; row < rows; row += 2 * THREADS) {
            Adjoint start{0, !CARRY && dfinal_mass ? dfinal_mass[of_part + row] : Sum(0)};
            const long long stride = (long long)(gridDim.x) * rows;
#pragma unroll 1
            for (int i = 0; last && i < last_parts; i++) start.q += last[i * stride + of_part + row];
            of_row[row] = start;
            if (CARRY) kept[row] = 1;
        }
    __shared__ Step step_at[CHUNK > 1 ? ENTRIES : 1];       // of the chains' entries
    __shared__ Adjoint found_at[CHUNK > 1 ? ENTRIES : 1];   // what they found
    __shared__ Sum to_gamma[THREADS / 32];
    const long long in_slice = (long long)(gridDim.x / (SEGMENTED ? segments : 1)) * call.chunks() * CHUNK;  // tokens
    const long long first = unit.chunk_at(0) * CHUNK;

    if (threadIdx.x < THREADS) {
        struct Raw {
            Link write;
            Sum before, part_found;  // of <d, found>: lane k < 8 of a token has slice k
            Parts dots;
            ELEMENT gamma;
        };
        struct Ready {
            Link write;
            Step step;
            Slopes slopes;
        };
        Raw raw[ITEMS_W];
        Ready now[ITEMS_W];
        const Sum* const dots = dwritten + first * W + thread;
        const int token = thread / W, k = thread % W;  // of item 0; the others, if any, are of the same token
        constexpr int FOUND = smaller_of(SLICES, 8);
        const Sum* const dots_found = dfound + (k < FOUND ? k : 0) * in_slice + first + token;
        writes += first * W + thread, old_mass += first * W + thread;
        const ELEMENT* const gammas = gamma ? gamma + unit.first : nullptr;
        dw += unit.first * WRITES + k, dgamma += unit.first;
        const auto fetch = [&](int chunk) {
#pragma unroll
            for (int item = 0; item < ITEMS_W; item++) {
                Raw& to = raw[item];
                to.write = {0, DEAD, {1, 0}}, to.before = 0, to.part_found = 0;
                if (chunk < part.begin || thread + item * THREADS >= CHUNK * W) continue;
                const unsigned at = unsigned(chunk) * (CHUNK * W) + item * THREADS;
                to.write = writes[at], to.before = old_mass[at];
                to.dots.fetch(dots + at, in_slice * W);
                if (item == 0) to.part_found = dots_found[unsigned(chunk) * CHUNK];
                const int t = chunk * CHUNK + token;
                if (gammas && t < tokens) to.gamma = gammas[unsigned(t) * unsigned(heads)];
            }
        };
        // Of the chunk whose inputs are there; then asks for those of the one that comes after it.
        const auto prepare = [&](int chunk, Ready (&ready)[ITEMS_W]) {
            Sum dot[ITEMS_W], before[ITEMS_W], dot_found = k < FOUND ? raw[0].part_found : Sum(0);
            const Sum gamma_here = gammas ? arrived(widen(raw[0].gamma)) : one_gamma;
#pragma unroll
            for (int item = 0; item < ITEMS_W; item++) {
                const unsigned at = unsigned(chunk) * (CHUNK * W) + item * THREADS;
                ready[item].write = raw[item].write, before[item] = arrived(raw[item].before), dot[item] = 0;
                if (ready[item].write.live()) dot[item] = raw[item].dots.sum(dots + at, in_slice * W);
            }
            if (SLICES > 8 && k < 8 && chunk >= part.begin && token < CHUNK)
#pragma unroll 1
                for (int slice = k + 8; slice < SLICES; slice += 8)
                    dot_found += dots_found[(slice - k) * in_slice + unsigned(chunk) * CHUNK];
#pragma unroll
            for (int distance = 1; distance < 8; distance *= 2) dot_found += __shfl_xor_sync(~0u, dot_found, distance);
            fetch(chunk - 1);
#pragma unroll
            for (int item = 0; item < ITEMS_W; item++)
                if (ready[item].write.live())
                    numbers_of(
                        call, ready[item].write, gamma_here, before[item], item == 0 && k == 0, dot[item], dot_found,
                        ready[item].step, ready[item].slopes);
        };
        const auto publish = [&]() {
#pragma unroll
            for (int item = 0; item < ITEMS_W; item++)
                if (CHUNK > 1 && now[item].write.chained()) step_at[tag_place(int(now[item].write.tag))] = now[item].step;
        };
        const auto finish_gamma = [&](int chunk) {  // of tokens whose writes are more than a warp's
            const int t = chunk * CHUNK + thread;
            if (CARRY || W <= 32 || chunk >= part.end || thread >= CHUNK || t >= tokens) return;
            constexpr int EACH = THREADS / 32 / CHUNK ? THREADS / 32 / CHUNK : 1;  // warps
            Sum sum = 0;
            for (int i = 0; i < EACH; i++) sum += to_gamma[thread * EACH + i];
            narrow(sum, dgamma[unsigned(t) * unsigned(heads)]);
        };
        fetch(part.end - 1);
        prepare(part.end - 1, now);
        publish();
        __syncthreads();
        for (int chunk = part.end - 1; chunk >= part.begin; chunk--) {
            // 1. of the next chunk
            Ready next[ITEMS_W];
            prepare(chunk - 1, next);
            finish_gamma(chunk + 1);
            __syncthreads();
            // 2. of this one
            const int t = chunk * CHUNK + token;
            Sum through_gamma = 0;
#pragma unroll
            for (int item = 0; item < ITEMS_W; item++) {
                const Link& write = now[item].write;
                const Step& step = now[item].step;
                const Slopes& n = now[item].slopes;
                Sum dweight = 0;
                if (write.live()) {
                    Adjoint found;
                    if (CHUNK > 1 && write.chained()) {
                        found = found_at[tag_place(int(write.tag))];
                    } else {
                        Adjoint a = of_row[write.row];
                        found = step.undo(a);
                        of_row[write.row] = a;
                        if (CARRY) kept[write.row] *= absolute(step.alpha);
                    }
                    const Sum through = found.dz - step.pull(found.q);
                    dweight = n.u - n.h * found.q + found.dz + through * n.slope;
                    through_gamma += through * n.slope_gamma;
                }
                if (!CARRY && token < CHUNK && k + item * THREADS < WRITES && t < tokens)
                    dw[unsigned(t) * unsigned(heads * WRITES) + item * THREADS] = dweight;
            }
            through_gamma = sum_over_token(through_gamma);
            if (W > 32) {
                if (thread % 32 == 0) to_gamma[thread / 32] = through_gamma;
            } else if (!CARRY && k == 0 && token < CHUNK && t < tokens) {
                narrow(through_gamma, dgamma[unsigned(t) * unsigned(heads)]);
            }
#pragma unroll
            for (int item = 0; item < ITEMS_W; item++) now[item] = next[item];
            publish();
            __syncthreads();
        }
        finish_gamma(part.begin);
    } else {
        struct Raw {
            TokenEvent event;
            int place;  // among the entries
            Parts dots;
            Adjoint gain;
        };
        struct Ready {
            int code;
            Adjoint gain;
        };
        Raw raw[ITEMS_R];
        Ready now[ITEMS_R];
        Chain chain, next_chain;
        const int token = thread / R, k = thread % R;
        const Sum* const dots = dread + first * R + thread;
        read_events += first * R + thread, read_places += first * R + thread, dr += unit.first * READS + k;
        if (MASS_AWARE) gains += first * R + thread;
        const int round = thread / EACH_ROUND, asked = round < SURE_ROUNDS ? thread : thread % EACH_ROUND;
        const Chain* const chains_here = CHUNK > 1 ? chains + unit.chunk_at(0) * CHAINS + asked : nullptr;
        const auto fetch = [&](int chunk) {
            // before the first chunk, nobody looks at it
            if (CHUNK > 1) next_chain = chains_here[unsigned(chunk < part.begin ? part.begin : chunk) * CHAINS];
#pragma unroll
            for (int item = 0; item < ITEMS_R; item++) {
                Raw& to = raw[item];
                to.event = {NOTHING, 0};
                if (chunk < part.begin || thread + item * THREADS >= CHUNK * R) continue;
                const unsigned at = unsigned(chunk) * (CHUNK * R) + item * THREADS;
                to.event = read_events[at];
                if (CHUNK > 1) to.place = read_places[at];
                if (MASS_AWARE)
                    to.gain = gains[at];
                else
                    to.dots.fetch(dots + at, in_slice * R);
            }
        };
        const auto prepare = [&](int chunk) {
            const int t = chunk * CHUNK + token;
            chain = next_chain;
            chain.arrive();  // or else compilers rename registers, and copy the next chain, not this one: they wait for it
            if (CHUNK > 1 && round >= SURE_ROUNDS) {  // that was the chain of the first round; later rounds are rare
                const bool there = round <= chain.last_round() && chunk >= part.begin;
                chain = {-1, 0};
                if (there) {  // all threads of a warp, or none
                    chain = chains_here[unsigned(chunk) * CHAINS + round * EACH_ROUND];
                    chain.arrive();
                }
            }
#pragma unroll
            for (int item = 0; item < ITEMS_R; item++) {
                const Raw& from = raw[item];
                const int code = arrived(int(from.event.row));
                Adjoint gain{0, 0};
                if (MASS_AWARE) {
                    if (code != NOTHING) gain = from.gain;
                } else {
                    Sum dot = 0;  // <dy, s>; 0 of a slot that nothing is written to, whatever dy is
                    if (code != NOTHING)
                        dot = from.dots.sum(dots + unsigned(chunk) * (CHUNK * R) + item * THREADS, in_slice * R);
                    gain.q = from.event.coefficient * dot;
                    if (!CARRY && chunk >= part.begin && token < CHUNK && k + item * THREADS < READS && t < tokens)
                        dr[unsigned(t) * unsigned(heads * READS) + item * THREADS] = dot;
                }
                now[item] = {code, gain};
                if (CHUNK > 1 && in_chain(code))
                    step_at[from.place] = Step::of_read(gain);
            }
        };
        fetch(part.end - 1);
        prepare(part.end - 1);
        fetch(part.end - 2);
        __syncthreads();
        for (int chunk = part.end - 1; chunk >= part.begin; chunk--) {
            // 1. of this chunk
#pragma unroll
            for (int item = 0; item < ITEMS_R; item++) {
                const int code = now[item].code;
                if (!is_alone(code)) continue;
                Adjoint& a = of_row[row_at(code)];
                a.q += now[item].gain.q;
                if (MASS_AWARE) a.dz += now[item].gain.dz;
            }
            if (CHUNK > 1 && chain.count()) {
                Adjoint a = of_row[chain.row];
                for (int i = chain.begin() + chain.count() - 1; i >= chain.begin(); i--) {
                    found_at[i] = step_at[i].undo(a);
                    if (CARRY) kept[chain.row] *= absolute(step_at[i].alpha);
                }
                of_row[chain.row] = a;
            }
            __syncthreads();
            // 2. of the next one
            prepare(chunk - 1);
            fetch(chunk - 2);
            __syncthreads();
        }
    }
    __syncthreads();
    if (CARRY)
        for (int row = threadIdx.x; row < rows; row += 2 * THREADS) carried[of_part + row] = {kept[row], of_row[row].dz};
    if (!CARRY && dgiven_mass && part.begin == 0)
        for (int row = threadIdx.x; row < rows; row += 2 * THREADS) dgiven_mass[unit.number * rows + row] = of_row[row].dz;
}
