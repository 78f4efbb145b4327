// What the tokens of a chunk mean to one another, as couplings.cu, where slots are few (dense.cuh): every slot is looked at,
// written or not, so there are no chains to follow.
//
// Who computes what: one block a chunk, whose accesses threads have as dense_accesses.cuh says. For the couplings a token has
// LANES_OF_TOKEN threads, and each of them four slots:
//
//     thread    0         1         ..  15          16        ..       CHUNK = 16
//     token     0         0         ..  0           1         ..
//     slots     0 .. 3    4 .. 7    ..  60 .. 63    0 .. 3    ..
//
// Each goes from its token back through the tokens before, with what is left of its reads' weights.
//
// Compiled with: what chunk.cuh and dense.cuh ask for.
#include "memory/dense_accesses.cuh"

constexpr int LANES_OF_TOKEN = THREADS / CHUNK;
static_assert(LANES_OF_TOKEN <= 16 && CHUNK % LANES_OF_TOKEN == 0, "in a warp; each ends with as many couplings");
static_assert(SLOTS_PADDED <= 4 * LANES_OF_TOKEN, "a thread has four slots");

DEVICE Four& four_of(Acc* matrix, int token, int slot) { return *reinterpret_cast<Four*>(matrix + place_of(token, slot)); }

// A_tj of one token t for j = t, t - 1, .., of the slots that this thread has; their reads' weights become r~.
DEVICE void couple(AccessMatrices& shared, Acc (&coupling)[CHUNK]) {
    const int t = threadIdx.x / LANES_OF_TOKEN, last_of_warp = (warp_of_thread() * 32 + 31) / LANES_OF_TOKEN;
    const int slot = threadIdx.x % LANES_OF_TOKEN * 4;
    if (slot >= SLOTS_PADDED) return;
    const Four* const eta = &four_of(shared.eta, t, slot);
    Four weight = four_of(shared.weight, t, slot);
#pragma unroll
    for (int first = 0; first < CHUNK; first += 4) {  // beyond t are rows of zeros
        if (first > last_of_warp) break;
#pragma unroll
        for (int i = first; i < first + 4; i++) {
            const Four own = eta[-i * (STRIDE / 4)];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                coupling[i] += weight.at[e] * own.at[e];
                weight.at[e] = forgotten(weight.at[e], own.at[e]);
            }
        }
    }
    four_of(shared.weight, t, slot) = weight;
}

// Sums N numbers over lanes: of LANES that stand side by side, each ends with N / LANES of the sums, from ``first`` on.
template <int LANES, int N> DEVICE void share_sums(Acc (&x)[N], int& first) {
    if constexpr (LANES > 1) {
        const bool upper = threadIdx.x & (LANES / 2);
        Acc half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const Acc got = __shfl_xor_sync(~0u, upper ? x[i] : x[i + N / 2], LANES / 2);
            half[i] = (upper ? x[i + N / 2] : x[i]) + got;
        }
        first += upper ? N / 2 : 0;
        share_sums<LANES / 2>(half, first);
#pragma unroll
        for (int i = 0; i < N / LANES; i++) x[i] = half[i];
    }
}

// eta of a slot's writes becomes eta~; returns kept(0, all).
DEVICE Acc keep(AccessMatrices& shared, int slot) {
    Acc eta[CHUNK], kept = 1;
#pragma unroll
    for (int j = 0; j < CHUNK; j++) eta[j] = shared.eta[place_of(j, slot)];
#pragma unroll
    for (int j = CHUNK - 1; j >= 0; j--) {
        shared.eta[place_of(j, slot)] = eta[j] * kept;
        kept = forgotten(kept, eta[j]);
    }
    return kept;
}

extern "C" __global__ void __launch_bounds__(THREADS) dense_couple_forward(const __grid_constant__ DenseCouplingParams p) {
    __shared__ AccessMatrices shared;
    const DenseThread thread(p);
    DenseRecord& record = p.records[thread.number];
    thread.enter(shared);
    // 1. couplings, and r~
    Acc coupling[CHUNK] = {};
    couple(shared, coupling);
    int first = 0;
    share_sums<LANES_OF_TOKEN>(coupling, first);
    const int t = threadIdx.x / LANES_OF_TOKEN;
#pragma unroll
    for (int i = 0; i < CHUNK / LANES_OF_TOKEN; i++)  // those beyond t are 0 and fill the rest of the row
        record.coupling[t * COUPLING_STRIDE + (t - first - i) % unsigned(CHUNK)] = coupling[i];
    __syncthreads();
    // 2. eta~, and what is kept of slots
    if (threadIdx.x < SLOTS_PADDED) record.kept[threadIdx.x] = keep(shared, threadIdx.x);
    __syncthreads();
    // 3. what they are at the accesses
    const DenseAccess &write = thread.write, &read = thread.read;
    record.write[threadIdx.x] = write.live ? shared.eta[write.place] : Acc(0);
    record.write_place[threadIdx.x] = Place(write.place | (thread.heavy ? HEAVY_PLACE : 0));
    record.read[threadIdx.x] = read.live ? shared.weight[read.place] : Acc(0);
    record.read_place[threadIdx.x] = Place(read.place);
}
