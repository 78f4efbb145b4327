"""Checks of the layers' arguments: a wrong one ends in one sentence that says what was expected."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.backend import array_kind
from ramnet_np.contract import Array


class ArraySpec(NamedTuple):
    """Shape, dtype and kind of an array, without keeping the array alive."""

    shape: tuple[int, ...]
    dtype: Any
    kind: str = "numpy"  # as ``array_kind`` names it

    @classmethod
    def of(cls, array: Array) -> ArraySpec:
        """What ``array`` has.

        >>> ArraySpec.of(np.zeros((2, 3)))
        ArraySpec(shape=(2, 3), dtype=dtype('float64'), kind='numpy')
        """
        return cls(array.shape, array.dtype, array_kind(array))


def require_array(name: str, array: Array) -> ArraySpec:
    """TypeError unless ``array`` is one; returns what it has.

    >>> require_array("x", [1.0])
    Traceback (most recent call last):
        ...
    TypeError: x must be an array, got list
    """
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise TypeError(f"{name} must be an array, got {type(array).__name__}")
    return ArraySpec.of(array)


def require_like(name: str, array: Array, like: ArraySpec) -> None:
    """ValueError unless ``array`` has the shape and dtype of ``like``.

    >>> require_like("dy", np.zeros(3), ArraySpec.of(np.zeros(2)))
    Traceback (most recent call last):
        ...
    ValueError: dy must be float64 of shape (2,), got float64 of shape (3,)
    """
    if getattr(array, "shape", None) != like.shape or array.dtype != like.dtype:
        got = f"{array.dtype} of shape {array.shape}" if hasattr(array, "shape") else type(array).__name__
        raise ValueError(f"{name} must be {like.dtype} of shape {like.shape}, got {got}")


def require_width(name: str, x: Array, width: int, weight: Array) -> None:
    """ValueError or TypeError unless ``x`` (..., width) has floats of the dtype of ``weight``.

    >>> require_width("x", np.zeros((5, 3)), 4, np.zeros((2, 4)))
    Traceback (most recent call last):
        ...
    ValueError: x must have 4 channels on its last axis, as the weight has, got shape (5, 3)
    """
    require_array(name, x)
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(f"{name} must have {width} channels on its last axis, as the weight has, got shape {x.shape}")
    if x.dtype != weight.dtype:
        raise TypeError(f"{name} must have the dtype of the weight ({weight.dtype}), got {x.dtype}")


def require_ids(name: str, ids: Array, size: int) -> None:
    """TypeError or ValueError unless ``ids`` are integers in [0, size).

    The range of CuPy arrays is not looked at: that would wait for the device.

    >>> require_ids("ids", np.array([1, 9]), size=8)
    Traceback (most recent call last):
        ...
    ValueError: ids must lie between 0 and 7, got 9 at index (1,)
    """
    if not hasattr(ids, "dtype"):
        raise TypeError(f"{name} must be an array of integers, got {type(ids).__name__}")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if array_kind(ids) == "numpy" and ids.size and (ids.min() < 0 or ids.max() >= size):
        where = np.argwhere((ids < 0) | (ids >= size))[0]
        raise ValueError(
            f"{name} must lie between 0 and {size - 1}, got {ids[tuple(where)]} at index {tuple(where.tolist())}"
        )


def require_heads(q: Array, k: Array, v: Array) -> tuple[int, int, int, int]:
    """ValueError or TypeError unless ``q``, ``k`` (B, T, H, d_k), ``v`` (B, T, H, d_v) fit; returns (B, T, H, d_v).

    >>> require_heads(np.zeros((1, 5, 2, 3)), np.zeros((1, 5, 2, 3)), np.zeros((1, 4, 2, 7)))
    Traceback (most recent call last):
        ...
    ValueError: v must have shape (1, 5, 2, d_v), as q has it, got (1, 4, 2, 7)
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        require_array(name, x)
    if q.dtype not in (np.float32, np.float64):
        raise TypeError(f"q must be float32 or float64, got {q.dtype}")
    if q.ndim != 4 or 0 in q.shape:
        raise ValueError(f"q must have shape (B, T, H, d_k), none of them 0, got {q.shape}")
    require_like("k", k, ArraySpec.of(q))
    if v.dtype != q.dtype:
        raise TypeError(f"v must have the dtype of q ({q.dtype}), got {v.dtype}")
    if v.ndim != 4 or v.shape[:3] != q.shape[:3] or v.shape[3] == 0:
        raise ValueError(f"v must have shape ({', '.join(map(str, q.shape[:3]))}, d_v), as q has it, got {v.shape}")
    return v.shape
