"""The address decoder for small K and P: what a row needs stays in its thread's registers.

The same mathematics and the same slots as ``decode_kernels.py``, which serves any K and P with lists in shared memory.
K and P are compiled in, so that every loop over them is unrolled and every list a set of registers. Sorting has no
branches: a candidate goes through the whole list, and changes places with each entry that does not stand before it,

    list       0.0   -0.4   -0.9   -2.0           -0.9 and -2.0 have moved down,
    candidate        -0.7 ──▶ ...                 the last one falls out

which is more comparisons than looking for its place would take, but all threads of a warp go the same way.
"""

import math
from functools import cache
from types import SimpleNamespace

from numba import cuda, int32, int64, types, uint32

from .decode_kernels import cape_shift
from .launch import kernel

MOST = 8  # K and P
NONE = 2**31 - 1  # the slot of an entry that is not there: any other one goes before it


@cache
def small_decode_kernels(number, K: int, P: int):
    """``decode_forward`` and ``decode_backward`` for logits of this Numba type, K slots and P values of a digit."""
    numbers, index_type, positions_type = types.CPointer(number), types.CPointer(int32), types.CPointer(int64)
    ranks = min(P, K)  # of a digit's values, those that can be part of the K best slots

    @cuda.jit(device=True)
    def insert(score, slot, scores, slots, first, length):
        """Put a candidate into a sorted list, at place ``first`` or behind: higher scores first, then smaller slots."""
        for i in range(first, length):
            other, other_slot = scores[i], slots[i]
            stays = (other > score) | ((other == score) & (other_slot < slot))
            scores[i], slots[i] = (other, other_slot) if stays else (score, slot)
            score, slot = (score, slot) if stays else (other, other_slot)

    @kernel(numbers, positions_type, index_type, numbers, *[int32] * 9)
    def decode_forward(
        logits, positions, index, weight, batch_stride, counted, tokens, heads, cape_heads, rows, order, n_slots,
        renorm,
    ):  # fmt: skip
        """One thread a row, that is a token and head: it reads its own logits, writes its own K slots and weights."""
        row = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if row >= rows:
            return
        b, t, h = row // heads // tokens, row // heads % tokens, row % heads
        zero, lowest = number(0), number(-math.inf)
        scores, slots = cuda.local.array(K, number), cuda.local.array(K, int32)  # the K best partial addresses
        longer, longer_slots = cuda.local.array(K, number), cuda.local.array(K, int32)  # with one more digit
        ranked, value = cuda.local.array(ranks, number), cuda.local.array(ranks, int32)  # of a digit, best first
        x = cuda.local.array(P, number)
        for i in range(K):
            scores[i], slots[i] = lowest, int32(NONE)
        scores[0], slots[0] = zero, int32(0)
        n, place, norm = 1, int32(1), number(1)
        for u in range(order):
            # 1. softmax of this digit, and its values, best first
            at = (int64(row) * order + u) * P
            for p in range(P):
                x[p] = logits[at + p]
            top = x[0]
            for p in range(1, P):
                top = max(top, x[p])
            for i in range(ranks):
                ranked[i], value[i] = lowest, int32(NONE)
            total = zero
            for p in range(P):
                score = x[p] - top
                total += number(math.exp(score))
                insert(score, int32(p), ranked, value, 0, ranks)
            norm *= total
            # 2. the K best of its sums with the partial addresses: rank (i, j) with (i + 1) * (j + 1) <= K
            for i in range(K):  # j = 0 adds nothing to a score: these are in order, and the first is the best of all
                longer[i], longer_slots[i] = scores[i] + ranked[0], int32(NONE)
                if i < n:
                    longer_slots[i] = slots[i] + value[0] * place
            for j in range(1, ranks):
                for i in range(K // 2):
                    if i < n and (i + 1) * (j + 1) <= K:
                        slot = int32(slots[i] + value[1] * place)  # two of 32 bits make one of 64 in Numba
                        insert(scores[i] + ranked[1], slot, longer, longer_slots, 1, K)
                for r in range(1, ranks - 1):  # the next value comes to place 1, since registers have no index
                    ranked[r], value[r] = ranked[r + 1], value[r + 1]
            for i in range(K):
                scores[i], slots[i] = longer[i], longer_slots[i]
            n, place = min(n * P, K), int32(place * P)
        # 3. weights, 4. optionally divided by their sum
        total = zero
        for k in range(K):
            scores[k] = number(math.exp(scores[k])) / norm
            total += scores[k]
        if renorm != 0:
            for k in range(K):
                scores[k] /= total
        # 5. where the slots are at this position
        shift = cape_shift(b, t, h, cape_heads, n_slots, positions, batch_stride, counted)
        for k in range(K):
            moved = slots[k] - shift
            if moved < 0:
                moved += n_slots
            index[int64(row) * K + k], weight[int64(row) * K + k] = moved, scores[k]

    @kernel(numbers, numbers, index_type, numbers, positions_type, numbers, *[int32] * 9)
    def decode_backward(
        dweight, weight, index, logits, positions, dlogits, batch_stride, counted, tokens, heads, cape_heads, rows,
        order, n_slots, renorm,
    ):  # fmt: skip
        """One thread a row: it reads its own K weights and writes the gradients of its own logits.

        dL/dk_u = sum_j g_j (onehot(digit_u(a_j)) - p_u), with g_j = dweight_j weight_j.
        """
        row = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if row >= rows:
            return
        b, t, h = row // heads // tokens, row // heads % tokens, row % heads
        zero, at = number(0), int64(row) * K
        shift = cape_shift(b, t, h, cape_heads, n_slots, positions, batch_stride, counted)
        g, content = cuda.local.array(K, number), cuda.local.array(K, uint32)
        x, sums = cuda.local.array(P, number), cuda.local.array(P, number)
        # 5. undone; 4. weight = rho / sum(rho): g_j - weight_j * sum_i g_i
        received = zero
        for k in range(K):
            content[k] = index[at + k] + shift
            if content[k] >= uint32(n_slots):
                content[k] -= uint32(n_slots)
            g[k] = dweight[at + k] * weight[at + k]
            received += g[k]
        if renorm != 0:
            undone = received
            received = zero
            for k in range(K):
                g[k] -= weight[at + k] * undone
                received += g[k]
        for u in range(order):
            # 1. softmax of this digit
            own = (int64(row) * order + u) * P
            for p in range(P):
                x[p] = logits[own + p]
            top, total = x[0], zero
            for p in range(1, P):
                top = max(top, x[p])
            for p in range(P):
                x[p] = number(math.exp(x[p] - top))
                total += x[p]
                sums[p] = zero
            # 3., 2. rho_j = prod_u p_u[digit_u(a_j)]
            for k in range(K):
                digit = content[k] % uint32(P)
                content[k] = content[k] // uint32(P)
                for p in range(P):
                    sums[p] += g[k] if digit == p else zero
            for p in range(P):
                dlogits[own + p] = sums[p] - x[p] / total * received

    return SimpleNamespace(forward=decode_forward, backward=decode_backward)
