"""Checks of the layers' arguments: a wrong one ends in one sentence that says what was expected."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ramnet_np.backend import array_kind
from ramnet_np.contract import Array

T = TypeVar("T")

_numpy_spec: Any = tuple.__new__  # a named tuple's own takes twice as long
_NUMPY_OR_NONE = (np.ndarray, type(None))
_REMEMBERED = 1024
KINDS = ("numpy", "cupy", "device")  # of arrays that something here serves, as ``array_kind`` names them


class ArraySpec(NamedTuple):
    """Shape, dtype, kind and GPU of an array, without keeping the array alive."""

    shape: tuple[int, ...]
    dtype: Any
    kind: str = "numpy"  # as ``array_kind`` names it
    gpu: int | None = None  # the GPU of a CuPy array

    @classmethod
    def of(cls, array: Array) -> ArraySpec:
        """What ``array`` has.

        >>> ArraySpec.of(np.zeros((2, 3)))
        ArraySpec(shape=(2, 3), dtype=dtype('float64'), kind='numpy', gpu=None)
        """
        if type(array) is np.ndarray:  # by far the most, and asked many times for a token
            return _numpy_spec(cls, (array.shape, array.dtype, "numpy", None))
        kind = array_kind(array)
        return cls(array.shape, array.dtype, kind, array.data.device_id if kind == "cupy" else None)


def require_array(name: str, array: Array) -> ArraySpec:
    """TypeError unless ``array`` is one of NumPy's, of CuPy's or on a GPU; returns what it has.

    >>> require_array("x", [1.0])
    Traceback (most recent call last):
        ...
    TypeError: x must be an array, got list
    """
    if type(array) is np.ndarray:
        return ArraySpec.of(array)
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise TypeError(f"{name} must be an array, got {type(array).__name__}")
    spec = ArraySpec.of(array)
    if spec.kind not in KINDS:
        raise TypeError(_other_kind(name, spec.kind))
    return spec


def require_floats(name: str, array: Array) -> ArraySpec:
    """TypeError unless ``array`` has floating-point numbers, on the CPU float32 or float64; returns what it has.

    >>> require_floats("x", np.zeros(3, np.float16))
    Traceback (most recent call last):
        ...
    TypeError: x must be float32 or float64 on the CPU, got float16
    """
    spec = require_array(name, array)
    if spec.kind == "numpy":
        if spec.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name} must be float32 or float64 on the CPU, got {spec.dtype}")
    elif spec.dtype.kind != "f" and spec.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be floating point, got {spec.dtype}")
    return spec


def require_like(name: str, array: Array, like: ArraySpec) -> None:
    """ValueError unless ``array`` has the shape and dtype of ``like``; TypeError for arrays that nothing here serves.

    >>> require_like("dy", np.zeros(3), ArraySpec.of(np.zeros(2)))
    Traceback (most recent call last):
        ...
    ValueError: dy must be float64 of shape (2,), got float64 of shape (3,)
    """
    kind = "numpy" if type(array) is np.ndarray else array_kind(array)
    if kind not in KINDS:
        raise TypeError(_other_kind(name, kind))
    if getattr(array, "shape", None) != like.shape or array.dtype != like.dtype:
        got = f"{array.dtype} of shape {array.shape}" if hasattr(array, "shape") else type(array).__name__
        raise ValueError(f"{name} must be {like.dtype} of shape {like.shape}, got {got}")


def require_context(ctx: Any, expected: type, forward: str) -> None:
    """TypeError unless ``ctx`` is of the type ``expected``, as ``forward`` returns it.

    >>> require_context(np.zeros(2), ArraySpec, "linear_forward")
    Traceback (most recent call last):
        ...
    TypeError: ctx must be the ArraySpec that linear_forward returned last, got ndarray
    """
    if not isinstance(ctx, expected):
        raise TypeError(f"ctx must be the {expected.__name__} that {forward} returned last, got {type(ctx).__name__}")


def once_for_shapes(check: Callable[[Array, Array, Array], None]) -> Callable[..., None]:
    """``check(x, weight, bias)`` that looks at NumPy arrays of the same shapes and dtypes once, until many have passed.

    For layers, which a token on a CPU calls a hundred times with shapes that stay.

    >>> @once_for_shapes
    ... def check(x, weight, bias):
    ...     print("looked at")
    >>> check(np.ones(2), np.ones(2)), check(np.zeros(2), np.ones(2))
    looked at
    (None, None)
    """
    passed: set[Any] = set()

    @functools.wraps(check)
    def checked(x: Array, weight: Array, bias: Array = None) -> None:
        if type(x) is not np.ndarray or type(weight) is not np.ndarray or type(bias) not in _NUMPY_OR_NONE:
            return check(x, weight, bias)
        shapes = x.shape, x.dtype, weight.shape, weight.dtype, bias is not None and (bias.shape, bias.dtype)
        if shapes not in passed:
            check(x, weight, bias)
            if len(passed) >= _REMEMBERED:
                passed.clear()
            passed.add(shapes)
        return None

    return checked


def readable(context: type[T]) -> type[T]:
    """Let ``repr`` of a context, a named tuple, say what it holds: arrays by dtype and shape, contexts by their type.

    >>> @readable
    ... class Context(NamedTuple):
    ...     x: Array
    ...     heads: int
    >>> Context(np.zeros((2, 3)), 4)
    Context(x=float64 (2, 3), heads=4)
    """
    context.__repr__ = _brief  # type: ignore[method-assign]
    return context


def _brief(context: Any) -> str:
    return (
        f"{type(context).__name__}({', '.join(f'{name}={_part(value)}' for name, value in context._asdict().items())})"
    )


def _part(value: Any) -> str:
    if isinstance(value, ArraySpec) or (hasattr(value, "dtype") and hasattr(value, "shape")):
        return f"{value.dtype} {value.shape}"
    if hasattr(value, "_fields"):
        return type(value).__name__
    if isinstance(value, tuple) and any(hasattr(part, "_fields") or hasattr(part, "dtype") for part in value):
        return f"({', '.join(map(_part, value[:1]))}, .. {len(value)} in all)"
    return repr(value)


def _other_kind(name: str, kind: str) -> str:
    if kind.endswith("MaskedArray"):
        return f"{name} must be a plain NumPy array, got {kind}, whose mask would be ignored: filled() makes one"
    return f"{name} must be a NumPy or CuPy array, got {kind} on the CPU: numpy.asarray makes one"


def require_width(name: str, x: Array, width: int, weight: Array) -> None:
    """ValueError or TypeError unless ``x`` (..., width) has floats of the dtype of ``weight``.

    >>> require_width("x", np.zeros((5, 3)), 4, np.zeros((2, 4)))
    Traceback (most recent call last):
        ...
    ValueError: x must have 4 channels on its last axis, as the weight has, got shape (5, 3)
    """
    require_floats(name, x)
    require_array("weight", weight)
    if x.ndim == 0 or x.shape[x.ndim - 1] != width:
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
    require_array(name, ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if array_kind(ids) == "numpy" and ids.size and (ids.min() < 0 or ids.max() >= size):
        where = np.argwhere((ids < 0) | (ids >= size))[0]
        raise ValueError(
            f"{name} must lie between 0 and {size - 1}, got {ids[tuple(where)]} at index {tuple(where.tolist())}"
        )


def require_heads(q: Array, k: Array, v: Array, any_floats: bool = False) -> tuple[int, int, int, int]:
    """ValueError or TypeError unless ``q``, ``k`` (B, T, H, d_k), ``v`` (B, T, H, d_v) fit; returns (B, T, H, d_v).

    ``any_floats``: of 16 bits too, on a GPU.

    >>> require_heads(np.zeros((1, 5, 2, 3)), np.zeros((1, 5, 2, 3)), np.zeros((1, 4, 2, 7)))
    Traceback (most recent call last):
        ...
    ValueError: v must have shape (1, 5, 2, d_v), as q has it, got (1, 4, 2, 7)
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        require_array(name, x)
    if any_floats:
        require_floats("q", q)
    elif q.dtype not in (np.float32, np.float64):
        raise TypeError(f"q must be float32 or float64, got {q.dtype}")
    if q.ndim != 4 or 0 in q.shape:
        raise ValueError(f"q must have shape (B, T, H, d_k), none of them 0, got {q.shape}")
    require_like("k", k, ArraySpec.of(q))
    if v.dtype != q.dtype:
        raise TypeError(f"v must have the dtype of q ({q.dtype}), got {v.dtype}")
    if v.ndim != 4 or v.shape[:3] != q.shape[:3] or v.shape[3] == 0:
        raise ValueError(f"v must have shape ({', '.join(map(str, q.shape[:3]))}, d_v), as q has it, got {v.shape}")
    return v.shape
