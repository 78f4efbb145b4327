// AdamW over all parameters of a model at once, the gradients clipped by their common norm; nothing waits for the host.
//
//   gradient_squares   one block a chunk: the sum of the squares of its gradients
//   adamw_prepare      one block: the norm, and with it whether and how far to go
//   adamw_update       one block a chunk: moments and parameters
//
// Same mathematics as ramnet_np/train/optim.py. A chunk is CHUNK elements of one array, the last of it fewer. After a
// loss or norm that is no finite number nothing changes any more, until the host has seen it.
#include "runtime/reduce.cuh"

#ifndef ELEMENT
#error "ELEMENT must be defined: the type of the parameters, float or double"
#endif
#ifndef COPY
#error "COPY must be defined: the type of the copies that a model in 16 bits computes with, float16 or bfloat16"
#endif
#ifndef CHUNK
#error "CHUNK must be defined: the elements of a block"
#endif

struct ParameterArray {
    ELEMENT* param;
    ELEMENT* mean;
    ELEMENT* square;
    const ELEMENT* grad;
    COPY* copy;  // the parameters again, rounded, or null
    long long size;
    long long decays;  // 0 or 1
};

struct Chunk {
    int array, number;
};

// What a step leaves and the next begins with: all double, as one array that the host can read at once.
struct OptimizerStatus {
    double loss, correct, labels, norm, rate;  // of the last update; rate: the learning rate
    double updates, stopped;                   // how many were made; 1 once a loss or norm was not finite
    double grad_scale;                         // which brings the gradients' norm down to ``clip``
    double m_corrected_rate;                   // the learning rate over 1 - beta1^updates, which corrects the mean
    double v_correction;                       // 1 / sqrt(1 - beta2^updates), which corrects the root of the square
    double decay_factor;                       // 1 - rate * weight_decay
};

struct AdamWParams {
    const ParameterArray* arrays;
    const Chunk* chunks;
    double* squares;      // (chunk_count,)
    const double* rates;  // (rate_count,): the learning rate of every update of the run, from the first
    const ELEMENT* loss;  // of this step, and how many of its labels were right, and how many there were
    const int* correct;
    const int* labels;
    OptimizerStatus* status;
    double beta1, beta2, clip, weight_decay;
    ELEMENT m_decay, m_gain, v_decay, v_gain, eps;  // beta1, 1 - beta1, beta2, 1 - beta2, rounded once each
    int chunk_count, rate_count;
};

DEVICE bool is_finite(double x) { return x - x == 0; }

extern "C" __global__ void gradient_squares(const __grid_constant__ AdamWParams p) {
    __shared__ double scratch[32];
    const Chunk chunk = p.chunks[blockIdx.x];
    const ParameterArray array = p.arrays[chunk.array];
    const long long begin = chunk.number * (long long)(CHUNK);
    double total = 0;
    for (int i = threadIdx.x; i < CHUNK && begin + i < array.size; i += blockDim.x) {
        const double g = array.grad[begin + i];
        total += g * g;
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) p.squares[blockIdx.x] = total;
}

extern "C" __global__ void adamw_prepare(const __grid_constant__ AdamWParams p) {
    __shared__ double scratch[32];
    double total = 0;
    for (int i = threadIdx.x; i < p.chunk_count; i += blockDim.x) total += p.squares[i];
    total = block_sum(total, scratch);
    if (threadIdx.x || p.status->stopped != 0) return;
    OptimizerStatus now = *p.status;
    now.loss = *p.loss;
    now.correct = *p.correct;
    now.labels = *p.labels;
    now.norm = sqrt(total);
    if (is_finite(now.loss) && is_finite(now.norm)) {
        const int step = int(now.updates);
        now.rate = p.rates[step < p.rate_count ? step : p.rate_count - 1];
        now.updates += 1;
        now.grad_scale = now.norm > p.clip ? p.clip / now.norm : 1.0;
        now.m_corrected_rate = now.rate / (1 - pow(p.beta1, now.updates));
        now.v_correction = 1 / sqrt(1 - pow(p.beta2, now.updates));
        now.decay_factor = 1 - now.rate * p.weight_decay;
    } else {
        now.stopped = 1;
    }
    *p.status = now;
}

extern "C" __global__ void adamw_update(const __grid_constant__ AdamWParams p) {
    const OptimizerStatus* status = p.status;
    if (status->stopped != 0) return;
    const ELEMENT grad_scale = status->grad_scale, m_corrected_rate = status->m_corrected_rate;
    const ELEMENT v_correction = status->v_correction, decay_factor = status->decay_factor;
    const Chunk chunk = p.chunks[blockIdx.x];
    const ParameterArray array = p.arrays[chunk.array];
    const long long begin = chunk.number * (long long)(CHUNK);
    for (int j = threadIdx.x; j < CHUNK && begin + j < array.size; j += blockDim.x) {
        const long long i = begin + j;
        const ELEMENT grad = array.grad[i] * grad_scale;
        const ELEMENT m = array.mean[i] * p.m_decay + grad * p.m_gain;
        const ELEMENT v = array.square[i] * p.v_decay + grad * grad * p.v_gain;
        array.mean[i] = m;
        array.square[i] = v;
        const ELEMENT param = array.decays ? array.param[i] * decay_factor : array.param[i];
        const ELEMENT updated = param - m / (sqrt(v) * v_correction + p.eps) * m_corrected_rate;
        array.param[i] = updated;
        if (array.copy) narrow(float(updated), array.copy[i]);
    }
}
