"""Generation: the prompt at once, then one token after another, each drawn from the logits after the one before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.model.sampling import next_token, token_dtype


def tokens(
    model: Any, ids: Array, length: int, temperature: float, rng: np.random.Generator, backend: str | None = None
) -> Iterator[Array]:
    """``length`` tokens (B,) behind the prompts ``ids`` (B, T), as ``RAMNet.stream`` yields them; ``model``: a RAMNet.

    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> [token.shape for token in tokens(model, np.array([[1, 2, 3]]), 2, 0.0, np.random.default_rng(0))]
    [(1,), (1,)]
    """
    T, dtype = ids.shape[1], token_dtype(ids.dtype, model.config.vocab)
    logits, state = _prompt(model, ids, backend)
    for t in range(T, T + length):
        token = next_token(logits, temperature, rng, dtype)
        yield token
        if t + 1 < T + length:
            logits = _next_logits(model, token, t, state, backend)


@on_gpu_of_arrays
def _prompt(model: Any, ids: Array, backend: str | None) -> tuple[Array, list[Any]]:
    """Logits (B, V) after the prompt, and its state."""
    last = namespace_of(ids).zeros(ids.shape, dtype=bool)
    last[:, -1] = True
    return model.forward_with_state(ids, select=last, backend=backend)


@on_gpu_of_arrays
def _next_logits(model: Any, token: Array, position: int, state: list[Any], backend: str | None) -> Array:
    positions = namespace_of(token).array([position])
    return model.step(token[:, None], state, positions, backend=backend)[:, 0]
