"""Gradients of weights on the GPU, sums over many tokens with a small result: see ``weight_gradient.cu``."""

from __future__ import annotations

from functools import cache

import numpy as np

from ramnet_np.contract import Array

from ..runtime.arrays import empty
from ..runtime.module import Specialisation, get_kernel, type_name
from .token_sums import add_parts

FEWEST_TOKENS, MOST_RESULTS = 4096, 2**14  # from how many and up to how large a result this serves
SHARES = 264  # of the tokens: two blocks for each multiprocessor of an H100, and the same bits on any GPU
TILE, DEPTH, THREADS = 64, 16, 256  # results a side of a block, tokens a round, threads with 4 x 4 results each


@cache
def weight_gradient_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``, float or double."""
    defines = ("ELEMENT", element), ("TILE", TILE), ("DEPTH", DEPTH), ("THREADS", THREADS)
    return Specialisation("layers/weight_gradient.cu", ("weight_gradient_splitk",), defines)


def suits(dy: Array, x: Array) -> bool:
    """Whether dy^T x is a product for :func:`weight_gradient`: many tokens, a small result, no tensor cores."""
    (tokens, outputs), width = dy.shape, x.shape[1]
    small = tokens >= FEWEST_TOKENS and outputs * width <= MOST_RESULTS
    return small and dy.dtype.itemsize >= 4 and dy.flags.c_contiguous and x.flags.c_contiguous


def weight_gradient(dy: Array, x: Array) -> Array:
    """dy^T x (E, D) of dy (N, E) and x (N, D), both C-contiguous: the sum over tokens of outer products."""
    (rows, outputs), width = dy.shape, x.shape[1]
    shares = min(SHARES, -(-rows // 64))
    parts = empty((shares, outputs * width), dy.dtype)
    grid = shares, -(-outputs // TILE), -(-width // TILE)
    kernel = get_kernel(weight_gradient_specialisation(type_name(dy.dtype)), "weight_gradient_splitk")
    kernel(grid, (THREADS,), (dy, x, np.int64(rows), np.int32(outputs), np.int32(width), parts))
    return add_parts(parts).reshape(outputs, width)
