"""Sums over all tokens, in an order that is the same on every GPU: see ``token_sums.cu``.

A sum is split over blocks, each of which leaves a part; a second launch adds the parts. Norms and short convolutions
leave parts of the same form for the gradients of their weights.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ramnet_np.contract import Array

from ..runtime.arrays import contiguous_aligned, empty, zeros
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name

PARTS = 528  # blocks that share the tokens: four for each multiprocessor of an H100, and the same bits on any GPU
WARPS = 8  # of a block, at most
SHARED_BYTES = 200 * 1024  # of shared memory, at most, for the sums of a block's warps
ADDERS, COLUMNS = 8, 32  # of a block that adds parts: threads that share a column, and columns


@cache
def token_sums_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``."""
    return Specialisation(
        "layers/token_sums.cu",
        ("column_sums", "add_parts"),
        (("ELEMENT", element), ("ADDERS", ADDERS), ("COLUMNS", COLUMNS)),
    )


def sum_over_tokens(rows: Array) -> Array:
    """The sum of (N, D) over its rows, (D,); for 16-bit types in float32, as it was summed."""
    count, width = rows.shape
    if not count * width:
        return zeros((width,), sum_dtype(rows.dtype))
    rows = contiguous_aligned(rows)
    blocks, warps = split(count, width, rows.dtype)
    parts = empty((blocks, width), sum_dtype(rows.dtype))
    kernel = get_kernel(token_sums_specialisation(type_name(rows.dtype)), "column_sums")
    arguments = (rows, np.int64(count), np.int32(width), parts)
    kernel((blocks,), (32 * warps,), arguments, shared_mem=warps * width * parts.itemsize)
    return add_parts(parts)


def add_parts(parts: Array) -> Array:
    """The sum of parts (count, columns) over the first axis, in a fixed order: (columns,), of their dtype."""
    count, columns = parts.shape
    sums = empty((columns,), parts.dtype)
    kernel = get_kernel(token_sums_specialisation(type_name(parts.dtype)), "add_parts")
    kernel((-(-columns // COLUMNS),), (ADDERS * COLUMNS,), (parts, np.int32(count), np.int32(columns), sums))
    return sums


@cache
def split(rows: int, columns: int, dtype: Any) -> tuple[int, int]:
    """Blocks that share the rows, and warps of each: eight, fewer where that many rows of sums do not fit."""
    warps = min(WARPS, SHARED_BYTES // (columns * sum_dtype(dtype).itemsize))
    if not warps:
        raise ValueError(f"a sum over tokens of {columns} columns does not fit the GPU's shared memory")
    return min(PARTS, -(-rows // warps)), warps
