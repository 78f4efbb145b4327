"""Top-K slots of one token by beam search: ``ramnet_np/core/topk.py`` for scalars, with the same candidates and order.

For a step, and for the K that are too large for the networks of ``network.py``.
"""

from __future__ import annotations

import numpy as np

from .compiling import inner


@inner
def beam_arrays(order, radix, top_k, dtype):
    """Working memory of a search: the arguments ``scores`` to ``value`` of :func:`beam_search`, in their order."""
    scores, ranked, value = np.empty((order, radix), dtype), np.empty(radix, dtype), np.empty(radix, np.int64)
    best, slot = np.empty(top_k, dtype), np.empty(top_k, np.int64)
    next_best, next_slot = np.empty(top_k, dtype), np.empty(top_k, np.int64)
    return scores, best, slot, next_best, next_slot, ranked, value


@inner
def insert(score, slot, scores, slots, n, k):
    """Put a candidate into the sorted list of the ``n`` best, at most ``k``; returns the new ``n``.

    Higher scores first, then smaller slots.
    """
    if n < k:
        i = n
        n += 1
    else:
        i = k - 1
        if not (score > scores[i] or (score == scores[i] and slot < slots[i])):
            return n
    while i > 0 and (score > scores[i - 1] or (score == scores[i - 1] and slot < slots[i - 1])):
        scores[i] = scores[i - 1]
        slots[i] = slots[i - 1]
        i -= 1
    scores[i] = score
    slots[i] = slot
    return n


@inner
def beam_search(top_k, scores, best, slot, next_best, next_slot, ranked, value):
    """The K best slots, best first: returns the array, ``slot`` or ``next_slot``, that holds them.

    ``scores``: (U, P) of the digits. Working memory: ``best``, ``slot`` (K,) for the partial addresses, best first, and
    their slots; ``next_best``, ``next_slot`` (K,) for those with one more digit; ``ranked``, ``value`` (P,) for one
    digit's values, best first, and what each adds to a slot.
    """
    order, radix = scores.shape
    n = 0
    for p in range(radix):
        n = insert(scores[0, p], p, best, slot, n, top_k)
    place_value = radix  # P**u
    for u in range(1, order):
        n_digit = 0  # this digit's values, best first
        for p in range(radix):
            n_digit = insert(scores[u, p], p * place_value, ranked, value, n_digit, min(radix, top_k))
        n_next = 0
        for j in range(n_digit):
            for i in range(min(n, top_k // (j + 1))):  # the staircase: (i + 1) * (j + 1) <= K
                score = best[i] + ranked[j]
                if n_next == top_k and score < next_best[top_k - 1]:
                    break  # sums only fall along i
                n_next = insert(score, slot[i] + value[j], next_best, next_slot, n_next, top_k)
        best, next_best = next_best, best
        slot, next_slot = next_slot, slot
        n = n_next
        place_value *= radix
    return slot
