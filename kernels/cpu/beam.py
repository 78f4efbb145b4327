"""Top-K slots of one token by beam search: ``ramnet_np/core/topk.py`` for scalars, with the same candidates and order.

For a step, and for the K that are too large for the networks of ``network.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit


class Beam(NamedTuple):
    """Working memory of the search for one token."""

    scores: np.ndarray  # (U, P) of the digits
    best: np.ndarray  # (K,) scores of the partial addresses, best first ...
    slot: np.ndarray  # (K,) int64, ... and their slots
    next_best: np.ndarray  # (K,) those with one more digit
    next_slot: np.ndarray  # (K,) int64
    ranked: np.ndarray  # (P,) scores of one digit's values, best first ...
    value: np.ndarray  # (P,) int64, ... and what each value adds to a slot


@njit(cache=True)
def new_beam(order, radix, top_k, dtype):
    """Working memory for addresses of U digits of radix P and for the K best slots."""
    return Beam(
        np.empty((order, radix), dtype),
        np.empty(top_k, dtype),
        np.empty(top_k, np.int64),
        np.empty(top_k, dtype),
        np.empty(top_k, np.int64),
        np.empty(radix, dtype),
        np.empty(radix, np.int64),
    )


@njit(cache=True)
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


@njit(cache=True)
def beam_search(beam, top_k):
    """The K best slots by the sums of ``beam.scores``: the array of the beam whose first K elements they are."""
    scores, ranked, value = beam.scores, beam.ranked, beam.value
    best, slot, next_best, next_slot = beam.best, beam.slot, beam.next_best, beam.next_slot
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
