"""The address decoder on the GPU: softmax of every digit, top-K, weights, CAPE; and its backward.

Rows, one for each token and head, are independent. With K <= 32 and P <= 32 (16 for float64) a row is one thread's: U,
P and K are compiled in and the beam search runs in registers as sorting networks, O(U K log(K)**2 + U P log(P)**2).
Beyond, a row is one block's: candidates are sorted in shared memory or, where they do not fit, in global memory,
O(U n log(n)**2) with n = K log K + P. The backward takes O(U P K). Same mathematics as ``ramnet_np/core/decoder.py``,
same slots to the bit. Launches go to the current stream, memory comes from CuPy's pool, and nothing synchronises.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .arrays import plain, token_strides
from .module import DECODE_THREADS, decode_specialisation, get_kernel, sum_dtype, type_name

SHARED_BYTES = 44 * 1024  # for the keys of a block; with its sums they stay under the 48 KiB that need no request
GLOBAL_BYTES = 2**28  # for the keys of all blocks, where they do not fit there
GLOBAL_BLOCKS = 1024


class DecodeContext(NamedTuple):
    """What ``decode_backward`` needs. No copies: the softmax and the content slots are computed again from these."""

    logits: Any  # (B, T, H, U, P), the caller's where their layout serves
    index: Any  # (B, T, H, K) as returned; CAPE is undone by position
    weight: Any  # (B, T, H, K) as returned
    positions: Any  # (B, T)
    cape_heads: int
    renorm: bool


def decode_forward(
    logits: Any, top_k: int, renorm: bool, cape_heads: int, positions: Any
) -> tuple[Any, Any, DecodeContext]:
    """Decode address logits (B, T, H, U, P): index (B, T, H, K) int32, weight (B, T, H, K), ctx.

    ``positions``: (B, T) int64. Weights are float64 for float64 logits, else float32.
    """
    import cupy

    logits = plain(logits)
    B, T, H, U, P = logits.shape
    index = cupy.empty((B, T, H, top_k), dtype=np.int32)
    weight = cupy.empty((B, T, H, top_k), dtype=sum_dtype(logits.dtype))
    ctx = DecodeContext(logits, index, weight, positions, cape_heads, renorm)
    rows = _rows(logits)
    if rows == 0:
        return index, weight, ctx

    specialisation = decode_specialisation(type_name(logits.dtype), U, P, top_k)
    name = specialisation.kernels[0]
    kernel = get_kernel(specialisation, name)
    common = (logits, *_cape_arguments(ctx))
    if name == "decode_forward":
        kernel((-(-rows // DECODE_THREADS),), (DECODE_THREADS,), (*common, index, weight))
        return index, weight, ctx

    capacity = most_candidates(U, P, top_k)
    row_bytes = (2 * capacity + P) * 2 * weight.itemsize  # of keys, 8 bytes for float and 16 for double
    threads = _power_of_two(capacity // 2, 32, 512)
    if row_bytes <= SHARED_BYTES:
        blocks, scratch, shared = rows, np.uint64(0), row_bytes
    else:
        blocks = max(1, min(rows, GLOBAL_BLOCKS, GLOBAL_BYTES // row_bytes))
        scratch, shared = cupy.empty(blocks * row_bytes, dtype=np.uint8), 0
    kernel(
        (blocks,),
        (threads,),
        (*common, *_digit_arguments(ctx), np.int32(capacity), scratch, index, weight),
        shared_mem=8 * threads + shared,
    )
    return index, weight, ctx


def decode_backward(dweight: Any, ctx: DecodeContext) -> Any:
    """Gradient of the logits, (B, T, H, U, P) of their dtype, given that of the weights, (B, T, H, K)."""
    import cupy

    logits = ctx.logits
    U, P = logits.shape[3:]
    dlogits = cupy.empty(logits.shape, dtype=logits.dtype)
    rows = _rows(logits)
    if rows == 0:
        return dlogits
    dweight = plain(dweight.astype(ctx.weight.dtype, copy=False))

    specialisation = decode_specialisation(type_name(logits.dtype), U, P, ctx.weight.shape[3])
    name = specialisation.kernels[1]
    kernel = get_kernel(specialisation, name)
    common = (dweight, ctx.weight, ctx.index, logits, *_cape_arguments(ctx))
    if name == "decode_backward":
        kernel((-(-rows // DECODE_THREADS),), (DECODE_THREADS,), (*common, dlogits))
    else:
        threads = _power_of_two(P, 32, 256)
        kernel((rows,), (threads,), (*common, *_digit_arguments(ctx), dlogits), shared_mem=8 * threads)
    return dlogits


@cache
def most_candidates(order: int, radix: int, top_k: int) -> int:
    """The longest list that the beam search sorts: the staircase of the last digit, or the values of one digit.

    >>> most_candidates(order=5, radix=4, top_k=8)  # rows of 8, 4, 2 and 2
    16
    """
    partial = min(top_k, radix ** (order - 1))
    return max(radix, sum(min(partial, top_k // (j + 1)) for j in range(min(radix, top_k))))


def _rows(logits: Any) -> int:
    rows = logits.shape[0] * logits.shape[1] * logits.shape[2]
    if rows >= 2**31:
        raise ValueError(f"logits must hold fewer than 2**31 tokens and heads in all for the GPU, got {rows}")
    return rows


def _cape_arguments(ctx: DecodeContext) -> tuple[Any, ...]:
    B, T, H = ctx.logits.shape[:3]
    return (
        ctx.positions,
        *map(np.int64, token_strides(ctx.positions)),
        np.uint32(T),
        np.uint32(H),
        np.uint32(ctx.cape_heads),
        np.uint32(B * T * H),
        np.int32(ctx.renorm),
    )


def _digit_arguments(ctx: DecodeContext) -> tuple[Any, ...]:
    U, P = ctx.logits.shape[3:]
    return np.int32(U), np.int32(P), np.int32(ctx.weight.shape[3]), np.uint32(P**U)


def _power_of_two(n: int, least: int, most: int) -> int:
    """The smallest power of two that is at least ``n``, between two others."""
    return min(max(1 << (n - 1).bit_length(), least), most)
