"""Products of a few rows with matrices on the GPU, and the steps around them, one launch each.

See ``few_rows.cuh``; for 16-bit types ``few_rows_mma.cu`` serves up to ROWS rows of x, ``few_rows_tile.cu`` more of
them; ``few_rows.cu`` serves the other types. For more rows than MOST_ROWS cuBLAS takes over. A row gives the same bits
beside any others: the same kernel serves 1 to ROWS rows, and another one all from there to MOST_ROWS.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.require import ArraySpec, require_array, require_like, require_width

from ..runtime.arrays import ALIGNMENT, contiguous_aligned, empty, ptr
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name
from ..runtime.overlap import launch
from ..runtime.params import INT, POINTER, ParamStruct
from .blas import matrix_product

MOST_WEIGHTS = 8  # of few_rows.cuh
MOST_ROWS = {2: 64, 4: 16, 8: 16}  # by the bytes of a number; cuBLAS takes more
MULTIPROCESSORS = 132  # of an H100: where all blocks run at once, one on each

ROWS, WARPS, STEP = 16, 8, 512  # of few_rows_mma.cu: rows of x, warps, and numbers of a row in a step
STEP_BYTES = 2**13  # that a block copies for a step, of 8 rows of a matrix or of the norm's weight
MOST_TILES = {False: 4, True: 6}  # of a block, 8 rows each, where a launch has many; gated: of both matrices
MOST_SHARED = 140 * 2**10  # bytes of a block, so that one of the next launch finds room beside it

TILE_ROWS, SLICE = 64, 64  # of few_rows_tile.cu: rows of x, and numbers of a row in a slice
SLICE_BYTES = 2**7  # of a row
MOST_COLUMNS = 8  # of a block, in tiles of 8
MOST_STAGES = 108 * 2**10  # bytes of a block: two of them share a multiprocessor, one of the next launch


@cache
def few_rows_params(sums: np.dtype) -> ParamStruct:
    """``FewRowsParams``, with numbers of the dtype ``sums``."""
    pointers, sizes = np.dtype((POINTER, MOST_WEIGHTS)), np.dtype((INT, MOST_WEIGHTS))
    return ParamStruct(
        "FewRowsParams", x=POINTER, norm=POINTER, add=POINTER, weight=pointers, bias=pointers, y=pointers,
        outputs=sizes, rows=INT, width=INT, eps=sums,
    )  # fmt: skip


@cache
def few_rows_specialisation(element: str, rows: int, gated: bool = False, wide: bool = True) -> Specialisation:
    """For float and double, for ``rows`` rows of x a block: 1, 2, 4, 8 or 16.

    ``wide``: rows of a matrix are whole accesses of 16 bytes.
    """
    defines = ("ELEMENT", element), ("GATED", int(gated)), ("WIDE", int(wide)), ("ROWS", rows)
    sums = np.dtype(np.float64 if element == "double" else np.float32)
    return Specialisation("layers/few_rows.cu", ("few_rows",), defines, (few_rows_params(sums),))


@cache
def few_rows_mma_specialisation(
    element: str, tiles: int, steps: int, depth: int, norm: bool = False, gated: bool = False, wide: bool = True
) -> Specialisation:
    """For 16-bit types, 8 ``tiles`` rows of the matrices a block, ``depth`` of ``steps`` in shared memory."""
    defines = (
        ("ELEMENT", element), ("GATED", int(gated)), ("WIDE", int(wide)), ("TILES", tiles), ("STEPS", steps),
        ("DEPTH", depth), ("NORM", int(norm)),
    )  # fmt: skip
    return Specialisation("layers/few_rows_mma.cu", ("few_rows",), defines, (few_rows_params(np.dtype(np.float32)),))


@cache
def few_rows_tile_specialisation(
    element: str, tiles: int, stages: int, norm: bool = False, gated: bool = False, wide: bool = True
) -> Specialisation:
    """For 16-bit types and more rows, 8 ``tiles`` rows of the matrices a block, ``stages`` slices in shared memory."""
    defines = (
        ("ELEMENT", element), ("GATED", int(gated)), ("WIDE", int(wide)), ("TILES", tiles), ("STAGES", stages),
        ("NORM", int(norm)),
    )  # fmt: skip
    return Specialisation("layers/few_rows_tile.cu", ("few_rows",), defines, (few_rows_params(np.dtype(np.float32)),))


def few_rows_product(x: Array, weight: Array) -> Array:
    """x W^T: (N, E) of x (N, D) and ``weight`` (E, D)."""
    if len(x) > min(ROWS, MOST_ROWS[x.dtype.itemsize]) or not weight.flags.c_contiguous:
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
    given = weights, biases, norm
    x, add, norm = contiguous_aligned(x), _aligned(add), _aligned(norm)
    weights, biases = tuple(map(contiguous_aligned, weights)), tuple(map(_aligned, biases))
    outputs = [len(weight) for weight in weights]
    results = tuple(empty((rows, count), x.dtype) for count in (outputs[:1] if gated else outputs))
    if not rows:
        return results
    wide = width * x.dtype.itemsize % ALIGNMENT == 0
    bytes_of_block = _block_bytes(x.device.id)
    shape = _shape(type_name(x.dtype), rows, width, tuple(outputs), norm is not None, gated, wide, bytes_of_block)
    params = few_rows_params(sum_dtype(x.dtype))(
        x=x, norm=norm, add=add, weight=_addresses(weights), bias=_addresses(biases), y=_addresses(results),
        outputs=_padded(outputs), rows=rows, width=width, eps=eps,
    )  # fmt: skip
    copied = any(a is not b for a, b in zip((*given[0], *given[1], given[2]), (*weights, *biases, norm), strict=True))
    blocks = sum(-(-count // shape.each) for count in outputs[: len(results)])
    grid = blocks, -(-rows // shape.together)
    launch(get_kernel(shape.specialisation, "few_rows"), grid, shape.threads, params, shape.shared, early=not copied)
    return results


class _Shape(NamedTuple):
    """What is launched. None of it changes the order of a sum."""

    specialisation: Specialisation
    each: int  # outputs of a block
    together: int  # rows of x of a block
    threads: int
    shared: int = 0  # bytes


@cache
def _shape(
    element: str, rows: int, width: int, outputs: tuple[int, ...], norm: bool, gated: bool, wide: bool, block_bytes: int
) -> _Shape:
    """The shape of a launch, where a block can have ``block_bytes`` of shared memory.

    >>> _shape("bfloat16", 1, 1024, (2816, 2816), True, True, True, 232448)[1:]
    (24, 16, 256, 114688)
    """
    if element not in ("float16", "bfloat16"):
        together = min(16, 1 << (rows - 1).bit_length())
        return _Shape(few_rows_specialisation(element, together, gated, wide), 4 if gated else 8, together, 32 * 4)
    available, sides = sum(-(-count // 8) for count in outputs), 2 if gated else 1
    if rows > ROWS:
        return _tile_shape(element, width, available, norm, gated, wide, block_bytes)
    # as many blocks as run at once, or small ones of which one reads while another computes
    most = MOST_TILES[gated] if wide else 2
    tiles = min(most, max(sides, -(-available // MULTIPROCESSORS // sides) * sides))
    step, sums = STEP_BYTES * (tiles + norm), 4 * WARPS * ROWS * (8 * tiles + 1)
    steps = -(-width // STEP)
    depth = max(1, min(steps, (min(MOST_SHARED, block_bytes) - sums) // step))
    specialisation = few_rows_mma_specialisation(element, tiles, steps, depth, norm, gated, wide)
    return _Shape(specialisation, 8 * tiles // sides, ROWS, 32 * WARPS, depth * step)


def _tile_shape(
    element: str, width: int, available: int, norm: bool, gated: bool, wide: bool, block_bytes: int
) -> _Shape:
    """As many blocks as run at once, or some more of MOST_COLUMNS tiles."""
    sides = 2 if gated else 1
    tiles = min(MOST_COLUMNS, -(-available // MULTIPROCESSORS // sides) * sides)
    stage = SLICE_BYTES * (TILE_ROWS + 8 * tiles + norm)
    stages = max(2, min(-(-width // SLICE) + 1, min(MOST_STAGES, block_bytes) // stage))
    sums = 4 * TILE_ROWS * (8 * tiles + 3)
    specialisation = few_rows_tile_specialisation(element, tiles, stages, norm, gated, wide)
    return _Shape(specialisation, 8 * tiles // sides, TILE_ROWS, 32 * WARPS, max(stages * stage, sums))


@cache
def _block_bytes(device: int) -> int:
    """Shared memory that a block can have."""
    import cupy

    most: int = cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]
    return most


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
