"""How the next token is chosen: the settings, and one token of each row of logits by them.

:mod:`~ramnet_np.layers.sampling` has the steps and their sources; draws take one number of
:mod:`~ramnet_np.layers.uniform` for each row, and nothing is read back from a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.layers.sampling import sample_tokens
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


@on_gpu_of_arrays
def next_token(logits: Array, sampling: Sampling, u: Array = None, seen: Array | None = None) -> Array:
    """One token (B,) int64 for each row of ``logits`` (B, V).

    ``u``: (B,) float64 in [0, 1), not looked at when greedy; ``seen``: (B, V) bool, tokens that the repetition penalty
    holds for, or None.
    FloatingPointError where the largest logit is NaN or infinite. On a GPU, where nothing is waited for, the token is
    then -1, and whoever brings tokens to the host calls :func:`require_tokens`.

    >>> next_token(np.array([[0.0, 1.0], [2.0, 1.0]]), Sampling()).tolist()
    [1, 0]
    >>> next_token(np.log([[0.1, 0.2, 0.7]]), Sampling(temperature=1.0, top_k=2), np.array([0.2])).tolist()
    [1]
    """
    token = sample_tokens(
        logits, u, seen, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p,
        min_p=sampling.min_p, repetition_penalty=sampling.repetition_penalty,
    )  # fmt: skip
    return require_tokens(token) if type(token) is np.ndarray else token


def require_tokens(tokens: np.ndarray) -> np.ndarray:
    """``tokens`` (B,) of :func:`next_token`; FloatingPointError if logits that were not finite left one out.

    >>> require_tokens(np.array([5, -1]))
    Traceback (most recent call last):
        ...
    FloatingPointError: logits must be finite for a token to be chosen, got NaN or infinity for text 1: check params
    """
    if (tokens < 0).any():
        row = int(tokens.argmin())
        raise FloatingPointError(
            f"logits must be finite for a token to be chosen, got NaN or infinity for text {row}: check params"
        )
    return tokens


def check_sampling(sampling: Any) -> None:
    """TypeError unless ``sampling`` says how tokens are chosen.

    >>> check_sampling("greedy")
    Traceback (most recent call last):
        ...
    TypeError: sampling must be a Sampling, such as Sampling(temperature=0.8), got 'greedy'
    """
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling must be a Sampling, such as Sampling(temperature=0.8), got {sampling!r}")


def token_dtype(dtype: Any, vocab: int) -> np.dtype:
    """``dtype`` where it holds every token, else the next wider integers that do.

    >>> token_dtype(np.uint8, 256).name, token_dtype(np.uint8, 257).name, token_dtype(np.int8, 300).name
    ('uint8', 'uint16', 'int32')
    """
    holds = np.iinfo(dtype).max >= vocab - 1
    return np.dtype(dtype) if holds else np.promote_types(dtype, np.min_scalar_type(vocab - 1))
