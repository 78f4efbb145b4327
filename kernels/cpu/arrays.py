"""Arrays as the kernels take them: one memory layout, so that each kernel is compiled once for each dtype."""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array

_NO_POSITIONS = np.empty(0, dtype=np.int64)
_NO_MASK = np.empty((0, 0), dtype=np.bool_)


def contiguous(array: Array) -> np.ndarray:
    """``array`` itself if it is C-contiguous, aligned and writeable, else a copy that is.

    Numba compiles a kernel anew for every layout and for read-only arrays; the kernels only write to arrays of theirs.
    """
    array = np.asarray(array)
    return array if array.flags.carray else np.array(array, order="C")


def flat_gamma(gamma: Array | float, like: np.ndarray) -> np.ndarray:
    """gamma flat, either one number or one for each (b, t, h): kernels look up ``gamma[token * (gamma.size > 1)]``."""
    if isinstance(gamma, float):
        return np.array([gamma], dtype=like.dtype)
    return contiguous(gamma).reshape(-1)


def flat_positions(positions: Array, cape_heads: int) -> np.ndarray:
    """Positions flat, (B*T,); without CAPE no kernel looks at them, and they are an array of size 0."""
    return contiguous(positions).reshape(-1) if cape_heads else _NO_POSITIONS


def mask_array(mask: Array | None) -> np.ndarray:
    """A mask as kernels take it: None is an array of size 0."""
    return _NO_MASK if mask is None else contiguous(mask)
