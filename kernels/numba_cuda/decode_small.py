"""The address decoder for small K and P: what a row needs stays in its thread's registers.

The same mathematics and the same slots as ``decode_generic.py``, which serves any K and P with lists in shared memory.
K and P are compiled in, so that every loop over them is unrolled and every list a set of registers. Sorting has no
branches: a candidate goes through the whole list, and changes places with each entry that does not stand before it,

    list       0.0   -0.4   -0.9   -2.0           -0.9 and -2.0 have moved down,
    candidate        -0.7 ──▶ ...                 the last one falls out

which is more comparisons than looking for its place would take, but all threads of a warp go the same way.
"""

import math
from functools import cache

from .compiler import cuda, int32, int64, types, uint32
from .decode_generic import DECODE_SIZES, POSITIONS, cape_shift, decoded_arrays
from .launch import kernel
from .records import INDICES

MAX_SMALL = 8  # K and P
NO_SLOT = 2**31 - 1  # of an entry that is not there: any other one goes before it


@cuda.jit(device=True)
def insert(score, slot, scores, slots, first, length):
    """Put a candidate into a sorted list, at place ``first`` or behind: higher scores first, then smaller slots."""
    for i in range(first, length):
        other, other_slot = scores[i], slots[i]
        stays = (other > score) | ((other == score) & (other_slot < slot))
        scores[i], slots[i] = (other, other_slot) if stays else (score, slot)
        score, slot = (score, slot) if stays else (other, other_slot)


@cache
def small_decode_forward_kernel(number, K: int, P: int):
    """``decode_forward`` for logits of this Numba type, K slots and P values of a digit."""
    numbers, ranks = types.CPointer(number), min(P, K)  # of a digit's values, those that can be part of the K best

    @cuda.jit(device=True)
    def rank_digit(logits, at, x, ranked, value):
        """1. Softmax of a digit, and its values, best first; returns the sum of all exp(logit - largest)."""
        for p in range(P):
            x[p] = logits[at + p]
        top = x[0]
        for p in range(1, P):
            top = max(top, x[p])
        for i in range(ranks):
            ranked[i], value[i] = number(-math.inf), int32(NO_SLOT)
        total = number(0)
        for p in range(P):
            score = x[p] - top
            total += number(math.exp(score))
            insert(score, int32(p), ranked, value, 0, ranks)
        return total

    @cuda.jit(device=True)
    def merge(best, digit, longer_best, n, power):
        """2. The K best sums of a digit and the partial addresses: rank (i, j) with (i + 1) * (j + 1) <= K."""
        (scores, slots), (ranked, value), (longer, longer_slots) = best, digit, longer_best
        for i in range(K):  # j = 0 adds nothing to a score: these are in order, and the first is the best of all
            longer[i], longer_slots[i] = scores[i] + ranked[0], int32(NO_SLOT)
            if i < n:
                longer_slots[i] = slots[i] + value[0] * power
        for j in range(1, ranks):
            for i in range(K // 2):
                if i < n and (i + 1) * (j + 1) <= K:
                    slot = int32(slots[i] + value[1] * power)  # two of 32 bits make one of 64 in Numba
                    insert(scores[i] + ranked[1], slot, longer, longer_slots, 1, K)
            for r in range(1, ranks - 1):  # the next value comes to place 1, since registers have no index
                ranked[r], value[r] = ranked[r + 1], value[r + 1]
        for i in range(K):
            scores[i], slots[i] = longer[i], longer_slots[i]

    @kernel(numbers, POSITIONS, INDICES, numbers, DECODE_SIZES)
    def decode_forward(logits, positions, index, weight, sizes):
        """One thread a row, that is a token and head: it reads its own logits, writes its own K slots and weights."""
        row = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if row >= sizes.rows:
            return
        scores, slots = cuda.local.array(K, number), cuda.local.array(K, int32)  # the K best partial addresses
        longer_best = cuda.local.array(K, number), cuda.local.array(K, int32)  # with one more digit
        ranked, value = cuda.local.array(ranks, number), cuda.local.array(ranks, int32)  # of a digit, best first
        x = cuda.local.array(P, number)
        for i in range(K):
            scores[i], slots[i] = number(-math.inf), int32(NO_SLOT)
        scores[0], slots[0] = number(0), int32(0)
        n, power, norm = 1, int32(1), number(1)  # power: P**u
        for u in range(sizes.U):
            norm *= rank_digit(logits, (int64(row) * sizes.U + u) * P, x, ranked, value)
            merge((scores, slots), (ranked, value), longer_best, n, power)
            n, power = min(n * P, K), int32(power * P)
        # 3. weights, 4. optionally divided by their sum
        total = number(0)
        for k in range(K):
            scores[k] = number(math.exp(scores[k])) / norm
            total += scores[k]
        if sizes.renorm != 0:
            for k in range(K):
                scores[k] /= total
        # 5. where the slots are at this position
        shift = cape_shift(row, positions, sizes)
        for k in range(K):
            shifted = slots[k] - shift
            if shifted < 0:
                shifted += sizes.n_slots
            index[int64(row) * K + k], weight[int64(row) * K + k] = shifted, scores[k]

    return decode_forward


@cache
def small_decode_backward_kernel(number, K: int, P: int):
    """``decode_backward`` for logits of this Numba type, K slots and P values of a digit."""
    numbers = types.CPointer(number)

    @cuda.jit(device=True)
    def load_weights(dweight, ctx, at, shift, sizes, arrays):
        """g and content slot of each weight, and the sum of g; 5. undone; 4. weight = rho / sum(rho)."""
        g, content = arrays
        g_sum = number(0)
        for k in range(K):
            content[k] = ctx.slot[at + k] + shift
            if content[k] >= uint32(sizes.n_slots):
                content[k] -= uint32(sizes.n_slots)
            g[k] = dweight[at + k] * ctx.weight[at + k]
            g_sum += g[k]
        if sizes.renorm != 0:
            taken = g_sum
            g_sum = number(0)
            for k in range(K):
                g[k] -= ctx.weight[at + k] * taken
                g_sum += g[k]
        return g_sum

    @kernel(numbers, decoded_arrays(number), POSITIONS, numbers, DECODE_SIZES)
    def decode_backward(dweight, ctx, positions, dlogits, sizes):
        """One thread a row: it reads its own K weights and writes the gradients of its own logits.

        dL/dk_u = sum_j g_j (onehot(digit_u(a_j)) - p_u), with g_j = dweight_j weight_j.
        """
        row = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if row >= sizes.rows:
            return
        g, content = cuda.local.array(K, number), cuda.local.array(K, uint32)
        x, sums = cuda.local.array(P, number), cuda.local.array(P, number)
        g_sum = load_weights(
            dweight, ctx, int64(row) * K, cape_shift(row, positions, sizes), sizes, (g, content)
        )  # fmt: skip
        for u in range(sizes.U):
            # 1. softmax of this digit
            own = (int64(row) * sizes.U + u) * P
            for p in range(P):
                x[p] = ctx.logits[own + p]
            top, total = x[0], number(0)
            for p in range(1, P):
                top = max(top, x[p])
            for p in range(P):
                x[p] = number(math.exp(x[p] - top))
                total += x[p]
                sums[p] = number(0)
            # 3., 2. rho_j = prod_u p_u[digit_u(a_j)]
            for k in range(K):
                digit = content[k] % uint32(P)
                content[k] = content[k] // uint32(P)
                for p in range(P):
                    sums[p] += g[k] if digit == p else number(0)
            for p in range(P):
                dlogits[own + p] = sums[p] - x[p] / total * g_sum

    return decode_backward
