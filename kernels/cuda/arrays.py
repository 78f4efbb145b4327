"""Arrays as the kernels take them: contiguous, and aligned for 16-byte accesses."""

from __future__ import annotations

from typing import Any

import numpy as np

ALIGNMENT = 16  # bytes of the widest access (``load`` and ``store`` in common.cuh)
NULL = np.uint64(0)  # a pointer to nothing, as an argument of a kernel


def plain(array: Any) -> Any:
    """``array`` itself if it is C-contiguous and starts at a multiple of 16 bytes, else a copy that does."""
    if array.flags.c_contiguous and array.data.ptr % ALIGNMENT == 0:
        return array
    return array.copy(order="C")


def null_or(array: Any) -> Any:
    """``array``, or a null pointer for None."""
    return NULL if array is None else array


def token_strides(positions: Any) -> tuple[int, int]:
    """Strides of positions (B, T) or (T,) int64 in elements: a kernel reads them where they are, broadcast or not."""
    if positions is None:
        return 0, 0
    strides = positions.strides
    return (strides[0] // 8 if len(strides) == 2 else 0), strides[-1] // 8
