"""Arrays as the kernels take them: contiguous, and aligned for 16-byte accesses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

ALLOC_ALIGN = 512  # bytes at whose multiples ``allocate_together`` begins an array, as CuPy's pool does
ALIGNMENT = 16  # bytes of the widest access (``load`` and ``store`` in common.cuh)


def contiguous_aligned(array: Any) -> Any:
    """``array`` itself if it is C-contiguous and starts at a multiple of 16 bytes, else a copy that does."""
    if array.flags.c_contiguous and array.data.ptr % ALIGNMENT == 0:
        return array
    return array.copy(order="C")


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """A new CuPy array, not set."""
    import cupy

    return cupy.empty(shape, dtype=dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """A new CuPy array of zeros."""
    import cupy

    return cupy.zeros(shape, dtype=dtype)


def allocate_together(*wanted: tuple[tuple[int, ...], Any]) -> list[Any]:
    """Arrays of the (shape, dtype) pairs, not set, in one allocation: faster than asking CuPy's pool for each.

    The memory is free again when none of them is left.
    """
    import cupy

    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in wanted]
    starts = [0, *itertools.accumulate(-(-size // ALLOC_ALIGN) * ALLOC_ALIGN for size in sizes)]
    memory = cupy.empty(starts[-1] // 4, dtype=np.float32).data
    return [cupy.ndarray(shape, dtype, memory + at) for (shape, dtype), at in zip(wanted, starts, strict=False)]


def ptr(array: Any) -> int:
    """The address of ``array``, 0 for None."""
    return 0 if array is None else array.data.ptr


def token_strides(positions: Any) -> tuple[int, int]:
    """Strides of positions (B, T) or (T,) int64 in elements: a kernel reads them where they are, broadcast or not."""
    if positions is None:
        return 0, 0
    strides = positions.strides
    return (strides[0] // 8 if len(strides) == 2 else 0), strides[-1] // 8
