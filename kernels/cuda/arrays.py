"""Arrays as the kernels take them: contiguous, and aligned for 16-byte accesses."""

from __future__ import annotations

from typing import Any

ALIGNMENT = 16  # bytes of the widest access (``load`` and ``store`` in common.cuh)


def plain(array: Any) -> Any:
    """``array`` itself if it is C-contiguous and starts at a multiple of 16 bytes, else a copy that does."""
    if array.flags.c_contiguous and array.data.ptr % ALIGNMENT == 0:
        return array
    return array.copy(order="C")


def token_strides(positions: Any) -> tuple[int, int]:
    """Strides of positions (B, T) int64 in elements: a kernel reads them where they are, broadcast or not."""
    return positions.strides[0] // positions.itemsize, positions.strides[1] // positions.itemsize
