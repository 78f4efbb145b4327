"""Every head of every sequence as one matrix, tokens as rows, and cut into chunks: what batched products work on."""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of

CHUNK = 64  # most tokens of a chunk: work within it grows with its square, the number of sequential steps with 1 / it


def chunk_length(tokens: int) -> int:
    """Tokens of a chunk for a sequence of so many: a power of two, at most CHUNK.

    >>> [chunk_length(tokens) for tokens in (1, 5, 64, 1000)]
    [1, 8, 64, 64]
    """
    return min(CHUNK, 1 << (tokens - 1).bit_length())


def heads_first(x: Array) -> Array:
    """(B, T, H, d) as (B*H, T, d), C-contiguous; a view where that is possible.

    >>> import numpy as np
    >>> heads_first(np.zeros((2, 5, 3, 4))).shape
    (6, 5, 4)
    """
    B, T, H, d = x.shape
    return namespace_of(x).ascontiguousarray(x.swapaxes(1, 2)).reshape(B * H, T, d)


def heads_last(y: Array, heads: int) -> Array:
    """(B*H, T, d) as (B, T, H, d), C-contiguous: the inverse of :func:`heads_first`.

    >>> import numpy as np
    >>> heads_last(np.zeros((6, 5, 4)), heads=3).shape
    (2, 5, 3, 4)
    """
    BH, T, d = y.shape
    return namespace_of(y).ascontiguousarray(y.reshape(BH // heads, heads, T, d).swapaxes(1, 2))


def to_chunks(x: Array) -> Array:
    """(B, T, H, d) as (B*H, chunks, N, d), N of :func:`chunk_length`; zeros where the last chunk has no tokens.

    >>> import numpy as np
    >>> to_chunks(np.ones((2, 65, 3, 4))).shape
    (6, 2, 64, 4)
    """
    B, T, H, d = x.shape
    N = chunk_length(T)
    chunks = -(-T // N)
    if chunks * N == T:
        return heads_first(x).reshape(B * H, chunks, N, d)
    filled = namespace_of(x).zeros((B, H, chunks * N, d), dtype=x.dtype)
    filled[:, :, :T] = x.swapaxes(1, 2)
    return filled.reshape(B * H, chunks, N, d)


def from_chunks(y: Array, tokens: int, heads: int) -> Array:
    """(B*H, chunks, N, d) as (B, T, H, d), C-contiguous, of the first T = ``tokens``: the inverse of :func:`to_chunks`.

    >>> import numpy as np
    >>> from_chunks(np.ones((6, 2, 64, 4)), tokens=65, heads=3).shape
    (2, 65, 3, 4)
    """
    BH, chunks, N, d = y.shape
    return heads_last(y.reshape(BH, chunks * N, d)[:, :tokens], heads)
