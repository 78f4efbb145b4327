// One token, in place: the masses of the written slots, then contents channel by channel.
//
// Who computes what: one block a (batch, head). The first threads take an event each for the masses and leave its
// coefficient in shared memory; then every thread takes channels of its own, for which it writes and reads all slots.
//
// Compiled with: ELEMENT.
#include "memory.cuh"

using Sum = SumOf<ELEMENT>::type;

extern __shared__ double shared_memory[];

extern "C" __global__ void step(
    const int* write_slot, const Sum* write_weight, int writes,  // (B, 1, H, K)
    const int* read_slot, const Sum* read_weight, int reads,
    const ELEMENT* values,                                     // (B, 1, H, C)
    const ELEMENT* gamma, Sum one_gamma, const bool* mask,     // (B, 1, H) or null; (B, 1) or null
    int heads, int channels, long long slots, int mass_aware, Sum eps, int gsu,
    Sum* s, Sum* z,  // (B, H, M, C) and (B, H, M), updated
    ELEMENT* y       // (B, 1, H, C)
) {
    const long long unit = blockIdx.x;
    const bool kept = !mask || mask[unit / heads];
    Sum *eta = reinterpret_cast<Sum*>(shared_memory), *weight = eta + writes;
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
