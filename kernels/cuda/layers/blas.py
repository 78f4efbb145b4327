"""Matrix products: by cuBLAS, also inside a CUDA graph that is being captured, where CuPy's own refuse.

CuPy's cuBLAS is used with a handle of our own: it keeps one workspace for each stream, which a capture needs, and the
same one inside and outside of a graph, so that both give the same bits. Products of float32 run in float32: TF32 is off
unless asked for as CuPy is asked, by the environment variable CUPY_TF32=1. Those of the 16-bit types run on the tensor
cores, with sums in float32. Sums over many tokens with a small result, the gradients of weights, have a kernel of their
own (``weight_gradient.py``).

nvmath-python has bindings of the same functions; NVIDIA marks them experimental, so they are called by hand here.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import threading
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array

from ..runtime.arrays import empty, zeros
from ..runtime.module import sum_dtype
from .weight_gradient import suits, weight_gradient

WORKSPACE_BYTES = 2**25  # what cuBLAS recommends for Hopper
_ALLOC_FAILED = 3  # CUBLAS_STATUS_ALLOC_FAILED
_FLOAT_SUMS = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: no sums of partial sums in 16 bits
_TF32_MATH = 3  # CUBLAS_TF32_TENSOR_OP_MATH
_ANY_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT
_TRANSPOSED = {False: 0, True: 1}  # CUBLAS_OP_N, CUBLAS_OP_T
# dtype -> cuBLAS's type of matrices, its type of sums, and the type of the numbers alpha and beta
_TYPES = {
    "float32": (0, 68, ctypes.c_float),  # CUDA_R_32F, CUBLAS_COMPUTE_32F
    "float64": (1, 70, ctypes.c_double),  # CUDA_R_64F, CUBLAS_COMPUTE_64F
    "float16": (2, 68, ctypes.c_float),  # CUDA_R_16F
    "bfloat16": (14, 68, ctypes.c_float),  # CUDA_R_16BF
}


def matrix_product(a: Array, b: Array, accumulate_into: Array | None = None) -> Array:
    """a (m, k) times b (k, n), each C-contiguous or the transpose of such; others are copied.

    ``accumulate_into``: (m, n), C-contiguous: the product is added to it in place, and it is returned. TypeError for
    arrays of different dtypes.
    """
    _require_one_dtype(a, b, accumulate_into)
    if not a.size * b.shape[1]:
        return _of_nothing((a.shape[0], b.shape[1]), a.dtype, accumulate_into)
    out = empty((a.shape[0], b.shape[1]), a.dtype) if accumulate_into is None else accumulate_into
    return _product(a, b, out, accumulate=accumulate_into is not None)


def weight_product(dy: Array, x: Array, accumulate_into: Array | None = None) -> Array:
    """dy^T x, (E, D), of dy (N, E) and x (N, D) of one dtype; for 16-bit types in float32, as it was summed.

    ``accumulate_into``: (E, D), C-contiguous, of that dtype: the product is added to it, and it is returned.
    """
    _require_one_dtype(dy, x, None)
    sums = sum_dtype(dy.dtype)
    if not dy.size * x.shape[1]:
        return _of_nothing((dy.shape[1], x.shape[1]), sums, accumulate_into)
    if accumulate_into is None and suits(dy, x):
        return weight_gradient(dy, x)
    out = empty((dy.shape[1], x.shape[1]), sums) if accumulate_into is None else accumulate_into
    return _product(dy.T, x, out, accumulate=accumulate_into is not None)


def _product(a: Array, b: Array, out: Array, accumulate: bool) -> Array:
    """``out``, C-contiguous, set to a b or, with ``accumulate``, increased by it."""
    (m, k), n = a.shape, b.shape[1]
    a, a_transposed, a_stride = _readable(a)
    b, b_transposed, b_stride = _readable(b)
    matrices, sums, number = _TYPES[a.dtype.name]
    one, beta = number(1), number(accumulate)
    # cuBLAS counts down columns, where what we have is the transpose: out^T = b^T a^T
    _context().call(
        "cublasGemmEx", _TRANSPOSED[b_transposed], _TRANSPOSED[a_transposed], n, m, k, ctypes.byref(one),
        ctypes.c_void_p(b.data.ptr), matrices, b_stride, ctypes.c_void_p(a.data.ptr), matrices, a_stride,
        ctypes.byref(beta), ctypes.c_void_p(out.data.ptr), _TYPES[out.dtype.name][0], n, sums, _ANY_ALGORITHM,
    )  # fmt: skip
    return out


class Stack(NamedTuple):
    """How matrices (..., rows, columns) lie in memory if one stride leads from each to the next; in elements."""

    transposed: bool  # columns are contiguous, not rows
    leading: int  # from one row to the next, of columns if transposed
    stride: int  # from one matrix to the next; 0 where all are the same

    @classmethod
    def of(cls, shape: tuple[int, ...], strides: tuple[int, ...]) -> Stack | None:
        """The stack of an array of ``shape`` with ``strides`` in elements; None if it is none as it lies.

        >>> Stack.of((2, 3, 4), (12, 4, 1)), Stack.of((2, 4, 3), (12, 1, 4)), Stack.of((5, 2, 3, 4), (99, 12, 4, 1))
        (Stack(transposed=False, leading=4, stride=12), Stack(transposed=True, leading=4, stride=12), None)
        """
        *outer, rows, columns = shape
        *outer_strides, down, across = strides
        if (across == 1 or columns == 1) and (down >= columns or rows == 1):
            transposed, leading = False, columns if rows == 1 else down
        elif (down == 1 or rows == 1) and (across >= rows or columns == 1):
            transposed, leading = True, rows if columns == 1 else across
        else:
            return None
        stride, count = 0, 1
        for size, step in zip(reversed(outer), reversed(outer_strides), strict=True):
            if size == 1:
                continue
            if step < 0:
                return None
            if count == 1:
                stride = step
            elif step != stride * count:
                return None
            count *= size
        return cls(transposed, leading, stride)


def matmul(a: Array, b: Array, accumulate_into: Array | None = None) -> Array:
    """a (..., m, k) times b (..., k, n), matrix by matrix; the leading axes of both are the same.

    Transposes and slices are read where they lie if one stride leads from matrix to matrix, else copied.
    ``accumulate_into``: (..., m, n), rows contiguous: the products are added to it in place, and it is returned. It may
    be of float32 for a and b of 16 bits.
    ValueError for shapes that do not fit, TypeError for different dtypes.
    """
    wide = accumulate_into is not None and accumulate_into.dtype == sum_dtype(a.dtype)
    _require_one_dtype(a, b, None if wide else accumulate_into)
    (*outer, m, k), n = a.shape, b.shape[-1]
    sums_shape = (*outer, m, n) if accumulate_into is None else accumulate_into.shape
    if b.shape[:-1] != (*outer, k) or sums_shape != (*outer, m, n):
        got = f"{a.shape} and {b.shape}" + ("" if accumulate_into is None else f", accumulate_into {sums_shape}")
        raise ValueError(f"a, b must have shapes (..., m, k), (..., k, n), and accumulate_into (..., m, n), got {got}")
    count = math.prod(outer)
    if not count * m * k * n:
        return _of_nothing((*outer, m, n), a.dtype, accumulate_into)
    out = empty((*outer, m, n), a.dtype) if accumulate_into is None else accumulate_into
    a, a_stack = _stacked(a)
    b, b_stack = _stacked(b)
    out_stack = Stack.of(out.shape, _element_strides(out))
    if out_stack is None or out_stack.transposed:
        raise ValueError(
            f"accumulate_into must have contiguous rows and one stride between matrices, got strides {out.strides}"
        )
    matrices, sums, number = _TYPES[a.dtype.name]
    one, beta = number(1), number(accumulate_into is not None)
    # cuBLAS counts down columns, where what we have is the transpose: out^T = b^T a^T
    _context().call(
        "cublasGemmStridedBatchedEx", _TRANSPOSED[b_stack.transposed], _TRANSPOSED[a_stack.transposed],
        n, m, k, ctypes.byref(one),
        ctypes.c_void_p(b.data.ptr), matrices, b_stack.leading, ctypes.c_longlong(b_stack.stride),
        ctypes.c_void_p(a.data.ptr), matrices, a_stack.leading, ctypes.c_longlong(a_stack.stride), ctypes.byref(beta),
        ctypes.c_void_p(out.data.ptr), _TYPES[out.dtype.name][0], out_stack.leading,
        ctypes.c_longlong(out_stack.stride), count, sums, _ANY_ALGORITHM,
    )  # fmt: skip
    return out


def _of_nothing(shape: tuple[int, ...], dtype: Any, accumulate_into: Array) -> Array:
    """The product of matrices without elements."""
    return zeros(shape, dtype) if accumulate_into is None else accumulate_into


def _require_one_dtype(a: Array, b: Array, accumulate_into: Array) -> None:
    """TypeError unless they are alike: cuBLAS is told one type for all of them, and would read others as noise."""
    sums_dtype = a.dtype if accumulate_into is None else accumulate_into.dtype
    if b.dtype != a.dtype or sums_dtype != a.dtype:
        got = f"{a.dtype} and {b.dtype}" + ("" if accumulate_into is None else f", accumulate_into {sums_dtype}")
        raise TypeError(f"a, b and accumulate_into must have one dtype, got {got}")


def _element_strides(array: Array) -> tuple[int, ...]:
    return tuple(step // array.itemsize for step in array.strides)


def _stacked(array: Array) -> tuple[Array, Stack]:
    """The array, or a contiguous copy where it cannot be read as it lies."""
    stack = Stack.of(array.shape, _element_strides(array))
    if stack is None:
        array = array.copy(order="C")
        stack = Stack.of(array.shape, _element_strides(array))
        assert stack is not None
    return array, stack


def _readable(matrix: Array) -> tuple[Array, bool, int]:
    """The matrix or a contiguous copy, whether it is stored as its transpose, and the length of a stored row."""
    if not (matrix.flags.c_contiguous or matrix.flags.f_contiguous):
        matrix = matrix.copy(order="C")
    transposed = not matrix.flags.c_contiguous
    return matrix, transposed, matrix.shape[0] if transposed else matrix.shape[1]


class _Context:
    """A cuBLAS handle of one thread and device, on whatever stream is current."""

    def __init__(self) -> None:
        self._library = _library()
        self._handle = ctypes.c_void_p()
        self._stream: int | None = None
        self._workspaces: dict[int, Any] = {}  # of every stream: products on two streams may run at once
        self._check("cublasCreate_v2", ctypes.byref(self._handle))
        tf32 = _TF32_MATH if int(os.environ.get("CUPY_TF32", "0")) > 0 else 0
        self._check("cublasSetMathMode", self._handle, tf32 | _FLOAT_SUMS)

    def call(self, name: str, *arguments: Any) -> None:
        import cupy

        stream = cupy.cuda.get_current_stream().ptr
        if stream != self._stream:
            if stream not in self._workspaces:
                self._workspaces[stream] = cupy.empty(WORKSPACE_BYTES, dtype=np.uint8)
            workspace = ctypes.c_void_p(self._workspaces[stream].data.ptr)
            self._check("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))  # and forgets the workspace
            self._check("cublasSetWorkspace_v2", self._handle, workspace, ctypes.c_size_t(WORKSPACE_BYTES))
            self._stream = stream
        self._check(name, self._handle, *arguments)

    def _check(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status == _ALLOC_FAILED:
            raise MemoryError("cuBLAS found no GPU memory to work with")
        if status:
            raise RuntimeError(f"cuBLAS refused {name} with status {status}")


_contexts = threading.local()


def _context() -> _Context:
    """This thread's, of the current device."""
    import cupy

    device = cupy.cuda.runtime.getDevice()
    known = _contexts.__dict__.setdefault("of_device", {})
    if device not in known:
        known[device] = _Context()
    return known[device]


@functools.cache
def _library() -> Any:
    """The cuBLAS that CuPy uses, which it has loaded by the time it has a handle."""
    import cupy

    try:
        from cupy_backends.cuda.libs import cublas

        major = cublas.getVersion(cupy.cuda.device.get_cublas_handle()) // 10000
        return ctypes.CDLL(f"cublas64_{major}.dll" if os.name == "nt" else f"libcublas.so.{major}")
    except (ImportError, OSError) as error:
        reason, cuda = str(error).strip().splitlines()[0], cupy.cuda.runtime.runtimeGetVersion() // 1000
        raise RuntimeError(
            f"cuBLAS, which CuPy {cupy.__version__} needs for matrix products, could not be loaded ({reason}); install "
            f"the CUDA toolkit that this CuPy was built for, or its wheels: pip install 'cupy-cuda{cuda}x[ctk]'"
        ) from error
