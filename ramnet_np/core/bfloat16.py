"""Numbers in 16 bits for a CPU: bfloat16 as uint16, the upper half of a float32, rounded to nearest, ties to even.

NumPy has no such type. Reading a number back is a shift, which no rounding follows.
"""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of


def to_bfloat16(array: Array) -> Array:
    """The float32 numbers of ``array`` in 16 bits, as uint16; a NaN stays one.

    >>> [hex(bits) for bits in to_bfloat16(np.array([1.0, -2.0, np.inf], np.float32)).tolist()]
    ['0x3f80', '0xc000', '0x7f80']
    """
    xp = namespace_of(array)
    bits = xp.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return xp.where(is_nan, np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """What :func:`to_bfloat16` rounded, in float32.

    >>> from_bfloat16(to_bfloat16(np.array([0.1, 3.0], np.float32))).tolist()
    [0.10009765625, 3.0]
    """
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def is_bfloat16(array: Array) -> bool:
    """Whether an array is bfloat16 in uint16.

    >>> is_bfloat16(np.zeros(2, np.uint16)), is_bfloat16(np.zeros(2, np.float32))
    (True, False)
    """
    return type(array) is np.ndarray and array.dtype == np.uint16


def in_floats(array: Array) -> Array:
    """An array as numbers that a library computes with: itself, or float32 where it is bfloat16 in uint16.

    >>> in_floats(np.array([[0x3F80]], np.uint16)).tolist()
    [[1.0]]
    """
    return from_bfloat16(array) if is_bfloat16(array) else array
