"""Which array library a function should use: NumPy, or CuPy when it was handed CuPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ramnet_np.backend import array_kind, why_unavailable
from ramnet_np.contract import Array
from ramnet_np.forked import use_gpu


def namespace_of(*arrays: Array) -> Any:
    """The module (``numpy`` or ``cupy``) whose functions take ``arrays``; all must be of one kind.

    >>> namespace_of(np.zeros(3)).__name__
    'numpy'
    """
    if all(type(a) is np.ndarray for a in arrays):
        return np
    kinds = {array_kind(a) for a in arrays if hasattr(a, "dtype") and getattr(a, "ndim", 0) > 0}
    if len(kinds) > 1:
        raise TypeError(
            f"arrays of kinds {', '.join(sorted(kinds))} cannot be mixed in one call; move them to one device first"
        )
    if kinds == {"device"}:
        raise TypeError(
            "arrays on a GPU must be CuPy's here (cupy.asarray shares their memory); others serve the operation alone"
        )
    if kinds == {"cupy"}:
        import cupy

        return cupy
    return np


def gpu_namespace() -> Any:
    """CuPy, once it is known to work here: RuntimeError with the reason and what to install where it does not.

    >>> from unittest import mock
    >>> with mock.patch(f"{__name__}.why_unavailable", return_value="needs cupy, not installed"):
    ...     gpu_namespace()
    Traceback (most recent call last):
        ...
    RuntimeError: device 'gpu' cannot be used: backend 'cupy' needs cupy, not installed
    """
    if reason := why_unavailable("cupy"):
        raise RuntimeError(f"device 'gpu' cannot be used: backend 'cupy' {reason}")
    use_gpu()
    import cupy

    return cupy


def on_host(array: Array) -> np.ndarray:
    """``array`` as a NumPy array: itself, or a copy from the GPU.

    >>> x = np.zeros(3)
    >>> on_host(x) is x
    True
    """
    return array.get() if array_kind(array) == "cupy" else array


def memory_of(array: Array) -> tuple[int, int]:
    """Where the first element of an array of NumPy or CuPy lies: the GPU's number, -1 for the CPU, and its address.

    >>> x = np.zeros((3, 2))
    >>> memory_of(x) == memory_of(x[:1].T)
    True
    """
    if array_kind(array) == "cupy":
        return array.device.id, array.data.ptr
    return -1, array.__array_interface__["data"][0]


def at_least_float32(array: Array) -> Array:
    """The array, in float32 where its dtype has 16 bits: what sums over many tokens are made of.

    >>> at_least_float32(np.ones(2, dtype=np.float16)).dtype, at_least_float32(np.ones(2)).dtype
    (dtype('float32'), dtype('float64'))
    """
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array
