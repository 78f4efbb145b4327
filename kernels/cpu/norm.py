"""RMSNorm of a few rows in one call, where the calls of a library would take longer than the sums."""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array

from .arrays import contiguous
from .compiling import inner, kernel


def few_rows_rmsnorm(rows: Array, weight: Array, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """y (N, D) and 1 / sqrt(mean square + eps), (N, 1), of ``rows`` (N, D) and ``weight`` (D,)."""
    y, rstd = np.empty_like(rows, order="C"), np.empty((len(rows), 1), dtype=rows.dtype)
    _rmsnorm(contiguous(rows), contiguous(weight), rows.dtype.type(eps), y, rstd)
    return y, rstd


@kernel
def _rmsnorm(rows, weight, eps, y, rstd):
    for n in range(rows.shape[0]):
        rstd[n, 0] = norm_row(rows[n], weight, eps, y[n])


@inner
def norm_row(row, weight, eps, y):
    """Write the normed row, times the weight, to ``y``; returns 1 / sqrt(mean square + eps)."""
    one, size = y.dtype.type(1), y.dtype.type(row.size)
    largest = one
    mean_square = _sum_of_squares(row, one) / size
    if not mean_square < np.inf:  # a square overflowed: relative to the largest number
        largest = np.abs(row).max()
        mean_square = _sum_of_squares(row, largest) / size
    rstd = one / np.sqrt(mean_square + eps / largest / largest) / largest
    for d in range(row.size):
        y[d] = row[d] * rstd * weight[d]
    return rstd


@inner(fastmath={"reassoc", "contract"})
def _sum_of_squares(row, unit):
    total = row.dtype.type(0)
    for d in range(row.size):
        total += row[d] / unit * (row[d] / unit)
    return total
