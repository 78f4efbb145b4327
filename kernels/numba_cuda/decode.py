"""The address decoder on the GPU: launches of ``decode_small.py`` or, for large K or P, ``decode_generic.py``.

Same mathematics as ``ramnet_np/core/decoder.py``.

The slots are those of the core to the bit. Nothing is copied for the backward: the softmax is computed again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array

from .arrays import NUMBERS, arrays_like, batch_stride, working_dtype
from .compiler import SIMULATED
from .decode_generic import (
    CHUNK,
    DecodedArrays,
    DecodeSizes,
    Positions,
    decode_backward_kernel,
    decode_forward_kernel,
    list_sizes,
)
from .decode_small import MAX_SMALL, small_decode_backward_kernel, small_decode_forward_kernel
from .launch import shared_limit

THREADS = 8 if SIMULATED else 128
BLOCK_BYTES = 48 * 1024  # of shared memory: four blocks and more on a multiprocessor


class DecodeContext(NamedTuple):
    """What ``decode_backward`` needs."""

    logits: Array  # (B, T, H, U, P), the caller's where layout and dtype serve
    index: Array  # (B, T, H, K) as returned; CAPE is undone by position
    weight: Array  # (B, T, H, K) as returned
    positions: Array | None  # (B, T), (T,) or None, which counts from 0
    cape_heads: int
    renorm: bool
    dtype: Any  # of the logits as they came


def decode_forward(
    logits: Array, top_k: int, renorm: bool, cape_heads: int, positions: Array | None
) -> tuple[Array, Array, DecodeContext]:
    """Decode address logits (B, T, H, U, P): index (B, T, H, K) int32, weight (B, T, H, K), ctx.

    ``positions``: int64, (B, T) or (T,), or None, which counts from 0. Weights are float64 for float64 logits, else
    float32.
    """
    B, T, H, U, P = logits.shape
    arrays, dtype = arrays_like(logits), working_dtype(logits.dtype)
    rows = B * T * H
    if rows >= 2**31:
        raise ValueError(f"logits must hold fewer than 2**31 tokens and heads in all for the GPU, got {rows}")
    list_size = list_sizes(U, P, top_k)
    row_bytes = list_size * (dtype.itemsize + 4)
    if row_bytes > shared_limit():
        raise ValueError(f"top_k must leave room for a row's lists in shared memory, got {top_k}: {row_bytes:,} bytes")
    ctx = DecodeContext(
        arrays.contiguous(logits, dtype), arrays.empty((B, T, H, top_k), np.int32),
        arrays.empty((B, T, H, top_k), dtype), None if positions is None else arrays.contiguous(positions, np.int64),
        cape_heads, renorm, logits.dtype,
    )  # fmt: skip
    sizes, number = _sizes(ctx), NUMBERS[dtype]
    if max(P, top_k) <= MAX_SMALL:
        small_decode_forward_kernel(number, top_k, P)(
            -(-rows // THREADS), THREADS, arrays.stream, ctx.logits, _positions(ctx), ctx.index, ctx.weight, sizes
        )
    else:
        threads = max(1, min(THREADS, BLOCK_BYTES // row_bytes))
        decode_forward_kernel(number)(
            -(-rows // threads), threads, arrays.stream, ctx.logits, _positions(ctx), ctx.index, ctx.weight, sizes,
            list_size, shared=threads * row_bytes,
        )  # fmt: skip
    return ctx.index, ctx.weight, ctx


def decode_backward(dweight: Array, ctx: DecodeContext) -> Array:
    """Gradient of the logits, (B, T, H, U, P) of their dtype, given that of the weights, (B, T, H, K)."""
    B, T, H, U, P = ctx.logits.shape
    arrays, dtype, top_k = arrays_like(ctx.logits), ctx.weight.dtype, ctx.weight.shape[3]
    rows, dlogits = B * T * H, arrays.empty((B, T, H, U, P), dtype)
    dweight, number = arrays.contiguous(dweight, dtype), NUMBERS[dtype]
    decoded = DecodedArrays(ctx.logits, ctx.index, ctx.weight)
    if max(P, top_k) <= MAX_SMALL:
        small_decode_backward_kernel(number, top_k, P)(
            -(-rows // THREADS), THREADS, arrays.stream, dweight, decoded, _positions(ctx), dlogits, _sizes(ctx)
        )
    else:
        decode_backward_kernel(number)(
            -(-rows * U // THREADS), THREADS, arrays.stream, dweight, decoded, _positions(ctx), dlogits, _sizes(ctx),
            shared=min(P, CHUNK) * THREADS * dtype.itemsize,
        )  # fmt: skip
    return arrays.contiguous(dlogits, ctx.dtype)


def _sizes(ctx: DecodeContext) -> DecodeSizes:
    B, T, H, U, P = ctx.logits.shape
    return DecodeSizes(B * T * H, T, H, U, P, ctx.index.shape[3], P**U, ctx.cape_heads, int(ctx.renorm))


def _positions(ctx: DecodeContext) -> Positions:
    return Positions(ctx.positions, batch_stride(ctx.positions), int(ctx.positions is None))
