"""Rotations and softmax rows on the GPU, one launch each; ``attention.cu``. Between them stand cuBLAS's products.

Same mathematics as ``ramnet_np/layers/rotary.py`` and ``softmax_attention.py``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..runtime.arrays import contiguous_aligned
from ..runtime.module import Specialisation, get_kernel, type_name

THREADS = 256
ALL = 2**30  # a window that reaches over every key


@cache
def attention_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``, float or double."""
    return Specialisation(
        "layers/attention.cu", ("rotate", "softmax_rows", "softmax_rows_backward"), (("ELEMENT", element),)
    )


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """x (B, T, H, d) with the pairs of its halves turned; cos, sin: (T, 1, d/2) or (B, T, 1, d/2)."""
    import cupy

    x, cos, sin = contiguous_aligned(x), contiguous_aligned(cos), contiguous_aligned(sin)
    y = cupy.empty(x.shape, dtype=x.dtype)
    half = x.shape[-1] // 2
    pairs = x.size // 2
    if pairs:
        sizes = np.int64(pairs), np.int32(x.shape[2]), np.int32(half), np.int64(cos.size // half)
        _launch("rotate", x.dtype, pairs, (x, cos, sin, *sizes, y))
    return y


def softmax_rows(scores: Any, diagonal: int, window: int | None, scale: float) -> Any:
    """Scores (G, Q, J), C-contiguous, become weights in place; returns log sum exp of every row, (G, Q, 1)."""
    import cupy

    log_sums = cupy.empty((*scores.shape[:-1], 1), dtype=scores.dtype)
    _launch(
        "softmax_rows", scores.dtype, 32 * log_sums.size, (scores, *_sizes(scores, diagonal, window, scale), log_sums)
    )
    return log_sums


def softmax_rows_backward(
    scores: Any, dweights: Any, log_sums: Any, diagonal: int, window: int | None, scale: float
) -> None:
    """Scores become weights again, and ``dweights`` the gradient of the scores, both (G, Q, J), C-contiguous."""
    arguments = (scores, dweights, log_sums, *_sizes(scores, diagonal, window, scale))
    _launch("softmax_rows_backward", scores.dtype, 32 * log_sums.size, arguments)


def _sizes(scores: Any, diagonal: int, window: int | None, scale: float) -> tuple[Any, ...]:
    groups, queries, keys = scores.shape
    reach = ALL if window is None else min(window, ALL)
    whole = np.int32(queries), np.int32(keys), np.int32(diagonal), np.int32(reach)
    return np.int64(groups * queries), *whole, scores.dtype.type(scale)


def _launch(name: str, dtype: Any, threads: int, arguments: tuple[Any, ...]) -> None:
    kernel = get_kernel(attention_specialisation(type_name(dtype)), name)
    kernel((-(-threads // THREADS),), (THREADS,), arguments)
