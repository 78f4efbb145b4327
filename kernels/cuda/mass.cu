// The masses of the slots, and all of the memory's gradients that do not depend on channels.
//
//     forward   z[row] = alpha z[row] + w,  eta = w / (z[row] + eps);  mass-aware reads weigh by z[row]
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
// Only z, and in reverse its adjoint and q, go from chunk to chunk (chunk.cuh). So each direction is a scan that does
// nothing else, and what depends on one access alone is left to kernels that take all chunks at once:
//
//     forward    link.cu: alpha ──▶ mass_forward: z before each write ──▶ mass_weigh: eta, weights of reads
//     backward   mass_prepare: dr, what the scan needs ──▶ mass_backward: q, dz at each write ──▶ mass_finish: dw, dgamma
//
// Who computes what: in a scan one block a (batch, head), with its numbers of the rows in shared memory (device memory
// if there are too many rows); in the others one block a chunk. Thread token * W + k has write k of a token and read k
// (several if K is above 64), and in a scan thread c has chain c.
//
// Compiled with: what chunk.cuh asks for, MASS_AWARE, IN_SHARED, FRESH (as content.cu).
#include "chunk.cuh"

constexpr int ITEMS_W = items(W), ITEMS_R = items(R);

extern "C" __global__ void __launch_bounds__(256) mass_forward(
    CALL_PARAMETERS,
    const Sum* given, Sum* working, Sum* final_mass,  // (B*H, rows) each, or null; working only if not IN_SHARED
    const Linked<Sum>* __restrict__ write_events, const Linked<Sum>* __restrict__ read_events,
    const Sum* __restrict__ alphas,   // (B*H, chunks, CHUNK, W)
    Sum* __restrict__ old_mass,       // (B*H, chunks, CHUNK, W): before each write
    Sum* __restrict__ read_mass       // (B*H, chunks, CHUNK, R), or null
) {
    const Call call = CALL;
    const Unit unit(call, blockIdx.x);
    Sum* const z = IN_SHARED ? reinterpret_cast<Sum*>(on_chip()) : working + unit.number * rows;
    if (IN_SHARED)
        for (int row = threadIdx.x; row < rows; row += THREADS) z[row] = given ? given[unit.number * rows + row] : initial;

    __shared__ Sum alpha_of[ENTRIES], w_of[ENTRIES], found[ENTRIES];  // by place in chains; found: mass before the access
    struct Inputs {
        Linked<Sum> write[ITEMS_W], read[ITEMS_R];
        Sum w[ITEMS_W], alpha[ITEMS_W];
        Chain chain;
    };
    const auto fetch = [&](int chunk, Inputs& to) {
        const long long first = unit.chunk_at(chunk) * CHUNK;
        if (chunk >= call.chunks()) return;
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            const int i = threadIdx.x + item * THREADS, k = i % W, t = chunk * CHUNK + i / W;
            to.write[item] = {NOTHING, 0};
            if (i >= CHUNK * W || k >= WRITES || t >= tokens) continue;
            to.write[item] = write_events[first * W + i];
            to.w[item] = write_weight[unit.row_of(t) * WRITES + k];
            to.alpha[item] = alphas[first * W + i];
        }
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++) {
            const int i = threadIdx.x + item * THREADS;
            to.read[item] = {NOTHING, 0};
            if (i < CHUNK * R) to.read[item] = read_events[first * R + i];
        }
        if (CHUNK > 1 && int(threadIdx.x) < CHAINS) to.chain = call.lists.chains_of(unit.chunk_at(chunk))[threadIdx.x];
    };
    // what chains need: a read leaves the mass as it is
    const auto publish = [&](const Inputs& from) {
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++)
            if (has_version(int(from.write[item].row)))
                alpha_of[from.write[item].place] = from.alpha[item], w_of[from.write[item].place] = from.w[item];
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++)
            if (has_version(int(from.read[item].row))) alpha_of[from.read[item].place] = 1, w_of[from.read[item].place] = 0;
    };
    Inputs now{}, next{};
    fetch(0, now);
    publish(now);
    __syncthreads();
    for (int chunk = 0; chunk < call.chunks(); chunk++) {
        fetch(chunk + 1, next);
        // 1. z = alpha z + w: alone, then along chains
        const auto mass_of = [&](int row) { return FRESH && row >= chunk * CHUNK * WRITES ? initial : z[row]; };
        Sum before[ITEMS_W];
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            before[item] = initial;
            if (!in_place(int(now.write[item].row))) continue;
            const int row = row_at(int(now.write[item].row));
            before[item] = mass_of(row);
            z[row] = now.alpha[item] * before[item] + now.w[item];
        }
        if (now.chain.count() && !now.chain.reads_only()) {
            Sum mass = mass_of(now.chain.row);
#pragma unroll 4
            for (int i = now.chain.begin(); i < now.chain.begin() + now.chain.count(); i++) {
                found[i] = mass;
                mass = alpha_of[i] * mass + w_of[i];
            }
            z[now.chain.row] = mass;
        }
        __syncthreads();
        // 2. what the accesses found
        const long long first = unit.chunk_at(chunk) * CHUNK;
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            const int i = threadIdx.x + item * THREADS;
            if (has_version(int(now.write[item].row))) before[item] = found[now.write[item].place];
            if (i < CHUNK * W) old_mass[first * W + i] = before[item];
        }
        if (MASS_AWARE) {
#pragma unroll
            for (int item = 0; item < ITEMS_R; item++) {
                const int i = threadIdx.x + item * THREADS, code = int(now.read[item].row);
                if (i >= CHUNK * R) continue;
                const Sum mass = in_place(code) ? z[row_at(code)] : initial;
                read_mass[first * R + i] = has_version(code) ? found[now.read[item].place] : mass;
            }
        }
        now = next;
        publish(now);
        __syncthreads();
    }
    if (IN_SHARED && final_mass)
        for (int row = threadIdx.x; row < rows; row += THREADS) final_mass[unit.number * rows + row] = z[row];
}

extern "C" __global__ void __launch_bounds__(256) mass_weigh(
    CALL_PARAMETERS,
    TokenEvent* write_events, TokenEvent* read_events,  // Linked<Sum> as they come; left with coefficients
    const Sum* __restrict__ alphas, const Sum* __restrict__ old_mass, const Sum* __restrict__ read_mass
) {
    const Call call = CALL;
    const int chunk = blockIdx.x % call.chunks();
    const Unit unit(call, blockIdx.x / call.chunks());
    const long long first = (long long)(blockIdx.x) * CHUNK;
    TokenEvent* const list = CHUNK > 1 ? call.lists.entries_of(blockIdx.x) : nullptr;
    for (int i = threadIdx.x; i < CHUNK * W; i += THREADS) {
        const Linked<Sum> linked = reinterpret_cast<const Linked<Sum>*>(write_events)[first * W + i];
        Sum eta = 0;
        if (linked.row != NOTHING) {
            const Sum w = write_weight[unit.row_of(chunk * CHUNK + i / W) * WRITES + i % W];
            eta = w / (alphas[first * W + i] * old_mass[first * W + i] + w + eps);
        }
        write_events[first * W + i] = {linked.row, eta};
        if (CHUNK > 1 && has_version(int(linked.row))) list[linked.place].coefficient = eta;
    }
    for (int i = threadIdx.x; i < CHUNK * R; i += THREADS) {
        const Linked<Sum> linked = reinterpret_cast<const Linked<Sum>*>(read_events)[first * R + i];
        const int k = i % R, t = chunk * CHUNK + i / R, code = int(linked.row);
        Sum weight = 0;
        if (code != NOTHING) {
            const Sum* r = read_weight + unit.row_of(t) * READS;
            weight = r[k];
            if (MASS_AWARE) {
                const Sum* mass = read_mass + first * R + i - k;
                Sum total = 0, weighted = 0;
                for (int j = 0; j < READS; j++) total += r[j], weighted += r[j] * mass[j];
                weight *= total * mass[k] / (weighted + eps);
            }
        }
        read_events[first * R + i] = {linked.row, weight};
        if (CHUNK > 1 && (has_version(code) || code & REVERSE_LISTED)) list[linked.place].coefficient = weight;
    }
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

// In terms of these a write takes the adjoint dz of its mass, and q, to (in reverse time)
//
//     q = b, plus q unless <d, found> is known;   pull = p - g q,   dz = alpha (dz - pull).
struct alignas(4 * sizeof(Sum)) Step {
    Sum alpha, b, g, p;

    DEVICE void undo(bool found_known, Sum& q, Sum& dz) const {
        q = found_known ? b : q + b;
        dz = alpha * (dz - (p - g * q));
    }
};
// And dw = u - h q + dz' + slope (dz' - pull), with dz' the adjoint before and ``slope`` the mass found times alpha'(w).
struct Slopes {
    Sum u, h, slope, slope_gamma;
};

// Of write i of a chunk, a live one. dots: sums of content.cu's parts, <d, v> and, of a first write, <d, found>.
DEVICE void numbers_of(
    const Unit& unit, int t, int k, Sum before, Sum dot, Sum dot_found, Step& step, Slopes& slopes
) {
    const Call& call = unit.call;
    const Sum w = call.write_weight[unit.row_of(t) * WRITES + k], gamma = unit.gamma_of(t), alpha = call.retention(w, gamma);
    Sum slope, slope_gamma;
    call.retention.slopes(w, gamma, alpha, slope, slope_gamma);
    const Sum kept_mass = alpha * before + call.eps, mass = kept_mass + w;
    const Sum eta = w / mass, kappa = kept_mass / mass;
    if (k == 0) {  // <d, found> is known
        const Sum deta = (dot - dot_found) / mass, pull = eta * deta;
        step = {alpha, kappa * dot_found, 0, pull};
        slopes = {deta - pull, 0, before * slope, before * slope_gamma};
    } else {
        const Sum g = kept_mass > 0 ? eta / kept_mass : Sum(0);
        step = {alpha, -eta * dot, g, g * (kappa * dot)};
        slopes = {kappa * dot / mass, 1 / mass, before * slope, before * slope_gamma};
    }
}

// What content.cu's passes back left in parts, slice by slice.
struct Dots {
    int slices;
    const Sum *written, *found, *read;  // (slices, B*H, chunks, CHUNK, W or 1 or R)
    long long tokens;                   // B*H * chunks * CHUNK

    DEVICE Sum of_write(long long at) const { return sum_of_slices(written + at, slices, tokens * W); }
    DEVICE Sum of_found(long long at) const { return sum_of_slices(found + at, slices, tokens); }
    DEVICE Sum of_read(long long at) const { return sum_of_slices(read + at, slices, tokens * R); }
};
#define DOTS_PARAMETERS                                                                                                  \
    int slices, const Sum *__restrict__ dwritten, const Sum *__restrict__ dfound, const Sum *__restrict__ dread

extern "C" __global__ void __launch_bounds__(256) mass_prepare(
    CALL_PARAMETERS, DOTS_PARAMETERS, const TokenEvent* __restrict__ write_events, const TokenEvent* __restrict__ read_events,
    const Sum* __restrict__ old_mass, const Sum* __restrict__ read_mass,
    Step* __restrict__ steps,  // (B*H, chunks, CHUNK, W)
    Sum* __restrict__ gains,   // (B*H, chunks, CHUNK, R): what a read adds to q
    Sum* __restrict__ dmasses,  // likewise to dz, or null if not MASS_AWARE
    Sum* __restrict__ dr       // (B, T, H, READS)
) {
    const Call call = CALL;
    const int chunk = blockIdx.x % call.chunks();
    const Unit unit(call, blockIdx.x / call.chunks());
    const long long first = (long long)(blockIdx.x) * CHUNK;
    const Dots dots{slices, dwritten, dfound, dread, (long long)(gridDim.x) * CHUNK};
    for (int i = threadIdx.x; i < CHUNK * W; i += THREADS) {
        const int k = i % W;
        Step step{1, 0, 0, 0};
        Slopes unused;
        if (write_events[first * W + i].row != NOTHING)
            numbers_of(
                unit, chunk * CHUNK + i / W, k, old_mass[first * W + i], dots.of_write(first * W + i),
                k ? Sum(0) : dots.of_found(first + i / W), step, unused);
        steps[first * W + i] = step;
    }
    for (int i = threadIdx.x; i < CHUNK * R; i += THREADS) {
        const int k = i % R, t = chunk * CHUNK + i / R;
        const auto dot = [&](int j) {  // <dy, s>; 0 of a slot that nothing is written to, whatever dy is
            return read_events[first * R + i - k + j].row == NOTHING ? Sum(0) : dots.of_read(first * R + i - k + j);
        };
        Sum gain = 0, dmass = 0;
        if (k < READS && t < tokens) {
            const Sum* r = read_weight + unit.row_of(t) * READS;
            Sum dweight = dot(k);
            gain = r[k] * dweight;
            if (MASS_AWARE && unit.live(t)) {
                const Sum* mass = read_mass + first * R + i - k;
                Sum total = 0, weighted = eps, through = 0;
#pragma unroll 1
                for (int j = 0; j < READS; j++) {
                    const Sum n = r[j] * mass[j];
                    total += r[j], weighted += n, through += dot(j) * n;
                }
                through /= weighted;
                const Sum dn = (dweight - through) * total / weighted;
                gain *= total * mass[k] / weighted;
                dweight = dn * mass[k] + through;
                dmass = dn * r[k];
            }
            dr[unit.row_of(t) * READS + k] = dweight;
        }
        gains[first * R + i] = gain;
        if (MASS_AWARE) dmasses[first * R + i] = dmass;
    }
}

// At a write, in reverse: q that dw needs, and dz before the write is undone.
struct alignas(2 * sizeof(Sum)) Adjoint {
    Sum q, dz;
};

extern "C" __global__ void __launch_bounds__(256) mass_backward(
    CALL_PARAMETERS, int slices, const TokenEvent* __restrict__ write_events, const TokenEvent* __restrict__ read_events,
    const Step* __restrict__ steps, const Sum* __restrict__ gains, const Sum* __restrict__ dmasses,
    const Sum* last,           // (slices, B*H, rows): <dstate, s> after the last token, or null for 0
    const Sum* dfinal_mass,    // (B*H, rows), or null for 0
    Adjoint* working,          // (B*H, rows) if not IN_SHARED, all 0
    Adjoint* __restrict__ adjoints,  // (B*H, chunks, CHUNK, W)
    Sum* dgiven_mass           // (B*H, rows), or null
) {
    const Call call = CALL;
    const Unit unit(call, blockIdx.x);
    Adjoint* const of_row = IN_SHARED ? reinterpret_cast<Adjoint*>(on_chip()) : working + unit.number * rows;
    if (IN_SHARED || last)
        for (int row = threadIdx.x; row < rows; row += THREADS)
            of_row[row] = {
                last ? sum_of_slices(last + unit.number * rows + row, slices, (long long)(gridDim.x) * rows) : Sum(0),
                dfinal_mass ? dfinal_mass[unit.number * rows + row] : Sum(0)};

    // for chains, by number token * W + k or token * R + k of the access; then what a write found
    __shared__ Step step_of[CHUNK * W];
    __shared__ Adjoint found[CHUNK * W], gain_of[CHUNK * R];
    __shared__ int entry_at[ENTRIES];
    constexpr int ENTRY_ITEMS = CHUNK > 1 ? (ENTRIES + THREADS - 1) / THREADS : 1;
    struct Inputs {
        int write[ITEMS_W], read[ITEMS_R];  // codes
        Step step[ITEMS_W];
        Adjoint gain[ITEMS_R];
        Chain chain;
        int entry[ENTRY_ITEMS];
    };
    const auto fetch = [&](int chunk, Inputs& to) {
        if (chunk < 0) return;
        const long long first = unit.chunk_at(chunk) * CHUNK;
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            const int i = threadIdx.x + item * THREADS;
            to.write[item] = NOTHING;
            if (i >= CHUNK * W) continue;
            to.write[item] = int(write_events[first * W + i].row);
            to.step[item] = steps[first * W + i];
        }
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++) {
            const int i = threadIdx.x + item * THREADS;
            to.read[item] = NOTHING;
            if (i >= CHUNK * R) continue;
            to.read[item] = int(read_events[first * R + i].row);
            to.gain[item] = {gains[first * R + i], MASS_AWARE ? dmasses[first * R + i] : Sum(0)};
        }
        if (CHUNK > 1 && int(threadIdx.x) < CHAINS) to.chain = call.lists.chains_of(unit.chunk_at(chunk))[threadIdx.x];
#pragma unroll
        for (int item = 0; item < ENTRY_ITEMS; item++) {
            const int i = threadIdx.x + item * THREADS;
            if (CHUNK > 1 && i < ENTRIES) to.entry[item] = call.lists.numbers_of(unit.chunk_at(chunk))[i];
        }
    };
    const auto publish = [&](const Inputs& from) {
        if constexpr (CHUNK > 1) {
#pragma unroll
            for (int item = 0; item < ITEMS_W; item++)
                if (has_version(from.write[item])) step_of[threadIdx.x + item * THREADS] = from.step[item];
#pragma unroll
            for (int item = 0; item < ITEMS_R; item++)
                if (from.read[item] != NOTHING) gain_of[threadIdx.x + item * THREADS] = from.gain[item];
#pragma unroll
            for (int item = 0; item < ENTRY_ITEMS; item++) {
                const int i = threadIdx.x + item * THREADS;
                if (i < ENTRIES) entry_at[i] = from.entry[item];
            }
        }
    };
    const int end = call.chunks() - 1;
    Inputs now{}, next{};
    fetch(end, now);
    publish(now);
    __syncthreads();
    for (int chunk = end; chunk >= 0; chunk--) {
        fetch(chunk - 1, next);
        // 1. reads alone on their slot, then along chains
#pragma unroll
        for (int item = 0; item < ITEMS_R; item++) {
            const int code = now.read[item];
            if (!in_place(code) || code & REVERSE_LISTED) continue;
            Adjoint& a = of_row[row_at(code)];
            a = {a.q + now.gain[item].q, a.dz + now.gain[item].dz};
        }
        if (now.chain.count()) {
            Adjoint a = of_row[now.chain.row];
            for (int i = now.chain.begin() + now.chain.count() - 1; i >= now.chain.begin(); i--) {
                const int what = entry_at[i];
                if (what & READS_NUMBER) {
                    const Adjoint gain = gain_of[what - READS_NUMBER];
                    a = {a.q + gain.q, a.dz + gain.dz};
                } else {
                    const Sum dz = a.dz;
                    step_of[what].undo(what % W == 0, a.q, a.dz);
                    found[what] = {a.q, dz};
                }
            }
            of_row[now.chain.row] = a;
        }
        __syncthreads();
        // 2. writes
        const long long first = unit.chunk_at(chunk) * CHUNK;
#pragma unroll
        for (int item = 0; item < ITEMS_W; item++) {
            const int i = threadIdx.x + item * THREADS, code = now.write[item];
            Adjoint at_write{0, 0};
            if (in_place(code)) {
                Adjoint a = at_write = of_row[row_at(code)];
                now.step[item].undo(i % W == 0, a.q, a.dz);
                of_row[row_at(code)] = a;
                at_write.q = a.q;
            } else if (code != NOTHING) {
                at_write = found[i];
            }
            if (i < CHUNK * W) adjoints[first * W + i] = at_write;
        }
        now = next;
        publish(now);
        __syncthreads();
    }
    if (dgiven_mass)
        for (int row = threadIdx.x; row < rows; row += THREADS) dgiven_mass[unit.number * rows + row] = of_row[row].dz;
}

extern "C" __global__ void __launch_bounds__(256) mass_finish(
    CALL_PARAMETERS, DOTS_PARAMETERS, const TokenEvent* __restrict__ write_events, const Sum* __restrict__ old_mass,
    const Adjoint* __restrict__ adjoints,
    Sum* __restrict__ dw,        // (B, T, H, WRITES)
    ELEMENT* __restrict__ dgamma  // (B, T, H)
) {
    const Call call = CALL;
    const int chunk = blockIdx.x % call.chunks();
    const Unit unit(call, blockIdx.x / call.chunks());
    const long long first = (long long)(blockIdx.x) * CHUNK;
    const Dots dots{slices, dwritten, dfound, dread, (long long)(gridDim.x) * CHUNK};
    __shared__ Sum to_gamma[CHUNK * W];
    for (int i = threadIdx.x; i < CHUNK * W; i += THREADS) {
        const int k = i % W, t = chunk * CHUNK + i / W;
        Sum dweight = 0;
        to_gamma[i] = 0;
        if (write_events[first * W + i].row != NOTHING) {
            Step step;
            Slopes n;
            numbers_of(
                unit, t, k, old_mass[first * W + i], dots.of_write(first * W + i),
                k ? Sum(0) : dots.of_found(first + i / W), step, n);
            const Adjoint a = adjoints[first * W + i];
            const Sum through = a.dz - (step.p - step.g * a.q);
            dweight = n.u - n.h * a.q + a.dz + through * n.slope;
            to_gamma[i] = through * n.slope_gamma;
        }
        if (k < WRITES && t < tokens) dw[unit.row_of(t) * WRITES + k] = dweight;
    }
    __syncthreads();
    const int t = chunk * CHUNK + int(threadIdx.x);
    if (int(threadIdx.x) >= CHUNK || t >= tokens) return;
    Sum sum = 0;
    for (int k = 0; k < WRITES; k++) sum += to_gamma[threadIdx.x * W + k];
    narrow(sum, dgamma[unit.row_of(t)]);
}
