"""Arrays as the kernels take them, of two kinds: CuPy's, and Numba's own device arrays for every other library.

What belongs to CuPy arrays comes from CuPy's pool and runs on CuPy's current stream, so that a call can be captured in
a CUDA graph; everything else is allocated by Numba and runs on the default stream.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ramnet_np.backend import array_kind
from ramnet_np.contract import Array

from .compiler import SIMULATED, cuda, float32, float64
from .copy_kernels import Axes, gather_kernel
from .launch import THREADS

NUMBERS = {np.dtype(np.float32): float32, np.dtype(np.float64): float64}
MAX_AXES = len(Axes._fields)  # of an array that can be copied


class Arrays(Protocol):
    """How arrays of one kind are made and read."""

    def empty(self, shape: Any, dtype: Any) -> Array:
        """Memory for an array; nothing in it is set."""

    def contiguous(self, array: Array, dtype: Any) -> Array:
        """``array`` itself if it is C-contiguous and of this dtype, else a copy that is."""

    def scatter(self, source: Array, target: Array) -> None:
        """Copy a contiguous array into another of any layout."""

    @property
    def stream(self) -> int:
        """Address of the stream that kernels run on."""


class CupyArrays:
    """CuPy's arrays, from its pool and on its current stream."""

    def empty(self, shape: Any, dtype: Any) -> Array:
        import cupy

        return cupy.empty(shape, dtype=dtype)

    def contiguous(self, array: Array, dtype: Any) -> Array:
        if isinstance(array, np.ndarray):
            import cupy

            return cupy.asarray(array, dtype=dtype)
        if array.dtype == dtype and array.flags.c_contiguous:
            return array
        return array.astype(dtype, order="C")

    def scatter(self, source: Array, target: Array) -> None:
        target[...] = source

    @property
    def stream(self) -> int:
        import cupy

        return cupy.cuda.get_current_stream().ptr


class DeviceArrays:
    """Numba's arrays. What comes from the host, positions, is copied to the device."""

    stream = 0

    def empty(self, shape: Any, dtype: Any) -> Array:
        return cuda.device_array(shape, dtype=dtype)

    def contiguous(self, array: Array, dtype: Any) -> Array:
        if isinstance(array, np.ndarray):
            return cuda.to_device(np.ascontiguousarray(array, dtype=dtype))
        if array.dtype == dtype and array.is_c_contiguous():
            return array
        if SIMULATED:
            return cuda.to_device(np.ascontiguousarray(array.copy_to_host(), dtype=dtype))
        copy = self.empty(array.shape, dtype)
        self._copy(array, copy)
        return copy

    def scatter(self, source: Array, target: Array) -> None:
        if SIMULATED:
            target[...] = source.copy_to_host()
        else:
            self._copy(source, target)

    def _copy(self, source: Array, target: Array) -> None:
        def strides(array: Array) -> Axes:
            return Axes(*[0] * (MAX_AXES - array.ndim), *(s // array.dtype.itemsize for s in array.strides))

        shape = Axes(*[1] * (MAX_AXES - source.ndim), *source.shape)
        gather_kernel(source.dtype, target.dtype)(
            -(-source.size // THREADS), THREADS, self.stream, source, target, source.size, shape, strides(source),
            strides(target),
        )  # fmt: skip


CUPY, DEVICE = CupyArrays(), DeviceArrays()


def arrays_like(array: Array) -> Arrays:
    """How arrays of the kind of ``array`` are made and read."""
    return CUPY if array_kind(array) == "cupy" else DEVICE


def working_dtype(dtype: Any) -> np.dtype:
    """What kernels compute with: float64 for float64, else float32. TypeError for what is not served."""
    dtype = np.dtype(dtype)
    if dtype.name not in ("float32", "float64", "float16", "bfloat16"):
        raise TypeError(f"the Numba kernels take float32, float64, float16, bfloat16, got {dtype}")
    return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)


def batch_stride(positions: Array | None) -> int:
    """Elements from one row of positions, (B, T) or (T,), to the next: 0 where one row holds for all, or none is."""
    return positions.shape[1] if positions is not None and positions.ndim == 2 else 0
