"""Products of a few rows with matrices, at the speed at which the matrices come from memory, and the steps around them.

A library's product of matrices arranges both for many rows; for one token that takes longer than the product. Here
each row of a matrix is read once and multiplied with every row of x. A sum is always taken in the same order, so any
number of threads and of rows gives the same bits. What a block computes before and behind its products, a norm, biases,
SiLU, the stream, is part of the same call, as a call from Python takes as long as a hundred kilobytes of a matrix.

Matrices may be bfloat16 in uint16 beside everything else in float32: half the bytes are read, and a number becomes a
float32 in a register.

Four rows of a matrix, far apart, are multiplied at a time. A core asks for more of its memory ahead behind four places
than behind one, and a number of x is loaded once for four products.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ramnet_np.contract import Array

from .arrays import contiguous
from .bfloat16 import number
from .compiling import inner, kernel, parallel_kernel
from .norm import norm_row
from .share import share_out

MOST_ROWS = 8  # of x, up to which reading the matrices takes the time
WORTH_A_KERNEL = 2**14  # elements of matrices; a library multiplies smaller ones as quickly
BYTES_PER_PIECE = 2**21  # reading that many takes about a hundred microseconds, starting the threads ten or more
SHORT = 2 * BYTES_PER_PIECE  # bytes of matrices below which one thread reads them all

NOTHING = {dtype: (np.empty(0, dtype), np.empty((0, 0), dtype)) for dtype in map(np.dtype, (np.float32, np.float64))}


def few_rows_product(x: Array, weight: Array) -> Any:
    """x W^T: (N, E) of x (N, D) and ``weight`` (E, D), or NotImplemented for another layout of it."""
    if not weight.flags.carray:  # a copy would be read twice
        return NotImplemented
    none, no_rows = NOTHING[x.dtype]
    return _products(contiguous(x), none, 0.0, (weight,), (none,), no_rows)[0]


def normed_products(
    x: Array, norm: Array, eps: float, weights: tuple[Array, ...], biases: tuple[Array | None, ...]
) -> Any:
    """rmsnorm(x) W_i^T + b_i of every matrix, or NotImplemented for what is not served."""
    if not are_few(x) or len(weights) != len(biases) or sum([w.size for w in weights]) < WORTH_A_KERNEL:
        return NotImplemented
    none, no_rows = NOTHING[x.dtype]
    width = x.shape[1:]
    outer = [weight.shape[:1] for weight in weights]
    added = [none if bias is None else bias for bias in biases]
    shapes = [(0,) if bias is None else shape for bias, shape in zip(biases, outer, strict=True)]
    if not fit(x.dtype, (x, norm, *added), [x.shape, width, *shapes]):
        return NotImplemented
    if not matrices_fit(x.dtype, weights, [shape + width for shape in outer]):
        return NotImplemented
    return _products(x, norm, eps, weights, tuple(added), no_rows)


def product_added(x: Array, weight: Array, bias: Array | None, add: Array) -> Any:
    """x W^T + b + add, or NotImplemented for what is not served."""
    if not are_few(x) or weight.size < WORTH_A_KERNEL:
        return NotImplemented
    none, _ = NOTHING[x.dtype]
    outer = weight.shape[:1]
    added, shape = (none, (0,)) if bias is None else (bias, outer)
    if not fit(x.dtype, (x, added, add), (x.shape, shape, x.shape[:1] + outer)):
        return NotImplemented
    if not matrices_fit(x.dtype, (weight,), (outer + x.shape[1:],)):
        return NotImplemented
    return _products(x, none, 0.0, (weight,), (added,), add)[0]


def normed_swiglu_added(x: Array, norm: Array, eps: float, gate: Array, up: Array, down: Array) -> Any:
    """x + (silu(n G^T) * (n U^T)) D^T, n = rmsnorm(x), or NotImplemented for what is not served."""
    if not are_few(x) or gate.size < WORTH_A_KERNEL or gate.nbytes + up.nbytes >= SHORT:
        return NotImplemented
    width, inside = x.shape[1:], gate.shape[:1]
    if not fit(x.dtype, (x, norm), (x.shape, width)):
        return NotImplemented
    if not matrices_fit(x.dtype, (gate, up, down), (inside + width, inside + width, width + inside)):
        return NotImplemented
    y, none = np.empty(x.shape, dtype=x.dtype), NOTHING[x.dtype][0]
    _swiglu(x, norm, x.dtype.type(eps), gate, up, down, none, y)
    return y


def are_few(x: Array) -> bool:
    """Whether x is a few rows of numbers that kernels are made for."""
    return x.ndim == 2 and 0 < len(x) <= MOST_ROWS and x.dtype in NOTHING


def fit(dtype: np.dtype, arrays: Iterable[Array], shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether every array has this dtype and its shape, and lies in memory as kernels take it.

    What does not counts as not served, and the mathematics says what is wrong with it, if anything is.
    """
    for array, shape in zip(arrays, shapes, strict=True):
        if array.shape != shape or array.dtype != dtype or not array.flags.carray:
            return False
    return True


def matrices_fit(dtype: np.dtype, matrices: Sequence[Array], shapes: Iterable[tuple[int, ...]]) -> bool:
    """As :func:`fit` for matrices, which may all be bfloat16 in uint16 beside float32 instead."""
    stored = matrices[0].dtype
    return (stored == dtype or (stored == np.uint16 and dtype == np.float32)) and fit(stored, matrices, shapes)


def _products(
    x: np.ndarray,
    norm: np.ndarray,
    eps: float,
    weights: tuple[np.ndarray, ...],
    biases: tuple[np.ndarray, ...],
    add: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Every product; a norm, biases and ``add`` of size 0 are left out."""
    results = tuple([np.empty((len(x), len(weight)), dtype=x.dtype) for weight in weights])
    run = _products_serial if sum([weight.nbytes for weight in weights]) < SHORT else _products_parallel
    run(x, norm, x.dtype.type(eps), weights, biases, add, results)
    return results


@kernel
def _products_serial(x, norm, eps, weights, biases, add, results):
    outputs = 0
    for i in range(len(weights)):
        outputs += weights[i].shape[0]
    some_products(0, normed(x, norm, eps), weights, biases, add, results, outputs)


@parallel_kernel
def _products_parallel(x, norm, eps, weights, biases, add, results):
    outputs = 0
    for i in range(len(weights)):
        outputs += weights[i].shape[0]
    each = _outputs_per_piece(weights[0])
    arguments = (normed(x, norm, eps), weights, biases, add, results, each)
    share_out(some_products, (outputs + each - 1) // each, arguments)


@inner
def some_products(piece, x, weights, biases, add, results, each):
    """``each`` outputs, counted through all matrices, from piece * each on."""
    first, last = piece * each, (piece + 1) * each
    for m in range(len(weights)):
        weight, bias, y = weights[m], biases[m], results[m]
        start = max(first, 0)
        count = min(last, weight.shape[0]) - start
        for i in range(_fours(count)):
            rows = _four_rows(start, i, count)
            for n in range(x.shape[0]):
                totals = _four_dots(weight, rows, x[n])
                for j in range(4):
                    e, total = rows[j], totals[j]
                    if bias.size > 0:
                        total += bias[e]
                    if add.size > 0:
                        total += add[n, e]
                    y[n, e] = total
        first, last = first - weight.shape[0], last - weight.shape[0]


@kernel
def _swiglu(x, norm, eps, gate, up, down, none, y):
    inside = np.empty((x.shape[0], gate.shape[0]), y.dtype)
    _gated(normed(x, norm, eps), gate, up, inside)
    some_products(0, inside, (down,), (none,), x, (y,), down.shape[0])


@inner
def _gated(x, gate, up, y):
    one, count = y.dtype.type(1), gate.shape[0]
    for i in range(_fours(count)):
        rows = _four_rows(0, i, count)
        for n in range(x.shape[0]):
            gates, ups = _four_dots(gate, rows, x[n]), _four_dots(up, rows, x[n])
            for j in range(4):
                y[n, rows[j]] = gates[j] * (one / (one + math.exp(-gates[j]))) * ups[j]


@inner
def _fours(count):
    return max(0, count + 3) // 4


@inner
def _four_rows(start, i, count):
    """The i-th four of ``count`` rows from ``start`` on; behind the last row, that one again."""
    apart, last, e = _fours(count), start + count - 1, start + i
    return e, min(e + apart, last), min(e + 2 * apart, last), min(e + 3 * apart, last)


@inner
def normed(x, norm, eps):
    """rmsnorm(x) or, with a norm of size 0, x itself."""
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
def _four_dots(weight, rows, x):
    first, second, third, fourth = weight[rows[0]], weight[rows[1]], weight[rows[2]], weight[rows[3]]
    a = b = c = d = x.dtype.type(0)
    for i in range(x.size):
        a += number(first[i]) * x[i]
        b += number(second[i]) * x[i]
        c += number(third[i]) * x[i]
        d += number(fourth[i]) * x[i]
    return a, b, c, d
