"""Top-K of a product softmax by beam search: the K best of M = P**U slots without looking at M slots.

Slots are merged digit by digit. After each digit only the K best partial addresses are kept. That loses nothing: if
a partial address has K better ones, any completion of it has the K same completions of those ahead of it.

The merge looks at few pairs. With the partial addresses and the digit's values both sorted best first, the pair of
ranks (i, j) has (i+1)*(j+1) - 1 pairs at least as good as itself, so only pairs with (i+1)*(j+1) <= K can be kept:
about K log K of them (the "staircase").

Cost per token and head: O(U K log K) pairs, which are sorted, so O(U K log(K)**2 + U P log P). Ties go to the smaller
slot index.
Source: docs/mathematics.md.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of


def beam_search(scores: Array, top_k: int) -> Array:
    """The K slots with the largest sums of digit scores, best first.

    ``scores``: (..., U, P); returns their indices, (..., K) int64. Sums run in the order of the digits.

    >>> beam_search(np.array([[0.0, -1.0], [0.0, -3.0]]), top_k=3).tolist()  # digit 0 is worth 1, digit 1 is worth 2
    [0, 1, 2]
    """
    xp = namespace_of(scores)
    order, radix = scores.shape[-2:]
    by_rank = xp.argsort(-scores, axis=-1, kind="stable")  # (..., U, P): each digit's values, best first
    ranked = xp.take_along_axis(scores, by_rank, axis=-1)

    best = ranked[..., 0, :top_k]  # (..., n), n <= K: the partial addresses
    index = by_rank[..., 0, :top_k]
    for u in range(1, order):
        i, j = (xp.asarray(rank) for rank in staircase(best.shape[-1], radix, top_k))
        best, index = _keep_best(
            best[..., i] + ranked[..., u, :][..., j],
            index[..., i] + by_rank[..., u, :][..., j] * radix**u,
            top_k,
        )
    return index


@lru_cache(maxsize=256)
def staircase(n: int, radix: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of ranks (i, j), i < n and j < radix, that can be among the K best: (i+1)*(j+1) <= K.

    >>> i, j = staircase(n=4, radix=2, top_k=4)
    >>> list(zip(i.tolist(), j.tolist()))
    [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0)]
    """
    i, j = np.meshgrid(np.arange(n), np.arange(radix), indexing="ij")
    kept = (i + 1) * (j + 1) <= top_k
    return i[kept], j[kept]


def _keep_best(score: Array, index: Array, top_k: int) -> tuple[Array, Array]:
    """The K best candidates, best first; sorting by index, then stably by score, sends ties to the smaller index."""
    xp = namespace_of(score)
    by_index = xp.argsort(index, axis=-1)
    score = xp.take_along_axis(score, by_index, axis=-1)
    index = xp.take_along_axis(index, by_index, axis=-1)
    by_score = xp.argsort(-score, axis=-1, kind="stable")[..., :top_k]
    return xp.take_along_axis(score, by_score, axis=-1), xp.take_along_axis(index, by_score, axis=-1)
