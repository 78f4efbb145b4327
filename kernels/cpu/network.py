"""Top-K slots of many tokens at once: the beam search of ``ramnet_np/core/topk.py`` as sorting networks over lanes.

Finding the best of a few candidates one token at a time is all unpredictable branches. Here ``LANES`` tokens go through
the same fixed sequence of compare-exchanges, a network, so that each one is a handful of vector instructions and no
branch depends on the data. The order is total (score falling, then slot rising), so whichever way a network sorts,
the slots are those of the core.

Cost: about n log(n)**2 / 4 compare-exchanges for n = K log K candidates a digit; ``beam.py`` serves larger K.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .compiling import inner

LANES = 64  # tokens side by side: at the usual K all their candidates fit the L1 cache
MAX_NETWORK_SIZE = 128  # candidates of a digit; with more, branches are cheaper than a network


class Plan(NamedTuple):
    """What to do digit by digit; the digits' parts stand one behind the other, ``*_end[u]`` says where u's ends."""

    rank: np.ndarray  # (n, 2) compare-exchanges that sort the values of one digit
    pair: np.ndarray  # (n, 2) ranks (i, j) of the candidates: i among the partial addresses, j among the digit's values
    pair_end: np.ndarray  # (U,)
    swap: np.ndarray  # (n, 2) compare-exchanges that bring the K best of them to the front
    swap_end: np.ndarray  # (U,)
    candidates: int  # of the largest digit; 0 if they are too many for networks


@lru_cache(maxsize=64)
def plan(order: int, radix: int, top_k: int) -> Plan:
    """The networks for U digits of radix P and top-K; an empty plan where they would be too large."""
    nothing = np.empty((0, 2), dtype=np.int64)
    if max(radix, top_k) > MAX_NETWORK_SIZE or len(candidate_ranks(top_k, radix, top_k)) > MAX_NETWORK_SIZE:
        return Plan(nothing, nothing, nothing[:, 0].copy(), nothing, nothing[:, 0].copy(), 0)
    pairs, swaps, kept = [], [], min(radix, top_k)
    for u in range(order):
        pairs.append(candidate_ranks(kept, radix, top_k) if u > 0 else nothing)
        kept = min(radix ** (u + 1), top_k)
        swaps.append(network(len(pairs[u]), kept))

    def joined(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(parts).astype(np.int64), np.cumsum([len(part) for part in parts])

    return Plan(network(radix, min(radix, top_k)), *joined(pairs), *joined(swaps), max(radix, *map(len, pairs)))


def candidate_ranks(n: int, radix: int, top_k: int) -> np.ndarray:
    """Pairs of ranks (i, j), i < n and j < radix, that can be among the K best: (i + 1) * (j + 1) <= K. (count, 2).

    ``ramnet_np/core/topk.py`` says why. It is stated here once more because the core is what this backend is held to.

    >>> candidate_ranks(n=4, radix=2, top_k=4).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [3, 0]]
    """
    pairs = [(i, j) for i in range(n) for j in range(min(radix, top_k // (i + 1)))]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def network(n: int, kept: int) -> np.ndarray:
    """Compare-exchanges (a, b), a < b, that bring the ``kept`` best of ``n`` to the front in order: (count, 2).

    Batcher's odd-even merge sort, without the exchanges that nothing kept depends on.

    >>> network(4, 4).tolist()
    [[0, 1], [2, 3], [0, 2], [1, 3], [1, 2]]
    >>> network(4, 1).tolist()
    [[0, 1], [2, 3], [0, 2]]
    """
    exchanges = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        exchanges.append((i + j, i + j + k))
            k //= 2
        p *= 2
    wanted, needed = set(range(kept)), []
    for a, b in reversed(exchanges):
        if a in wanted or b in wanted:
            wanted |= {a, b}
            needed.append((a, b))
    return np.array(needed[::-1], dtype=np.int64).reshape(-1, 2)


@inner
def exchange(score, slot, a, b):
    """Put the better of candidates a and b at a, in every lane. ``score``, ``slot``: (n, LANES)."""
    score_a, score_b, slot_a, slot_b = score[a], score[b], slot[a], slot[b]
    for lane in range(LANES):
        s_a, s_b, i_a, i_b = score_a[lane], score_b[lane], slot_a[lane], slot_b[lane]
        swap = (s_b > s_a) | ((s_b == s_a) & (i_b < i_a))
        # Arithmetic in place of "x if swap else y": that would end in masked stores, which are slow on some processors.
        change = (i_a ^ i_b) & -np.int32(swap)
        slot_a[lane] = i_a ^ change
        slot_b[lane] = i_b ^ change
        score_a[lane] = max(s_a, s_b)
        score_b[lane] = min(s_a, s_b)


@inner
def top_slots(scores, plan, ranked, value, score, slot, next_score, next_slot):
    """The K best slots of every lane, best first: the array, ``slot`` or ``next_slot``, whose first K rows they are.

    ``scores``: (U*P, LANES) of the digits. Working memory: ``ranked``, ``value`` (P, LANES) for one digit's values,
    best first, and what each adds to a slot; the rest (plan.candidates, LANES) for partial addresses and their slots.
    """
    order, radix = plan.pair_end.size, ranked.shape[0]
    place_value = 1  # P**u
    for u in range(order):
        target, target_slot = (score, slot) if u == 0 else (ranked, value)
        for p in range(radix):
            for lane in range(LANES):
                target[p, lane] = scores[u * radix + p, lane]
                target_slot[p, lane] = p * place_value
        for e in range(plan.rank.shape[0]):
            exchange(target, target_slot, plan.rank[e, 0], plan.rank[e, 1])
        if u > 0:
            start = plan.pair_end[u - 1]
            for c in range(plan.pair_end[u] - start):
                i, j = plan.pair[start + c, 0], plan.pair[start + c, 1]
                for lane in range(LANES):
                    next_score[c, lane] = score[i, lane] + ranked[j, lane]
                    next_slot[c, lane] = slot[i, lane] + value[j, lane]
            for e in range(plan.swap_end[u - 1], plan.swap_end[u]):
                exchange(next_score, next_slot, plan.swap[e, 0], plan.swap[e, 1])
            score, next_score = next_score, score
            slot, next_slot = next_slot, slot
        place_value *= radix
    return slot
