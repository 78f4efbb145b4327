"""Residuals and biases on the GPU, one pass each: see ``add.cu``."""

from __future__ import annotations

from functools import cache

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.layers.linear import require_addable

from ..runtime.arrays import contiguous_aligned
from ..runtime.module import Specialisation, get_kernel, type_name

THREADS = 256


@cache
def add_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``."""
    return Specialisation("layers/add.cu", ("add_in_place",), (("ELEMENT", element),))


def add_in_place(y: Array, x: Array) -> Array:
    """y (..., E) with x, of that shape or (E,), added to it."""
    require_addable(y, x)
    if contiguous_aligned(y) is not y:
        y += x
        return y
    if y.size:
        x = contiguous_aligned(x)
        each = 16 // y.itemsize if x.size % (16 // y.itemsize) == 0 else 1
        kernel = get_kernel(add_specialisation(type_name(y.dtype)), "add_in_place")
        kernel((-(-y.size // (THREADS * each)),), (THREADS,), (y, x, np.int64(y.size), np.int64(x.size)))
    return y
