"""Products of stacked matrices, as attention and the chunked recurrences are made of."""

from __future__ import annotations

from typing import Any

from ramnet_np.backend import fused_for


def matmul(a: Any, b: Any, onto: Any = None) -> Any:
    """One product for each pair of matrices.

        y[i] = a[i] b[i]        or, with ``onto``, onto[i] += a[i] b[i]

    ``a``: (..., m, k); ``b``: (..., k, n), the same leading axes; transposes (``swapaxes(-1, -2)``) and slices are read
    where they are. ``onto``: (..., m, n): the products are added to it in place. All of one dtype. Returns y, or
    ``onto``.
    ValueError for shapes that do not fit. On a GPU all products are one launch of cuBLAS, inside a CUDA graph too.

    >>> import numpy as np
    >>> matmul(np.ones((2, 1, 3)), np.ones((2, 3, 1))).ravel().tolist()
    [3.0, 3.0]
    """
    if fused := fused_for("stacked_matmul", a):
        return fused(a, b, onto)
    product = a @ b
    if onto is None:
        return product
    onto += product
    return onto
