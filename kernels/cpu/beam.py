"""Top-K slots of one token by beam search: ``ramnet_np/core/topk.py`` for scalars, with the same candidates and order.

For a step, and for the K that are too large for the networks of ``network.py``.
"""

from __future__ import annotations

import numpy as np

from .compiling import inner

SORTED = 256  # a list of at most so many is kept sorted, a longer one is a heap


@inner
def beam_arrays(order, radix, top_k, dtype):
    """Working memory of a search: the arguments ``scores`` to ``value`` of :func:`beam_search`, in their order."""
    scores, ranked, value = np.empty((order, radix), dtype), np.empty(radix, dtype), np.empty(radix, np.int64)
    best, slot = np.empty(top_k, dtype), np.empty(top_k, np.int64)
    next_best, next_slot = np.empty(top_k, dtype), np.empty(top_k, np.int64)
    return scores, best, slot, next_best, next_slot, ranked, value


@inner
def better(score, slot, than_score, than_slot):
    """Whether one candidate goes before another: higher scores first, then smaller slots."""
    return score > than_score or (score == than_score and slot < than_slot)


@inner
def insert(score, slot, scores, slots, n, k):
    """Put a candidate into the list of the ``n`` best, at most ``k``; returns the new ``n``.

    The list is sorted, best first; a list for more than ``SORTED`` is a heap, until ``finish`` sorts it: moving up
    what stands behind a candidate would cost K of them K**2 moves, a heap K log K.
    """
    if n == k:
        worst = k - 1 if k <= SORTED else 0
        if not better(score, slot, scores[worst], slots[worst]):
            return n
        if k > SORTED:
            sink(score, slot, scores, slots, n)
            return n
        n -= 1
    i = n
    while i > 0:
        before = i - 1 if k <= SORTED else (i - 1) // 2
        if better(score, slot, scores[before], slots[before]) != (k <= SORTED):
            break
        scores[i], slots[i] = scores[before], slots[before]
        i = before
    scores[i], slots[i] = score, slot
    return n + 1


@inner
def sink(score, slot, scores, slots, n):
    """Put a candidate in the place of the worst of a heap, its first: entry i is no better than 2i + 1 and 2i + 2."""
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and better(scores[child], slots[child], scores[child + 1], slots[child + 1]):
            child += 1
        if better(scores[child], slots[child], score, slot):
            break
        scores[i], slots[i] = scores[child], slots[child]
        i = child
    scores[i], slots[i] = score, slot


@inner
def finish(scores, slots, n, k):
    """Sort the list of the ``n`` best, at most ``k``, if it is a heap."""
    if k > SORTED:
        for last in range(n - 1, 0, -1):
            worst_score, worst_slot = scores[0], slots[0]
            sink(scores[last], slots[last], scores, slots, last)
            scores[last], slots[last] = worst_score, worst_slot


@inner
def beam_search(top_k, scores, best, slot, next_best, next_slot, ranked, value):
    """The K best slots, best first: returns the array, ``slot`` or ``next_slot``, that holds them.

    ``scores``: (U, P) of the digits. Working memory: ``best``, ``slot`` (K,) for the partial addresses, best first, and
    their slots; ``next_best``, ``next_slot`` (K,) for those with one more digit; ``ranked``, ``value`` (P,) for one
    digit's values, best first, and what each adds to a slot.
    """
    order, radix = scores.shape
    worst = top_k - 1 if top_k <= SORTED else 0  # where a full list has its worst
    n = none = np.int64(0)  # to Numba, a plain 0 is a type of its own, for which it would compile insert once more
    for p in range(radix):
        n = insert(scores[0, p], p, best, slot, n, top_k)
    finish(best, slot, n, top_k)
    place_value = radix  # P**u
    for u in range(1, order):
        n_digit, most_digit = none, min(radix, top_k)  # this digit's values, best first
        for p in range(radix):
            n_digit = insert(scores[u, p], p * place_value, ranked, value, n_digit, most_digit)
        finish(ranked, value, n_digit, most_digit)
        n_next = none
        for j in range(n_digit):
            for i in range(min(n, top_k // (j + 1))):  # the staircase: (i + 1) * (j + 1) <= K
                score = best[i] + ranked[j]
                if n_next == top_k and score < next_best[worst]:
                    break  # sums only fall along i
                n_next = insert(score, slot[i] + value[j], next_best, next_slot, n_next, top_k)
        finish(next_best, next_slot, n_next, top_k)
        best, next_best = next_best, best
        slot, next_slot = next_slot, slot
        n = n_next
        place_value *= radix
    return slot
