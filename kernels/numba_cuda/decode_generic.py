"""The address decoder for any K and P: softmax of every digit, beam search, weights, CAPE; and the logits' gradient.

``ramnet_np/core/decoder.py`` for one thread. The lists of the beam search lie in shared memory, element i of thread n
at ``i * threads + n``: neighbouring threads use neighbouring words, which no two of them share.
"""

import math
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from .compiler import cuda, int32, int64, types, uint32
from .launch import kernel, record
from .records import INDICES

CHUNK = 32  # values of a digit that the backward adds up at a time


class DecodeSizes(NamedTuple):
    """Shapes and options of a call of the decoder."""

    rows: Any  # B * T * H
    T: Any
    H: Any
    U: Any
    P: Any
    top_k: Any
    n_slots: Any  # P**U
    cape_heads: Any
    renorm: Any  # whether weights are divided by their sum


DECODE_SIZES = record(DecodeSizes, **dict.fromkeys(DecodeSizes._fields, int32))


class Positions(NamedTuple):
    """Positions of the tokens, for CAPE."""

    given: Any  # (B, T) or (T,), or None
    batch_stride: Any  # from one row of the batch to the next; 0 if one holds for all
    from_zero: Any  # none are given: they count from 0


POSITIONS = record(Positions, given=types.CPointer(int64), batch_stride=int32, from_zero=int32)


@cuda.jit(device=True)
def cape_shift(row, positions, sizes):
    """t mod M in the heads that address relative to the position, else 0, for a row of (B, T, H)."""
    b, t, h = row // sizes.H // sizes.T, row // sizes.H % sizes.T, row % sizes.H
    if h >= sizes.cape_heads:
        return 0
    position = int64(t)
    if positions.from_zero == 0:
        position = positions.given[b * positions.batch_stride + t]
    return int32(position % sizes.n_slots)


def list_sizes(order: int, radix: int, top_k: int) -> int:
    """Elements that the beam search of one row keeps: two lists of partial addresses and one of digit values."""
    return 2 * top_k + (min(radix, top_k) if order > 1 else 0)


@cuda.jit(device=True)
def insert(score, slot, lists, first_score, first_slot, step, n, k):
    """Put a candidate into the sorted list of the ``n`` best, at most ``k``; returns the new ``n``.

    Higher scores first, then smaller slots. Element i lies at ``first + i * step`` of ``lists``, (scores, slots).
    """
    scores, slots = lists
    if n < k:
        i = n
        n += 1
    else:
        i = k - 1
        worst = scores[uint32(first_score + i * step)]
        if not (score > worst or (score == worst and slot < slots[uint32(first_slot + i * step)])):
            return n
    while i > 0:
        before = scores[uint32(first_score + (i - 1) * step)]
        slot_before = slots[uint32(first_slot + (i - 1) * step)]
        if not (score > before or (score == before and slot < slot_before)):
            break
        scores[uint32(first_score + i * step)] = before
        slots[uint32(first_slot + i * step)] = slot_before
        i -= 1
    scores[uint32(first_score + i * step)] = score
    slots[uint32(first_slot + i * step)] = slot
    return n


@cache
def search_functions(number) -> SimpleNamespace:
    """``beam_search`` and ``address_weights`` for logits of this Numba type."""

    @cuda.jit(device=True)
    def merge(lists, best, ranked, merged, step, counts, top_k):
        """The K best sums of a partial address and a digit's value, into the list ``merged``; returns how many.

        Lists are (where the scores begin, where the slots begin); ``counts``: partial addresses and values.
        """
        scores, slots = lists
        (best_at, slot_at), (ranked_at, value_at), (merged_at, merged_slot_at) = best, ranked, merged
        n, n_digit = counts
        n_next = 0
        for j in range(n_digit):
            score_j, value_j = scores[uint32(ranked_at + j * step)], slots[uint32(value_at + j * step)]
            for i in range(min(n, top_k // (j + 1))):  # the staircase: (i + 1) * (j + 1) <= K
                score = scores[uint32(best_at + i * step)] + score_j
                if n_next == top_k and score < scores[uint32(merged_at + (top_k - 1) * step)]:
                    break  # sums only fall along i
                whole = slots[uint32(slot_at + i * step)] + value_j
                n_next = insert(score, whole, lists, merged_at, merged_slot_at, step, n_next, top_k)
        return n_next

    @cuda.jit(device=True)
    def beam_search(logits, at, top_k, lists, first_score, first_slot, step, sizes):
        """The K best slots of one row of logits, best first: (where their scores begin, their slots, the norm).

        A score is the sum over digits of ``logit - max``; the weight of a slot is exp(score) / norm, with norm the
        product of the digits' softmax sums. O(U K log K + U P) comparisons and, each insertion taking up to K steps,
        more where K is large.
        """
        radix = sizes.P
        best, slot = first_score, first_slot  # the partial addresses
        merged, merged_slot = first_score + top_k * step, first_slot + top_k * step
        ranked, value = first_score + 2 * top_k * step, first_slot + 2 * top_k * step  # a digit's values, best first
        norm = number(1)
        n, power = 0, 1  # P**u
        for u in range(sizes.U):
            top = logits[at + u * radix]
            for p in range(1, radix):
                top = max(top, logits[at + u * radix + p])
            total = number(0)
            held = 0  # in the list that this digit's values go to: the first digit's are the partial addresses
            for p in range(radix):
                score = logits[at + u * radix + p] - top
                total += number(math.exp(score))
                if u == 0:
                    held = insert(score, p, lists, best, slot, step, held, top_k)
                else:
                    held = insert(score, p * power, lists, ranked, value, step, held, min(radix, top_k))
            norm *= total
            if u == 0:
                n = held
            else:
                n = merge(
                    lists, (best, slot), (ranked, value), (merged, merged_slot), step, (n, held), top_k
                )  # fmt: skip
                best, merged = merged, best
                slot, merged_slot = merged_slot, slot
            power *= radix
        return best, slot, norm

    @cuda.jit(device=True)
    def address_weights(lists, found, step, top_k, renorm, shift, n_slots, address, at):
        """Weights of the slots found, optionally divided by their sum, and where the slots are at this position."""
        scores, slots = lists
        best, slot, norm = found
        index, weight = address
        total = number(0)
        for k in range(top_k):
            w = number(math.exp(scores[uint32(best + k * step)])) / norm
            total += w
            weight[at + k] = w
            shifted = slots[uint32(slot + k * step)] - shift
            if shifted < 0:
                shifted += n_slots
            index[at + k] = shifted
        if renorm != 0:
            for k in range(top_k):
                weight[at + k] /= total

    return SimpleNamespace(beam_search=beam_search, address_weights=address_weights)


@cache
def decode_forward_kernel(number):
    """``decode_forward`` for logits of this Numba type."""
    words, numbers, search = number.bitwidth // 32, types.CPointer(number), search_functions(number)
    beam_search, address_weights = search.beam_search, search.address_weights

    @kernel(numbers, POSITIONS, INDICES, numbers, DECODE_SIZES, int32)
    def decode_forward(logits, positions, index, weight, sizes, list_size):
        """One thread a row, that is a token and head: it reads its own logits, writes its own K slots and weights."""
        # the same memory twice: slots come behind the scores
        lists = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        step, top_k = cuda.blockDim.x, sizes.top_k
        row = cuda.blockIdx.x * step + cuda.threadIdx.x
        if row >= sizes.rows:
            return
        # 1. softmax of every digit, 2. the K best content slots
        first, first_slot = cuda.threadIdx.x, list_size * step * words + cuda.threadIdx.x
        found = beam_search(logits, int64(row) * sizes.U * sizes.P, top_k, lists, first, first_slot, step, sizes)
        # 3. their weights, 4. optionally divided by their sum, 5. where they are at this position
        shift = cape_shift(row, positions, sizes)
        address_weights(
            lists, found, step, top_k, sizes.renorm, shift, sizes.n_slots, (index, weight), int64(row) * top_k
        )  # fmt: skip

    return decode_forward


class DecodedArrays(NamedTuple):
    """What the decoder's forward was given and returned."""

    logits: Any  # (B, T, H, U, P)
    slot: Any  # (B, T, H, K): the index returned
    weight: Any  # (B, T, H, K)


def decoded_arrays(number):
    """Type of :class:`DecodedArrays`."""
    numbers = types.CPointer(number)
    return record(DecodedArrays, logits=numbers, slot=INDICES, weight=numbers)


@cache
def decode_backward_kernel(number):
    """``decode_backward`` for logits of this Numba type."""
    numbers = types.CPointer(number)

    @cuda.jit(device=True)
    def weight_sums(dweight, weight, at, sizes):
        """(sum_j g_j, what renorm takes from every dweight), with 4. weight = rho / sum(rho)."""
        g_sum = number(0)
        for k in range(sizes.top_k):
            g_sum += dweight[at + k] * weight[at + k]
        taken = number(0)
        if sizes.renorm != 0:
            taken, g_sum = g_sum, number(0)
            for k in range(sizes.top_k):
                g_sum += weight[at + k] * (dweight[at + k] - taken)
        return g_sum, taken

    @cuda.jit(device=True)
    def softmax_of(logits, own, radix):
        """The largest of a digit's logits, and the sum of all exp(logit - largest)."""
        top, total = logits[own], number(0)
        for p in range(1, radix):
            top = max(top, logits[own + p])
        for p in range(radix):
            total += number(math.exp(logits[own + p] - top))
        return top, total

    @kernel(numbers, decoded_arrays(number), POSITIONS, numbers, DECODE_SIZES)
    def decode_backward(dweight, ctx, positions, dlogits, sizes):
        """One thread a digit of a row: it writes the gradients of its P logits, which it adds up in shared memory.

        dL/dk_u = sum_j g_j (onehot(digit_u(a_j)) - p_u), with g_j = dweight_j weight_j. Every thread of a row goes over
        the K weights; a sum has one thread and one order.
        """
        sums = cuda.shared.array(0, number)
        step, lane, radix = cuda.blockDim.x, cuda.threadIdx.x, sizes.P
        digit_row = int64(cuda.blockIdx.x) * step + lane
        row, u = int32(digit_row // sizes.U), int32(digit_row % sizes.U)
        if row >= sizes.rows:
            return
        shift, at, own = cape_shift(row, positions, sizes), int64(row) * sizes.top_k, digit_row * radix
        g_sum, taken = weight_sums(dweight, ctx.weight, at, sizes)
        # 1. softmax of this digit
        top, total = softmax_of(ctx.logits, own, radix)
        power = uint32(1)
        for _ in range(u):
            power *= uint32(radix)
        # 3., 2. rho_j = prod_u p_u[digit_u(a_j)]
        for start in range(0, radix, CHUNK):
            width = min(CHUNK, radix - start)
            for p in range(width):
                sums[uint32(p * step + lane)] = number(0)
            for k in range(sizes.top_k):
                content = ctx.slot[at + k] + shift  # 5. undone
                if content >= sizes.n_slots:
                    content -= sizes.n_slots
                digit = int32(uint32(content) // power % uint32(radix)) - start
                if digit >= 0 and digit < width:
                    sums[uint32(digit * step + lane)] += ctx.weight[at + k] * (dweight[at + k] - taken)
            for p in range(width):
                share = number(math.exp(ctx.logits[own + start + p] - top)) / total
                dlogits[own + start + p] = sums[uint32(p * step + lane)] - share * g_sum

    return decode_backward
