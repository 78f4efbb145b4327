"""Products of a few rows with matrices, at the speed at which the matrices come from memory, and the steps around them.

A library's product of matrices arranges both for many rows; for one token that takes longer than the product. Here
each row of a matrix is read once and multiplied with every row of x. A sum is always taken in the same order, so any
number of threads and of rows gives the same bits. What a block computes before and behind its products, a norm, biases,
SiLU, the stream, is part of the same call, as a call from Python takes as long as a hundred kilobytes of a matrix.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.layers.linear import FEW_ROWS, WORTH_A_KERNEL

from .arrays import contiguous
from .compiling import inner, kernel, parallel_kernel
from .norm import norm_row
from .share import share_out

BYTES_PER_PIECE = 2**21  # reading that many takes about a hundred microseconds, starting the threads ten or more

_NOTHING = {dtype: (np.empty(0, dtype), np.empty((0, 0), dtype)) for dtype in map(np.dtype, (np.float32, np.float64))}


def few_rows_product(x: Array, weight: Array) -> np.ndarray:
    """x W^T: (N, E) of x (N, D) and ``weight`` (E, D)."""
    if not weight.flags.carray:  # a copy would be read twice
        return x @ weight.T
    no_vector, no_rows = _NOTHING[x.dtype]
    return _products(contiguous(x), no_vector, 0.0, (weight,), (no_vector,), no_rows)[0]


def normed_products(
    x: Array, norm: Array, eps: float, weights: tuple[Array, ...], biases: tuple[Array | None, ...]
) -> Any:
    """rmsnorm(x) W_i^T + b_i of every matrix, or NotImplemented for what is not served."""
    if len(weights) != len(biases) or not _served(x, norm, weights, biases):
        return NotImplemented
    no_vector, no_rows = _NOTHING[x.dtype]
    added = tuple(no_vector if bias is None else contiguous(bias) for bias in biases)
    return _products(contiguous(x), contiguous(norm), eps, weights, added, no_rows)


def product_added(x: Array, weight: Array, bias: Array | None, add: Array) -> Any:
    """x W^T + b + add, or NotImplemented for what is not served."""
    if not _served(x, None, (weight,), (bias,)) or add.shape != (len(x), len(weight)) or add.dtype != x.dtype:
        return NotImplemented
    no_vector, _ = _NOTHING[x.dtype]
    added = no_vector if bias is None else contiguous(bias)
    return _products(contiguous(x), no_vector, 0.0, (weight,), (added,), contiguous(add))[0]


def normed_gated_product(x: Array, norm: Array, eps: float, gate: Array, up: Array) -> Any:
    """silu(n G^T) * (n U^T), n = rmsnorm(x), or NotImplemented for what is not served."""
    if not _served(x, norm, (gate, up), (None, None)) or gate.shape != up.shape:
        return NotImplemented
    y = np.empty((len(x), len(gate)), dtype=x.dtype)
    run = _gated_serial if _is_short(gate.nbytes + up.nbytes) else _gated_parallel
    run(contiguous(x), contiguous(norm), x.dtype.type(eps), gate, up, y)
    return y


def _served(x: Array, norm: Array | None, weights: tuple[Array, ...], biases: tuple[Array | None, ...]) -> bool:
    """Whether these are a few rows of x (N, D), a norm (D,), matrices (E, D) and biases (E,) that are worth a kernel.

    What is wrong counts as not served: the mathematics refuses it.
    """
    if x.ndim != 2 or not 0 < len(x) <= FEW_ROWS or x.dtype not in _NOTHING:
        return False
    width = x.shape[1:]
    vectors = [] if norm is None else [(norm, width)]
    for weight, bias in zip(weights, biases, strict=True):
        if type(weight) is not np.ndarray or weight.ndim != 2 or weight.shape[1:] != width:
            return False
        if weight.dtype != x.dtype or not weight.flags.carray:
            return False
        if bias is not None:
            vectors.append((bias, weight.shape[:1]))
    if any(type(v) is not np.ndarray or v.shape != shape or v.dtype != x.dtype for v, shape in vectors):
        return False
    return sum(weight.size for weight in weights) >= WORTH_A_KERNEL


def _is_short(bytes_of_weights: int) -> bool:
    return bytes_of_weights < 2 * BYTES_PER_PIECE


def _products(
    x: np.ndarray,
    norm: np.ndarray,
    eps: float,
    weights: tuple[np.ndarray, ...],
    biases: tuple[np.ndarray, ...],
    add: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """x or, with a norm that is not of size 0, rmsnorm(x); times each matrix; plus bias and ``add`` of the same kind."""
    results = tuple([np.empty((len(x), len(weight)), dtype=x.dtype) for weight in weights])
    run = _products_serial if _is_short(sum([weight.nbytes for weight in weights])) else _products_parallel
    run(x, norm, x.dtype.type(eps), weights, biases, add, results)
    return results


@kernel
def _products_serial(x, norm, eps, weights, biases, add, results):
    outputs = 0
    for i in range(len(weights)):
        outputs += weights[i].shape[0]
    _some_products(0, _normed(x, norm, eps), weights, biases, add, results, outputs)


@parallel_kernel
def _products_parallel(x, norm, eps, weights, biases, add, results):
    outputs = 0
    for i in range(len(weights)):
        outputs += weights[i].shape[0]
    each = _outputs_per_piece(weights[0])
    arguments = (_normed(x, norm, eps), weights, biases, add, results, each)
    share_out(_some_products, (outputs + each - 1) // each, arguments)


@inner
def _some_products(piece, x, weights, biases, add, results, each):
    """``each`` outputs, counted through all matrices, from piece * each on."""
    first, last = piece * each, (piece + 1) * each
    for i in range(len(weights)):
        weight, bias, y = weights[i], biases[i], results[i]
        for e in range(max(first, 0), min(last, weight.shape[0])):
            for n in range(x.shape[0]):
                total = _dot(weight[e], x[n])
                if bias.size > 0:
                    total += bias[e]
                if add.size > 0:
                    total += add[n, e]
                y[n, e] = total
        first, last = first - weight.shape[0], last - weight.shape[0]


@kernel
def _gated_serial(x, norm, eps, gate, up, y):
    _some_gated(0, _normed(x, norm, eps), gate, up, y, gate.shape[0])


@parallel_kernel
def _gated_parallel(x, norm, eps, gate, up, y):
    each = _outputs_per_piece(gate)
    share_out(_some_gated, (gate.shape[0] + each - 1) // each, (_normed(x, norm, eps), gate, up, y, each))


@inner
def _some_gated(piece, x, gate, up, y, each):
    """``each`` outputs from piece * each on."""
    one = y.dtype.type(1)
    for e in range(piece * each, min((piece + 1) * each, gate.shape[0])):
        for n in range(x.shape[0]):
            a, b = _dot(gate[e], x[n]), _dot(up[e], x[n])
            y[n, e] = a * (one / (one + math.exp(-a))) * b


@inner
def _normed(x, norm, eps):
    if norm.size == 0:
        return x
    y = np.empty_like(x)
    for n in range(x.shape[0]):
        norm_row(x[n], norm, eps, y[n])
    return y


@inner
def _outputs_per_piece(weight):
    return max(1, BYTES_PER_PIECE // (weight.shape[1] * weight.itemsize))


# Only the order of a sum may change, so that it fills vector registers; not what NaN and infinity do.
@inner(fastmath={"reassoc", "contract"})
def _dot(a, b):
    total = a.dtype.type(0)
    for d in range(a.size):
        total += a[d] * b[d]
    return total
