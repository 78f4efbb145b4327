"""Products of stacked matrices, as attention and the chunked recurrences are made of."""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated


@accelerated
def matmul(a: Array, b: Array, accumulate_into: Array | None = None) -> Array:
    """One product for each pair of matrices.

        y[i] = a[i] b[i]        or, with ``accumulate_into``, accumulate_into[i] += a[i] b[i]

    ``a``: (..., m, k); ``b``: (..., k, n), the same leading axes; transposes (``swapaxes(-1, -2)``) and slices are read
    where they are. ``accumulate_into``: (..., m, n): the products are added to it in place. All of one dtype,
    but ``accumulate_into`` may be of float32 for products of 16-bit matrices. Returns y, or ``accumulate_into``.
    ValueError for shapes that do not fit. On a GPU all products are one launch of cuBLAS, inside a CUDA graph too.

    >>> import numpy as np
    >>> matmul(np.ones((2, 1, 3)), np.ones((2, 3, 1))).ravel().tolist()
    [3.0, 3.0]
    """
    product = a @ b
    if accumulate_into is None:
        return product
    accumulate_into += product
    return accumulate_into
