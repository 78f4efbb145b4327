"""One token from a row of logits: the likeliest, or a draw from the likeliest.

    1. repetition penalty    l = l / r where l > 0, else l * r             tokens that were there before
    2. temperature           w = exp((l - max l) / temperature)
    3. top-k                 the k likeliest tokens
    4. top-p                 of these the fewest likeliest that have p of their probability together
    5. min-p                 those at least min_p times as likely as the likeliest
    6. draw                  the first token up to which the kept w sum to more than u times their sum

Temperature 0 takes the likeliest token after step 1. Steps 3 to 5 each keep the n likeliest tokens for some n, so
together they keep the smallest n. Of equally likely tokens those of smaller numbers come first.
Sources: 1 Keskar et al., arXiv 1909.05858; 3 Fan et al., arXiv 1805.04833; 4 Holtzman et al., arXiv 1904.09751;
5 Nguyen et al., arXiv 2407.01082.
"""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.arrays import at_least_float32, namespace_of


@accelerated
def sample_tokens(
    logits: Array,
    u: Array = None,
    seen: Array = None,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Array:
    """One token (B,) int64 for each row of ``logits`` (B, V); -1 where the largest logit is NaN or infinite.

    A NaN counts as the largest, so it gives -1 wherever it stands.

    ``u``: (B,) float64 in [0, 1), not looked at with temperature 0; ``seen``: (B, V) bool, tokens that the repetition
    penalty holds for, or None. The settings: as :class:`~ramnet_np.model.sampling.Sampling` has checked them.
    Cost: O(V) for each row without filters, else O(V log V).

    >>> sample_tokens(np.array([[0.0, 1.0], [2.0, 1.0]])).tolist()
    [1, 0]
    >>> sample_tokens(np.log([[0.1, 0.2, 0.7]]), np.array([0.2]), temperature=1.0, top_k=2).tolist()
    [1]
    """
    xp = namespace_of(logits)
    # 1. repetition penalty
    if seen is not None and repetition_penalty != 1:
        logits, r = logits.astype(np.float64), repetition_penalty
        logits = xp.where(seen, xp.where(logits > 0, logits / r, logits * r), logits)
    logits = at_least_float32(logits)
    largest = logits.max(axis=-1, keepdims=True)
    if temperature == 0:
        return _or_none(logits.argmax(axis=-1), largest)
    # 2. temperature: from the largest down and in float64; a tiny one then makes infinities of the others alone
    weight = logits.astype(np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        weight -= largest
        weight /= temperature
        weight = xp.exp(weight, out=weight)
    # 3. to 5. the n likeliest
    if top_k is not None or top_p < 1 or min_p > 0:
        weight *= _are_likeliest(weight, *_how_many(weight, top_k, top_p, min_p))
    # 6. draw
    cumulated = weight.cumsum(axis=-1)
    return _or_none((cumulated > u[:, None] * cumulated[:, -1:]).argmax(axis=-1), largest)


@accelerated
def mark_seen(seen: Array, tokens: Array) -> None:
    """Set ``seen`` (B, V), bool, IN PLACE, where row b has token ``tokens[b]``; (B,) int64.

    >>> seen = np.zeros((2, 3), bool)
    >>> mark_seen(seen, np.array([2, 0]))
    >>> seen.astype(int).tolist()
    [[0, 0, 1], [1, 0, 0]]
    """
    seen[namespace_of(seen).arange(len(seen)), tokens] = True


def _or_none(token: Array, largest: Array) -> Array:
    """``token`` (B,), or -1 where the largest logit (B, 1) is not finite."""
    xp = namespace_of(largest)
    return xp.where(xp.isfinite(largest[:, 0]), token, -1).astype(np.int64)


def _how_many(weight: Array, top_k: int | None, top_p: float, min_p: float) -> tuple[Array, Array]:
    """How many of the likeliest tokens the filters keep, (B, 1), and the weight of the last of them, (B, 1)."""
    xp, V = namespace_of(weight), weight.shape[1]
    likeliest = xp.sort(weight, axis=-1)[:, ::-1]
    if top_k is not None:
        likeliest = likeliest[:, :top_k]
    n = xp.full((len(weight), 1), min(top_k or V, V))
    if top_p < 1:
        cumulated = likeliest.cumsum(axis=-1)
        before = cumulated - likeliest
        n = xp.minimum(n, (before < top_p * cumulated[:, -1:]).sum(axis=-1, keepdims=True))
    if min_p > 0:
        n = xp.minimum(n, (likeliest >= min_p * likeliest[:, :1]).sum(axis=-1, keepdims=True))
    return n, xp.take_along_axis(likeliest, n - 1, axis=-1)


def _are_likeliest(weight: Array, n: Array, least: Array) -> Array:
    """(B, V) bool, true for the n likeliest tokens, the last of which has the weight ``least``."""
    above, level = weight > least, weight == least
    return above | (level & (level.cumsum(axis=-1) <= n - above.sum(axis=-1, keepdims=True)))
