"""The next token from its logits: the likeliest, or a draw.

    p     = softmax(logits / temperature)
    token = argmax((logits - max logit) / temperature + Gumbel noise)        a draw from p
    token = argmax(logits)                                                   temperature 0: its limit

Source: Gumbel, "Statistical Theory of Extreme Values" (1954): the largest of log p + noise is a draw from p.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays


@on_gpu_of_arrays
def next_token(logits: Array, temperature: float, rng: np.random.Generator, dtype: Any = np.int64) -> Array:
    """One token (B,) of ``dtype`` for each row of ``logits`` (B, V). ``temperature``: 0 or more.

    FloatingPointError for logits that are not finite, which on a GPU would have to be waited for and pass.

    >>> next_token(np.array([[0.0, 1.0], [2.0, 1.0]]), 0.0, np.random.default_rng(0)).tolist()
    [1, 0]
    """
    xp = namespace_of(logits)
    largest = logits.max(axis=-1, keepdims=True)
    if xp is np and not np.isfinite(largest).all():
        raise FloatingPointError(f"logits must be finite for a token to be chosen, got {largest.max()}: check params")
    if temperature == 0:
        return logits.argmax(axis=-1).astype(dtype)
    # from the largest down and in float64: a tiny temperature then makes infinities of the others alone
    below = logits.astype(np.float64) - largest
    with np.errstate(over="ignore"):
        below /= temperature
    return (below + xp.asarray(rng.gumbel(size=logits.shape))).argmax(axis=-1).astype(dtype)


def token_dtype(dtype: Any, vocab: int) -> np.dtype:
    """``dtype`` where it holds every token, else the next wider integers that do.

    >>> token_dtype(np.uint8, 256).name, token_dtype(np.uint8, 257).name, token_dtype(np.int8, 300).name
    ('uint8', 'uint16', 'int32')
    """
    holds = np.iinfo(dtype).max >= vocab - 1
    return np.dtype(dtype) if holds else np.promote_types(dtype, np.min_scalar_type(vocab - 1))
