// AdamW over all parameters of a model at once, the gradients clipped by their common norm; nothing waits for the host.
//
//   gradient_squares   one block a chunk: the sum of the squares of its gradients
//   adamw_decide       one block: the norm, and with it whether and how far to go
//   adamw_update       one block a chunk: moments and parameters
//
// Same mathematics as ramnet_np/train/optim.py. A chunk is CHUNK elements of one array, the last of it fewer. After a loss
// or norm that is no finite number nothing changes any more, until the host has seen it.
#include "runtime/reduce.cuh"

#ifndef ELEMENT
#error "ELEMENT must be defined: the type of the parameters, float or double"
#endif

constexpr int CHUNK = 4096;

// One parameter array: 48 bytes, as kernels/cuda/layers/adamw.py lays them out.
struct Array {
    ELEMENT* param;
    ELEMENT* mean;
    ELEMENT* square;
    const ELEMENT* grad;
    long long size;
    long long decays;  // 0 or 1
};

struct Chunk {
    int array, number;
};

// What a step leaves and the next begins with: all double, as one array that the host can read at once.
struct Numbers {
    double loss, right, labels, norm, rate;  // of the last update; rate: the learning rate
    double updates, stopped;                 // how many were made; 1 once a loss or norm was not finite
    double scale, corrected_rate, root, kept;  // of the gradients; of the moments' corrections; of the decay
};

DEVICE bool is_finite(double x) { return x - x == 0; }

extern "C" __global__ void gradient_squares(const Array* arrays, const Chunk* chunks, double* squares) {
    __shared__ double scratch[32];
    const Chunk chunk = chunks[blockIdx.x];
    const Array array = arrays[chunk.array];
    const long long begin = chunk.number * (long long)(CHUNK);
    double total = 0;
    for (int i = threadIdx.x; i < CHUNK && begin + i < array.size; i += blockDim.x) {
        const double g = array.grad[begin + i];
        total += g * g;
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) squares[blockIdx.x] = total;
}

// rates: the learning rate of every update of the run, from the first
extern "C" __global__ void adamw_decide(
    const double* squares, int chunks, const double* rates, int steps,
    const ELEMENT* loss, const int* right, const int* labels,
    double beta1, double beta2, double clip, double weight_decay, Numbers* numbers
) {
    __shared__ double scratch[32];
    double total = 0;
    for (int i = threadIdx.x; i < chunks; i += blockDim.x) total += squares[i];
    total = block_sum(total, scratch);
    if (threadIdx.x || numbers->stopped != 0) return;
    Numbers now = *numbers;
    now.loss = *loss;
    now.right = *right;
    now.labels = *labels;
    now.norm = sqrt(total);
    if (is_finite(now.loss) && is_finite(now.norm)) {
        const int step = int(now.updates);
        now.rate = rates[step < steps ? step : steps - 1];
        now.updates += 1;
        now.scale = now.norm > clip ? clip / now.norm : 1.0;
        now.corrected_rate = now.rate / (1 - pow(beta1, now.updates));
        now.root = 1 / sqrt(1 - pow(beta2, now.updates));
        now.kept = 1 - now.rate * weight_decay;
    } else {
        now.stopped = 1;
    }
    *numbers = now;
}

extern "C" __global__ void adamw_update(
    const Array* arrays, const Chunk* chunks, const Numbers* numbers, ELEMENT beta1, ELEMENT beta2, ELEMENT rest1,
    ELEMENT rest2,  // 1 - beta, rounded once
    ELEMENT eps
) {
    if (numbers->stopped != 0) return;
    const ELEMENT scale = numbers->scale, rate = numbers->corrected_rate, root = numbers->root, kept = numbers->kept;
    const Chunk chunk = chunks[blockIdx.x];
    const Array array = arrays[chunk.array];
    const long long begin = chunk.number * (long long)(CHUNK);
    for (int j = threadIdx.x; j < CHUNK && begin + j < array.size; j += blockDim.x) {
        const long long i = begin + j;
        const ELEMENT g = array.grad[i] * scale;
        const ELEMENT m = array.mean[i] * beta1 + g * rest1;
        const ELEMENT v = array.square[i] * beta2 + g * g * rest2;
        array.mean[i] = m;
        array.square[i] = v;
        const ELEMENT p = array.decays ? array.param[i] * kept : array.param[i];
        array.param[i] = p - m / (sqrt(v) * root + eps) * rate;
    }
}
