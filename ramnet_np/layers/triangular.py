"""The inverse of a lower triangular matrix with ones on its diagonal, of many at once."""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.arrays import namespace_of
from ramnet_np.layers.matmul import matmul


@accelerated
def unit_lower_inverse(below: Array) -> Array:
    """(I + L)^-1 of every L, of which only what lies below the diagonal is read.

        [ A  0 ]^-1   [    A^-1        0   ]
        [ C  B ]    = [ -B^-1 C A^-1  B^-1 ]

    from blocks of one row, whose inverse is 1, to blocks of two rows, four, and so on: log2(N) rounds of two products.
    (The sum I - L + L^2 - ... has as few products by repeated squaring, but where many entries of L are near 1, as with
    tokens whose keys are alike, its terms grow like binomial coefficients and cancel: float32 loses every digit.)
    ``below``: (..., N, N), N a power of two; ValueError for another. Returns an array of that shape.

    >>> import numpy as np
    >>> unit_lower_inverse(np.array([[0.0, 0.0], [3.0, 0.0]])).tolist()
    [[1.0, 0.0], [-3.0, 1.0]]
    """
    N = require_power_of_two(below)
    xp = namespace_of(below)
    flat = below.reshape(-1, N, N)
    inverse = xp.ones((len(flat), N, 1, 1), dtype=below.dtype)  # of the blocks on the diagonal
    size = 1
    while size < N:
        upper, lower = inverse[:, 0::2], inverse[:, 1::2]
        pairs = xp.arange(N // (2 * size))
        tiles = flat.reshape(-1, len(pairs), 2, size, len(pairs), 2, size)
        corner = tiles[:, pairs, 1, :, pairs, 0, :].swapaxes(0, 1)  # C of every pair
        joined = xp.zeros((len(flat), len(pairs), 2, size, 2, size), dtype=below.dtype)
        joined[:, :, 0, :, 0] = upper
        joined[:, :, 1, :, 1] = lower
        joined[:, :, 1, :, 0] = -matmul(matmul(lower, corner), upper)
        size *= 2
        inverse = joined.reshape(len(flat), len(pairs), size, size)
    return inverse.reshape(below.shape)


def require_power_of_two(below: Array) -> int:
    """N of matrices (..., N, N); ValueError unless it is a power of two.

    >>> import numpy as np
    >>> require_power_of_two(np.zeros((3, 4, 4)))
    4
    """
    N: int = below.shape[-1] if below.ndim else 0
    if below.ndim < 2 or below.shape[-2] != N or N & (N - 1):
        raise ValueError(f"below must have shape (..., N, N), N a power of two, got {below.shape}")
    return N
