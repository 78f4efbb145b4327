"""Products of a few rows with matrices on the GPU, and the steps around them, one launch each.

See ``few_rows.cuh``; for 16-bit types ``few_rows_mma.cu`` serves up to ROWS rows of x, ``few_rows_tile.cu`` more of
them; ``few_rows.cu`` serves the other types. For more rows than MOST_ROWS cuBLAS takes over, for a sum over more than
LONG numbers beyond MOST_ROWS_OF_LONG. A row gives the same bits beside any others as long as one kernel serves them in
one shape: 1 to ROWS rows in 16-bit types, those from there to TILE_ROWS, and 1 to MOST_ROWS in the other types.
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
from .norm import rmsnorm_forward

MOST_WEIGHTS = 8  # of few_rows.cuh
MOST_ROWS = {2: 256, 4: 16, 8: 16}  # by the bytes of a number; cuBLAS takes more
# One matrix whose rows have more than LONG numbers goes to cuBLAS earlier: 256 rows of 2816 numbers take 10.4 us here,
# and 9.2 by cuBLAS (paper-340m on an H200).
LONG, MOST_ROWS_OF_LONG = 2048, 128
MULTIPROCESSORS = 132  # an H100 has so many: there all blocks run at once, one on each

ROWS, WARPS, STEP = 16, 8, 512  # of few_rows_mma.cu: rows of x, warps, and numbers of a row in a step
STEP_BYTES = 2**13  # that a block copies for a step, of 8 rows of a matrix or of the norm's weight
MOST_TILES = {False: 4, True: 6}  # of a block, 8 rows each, where a launch has many; gated: of both matrices
MOST_SHARED = 140 * 2**10  # bytes of a block, so that one of the next launch finds room beside it

TILE_ROWS, SLICE = 64, 64  # of few_rows_tile.cu: rows of x, twice as many of more; and numbers of a row in a slice
SLICE_BYTES = 2**7  # of a row
TILES = {64: (2, 4, 8), 128: (4, 8, 12, 16)}  # of a block, by its rows of x: 8 rows of the matrices each
SPLITS = (1, 2, 4, 8)  # blocks of a cluster, which share out D
ROOM = 120  # blocks of 128 rows that run at once in clusters of 4 and 8: each multiprocessor has room for one of them
SLICE_COST, EXCHANGE_COST = 12 * 2**10, 5  # as many bytes as waiting for a slice costs, and as a byte of sums exchanged
MOST_STAGES = 108 * 2**10  # bytes of a block of TILE_ROWS: two of them share a multiprocessor, one of the next launch


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
    element: str, width: int, rows: int, tiles: int, split: int, stages: int, norm: bool = False, gated: bool = False
) -> Specialisation:
    """For 16-bit types and more rows: ``rows`` of x a block and 8 ``tiles`` of the matrices, ``stages`` slices of both.

    ``split``: blocks that share out D; more than 1 on GPUs with clusters alone.
    """
    wide = 2 * width % ALIGNMENT == 0
    defines = (
        ("ELEMENT", element), ("GATED", int(gated)), ("WIDE", int(wide)), ("INPUTS", width), ("ROWS", rows),
        ("TILES", tiles), ("SPLIT", split), ("STAGES", stages), ("NORM", int(norm)),
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
    x, fused = _normed(x, norm, eps)
    return _launch(x, weights, biases, fused, eps)


def normed_gated_product(x: Array, norm: Array, eps: float, gate: Array, up: Array) -> Array:
    """silu(n G^T) * (n U^T), n = rmsnorm(x)."""
    require_like("up", up, ArraySpec.of(gate))
    _require_products(x, norm, (gate, up), (None, None))
    if len(x) > MOST_ROWS[x.dtype.itemsize]:
        return NotImplemented
    x, fused = _normed(x, norm, eps)
    return _launch(x, (gate, up), (None, None), fused, eps, gated=True)[0]


def product_added(x: Array, weight: Array, bias: Array | None, add: Array) -> Array:
    """x W^T + b + add."""
    require_like("add", add, ArraySpec((len(x), len(weight)), x.dtype))
    _require_products(x, None, (weight,), (bias,))
    if len(x) > MOST_ROWS[x.dtype.itemsize] or (x.shape[1] > LONG and len(x) > MOST_ROWS_OF_LONG):
        return NotImplemented
    return _launch(x, (weight,), (bias,), add=add)[0]


def _normed(x: Array, norm: Array, eps: float) -> tuple[Array, Array | None]:
    """x, and the norm's weight for the kernel. In float16 the norm is applied here and none is left.

    The kernels multiply x by the weight before they know how small the norm makes it, and round the product to x's
    dtype. That reaches infinity in float16 beyond 65504.
    """
    return (rmsnorm_forward(x, norm, eps)[0], None) if x.dtype == np.float16 else (x, norm)


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
    limits = _limits(x.device.id)
    shape = _shape(type_name(x.dtype), rows, width, tuple(outputs), norm is not None, gated, wide, limits)
    params = few_rows_params(sum_dtype(x.dtype))(
        x=x, norm=norm, add=add, weight=_addresses(weights), bias=_addresses(biases), y=_addresses(results),
        outputs=_padded(outputs), rows=rows, width=width, eps=eps,
    )  # fmt: skip
    copied = any(a is not b for a, b in zip((*given[0], *given[1], given[2]), (*weights, *biases, norm), strict=True))
    blocks = sum(-(-count // shape.each) for count in outputs[: len(results)])
    grid = blocks * shape.split, -(-rows // shape.together)
    launch(get_kernel(shape.specialisation, "few_rows"), grid, shape.threads, params, shape.shared, early=not copied)
    return results


class Limits(NamedTuple):
    """What a GPU offers."""

    block_bytes: int  # of shared memory
    clusters: bool


class _Shape(NamedTuple):
    """What is launched. Up to TILE_ROWS rows of x their number changes nothing in the order of a sum."""

    specialisation: Specialisation
    each: int  # outputs of a block
    together: int  # rows of x of a block
    threads: int
    shared: int = 0  # bytes
    split: int = 1  # blocks that share out D


@cache
def _shape(
    element: str, rows: int, width: int, outputs: tuple[int, ...], norm: bool, gated: bool, wide: bool, limits: Limits
) -> _Shape:
    """The shape of a launch within the limits of a GPU.

    >>> _shape("bfloat16", 1, 1024, (2816, 2816), True, True, True, Limits(232448, True))[1:]
    (24, 16, 256, 114688, 1)
    """
    if element not in ("float16", "bfloat16"):
        together = min(16, 1 << (rows - 1).bit_length())
        return _Shape(few_rows_specialisation(element, together, gated, wide), 4 if gated else 8, together, 32 * 4)
    if rows > ROWS:
        return _tile_shape(element, rows, width, outputs, norm, gated, limits)
    available, sides = sum(-(-count // 8) for count in outputs), 2 if gated else 1
    # as many blocks as run at once, or small ones of which one reads while another computes
    most = MOST_TILES[gated] if wide else 2
    tiles = min(most, max(sides, -(-available // MULTIPROCESSORS // sides) * sides))
    step, sums = STEP_BYTES * (tiles + norm), 4 * WARPS * ROWS * (8 * tiles + 1)
    steps = -(-width // STEP)
    depth = max(1, min(steps, (min(MOST_SHARED, limits.block_bytes) - sums) // step))
    specialisation = few_rows_mma_specialisation(element, tiles, steps, depth, norm, gated, wide)
    return _Shape(specialisation, 8 * tiles // sides, ROWS, 32 * WARPS, depth * step)


def _tile_shape(
    element: str,
    rows: int,
    width: int,
    outputs: tuple[int, ...],
    norm: bool,
    gated: bool,
    limits: Limits,
    rank: int = 0,
) -> _Shape:
    """The shape that keeps the busiest multiprocessor for the shortest time, by costs fitted to times on an H200.

    A block waits for every slice and reads it. A cluster exchanges sums in the end. ``rank``: 1 is the second best, and
    so on, for a benchmark.

    >>> for rows in (64, 256):
    ...     shape = _tile_shape("bfloat16", rows, 2816, (1024,), False, False, Limits(232448, True))
    ...     print(shape.each, shape.together, shape.threads, shape.split)
    64 64 256 8
    96 128 512 4
    """
    together = TILE_ROWS if rows <= TILE_ROWS else 2 * TILE_ROWS
    most = min(MOST_STAGES * together // TILE_ROWS, limits.block_bytes - 2**10)
    sides, slices = 2 if gated else 1, -(-width // SLICE)

    def stage(tiles: int) -> int:
        return SLICE_BYTES * (together + 8 * tiles + norm)

    def sums(tiles: int) -> int:  # Partial of few_rows_tile.cu
        return 4 * together * (8 * tiles + 8 + 2)

    def cost(shape: tuple[int, int]) -> int:
        tiles, split = shape
        blocks = sum(-(-count * sides // (8 * tiles)) for count in outputs[: len(outputs) // sides])
        room = ROOM if together > TILE_ROWS and split > 2 else MULTIPROCESSORS
        of_busiest = -(-blocks * split * -(-rows // together) // room)
        exchange = EXCHANGE_COST * sums(tiles) if split > 1 else 0
        return of_busiest * (-(-slices // split) * (stage(tiles) + SLICE_COST) + exchange)

    fitting = [
        (tiles, split)
        for tiles in TILES[together]
        for split in (SPLITS if limits.clusters else (1,))
        if split <= slices and max(2 * stage(tiles), sums(tiles)) <= most
    ]
    tiles, split = sorted(fitting, key=cost)[min(rank, len(fitting) - 1)]
    stages = max(2, min(-(-slices // split) + 1, most // stage(tiles)))
    specialisation = few_rows_tile_specialisation(element, width, together, tiles, split, stages, norm, gated)
    threads, shared = 4 * together, max(stages * stage(tiles), sums(tiles))
    return _Shape(specialisation, 8 * tiles // sides, together, threads, shared, split)


@cache
def _limits(device: int) -> Limits:
    import cupy

    gpu = cupy.cuda.Device(device)
    return Limits(gpu.attributes["MaxSharedMemoryPerBlockOptin"], int(gpu.compute_capability) >= 90)


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
