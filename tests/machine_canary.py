"""Hashes of arithmetic whose last bits depend on the machine and on the libraries, all on fixed inputs.

Where the canary is the same, the same code is taken to give the same bits. It covers what the package computes with:
random draws, NumPy's functions on its vector units, the order of its sums, the BLAS kernels of small matrix products,
the C library's functions, and loops that Numba compiles for this processor, with the compiler's version. Additions and
products alone, one element at a time, are the same everywhere.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import njit
from scipy.special import erf
from threadpoolctl import threadpool_limits

# m, k, n: heads, tokens, chunks and widths of small models
PRODUCTS = [(1, 3, 4), (2, 8, 16), (4, 4, 9), (8, 53, 1), (64, 64, 5), (128, 4, 140), (140, 128, 3), (280, 8, 18)]
SUMMED = [(4001,), (280, 8), (2, 140, 9), (3, 64, 64)]
COMPILED = "compiled"  # what the names of Numba's parts start with
CHANNELS = [1, 3, 4, 7, 16, 53]
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "erf": erf,
    "reciprocal": np.reciprocal,
    "logaddexp": lambda x: np.logaddexp(x, x.dtype.type(0)),
    "log": lambda x: np.log(np.abs(x)),
    "log1p": lambda x: np.log1p(np.abs(x)),
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "power": lambda x: np.power(np.abs(x), x.dtype.type(0.7)),
    "power minus": lambda x: np.power(np.abs(x), -0.3),
    "power each": lambda x: np.power(np.abs(x), np.abs(x[..., :1])),
}


def digest(*arrays: Any) -> str:
    """A hash of every bit, the signs of zeros included, and of shapes and dtypes."""
    bits = hashlib.sha256()
    for array in map(np.asarray, arrays):
        bits.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return bits.hexdigest()[:10]


@functools.cache
def canary() -> dict[str, str]:
    """A hash for each kind of arithmetic, on one BLAS thread."""
    with threadpool_limits(1, user_api="blas"):
        by = f"{COMPILED} by", [numba.__version__, llvmlite.__version__]  # which choose the order of sums in a kernel
        parts = [by, *_draws(), *(part for dtype in (np.float32, np.float64) for part in _arithmetic(dtype))]
        return {name: digest(*arrays) for name, arrays in parts}


def _draws() -> Iterator[tuple[str, list[Any]]]:
    rng = np.random.default_rng(0)
    yield "random", [rng.normal(size=4001), rng.gumbel(size=999), rng.uniform(0, 3, 99), rng.standard_exponential(999)]
    yield "random float32", [rng.standard_normal(4001, dtype=np.float32), rng.random(99, dtype=np.float32)]
    scalars = [i / 64 for i in range(1, 400)]
    functions = (math.exp, math.log, math.expm1, math.log1p, math.cos, math.sqrt, lambda x: 0.95**x, lambda x: x**-0.3)
    yield "C library", [[f(x) for x in scalars] for f in functions]


def _arithmetic(dtype: Any) -> Iterator[tuple[str, list[Any]]]:
    kind = np.dtype(dtype).name

    def drawn(*shape: int) -> Any:
        return np.random.default_rng(shape).normal(size=shape).astype(dtype)

    # whole vectors, what is left over behind them, and elements that do not lie side by side
    pieces = [drawn(4001), drawn(7), drawn(1), drawn(99)[::3], drawn(50, 80)[:, 3:70]]
    for name, function in FUNCTIONS.items():
        yield f"{name} {kind}", [function(piece) for piece in pieces]
    summed = [drawn(*shape) for shape in SUMMED]
    by_axis = [x.sum(axis=axis) for x in summed for axis in range(x.ndim)]
    yield f"sum {kind}", [*by_axis, *(x.sum() for x in summed), *(x.sum(dtype=np.float64) for x in summed)]
    rows, stack = summed[1], summed[2]
    paths = [np.einsum("nd,nd->n", rows, rows), np.einsum("nd,nd->d", rows, rows)]
    yield f"einsum {kind}", [*paths, np.einsum("btd,btd->d", stack[:, 2:], stack[:, :-2])]
    for m, k, n in PRODUCTS:
        a, b = drawn(3, m, k), drawn(3, k, n)
        a_t, b_t = (np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (a, b))
        pairs = [(a, b), (a, b_t), (a_t, b), (a_t, b_t)]
        yield f"product {m}x{k}x{n} {kind}", [f(x, y) for x, y in pairs for f in (np.matmul, _first_product)]
    compiled = [_functions(np.abs(drawn(n)) / 8, dtype(0.7)) for n in (1, 13, 400)]
    yield f"{COMPILED} functions {kind}", compiled
    yield f"{COMPILED} sums {kind}", [_compiled_sums(drawn(5, n), drawn(n)) for n in CHANNELS]


def _first_product(a: Any, b: Any) -> Any:
    return a[0] @ b[0]


@njit(cache=True)
def _functions(x, gamma):
    """As the kernels use them, element by element."""
    y = np.empty((5, x.size), x.dtype)
    for i in range(x.size):
        y[0, i] = math.exp(-x[i])
        y[1, i] = math.log1p(-min(x[i], x.dtype.type(0.99)))
        y[2, i] = x[i] ** gamma
        y[3, i] = x[i] ** (gamma - x.dtype.type(1))
        y[4, i] = math.exp(-abs(gamma)) * x[i]
    return y


@njit(cache=True, fastmath={"reassoc", "nsz"})
def _compiled_sums(s, v):
    """Sums in the order that the compiler likes, as in the kernels' backward, beside what is written as they run."""
    sums, written = np.zeros((2, s.shape[0]), s.dtype), s.copy()
    for k in range(s.shape[0]):
        row, out = s[k], written[k]
        with_row, with_difference = s.dtype.type(0), s.dtype.type(0)
        for c in range(v.size):
            with_row += row[c] * v[c]
            out[c] += sums[0, 0] * v[c]
        for c in range(v.size):
            with_difference += (v[c] - row[c]) * out[c]
            out[c] *= sums[0, 0]
        sums[0, k], sums[1, k] = with_row, with_difference
    return sums
