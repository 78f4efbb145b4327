// One token, in place.
//
//   step            one launch: decodes both addresses, then writes and reads; with ORDER, RADIX, WRITES, READS, CHANNELS
//                   and THREADS, the size of a block, defined
//   step_addressed  given the addresses, for K and P beyond search.cuh
//
// Compiled with: ELEMENT, the type of logits, values and y.
#include "memory/memory.cuh"

using Sum = SumOf<ELEMENT>::type;

#ifdef CHANNELS

#include "address/search.cuh"

// Who computes what: one block a (batch, head). Warp 0 finds the slots of the write, warp 1 those of the read. Then all
// rows are asked for at once: SPAN threads, a team, take a row 16 bytes each, and TEAMS teams share out the rows. While
// these are on their way, warps 0 and 1 compute weights and masses. A slot that is written and read is one team's: what
// it has written goes into its part of y from registers. At last the teams' parts are added up.
//
//     warp 0     slots of the write │ ask for rows, weights, masses, eta │ write, add up │ y
//     warp 1     slots of the read  │ ask for rows, weights              │ write, add up │ y
//     the others                    │ ask for rows                       │ write, add up │ y

DEVICE constexpr int vector_length() {
    int length = 16 / sizeof(Sum);
    while (CHANNELS % length) length /= 2;
    return length;
}
constexpr int VECTOR = vector_length(), GROUPS = CHANNELS / VECTOR;  // channels of a thread, and threads of a row
constexpr int SPAN = GROUPS < THREADS ? GROUPS : THREADS;            // of those, at a time
constexpr int EVENTS = WRITES + READS;
constexpr int TEAMS = THREADS / SPAN < EVENTS ? THREADS / SPAN : EVENTS;
constexpr int OWN = (EVENTS + TEAMS - 1) / TEAMS;  // rows of a team: team, team + TEAMS, ...
constexpr int AT_ONCE = OWN < 8 ? OWN : 8;         // of those, in registers

using WriteSearch = WarpSearch<Sum, ORDER, RADIX, WRITES>;
using ReadSearch = WarpSearch<Sum, ORDER, RADIX, READS>;

// The place of ``slot`` among others, -1 if it is not there.
template <int N> DEVICE int place_of(int slot, const int (&slots)[N]) {
    int place = -1;
#pragma unroll(N <= 16 ? N : 8)
    for (int k = 0; k < N; k++) place = slots[k] == slot ? k : place;
    return place;
}

// What stays the same from call to call, in the order of step.py.
struct Call {
    long long batch_stride;  // of positions
    Sum one_gamma, eps;
    unsigned heads, cape_heads;
    int write_renorm, read_renorm, mass_aware, gsu;
};

extern "C" __global__ void __launch_bounds__(THREADS) step(
    const ELEMENT* __restrict__ write_logits, const ELEMENT* __restrict__ read_logits,  // (B, 1, H, U, P)
    const ELEMENT* __restrict__ values,                                                 // (B, 1, H, C)
    const ELEMENT* __restrict__ gamma,         // (B, 1, H), or null: ``call.one_gamma``
    const bool* __restrict__ mask,             // (B, 1), or null
    const long long* __restrict__ positions,   // (B, 1), or null: 0
    Sum* s, Sum* z,                            // (B, H, M, C) and (B, H, M), updated
    ELEMENT* __restrict__ y,                   // (B, 1, H, C)
    const Call call
) {
    __shared__ WriteSearch write_search;
    __shared__ ReadSearch read_search;
    __shared__ alignas(16) int write_slot[WRITES], read_slot[READS];
    __shared__ Sum mass[WRITES], eta[WRITES], weight[READS];
    __shared__ alignas(16) Sum parts[TEAMS * SPAN * VECTOR];

    const long long unit = blockIdx.x;
    const int warp = warp_of_thread(), lane = threadIdx.x % 32;
    const int team = threadIdx.x / SPAN, place = threadIdx.x % SPAN;
    constexpr unsigned M = WriteSearch::SLOTS;
    s += unit * M * CHANNELS;
    z += unit * M;
    values += unit * CHANNELS;
    y += unit * CHANNELS;

    // 0. what is needed later is asked for now
    const bool kept = !mask || mask[unit / call.heads];
    const Sum forgetting = gamma ? Sum(widen(gamma[unit])) : call.one_gamma;
    const long long position = Cape{positions, call.batch_stride, 0, 1, call.heads, call.cape_heads}.position(unsigned(unit));
    Sum v[VECTOR];
    load(values + place * VECTOR, v);

    // 1. slots, and the masses that they have
    Sum written_mass[WriteSearch::OWN], read_mass[ReadSearch::OWN];
    if (warp < 2) {
        const auto find = [&](auto& search, const ELEMENT* logits, int* slot, auto& masses, int count, bool wanted) {
            search.run(logits + unit * (ORDER * RADIX), lane);
            const unsigned shift = Cape::shift_at(position, M);
#pragma unroll
            for (int e = 0; e < int(sizeof(masses) / sizeof(Sum)); e++) {
                const int k = lane + 32 * e;
                if (k >= count) continue;
                slot[k] = moved(search.best[k].slot(), shift, M);
                if (wanted) masses[e] = z[slot[k]];
            }
        };
        if (warp == 0)
            find(write_search, write_logits, write_slot, written_mass, WRITES, true);
        else
            find(read_search, read_logits, read_slot, read_mass, READS, call.mass_aware);
    }
    __syncthreads();
    if (!kept) {
        for (int c = threadIdx.x; c < CHANNELS; c += THREADS) narrow(Sum(0), y[c]);
        return;
    }

    Sum content[AT_ONCE][VECTOR];
    int row[AT_ONCE], partner[AT_ONCE];  // slot; and the read of a written one, or the write of one that is read, or -1
    const auto fetch = [&](int first, int group) {
#pragma unroll
        for (int o = 0; o < AT_ONCE; o++) {
            const int e = team + TEAMS * (first + o);
            if (team >= TEAMS || e >= EVENTS) continue;
            row[o] = e < WRITES ? write_slot[e] : read_slot[e - WRITES];
            partner[o] = e < WRITES ? place_of(row[o], read_slot) : place_of(row[o], write_slot);
            if (e < WRITES || partner[o] < 0) load(s + (long long)(row[o]) * CHANNELS + group * VECTOR, content[o]);
        }
    };
    fetch(0, place);

    // 2. weights and masses
    if (warp == 0) {
        const Retention<Sum> retention{call.gsu, 0, 0};
        Sum w[WriteSearch::OWN];
        write_search.weigh(lane, call.write_renorm, w);
#pragma unroll
        for (int e = 0; e < WriteSearch::OWN; e++) {
            const int k = lane + 32 * e;
            if (k >= WRITES) continue;
            mass[k] = retention(w[e], forgetting) * written_mass[e] + w[e];
            z[write_slot[k]] = mass[k];
            eta[k] = w[e] / (mass[k] + call.eps);
        }
    }
    if (call.mass_aware) __syncthreads();
    if (warp == 1) {
        Sum r[ReadSearch::OWN], total = 0, weighted = 0;
        read_search.weigh(lane, call.read_renorm, r);
#pragma unroll
        for (int e = 0; call.mass_aware && e < ReadSearch::OWN; e++) {
            const int k = lane + 32 * e;
            if (k >= READS) continue;
            const int written = place_of(read_slot[k], write_slot);
            total += r[e];
            r[e] *= written < 0 ? read_mass[e] : mass[written];
            weighted += r[e];
        }
        const Sum scale = call.mass_aware ? sum_over_warp(total) / (sum_over_warp(weighted) + call.eps) : Sum(1);
#pragma unroll
        for (int e = 0; e < ReadSearch::OWN; e++)
            if (lane + 32 * e < READS) weight[lane + 32 * e] = r[e] * scale;
    }
    __syncthreads();

    // 3. contents
    for (int base = 0; base < GROUPS; base += SPAN) {
        const int group = base + place;
        if (team < TEAMS && group < GROUPS) {
            Sum sum[VECTOR] = {};
            if (base > 0) {
                load(values + group * VECTOR, v);
                fetch(0, group);
            }
#pragma unroll 1
            for (int first = 0; first < OWN; first += AT_ONCE) {
                if (first > 0) fetch(first, group);
#pragma unroll
                for (int o = 0; o < AT_ONCE; o++) {
                    const int e = team + TEAMS * (first + o);
                    if (e >= EVENTS || (e >= WRITES && partner[o] >= 0)) continue;  // a read that its write serves
                    if (e < WRITES) {
#pragma unroll
                        for (int c = 0; c < VECTOR; c++) content[o][c] += eta[e] * (v[c] - content[o][c]);
                        store(content[o], s + (long long)(row[o]) * CHANNELS + group * VECTOR);
                        if (partner[o] < 0) continue;
                    }
                    const Sum r = weight[e < WRITES ? partner[o] : e - WRITES];
#pragma unroll
                    for (int c = 0; c < VECTOR; c++) sum[c] += r * content[o][c];
                }
            }
            store(sum, parts + (team * SPAN + place) * VECTOR);
        }
        __syncthreads();
        // 4. what the teams have read
        for (int c = threadIdx.x; c < SPAN * VECTOR && base * VECTOR + c < CHANNELS; c += THREADS) {
            Sum sum = 0;
#pragma unroll(TEAMS <= 16 ? TEAMS : 8)
            for (int t = 0; t < TEAMS; t++) sum += parts[t * SPAN * VECTOR + c];
            narrow(sum, y[base * VECTOR + c]);
        }
        if (base + SPAN < GROUPS) __syncthreads();
    }
}

#else  // given the addresses

// Who computes what: one block a (batch, head). The first threads take an event each for the masses and leave its
// coefficient in shared memory; then every thread takes channels of its own, for which it writes and reads all slots.
extern "C" __global__ void step_addressed(
    const int* write_slot, const Sum* write_weight,  // (B, 1, H, K)
    const int* read_slot, const Sum* read_weight,
    const ELEMENT* values,  // (B, 1, H, C)
    const ELEMENT* gamma,   // (B, 1, H), or null: ``one_gamma``
    const bool* mask,       // (B, 1), or null
    Sum* s, Sum* z,         // (B, H, M, C) and (B, H, M), updated
    ELEMENT* y,             // (B, 1, H, C)
    Sum one_gamma, int writes, int reads, int heads, int channels, long long slots, int mass_aware, Sum eps, int gsu
) {
    const long long unit = blockIdx.x;
    const bool kept = !mask || mask[unit / heads];
    Sum *eta = reinterpret_cast<Sum*>(on_chip()), *weight = eta + writes;
    const Retention<Sum> retention{gsu, 0, 0};
    s += unit * slots * channels;
    z += unit * slots;
    write_slot += unit * writes, read_slot += unit * reads;
    if (kept)
        for (int k = threadIdx.x; k < writes; k += blockDim.x) {
            const Sum w = write_weight[unit * writes + k];
            const Sum mass = retention(w, gamma ? Sum(widen(gamma[unit])) : one_gamma) * z[write_slot[k]] + w;
            z[write_slot[k]] = mass;
            eta[k] = w / (mass + eps);
        }
    __syncthreads();
    if (kept)
        for (int k = threadIdx.x; k < reads; k += blockDim.x)
            weight[k] = read_weight[unit * reads + k] * (mass_aware ? z[read_slot[k]] : 1);
    __syncthreads();
    Sum scale = 1;
    if (kept && mass_aware) {
        Sum total = 0, weighted = 0;
        for (int k = 0; k < reads; k++) total += read_weight[unit * reads + k], weighted += weight[k];
        scale = total / (weighted + eps);
    }
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        Sum sum = 0;
        if (kept) {
            const Sum v = widen(values[unit * channels + c]);
            for (int k = 0; k < writes; k++) {
                Sum& content = s[(long long)(write_slot[k]) * channels + c];
                content += eta[k] * (v - content);
            }
            for (int k = 0; k < reads; k++) sum += scale * weight[k] * s[(long long)(read_slot[k]) * channels + c];
        }
        narrow(sum, y[unit * channels + c]);
    }
}

#endif
