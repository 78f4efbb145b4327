"""Kernels that move numbers: between layouts and types, and into one sum."""

from functools import cache
from typing import Any, NamedTuple

from .compiler import cuda, from_dtype, int64, types
from .launch import THREADS as SUM_THREADS
from .launch import kernel, record


class Axes(NamedTuple):
    """A number for each of five axes: lengths, or strides in elements."""

    n0: Any
    n1: Any
    n2: Any
    n3: Any
    n4: Any


AXES = record(Axes, **dict.fromkeys(Axes._fields, int64))


@cuda.jit(device=True)
def element_at(i, shape, strides):
    """Where element ``i``, counted in C order, lies in an array of these strides."""
    n = i // shape.n4 // shape.n3 // shape.n2
    at = n // shape.n1 * strides.n0 + n % shape.n1 * strides.n1
    at += i // shape.n4 // shape.n3 % shape.n2 * strides.n2
    return at + i // shape.n4 % shape.n3 * strides.n3 + i % shape.n4 * strides.n4


@cache
def gather_kernel(source_dtype, target_dtype):
    """A kernel that copies an array of up to five axes into another of the same shape, each of any strides."""
    source_type, target_type = (types.CPointer(from_dtype(dtype)) for dtype in (source_dtype, target_dtype))

    @kernel(source_type, target_type, int64, AXES, AXES, AXES)
    def gather(source, target, size, shape, source_strides, target_strides):
        """One thread an element: it reads one place and writes one."""
        i = cuda.blockIdx.x * int64(cuda.blockDim.x) + cuda.threadIdx.x
        if i < size:
            target[element_at(i, shape, target_strides)] = source[element_at(i, shape, source_strides)]

    return gather


@cache
def total_kernel(number):
    """A kernel that adds up an array of numbers of this Numba type, always in the same order."""

    @kernel(types.CPointer(number), types.CPointer(number), int64)
    def total(array, result, size):
        """One block. A thread adds up its own elements; after a barrier thread 0 adds up the threads' sums."""
        sums = cuda.shared.array(SUM_THREADS, number)
        own = number(0)
        for i in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            own += array[i]
        sums[cuda.threadIdx.x] = own
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            for i in range(1, cuda.blockDim.x):
                own += sums[i]
            result[0] = own

    return total
