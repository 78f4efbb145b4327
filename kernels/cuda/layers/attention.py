"""Rotations and softmax rows on the GPU, one launch each; ``attention.cu``. Between them stand cuBLAS's products.

Same mathematics as ``ramnet_np/layers/rotary.py`` and ``softmax_attention.py``.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ramnet_np.contract import Array

from ..runtime.arrays import contiguous_aligned, empty
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name
from ..runtime.params import INT, LONG, POINTER, ParamStruct

THREADS = 256
ALL = 2**30  # a window that reaches over every key


@cache
def softmax_params(sums: np.dtype) -> ParamStruct:
    """``SoftmaxParams``, with numbers of the dtype ``sums``."""
    return ParamStruct(
        "SoftmaxParams", scores=POINTER, dweights=POINTER, log_sums=POINTER, rows=LONG, queries=INT, keys=INT,
        diagonal=INT, window=INT, scale=sums,
    )  # fmt: skip


@cache
def attention_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``."""
    kernels = "rotate", "softmax_rows", "softmax_rows_backward"
    params = softmax_params(np.dtype(np.float64 if element == "double" else np.float32))
    return Specialisation("layers/attention.cu", kernels, (("ELEMENT", element),), (params,))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """x (B, T, H, d) with the pairs of its halves turned; cos, sin: (T, 1, d/2) or (B, T, 1, d/2)."""
    sums = sum_dtype(x.dtype)
    x = contiguous_aligned(x)
    cos, sin = (contiguous_aligned(each.astype(sums, copy=False)) for each in (cos, sin))
    y = empty(x.shape, x.dtype)
    half = x.shape[-1] // 2
    pairs = x.size // 2
    if pairs:
        sizes = np.int64(pairs), np.int32(x.shape[2]), np.int32(half), np.int64(cos.size // half)
        kernel = get_kernel(attention_specialisation(type_name(x.dtype)), "rotate")
        kernel((-(-pairs // THREADS),), (THREADS,), (x, cos, sin, *sizes, y))
    return y


def softmax_rows(scores: Array, diagonal: int, window: int | None, scale: float) -> Array:
    """Scores (G, Q, J), C-contiguous, become weights in place; returns log sum exp of every row, (G, Q, 1)."""
    log_sums = empty((*scores.shape[:-1], 1), sum_dtype(scores.dtype))
    _launch("softmax_rows", scores, None, log_sums, diagonal, window, scale)
    return log_sums


def softmax_rows_backward(
    scores: Array, dweights: Array, log_sums: Array, diagonal: int, window: int | None, scale: float
) -> None:
    """Scores become weights again, and ``dweights`` the gradient of the scores, both (G, Q, J), C-contiguous."""
    _launch("softmax_rows_backward", scores, dweights, log_sums, diagonal, window, scale)


def _launch(
    name: str, scores: Array, dweights: Array, log_sums: Array, diagonal: int, window: int | None, scale: float
) -> None:
    """One warp a row of scores."""
    groups, queries, keys = scores.shape
    rows = groups * queries
    params = softmax_params(sum_dtype(scores.dtype))(
        scores=scores, dweights=dweights, log_sums=log_sums, rows=rows, queries=queries, keys=keys, diagonal=diagonal,
        window=ALL if window is None else min(window, ALL), scale=scale,
    )  # fmt: skip
    kernel = get_kernel(attention_specialisation(type_name(scores.dtype)), name)
    kernel((-(-32 * rows // THREADS),), (THREADS,), (params,))
