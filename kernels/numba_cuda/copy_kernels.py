"""Kernels that move numbers: between layouts and types, and into one sum."""

from functools import cache

from numba import cuda, int64, types
from numba.np.numpy_support import from_dtype

from .launch import THREADS as SUM_THREADS
from .launch import kernel


@cache
def gather_kernel(source_dtype, target_dtype):
    """A kernel that copies an array of up to five axes into another of the same shape, each of any strides."""
    source_type, target_type = (types.CPointer(from_dtype(dtype)) for dtype in (source_dtype, target_dtype))

    @kernel(source_type, target_type, *[int64] * 15)
    def gather(source, target, size, n1, n2, n3, n4, s0, s1, s2, s3, s4, t0, t1, t2, t3, t4):
        """One thread an element: it reads one place and writes one."""
        i = cuda.blockIdx.x * int64(cuda.blockDim.x) + cuda.threadIdx.x
        if i >= size:
            return
        i4, rest = i % n4, i // n4
        i3, rest = rest % n3, rest // n3
        i2, rest = rest % n2, rest // n2
        i1, i0 = rest % n1, rest // n1
        target[i0 * t0 + i1 * t1 + i2 * t2 + i3 * t3 + i4 * t4] = source[
            i0 * s0 + i1 * s1 + i2 * s2 + i3 * s3 + i4 * s4
        ]

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
