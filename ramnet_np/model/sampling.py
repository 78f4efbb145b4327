"""The next token from its logits: the likeliest, or a draw from the likeliest.

    1. repetition penalty    l = l / r where l > 0, else l * r             tokens that were there before
    2. temperature           w = exp((l - max l) / temperature)
    3. top-k                 the k likeliest tokens
    4. top-p                 of these the fewest likeliest that have p of their probability together
    5. min-p                 those at least min_p times as likely as the likeliest
    6. draw                  the first token up to which the kept w sum to more than u times their sum

Temperature 0 takes the likeliest token after step 1. Steps 3 to 5 each keep the n likeliest tokens for some n, so
together they keep the smallest n. Of equally likely tokens those of smaller numbers come first. u is one number of
:mod:`~ramnet_np.model.uniform` for each row, and nothing is read back from a GPU.
Sources: 1 Keskar et al., arXiv 1909.05858; 3 Fan et al., arXiv 1805.04833; 4 Holtzman et al., arXiv 1904.09751;
5 Nguyen et al., arXiv 2407.01082.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import at_least_float32, namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.model.checks import LARGEST, SMALLEST, check_integer, check_number


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    >>> Sampling(temperature=0.8, top_p=0.9).greedy, Sampling().greedy
    (False, True)
    >>> Sampling(top_p=0.0)
    Traceback (most recent call last):
        ...
    ValueError: top_p must be above 0 and at most 1, got 0.0
    """

    temperature: float = 0.0
    """0 takes the likeliest token; 1 draws by the model's probabilities; between is more careful."""
    top_k: int | None = None
    """Draw among the k likeliest tokens only."""
    top_p: float = 1.0
    """Draw among the fewest likeliest tokens that have this share of the probability together."""
    min_p: float = 0.0
    """Draw only tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were there before become less likely."""
    seed: int = 0
    """Decides the draws; row b of a batch draws with seed + b."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, low=0)
        if self.top_k is not None:
            check_integer("top_k", self.top_k, 1)
        check_number("top_p", self.top_p, low=0, high=1)
        if self.top_p == 0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        check_number("min_p", self.min_p, low=0, high=1)
        check_number("repetition_penalty", self.repetition_penalty, low=SMALLEST, high=LARGEST)
        check_integer("seed", self.seed, 0, None)  # its sentence does not name a bound that few people meet
        check_integer("seed", self.seed, 0, 2**64 - 1)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0

    @property
    def filters(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0


@on_gpu_of_arrays
def next_token(logits: Array, sampling: Sampling, u: Array = None, seen: Array | None = None) -> Array:
    """One token (B,) int64 for each row of ``logits`` (B, V).

    ``u``: (B,) float64 in [0, 1), not looked at when greedy; ``seen``: (B, V) bool, tokens that the repetition penalty
    holds for, or None.
    FloatingPointError for logits that are not finite, which on a GPU would have to be waited for and pass.

    >>> next_token(np.array([[0.0, 1.0], [2.0, 1.0]]), Sampling()).tolist()
    [1, 0]
    >>> next_token(np.log([[0.1, 0.2, 0.7]]), Sampling(temperature=1.0, top_k=2), np.array([0.2])).tolist()
    [1]
    """
    xp = namespace_of(logits)
    if xp is np and not np.isfinite(largest := logits.max(axis=-1)).all():
        raise FloatingPointError(f"logits must be finite for a token to be chosen, got {largest.max()}: check params")
    # 1. repetition penalty
    if seen is not None and sampling.repetition_penalty != 1:
        logits = logits.astype(np.float64)
        r = sampling.repetition_penalty
        logits = xp.where(seen, xp.where(logits > 0, logits / r, logits * r), logits)
    if sampling.greedy:
        return at_least_float32(logits).argmax(axis=-1).astype(np.int64)
    # 2. temperature: from the largest down and in float64; a tiny one then makes infinities of the others alone
    weight = logits.astype(np.float64)
    weight -= weight.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", under="ignore"):
        weight /= sampling.temperature
        weight = xp.exp(weight, out=weight)
    # 3. to 5. the n likeliest
    if sampling.filters:
        weight *= _are_likeliest(weight, _how_many(weight, sampling))
    # 6. draw
    cumulated = weight.cumsum(axis=-1)
    return (cumulated > u[:, None] * cumulated[:, -1:]).argmax(axis=-1).astype(np.int64)


def token_dtype(dtype: Any, vocab: int) -> np.dtype:
    """``dtype`` where it holds every token, else the next wider integers that do.

    >>> token_dtype(np.uint8, 256).name, token_dtype(np.uint8, 257).name, token_dtype(np.int8, 300).name
    ('uint8', 'uint16', 'int32')
    """
    holds = np.iinfo(dtype).max >= vocab - 1
    return np.dtype(dtype) if holds else np.promote_types(dtype, np.min_scalar_type(vocab - 1))


def _how_many(weight: Array, sampling: Sampling) -> tuple[Array, Array]:
    """How many of the likeliest tokens the filters keep, (B, 1), and the weight of the last of them, (B, 1)."""
    xp, V = namespace_of(weight), weight.shape[1]
    likeliest = xp.sort(weight, axis=-1)[:, ::-1]
    if sampling.top_k is not None:
        likeliest = likeliest[:, : sampling.top_k]
    n = xp.full((len(weight), 1), min(sampling.top_k or V, V))
    if sampling.top_p < 1:
        cumulated = likeliest.cumsum(axis=-1)
        before = cumulated - likeliest
        n = xp.minimum(n, (before < sampling.top_p * cumulated[:, -1:]).sum(axis=-1, keepdims=True))
    if sampling.min_p > 0:
        n = xp.minimum(n, (likeliest >= sampling.min_p * likeliest[:, :1]).sum(axis=-1, keepdims=True))
    return n, xp.take_along_axis(likeliest, n - 1, axis=-1)


def _are_likeliest(weight: Array, last: tuple[Array, Array]) -> Array:
    """(B, V) bool, true for the n likeliest tokens; ``last``: as ``_how_many`` returns it."""
    n, least = last
    above, level = weight > least, weight == least
    return above | (level & (level.cumsum(axis=-1) <= n - above.sum(axis=-1, keepdims=True)))
