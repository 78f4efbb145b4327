"""The address decoder's kernels: softmax of every digit, beam search, weights, CAPE; and the gradient of the logits.

``ramnet_np/core/decoder.py`` for one thread. The lists of the beam search lie in shared memory, element i of thread n
at ``i * threads + n``: neighbouring threads use neighbouring words, which no two of them share.
"""

import math
from functools import cache
from types import SimpleNamespace

from numba import cuda, int32, int64, types, uint32

from .launch import kernel

CHUNK = 32  # values of a digit that the backward adds up at a time


@cuda.jit(device=True)
def insert(score, slot, scores, slots, first_score, first_slot, step, n, k):
    """Put a candidate into the sorted list of the ``n`` best, at most ``k``; returns the new ``n``.

    Higher scores first, then smaller slots. Element i lies at ``first + i * step``.
    """
    if n < k:
        place = n
        n += 1
    else:
        place = k - 1
        worst = scores[uint32(first_score + place * step)]
        if not (score > worst or (score == worst and slot < slots[uint32(first_slot + place * step)])):
            return n
    while place > 0:
        before = scores[uint32(first_score + (place - 1) * step)]
        slot_before = slots[uint32(first_slot + (place - 1) * step)]
        if not (score > before or (score == before and slot < slot_before)):
            break
        scores[uint32(first_score + place * step)] = before
        slots[uint32(first_slot + place * step)] = slot_before
        place -= 1
    scores[uint32(first_score + place * step)] = score
    slots[uint32(first_slot + place * step)] = slot
    return n


@cuda.jit(device=True)
def beam_search(logits, at, order, radix, top_k, scores, slots, first_score, first_slot, step):
    """The K best slots of one row of logits, best first: (where their scores begin, their slots, the norm).

    A score is the sum over digits of ``logit - max``; the weight of a slot is exp(score) / norm, with norm the product
    of the digits' softmax sums. O(U K log K + U P) comparisons and, each insertion taking up to K steps, more where K
    is large.
    """
    best, slot = first_score, first_slot  # the partial addresses
    spare, spare_slot = first_score + top_k * step, first_slot + top_k * step
    ranked, value = first_score + 2 * top_k * step, first_slot + 2 * top_k * step  # one digit's values, best first
    norm = type(scores[0])(1)
    n, place = 0, 1  # P**u
    for u in range(order):
        top = logits[at + u * radix]
        for p in range(1, radix):
            top = max(top, logits[at + u * radix + p])
        total = norm - norm
        n_digit = 0
        for p in range(radix):
            score = logits[at + u * radix + p] - top
            total += type(norm)(math.exp(score))
            if u == 0:
                n = insert(score, p, scores, slots, best, slot, step, n, top_k)
            else:
                n_digit = insert(score, p * place, scores, slots, ranked, value, step, n_digit, min(radix, top_k))
        norm *= total
        if u > 0:
            n_next = 0
            for j in range(n_digit):
                score_j, value_j = scores[uint32(ranked + j * step)], slots[uint32(value + j * step)]
                for i in range(min(n, top_k // (j + 1))):  # the staircase: (i + 1) * (j + 1) <= K
                    score = scores[uint32(best + i * step)] + score_j
                    if n_next == top_k and score < scores[uint32(spare + (top_k - 1) * step)]:
                        break  # sums only fall along i
                    whole = slots[uint32(slot + i * step)] + value_j
                    n_next = insert(score, whole, scores, slots, spare, spare_slot, step, n_next, top_k)
            best, spare = spare, best
            slot, spare_slot = spare_slot, slot
            n = n_next
        place *= radix
    return best, slot, norm


@cuda.jit(device=True)
def weigh(scores, slots, best, slot, step, norm, top_k, renorm, shift, n_slots, index, weight, at):
    """Weights of the slots found, optionally divided by their sum, and where the slots are at this position."""
    total = norm - norm
    for k in range(top_k):
        w = type(norm)(math.exp(scores[uint32(best + k * step)])) / norm
        total += w
        weight[at + k] = w
        moved = slots[uint32(slot + k * step)] - shift
        if moved < 0:
            moved += n_slots
        index[at + k] = moved
    if renorm != 0:
        for k in range(top_k):
            weight[at + k] /= total


@cuda.jit(device=True)
def cape_shift(b, t, h, cape_heads, n_slots, positions, batch_stride, counted):
    """t mod M in the heads that address relative to the position, else 0; positions count from 0 if ``counted``."""
    if h >= cape_heads:
        return 0
    position = int64(t)
    if counted == 0:
        position = positions[b * batch_stride + t]
    return int32(position % n_slots)


def list_sizes(order: int, radix: int, top_k: int) -> int:
    """Elements that the beam search of one row keeps: two lists of partial addresses and one of digit values."""
    return 2 * top_k + (min(radix, top_k) if order > 1 else 0)


@cache
def decode_kernels(number):
    """``decode_forward`` and ``decode_backward`` for logits of this Numba type."""
    words = number.bitwidth // 32
    numbers, index_type = types.CPointer(number), types.CPointer(int32)
    positions_type = types.CPointer(int64)

    @kernel(numbers, positions_type, index_type, numbers, *[int32] * 12)
    def decode_forward(
        logits, positions, index, weight, batch_stride, counted, tokens, heads, cape_heads, rows, order,
        radix, top_k, n_slots, renorm, lists,
    ):  # fmt: skip
        """One thread a row, that is a token and head: it reads its own logits, writes its own K slots and weights."""
        scores, slots = cuda.shared.array(0, number), cuda.shared.array(0, int32)  # the same memory: slots come later
        step = cuda.blockDim.x
        row = cuda.blockIdx.x * step + cuda.threadIdx.x
        if row >= rows:
            return
        b, t, h = row // heads // tokens, row // heads % tokens, row % heads
        # 1. softmax of every digit, 2. the K best content slots
        first, first_slot = cuda.threadIdx.x, lists * step * words + cuda.threadIdx.x
        best, slot, norm = beam_search(
            logits, int64(row) * order * radix, order, radix, top_k, scores, slots, first, first_slot, step
        )
        # 3. their weights, 4. optionally divided by their sum, 5. where they are at this position
        shift = cape_shift(b, t, h, cape_heads, n_slots, positions, batch_stride, counted)
        weigh(scores, slots, best, slot, step, norm, top_k, renorm, shift, n_slots, index, weight, int64(row) * top_k)

    @kernel(numbers, numbers, index_type, numbers, positions_type, numbers, *[int32] * 11)
    def decode_backward(
        dweight, weight, index, logits, positions, dlogits, batch_stride, counted, tokens, heads,
        cape_heads, rows, order, radix, top_k, n_slots, renorm,
    ):  # fmt: skip
        """One thread a digit of a row: it writes the gradients of its P logits, which it adds up in shared memory.

        dL/dk_u = sum_j g_j (onehot(digit_u(a_j)) - p_u), with g_j = dweight_j weight_j. Every thread of a row goes over
        the K weights; a sum has one thread and one order.
        """
        sums = cuda.shared.array(0, number)
        step, lane = cuda.blockDim.x, cuda.threadIdx.x
        digit_row = int64(cuda.blockIdx.x) * step + lane
        row, u = int32(digit_row // order), int32(digit_row % order)
        if row >= rows:
            return
        b, t, h = row // heads // tokens, row // heads % tokens, row % heads
        shift = cape_shift(b, t, h, cape_heads, n_slots, positions, batch_stride, counted)
        at, zero = int64(row) * top_k, number(0)
        # 4. weight = rho / sum(rho): g_j - weight_j * sum_i g_i
        received = zero
        for k in range(top_k):
            received += dweight[at + k] * weight[at + k]
        undone = zero
        if renorm != 0:
            undone = received
            received = zero
            for k in range(top_k):
                received += weight[at + k] * (dweight[at + k] - undone)
        # 1. softmax of this digit
        own = digit_row * radix
        top = logits[own]
        for p in range(1, radix):
            top = max(top, logits[own + p])
        total = zero
        for p in range(radix):
            total += number(math.exp(logits[own + p] - top))
        place = uint32(1)
        for _ in range(u):
            place *= uint32(radix)
        # 3., 2. rho_j = prod_u p_u[digit_u(a_j)]
        for start in range(0, radix, CHUNK):
            width = min(CHUNK, radix - start)
            for p in range(width):
                sums[uint32(p * step + lane)] = zero
            for k in range(top_k):
                content = index[at + k] + shift  # 5. undone
                if content >= n_slots:
                    content -= n_slots
                digit = int32(uint32(content) // place % uint32(radix)) - start
                if digit >= 0 and digit < width:
                    sums[uint32(digit * step + lane)] += weight[at + k] * (dweight[at + k] - undone)
            for p in range(width):
                share = number(math.exp(logits[own + start + p] - top)) / total
                dlogits[own + start + p] = sums[uint32(p * step + lane)] - share * received

    return SimpleNamespace(forward=decode_forward, backward=decode_backward)
