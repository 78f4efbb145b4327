"""Packed sequences: N sequences one after another in one row of T tokens, told apart by their offsets.

    cu_seqlens = (0, T_1, T_1 + T_2, .., T)         (N + 1,)

Sequence n is the tokens from cu_seqlens[n] up to cu_seqlens[n + 1]. It has a memory of its own and counts its positions
from 0. So a packed row computes what a batch of N rows would, and no token is padding. The convention is that of
FlashAttention and flash-linear-attention. As there, a sequence may be empty: its state stays as it was given.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ramnet_np.backend import array_kind
from ramnet_np.contract import Array
from ramnet_np.core.require import require_array


def check_cu_seqlens(cu_seqlens: Any, shape: tuple[int, int]) -> np.ndarray:
    """The offsets (N + 1,) int64 in the CPU's memory, for a row of ``shape`` (B, T) = (1, T).

    Offsets on a GPU are copied, which waits for the GPU; a NumPy array saves the wait.
    TypeError or ValueError otherwise.

    >>> check_cu_seqlens([0, 2, 5], (1, 5)).tolist()
    [0, 2, 5]
    >>> check_cu_seqlens([0, 2, 4], (1, 5))
    Traceback (most recent call last):
        ...
    ValueError: cu_seqlens must end with the number of tokens T = 5, got 4
    """
    offsets = _on_host(cu_seqlens)
    if offsets.dtype.kind not in "iu":
        raise TypeError(f"cu_seqlens must be integers, got {offsets.dtype}")
    if offsets.ndim != 1 or offsets.size == 0:
        raise ValueError(f"cu_seqlens must have shape (N + 1,) for N sequences, got shape {offsets.shape}")
    B, T = shape
    if B != 1:
        raise ValueError(f"cu_seqlens needs all sequences in one row of tokens (B = 1), got B = {B}")
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0:
        raise ValueError(f"cu_seqlens must begin with 0, got {offsets[0]}")
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    if falls.size:
        at = falls[0] + 1
        raise ValueError(f"cu_seqlens must not fall, got {offsets[at]} after {offsets[at - 1]} at index {at}")
    if offsets[-1] != T:
        raise ValueError(f"cu_seqlens must end with the number of tokens T = {T}, got {offsets[-1]}")
    return offsets


def packed_positions(cu_seqlens: np.ndarray, like: Array) -> Array:
    """The position (T,) int64 of every token in its sequence, an array of the kind of ``like``.

    ``cu_seqlens``: checked. On a GPU the positions of a few offsets are kept, as every layer of a model asks for them.

    >>> packed_positions(np.array([0, 2, 5]), like=np.zeros(1)).tolist()
    [0, 1, 0, 1, 2]
    """
    if array_kind(like) == "cupy":
        import cupy

        device, stream = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr
        return _positions_on_gpu(cu_seqlens.tobytes(), device, stream)
    return np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))


@functools.lru_cache(maxsize=64)
def _positions_on_gpu(offsets: bytes, device: int, stream: int) -> Array:
    import cupy

    return cupy.asarray(packed_positions(np.frombuffer(offsets, np.int64), like=None))


def sequence_of_tokens(cu_seqlens: np.ndarray) -> np.ndarray:
    """The sequence (T,) int64 that every token belongs to. ``cu_seqlens``: checked.

    >>> sequence_of_tokens(np.array([0, 2, 2, 5])).tolist()
    [0, 0, 2, 2, 2]
    """
    return np.repeat(np.arange(cu_seqlens.size - 1), np.diff(cu_seqlens))


def _on_host(offsets: Any) -> np.ndarray:
    """A NumPy array of what may be one of CuPy's, one of Numba's on a GPU, or a list."""
    if hasattr(offsets, "dtype"):
        require_array("cu_seqlens", offsets)
    for to_host in ("get", "copy_to_host"):  # of CuPy; of Numba
        if hasattr(offsets, to_host):
            return np.asarray(getattr(offsets, to_host)())
    try:
        return np.asarray(offsets)
    except ValueError:
        raise ValueError("cu_seqlens must be an array of offsets, got rows of unequal length") from None
