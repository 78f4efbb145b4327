"""A product of a few rows with a matrix, at the speed at which its numbers come from memory.

A library's product of matrices arranges both for many rows; for one token that takes longer than the product. Here
each row of the matrix is read once and multiplied with every row of x. A sum is always taken in the same order, so any
number of threads and of rows gives the same bits.
"""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array

from .arrays import contiguous
from .compiling import inner, kernel, parallel_kernel
from .share import share_out

BYTES_PER_PIECE = 2**21  # reading that many takes about a hundred microseconds, starting the threads ten or more


def few_rows_product(x: Array, weight: Array) -> np.ndarray:
    """x W^T: (N, E) of x (N, D) and ``weight`` (E, D)."""
    if not weight.flags.carray:  # a copy would be read twice
        return x @ weight.T
    y = np.empty((len(x), len(weight)), dtype=weight.dtype)
    product = _product_serial if weight.nbytes < 2 * BYTES_PER_PIECE else _product_parallel
    product(contiguous(x), weight, y)
    return y


@kernel
def _product_serial(x, weight, y):
    _product(0, x, weight, y, weight.shape[0])


@parallel_kernel
def _product_parallel(x, weight, y):
    rows = max(1, BYTES_PER_PIECE // (weight.shape[1] * weight.itemsize))
    share_out(_product, (weight.shape[0] + rows - 1) // rows, (x, weight, y, rows))


# Only the order of a sum may change, so that it fills vector registers; not what NaN and infinity do.
@inner(fastmath={"reassoc", "contract"})
def _product(piece, x, weight, y, rows):
    """``rows`` rows of the matrix, from piece * rows on."""
    for e in range(piece * rows, min((piece + 1) * rows, weight.shape[0])):
        row = weight[e]
        for n in range(x.shape[0]):
            one, total = x[n], y.dtype.type(0)
            for d in range(row.size):
                total += row[d] * one[d]
            y[n, e] = total
