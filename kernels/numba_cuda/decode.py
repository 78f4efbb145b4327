"""The address decoder on the GPU: launches of ``decode_small_kernels.py`` or, for large K or P, ``decode_kernels.py``.

Same mathematics as ``ramnet_np/core/decoder.py``.

The slots are those of the core to the bit. Nothing is copied for the backward: the softmax is computed again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arrays import NUMBERS, arrays_like, batch_stride, sum_dtype
from .decode_kernels import CHUNK, decode_kernels, list_sizes
from .decode_small_kernels import MOST, small_decode_kernels
from .launch import SIMULATED, shared_limit

THREADS = 8 if SIMULATED else 128
BLOCK_BYTES = 48 * 1024  # of shared memory: four blocks and more on a multiprocessor


class DecodeContext(NamedTuple):
    """What ``decode_backward`` needs."""

    logits: Any  # (B, T, H, U, P), the caller's where layout and dtype serve
    index: Any  # (B, T, H, K) as returned; CAPE is undone by position
    weight: Any  # (B, T, H, K) as returned
    positions: Any  # (B, T), (T,) or None, which counts from 0
    cape_heads: int
    renorm: bool
    dtype: Any  # of the logits as they came


def decode_forward(
    logits: Any, top_k: int, renorm: bool, cape_heads: int, positions: Any
) -> tuple[Any, Any, DecodeContext]:
    """Decode address logits (B, T, H, U, P): index (B, T, H, K) int32, weight (B, T, H, K), ctx.

    ``positions``: int64, (B, T) or (T,), or None, which counts from 0. Weights are float64 for float64 logits, else
    float32.
    """
    B, T, H, U, P = logits.shape
    arrays, dtype = arrays_like(logits), sum_dtype(logits.dtype)
    rows = B * T * H
    if rows >= 2**31:
        raise ValueError(f"logits must hold fewer than 2**31 tokens and heads in all for the GPU, got {rows}")
    row_bytes = list_sizes(U, P, top_k) * (dtype.itemsize + 4)
    if row_bytes > shared_limit():
        raise ValueError(f"top_k must leave room for a row's lists in shared memory, got {top_k}: {row_bytes:,} bytes")
    plain = arrays.plain(logits, dtype)
    positions = None if positions is None else arrays.plain(positions, np.int64)
    index = arrays.empty((B, T, H, top_k), np.int32)
    weight = arrays.empty((B, T, H, top_k), dtype)
    if max(P, top_k) <= MOST:
        small_decode_kernels(NUMBERS[dtype], top_k, P).forward(
            -(-rows // THREADS), THREADS, arrays.stream, plain, positions, index, weight, batch_stride(positions),
            int(positions is None), T, H, cape_heads, rows, U, P**U, int(renorm),
        )  # fmt: skip
        return index, weight, DecodeContext(plain, index, weight, positions, cape_heads, renorm, logits.dtype)
    threads = max(1, min(THREADS, BLOCK_BYTES // row_bytes))
    decode_kernels(NUMBERS[dtype]).forward(
        -(-rows // threads), threads, arrays.stream, plain, positions, index, weight, batch_stride(positions),
        int(positions is None), T, H, cape_heads, rows, U, P, top_k, P**U, int(renorm), list_sizes(U, P, top_k),
        shared=threads * row_bytes,
    )  # fmt: skip
    return index, weight, DecodeContext(plain, index, weight, positions, cape_heads, renorm, logits.dtype)


def decode_backward(dweight: Any, ctx: DecodeContext) -> Any:
    """Gradient of the logits, (B, T, H, U, P) of their dtype, given that of the weights, (B, T, H, K)."""
    B, T, H, U, P = ctx.logits.shape
    arrays, dtype, top_k = arrays_like(ctx.logits), ctx.weight.dtype, ctx.weight.shape[3]
    dlogits = arrays.empty((B, T, H, U, P), dtype)
    rows, dweight = B * T * H, arrays.plain(dweight, dtype)
    if max(P, top_k) <= MOST:
        small_decode_kernels(NUMBERS[dtype], top_k, P).backward(
            -(-rows // THREADS), THREADS, arrays.stream, dweight, ctx.weight, ctx.index, ctx.logits, ctx.positions,
            dlogits, batch_stride(ctx.positions), int(ctx.positions is None), T, H, ctx.cape_heads, rows, U, P**U,
            int(ctx.renorm),
        )  # fmt: skip
        return arrays.plain(dlogits, ctx.dtype)
    decode_kernels(NUMBERS[dtype]).backward(
        -(-rows * U // THREADS), THREADS, arrays.stream, dweight, ctx.weight, ctx.index,
        ctx.logits, ctx.positions, dlogits, batch_stride(ctx.positions), int(ctx.positions is None), T, H,
        ctx.cape_heads, rows, U, P, top_k, P**U, int(ctx.renorm),
        shared=min(P, CHUNK) * THREADS * dtype.itemsize,
    )  # fmt: skip
    return arrays.plain(dlogits, ctx.dtype)
