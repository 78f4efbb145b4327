"""Top-K slots of one token by beam search: ``ramnet_np/core/topk.py`` for scalars, with the same candidates and order.

For a step, and for the K that are too large for the networks of ``network.py``.
"""

from __future__ import annotations

from numba import njit


@njit(cache=True)
def insert(score, slot, scores, slots, n, k):
    """Put a candidate into the sorted list of the ``n`` best, at most ``k``; returns the new ``n``.

    Higher scores first, then smaller slots.
    """
    if n < k:
        place = n
        n += 1
    else:
        place = k - 1
        if not (score > scores[place] or (score == scores[place] and slot < slots[place])):
            return n
    while place > 0 and (score > scores[place - 1] or (score == scores[place - 1] and slot < slots[place - 1])):
        scores[place] = scores[place - 1]
        slots[place] = slots[place - 1]
        place -= 1
    scores[place] = score
    slots[place] = slot
    return n


@njit(cache=True)
def beam_search(scores, top_k, best, slot, next_best, next_slot, ranked, value):
    """The K best slots, best first: returns the array, ``slot`` or ``next_slot``, that holds them.

    ``scores``: (U, P). Scratch: ``best``, ``next_best``, ``slot``, ``next_slot`` (K,); ``ranked``, ``value`` (P,).
    """
    order, radix = scores.shape
    n = 0
    for p in range(radix):
        n = insert(scores[0, p], p, best, slot, n, top_k)
    place = radix  # P**u
    for u in range(1, order):
        n_digit = 0  # this digit's values, best first
        for p in range(radix):
            n_digit = insert(scores[u, p], p * place, ranked, value, n_digit, min(radix, top_k))
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
        place *= radix
    return slot
