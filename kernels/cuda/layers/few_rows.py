"""Products of a few rows with matrices on the GPU, and the steps around them, one launch each.

See ``few_rows.cuh``; ``few_rows_mma.cu`` serves 16-bit types, ``few_rows.cu`` the others. For more rows than MOST_ROWS
cuBLAS takes over. A row gives the same bits beside any others, up to that number.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.require import ArraySpec, require_array, require_like, require_width

from ..runtime.arrays import ALIGNMENT, contiguous_aligned, empty, ptr
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name
from ..runtime.params import INT, POINTER, ParamStruct
from .blas import matrix_product

MOST_WEIGHTS = 8  # of few_rows.cuh
MOST_ROWS = {2: 64, 4: 16, 8: 16}  # by the bytes of a number: where reading the matrix stops to take the time
MULTIPROCESSORS = 132  # of an H100: blocks are as large as leaves some for each


@cache
def few_rows_params(sums: np.dtype) -> ParamStruct:
    """``FewRowsParams``, with numbers of the dtype ``sums``."""
    pointers, sizes = np.dtype((POINTER, MOST_WEIGHTS)), np.dtype((INT, MOST_WEIGHTS))
    return ParamStruct(
        "FewRowsParams", x=POINTER, norm=POINTER, add=POINTER, weight=pointers, bias=pointers, y=pointers,
        outputs=sizes, rows=INT, width=INT, eps=sums,
    )  # fmt: skip


@cache
def few_rows_specialisation(
    element: str, rows: int, tiles: int = 1, gated: bool = False, wide: bool = True
) -> Specialisation:
    """For ``rows`` rows of x a block: 16, 32 or 64 of the 16-bit types, where ``tiles`` counts; else 1, 2, 4, 8, 16.

    ``wide``: rows of a matrix are whole accesses of 16 bytes.
    """
    defines: tuple[tuple[str, str | int], ...] = (
        ("ELEMENT", element), ("GATED", int(gated)), ("WIDE", int(wide)), ("ROWS", rows),
    )  # fmt: skip
    source = "layers/few_rows.cu"
    if element in ("float16", "bfloat16"):
        source, defines = "layers/few_rows_mma.cu", (*defines, ("TILES", tiles))
    sums = np.dtype(np.float64 if element == "double" else np.float32)
    return Specialisation(source, ("few_rows",), defines, (few_rows_params(sums),))


def few_rows_product(x: Array, weight: Array) -> Array:
    """x W^T: (N, E) of x (N, D) and ``weight`` (E, D)."""
    if len(x) > MOST_ROWS[x.dtype.itemsize] or not weight.flags.c_contiguous:
        return matrix_product(x, weight.T)
    return _launch(x, (weight,), (None,))[0]


def normed_products(
    x: Array, norm: Array, eps: float, weights: tuple[Array, ...], biases: tuple[Array | None, ...]
) -> tuple[Array, ...]:
    """rmsnorm(x) W_i^T + b_i of every matrix."""
    _require_products(x, norm, weights, biases)
    if len(x) > MOST_ROWS[x.dtype.itemsize] or len(weights) > MOST_WEIGHTS:
        return NotImplemented
    return _launch(x, weights, biases, norm, eps)


def normed_gated_product(x: Array, norm: Array, eps: float, gate: Array, up: Array) -> Array:
    """silu(n G^T) * (n U^T), n = rmsnorm(x)."""
    require_like("up", up, ArraySpec.of(gate))
    _require_products(x, norm, (gate, up), (None, None))
    if len(x) > MOST_ROWS[x.dtype.itemsize]:
        return NotImplemented
    return _launch(x, (gate, up), (None, None), norm, eps, gated=True)[0]


def product_added(x: Array, weight: Array, bias: Array | None, add: Array) -> Array:
    """x W^T + b + add."""
    require_like("add", add, ArraySpec((len(x), len(weight)), x.dtype))
    _require_products(x, None, (weight,), (bias,))
    if len(x) > MOST_ROWS[x.dtype.itemsize]:
        return NotImplemented
    return _launch(x, (weight,), (bias,), add=add)[0]


def _launch(
    x: Array,
    weights: tuple[Array, ...],
    biases: tuple[Array | None, ...],
    norm: Array | None = None,
    eps: float = 0.0,
    *,
    gated: bool = False,
    add: Array | None = None,
) -> tuple[Array, ...]:
    """The results of every matrix or, gated, of the two together."""
    rows, width = x.shape
    x, add, norm = contiguous_aligned(x), _aligned(add), _aligned(norm)
    weights, biases = tuple(map(contiguous_aligned, weights)), tuple(map(_aligned, biases))
    outputs = [len(weight) for weight in weights]
    results = tuple(empty((rows, count), x.dtype) for count in (outputs[:1] if gated else outputs))
    if not rows:
        return results
    wide = width * x.dtype.itemsize % ALIGNMENT == 0
    specialisation, each, together = _shape(type_name(x.dtype), rows, tuple(outputs), gated, wide)
    params = few_rows_params(sum_dtype(x.dtype))(
        x=x, norm=norm, add=add, weight=_addresses(weights), bias=_addresses(biases), y=_addresses(results),
        outputs=_padded(outputs), rows=rows, width=width, eps=eps,
    )  # fmt: skip
    blocks = sum(-(-count // each) for count in outputs[: len(results)])
    kernel = get_kernel(specialisation, "few_rows")
    kernel((blocks, -(-rows // together)), (32 * (8 if x.dtype.itemsize == 2 else 4),), (params,))
    return results


@cache
def _shape(
    element: str, rows: int, outputs: tuple[int, ...], gated: bool, wide: bool
) -> tuple[Specialisation, int, int]:
    """What is launched, the outputs of a block and its rows of x. None of it changes the order of a sum.

    >>> _shape("bfloat16", 1, (320, 320, 1024), False, True)[1:], _shape("bfloat16", 64, (2816, 2816), True, True)[1:]
    ((8, 16), (16, 64))
    """
    most = 64 if element in ("float16", "bfloat16") else 16
    together = min(most, 1 << (rows - 1).bit_length())
    if most == 16:
        return few_rows_specialisation(element, together, 1, gated, wide), 4 if gated else 8, together
    together = max(16, together)
    # A block that takes more rows of the matrices reads x less often. But there must be enough blocks, of 16 rows of x
    # two for each multiprocessor, whose registers they share.
    sizes, least = ((2,), 2 * MULTIPROCESSORS) if together == 16 else ((4, 2), MULTIPROCESSORS)
    available = sum(-(-count // 8) for count in outputs)
    tiles = next((size for size in sizes if available // size >= least), 2 if gated else 1)
    return few_rows_specialisation(element, together, tiles, gated, wide), 8 * tiles // (2 if gated else 1), together


def _aligned(array: Array | None) -> Array | None:
    return None if array is None else contiguous_aligned(array)


def _addresses(arrays: tuple[Array | None, ...]) -> tuple[int, ...]:
    return _padded([ptr(array) for array in arrays])


def _padded(numbers: list[Any]) -> tuple[Any, ...]:
    """As the arrays of FewRowsParams hold them."""
    return (*numbers, *[0] * (MOST_WEIGHTS - len(numbers)))


def _require_products(
    x: Array, norm: Array | None, weights: tuple[Array, ...], biases: tuple[Array | None, ...]
) -> None:
    """ValueError or TypeError unless x (N, D) can be normed and multiplied with these matrices."""
    if norm is not None:
        require_width("x", x, len(norm), norm)
    if len(biases) != len(weights):
        raise ValueError(f"biases must be as many as weights, {len(weights)}, got {len(biases)}")
    for weight, bias in zip(weights, biases, strict=True):
        spec = require_array("weight", weight)
        if len(spec.shape) != 2 or 0 in spec.shape:
            raise ValueError(f"weight must have shape (E, D), neither of them 0, got {spec.shape}")
        require_width("x", x, spec.shape[1], weight)
        if bias is not None:
            require_like("bias", bias, spec._replace(shape=spec.shape[:1]))
