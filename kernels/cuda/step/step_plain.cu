// One token, in place, at addresses that the decoder has found: steps 3 and 4 of ramnet_np/core/memory.py, for any K and P.
// The plain kernel beside step.cu, which serves K and P up to a limit (step.py).
//
// Who computes what: one block a (batch, head). The first threads take one access each for the masses and leave its
// coefficient in shared memory; then every thread takes channels of its own, for which it writes and reads all slots.
//
// Compiled with: ELEMENT, the type of values and y; UPDATE, the update rule.
#include "memory/retention.cuh"
#include "runtime/shared.cuh"

#ifndef ELEMENT
#error "ELEMENT must be defined as the type of values and y"
#endif

using Acc = AccOf<ELEMENT>::type;

// Twin: PLAIN_STEP_PARAMS of step.py.
struct PlainStepParams {
    const int *write_index, *read_index;    // (B, 1, H, K)
    const Acc *write_weight, *read_weight;  // (B, 1, H, K)
    const ELEMENT* values;                  // (B, 1, H, C)
    const ELEMENT* gamma;                   // (B, 1, H), or null: constant_gamma
    const bool* mask;                       // (B, 1), or null
    Acc *s, *z;                             // (B, H, M, C) and (B, H, M), updated
    ELEMENT* y;                             // (B, 1, H, C)
    long long slots;                        // M
    Acc constant_gamma, eps;
    int writes, reads, heads, channels;  // K of each, H, C
    int mass_aware;
};

// 3. write: masses, and eta of every write.
DEVICE void write_masses(const PlainStepParams& p, long long sequence, Acc* z, Acc* eta) {
    for (int k = threadIdx.x; k < p.writes; k += blockDim.x) {
        const int slot = p.write_index[sequence * p.writes + k];
        const Acc w = p.write_weight[sequence * p.writes + k];
        const Acc gamma = p.gamma ? Acc(widen(p.gamma[sequence])) : p.constant_gamma;
        const Acc mass = Retention<Acc>::alpha(w, gamma) * z[slot] + w;
        z[slot] = mass;
        eta[k] = w / (mass + p.eps);
    }
}

// 4. read: the weight of every read, times its slot's mass if the read is mass-aware. Returns what all are multiplied by.
DEVICE Acc read_weights(const PlainStepParams& p, long long sequence, const Acc* z, Acc* weight) {
    const Acc* r = p.read_weight + sequence * p.reads;
    for (int k = threadIdx.x; k < p.reads; k += blockDim.x)
        weight[k] = r[k] * (p.mass_aware ? z[p.read_index[sequence * p.reads + k]] : 1);
    __syncthreads();
    Acc scale = 1;
    if (p.mass_aware) {
        Acc total = 0, weighted = 0;
        for (int k = 0; k < p.reads; k++) total += r[k], weighted += weight[k];
        scale = total / (weighted + p.eps);
    }
    return scale;
}

// One channel of all slots: s += eta (v - s), then y = sum over the reads of weight * s.
DEVICE Acc write_and_read(
    const PlainStepParams& p, long long sequence, const Acc* eta, const Acc* weight, Acc scale, Acc v, Acc* s
) {
    const int *write = p.write_index + sequence * p.writes, *read = p.read_index + sequence * p.reads;
    for (int k = 0; k < p.writes; k++) {
        Acc& content = s[(long long)(write[k]) * p.channels];
        content += eta[k] * (v - content);
    }
    Acc sum = 0;
    for (int k = 0; k < p.reads; k++) sum += scale * weight[k] * s[(long long)(read[k]) * p.channels];
    return sum;
}

extern "C" __global__ void step_plain(const __grid_constant__ PlainStepParams p) {
    const long long sequence = blockIdx.x;  // b * H + h
    ELEMENT* y = p.y + sequence * p.channels;
    if (p.mask && !p.mask[sequence / p.heads]) {
        for (int c = threadIdx.x; c < p.channels; c += blockDim.x) narrow(Acc(0), y[c]);
        return;
    }
    Acc *eta = reinterpret_cast<Acc*>(dynamic_shared()), *weight = eta + p.writes;
    Acc *s = p.s + sequence * p.slots * p.channels, *z = p.z + sequence * p.slots;
    write_masses(p, sequence, z, eta);
    __syncthreads();
    const Acc scale = read_weights(p, sequence, z, weight);
    for (int c = threadIdx.x; c < p.channels; c += blockDim.x) {
        const Acc v = widen(p.values[sequence * p.channels + c]);
        narrow(write_and_read(p, sequence, eta, weight, scale, v, s + c), y[c]);
    }
}
