"""The address decoder on the GPU: softmax of every digit, top-K, weights, CAPE; and its backward.

Rows, one for each token and head, are independent. With K <= 32 and P <= 32 (16 for float64) a row is one thread's: U,
P and K are compiled in and the beam search runs in registers as sorting networks, O(U K log(K)**2 + U P log(P)**2).
There writes and reads of the same K are decoded by one launch. Beyond, a row is one block's: candidates are sorted in
shared memory or, where they do not fit, in global memory, O(U n log(n)**2) with n = K log K + P. The backward takes
O(U P K). Same mathematics as ``ramnet_np/core/decoder.py``, same slots to the bit. Launches go to the current stream,
memory comes from CuPy's pool, and nothing synchronises.

What a launch needs beside its arrays follows from shapes, dtypes and options: ``_plan`` works it out once for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array

from ..runtime.arrays import NULL, cut, null_or, plain, token_strides
from ..runtime.module import DECODE_THREADS, Launch, decode_specialisation, sum_dtype, type_name

SHARED_BYTES = 44 * 1024  # for the keys of a block; with its sums they stay under the 48 KiB that need no request
GLOBAL_BYTES = 2**28  # for the keys of all blocks, where they do not fit there
GLOBAL_BLOCKS = 1024
MOST_BYTES = 2**32  # for the keys of one block
MOST_SELECTED, MOST_HELD = 64, 1024  # as in decode_any.cu
INDEX = np.dtype(np.int32)


class DecodeContext(NamedTuple):
    """What ``decode_backward`` needs. No copies: the softmax and the content slots are computed again from these."""

    logits: Any  # (B, T, H, U, P), the caller's where their layout serves
    index: Any  # (B, T, H, K) as returned; CAPE is undone by position
    weight: Any  # (B, T, H, K) as returned
    positions: Any  # (B, T), (T,) or None, which counts from 0
    cape_heads: int
    renorm: bool


def decode_forward(
    logits: tuple[Array, ...], top_k: tuple[int, ...], renorm: tuple[bool, ...], cape_heads: int, positions: Array
) -> Sequence[tuple[Array, Array, DecodeContext]]:
    """Decode one side, or writes and reads, in one launch where one kernel serves both.

    ``logits``: of every side, (B, T, H, U, P); ``positions``: int64, (B, T) or (T,), or None, which counts from 0.
    Returns index (B, T, H, K) int32, weight (B, T, H, K) and ctx of every side. Weights are float64 for float64
    logits, else float32.
    """
    if len(set(top_k)) == 1 and _in_registers(logits[0], top_k[0]):
        return _forward(logits, top_k[0], renorm, cape_heads, positions)
    sides = zip(logits, top_k, renorm, strict=True)
    return [_forward((side,), k, (divide,), cape_heads, positions)[0] for side, k, divide in sides]


def decode_backward(dweights: tuple[Array, ...], saved: tuple[DecodeContext, ...]) -> Sequence[Array]:
    """Gradient of every side's logits, (B, T, H, U, P) of their dtype, given those of the weights, (B, T, H, K)."""
    if len({ctx.weight.shape for ctx in saved}) == 1 and _in_registers(saved[0].logits, saved[0].weight.shape[3]):
        return _backward(dweights, saved)
    return [_backward((dweight,), (ctx,))[0] for dweight, ctx in zip(dweights, saved, strict=True)]


class _Plan(NamedTuple):
    """What the calls of one signature share."""

    shape: tuple[int, ...]  # of index and weight
    dtype: np.dtype  # of weight
    scratch: int  # bytes of global memory for the keys
    forward: Launch
    backward: Launch


@lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, int, int, int, int],
    dtype: np.dtype,
    top_k: int,
    renorms: tuple[bool, ...],  # one side's, or both sides'
    cape_heads: int,
    strides: tuple[int, int],  # of positions
) -> _Plan:
    B, T, H, U, P = shape
    rows, sums = B * T * H, sum_dtype(dtype)
    if rows >= 2**31:
        raise ValueError(f"logits must hold fewer than 2**31 tokens and heads in all for the GPU, got {rows}")
    specialisation = decode_specialisation(type_name(dtype), U, P, top_k)
    forward, backward = specialisation.kernels
    constants: tuple[Any, ...] = (
        *map(np.int64, strides),
        *map(np.uint32, (T, H, cape_heads, rows)),
        *map(np.int32, renorms),
    )
    if forward == "decode_forward":
        sides = len(renorms)
        grid = (-(-rows // DECODE_THREADS) * sides,)
        constants += *constants[-1:] * (2 - sides), np.uint32(sides - 1)  # both sides are always passed
        launches = (Launch(specialisation, name, grid, DECODE_THREADS, constants) for name in (forward, backward))
        return _Plan((B, T, H, top_k), sums, 0, *launches)

    constants += (*map(np.int32, (U, P, top_k)), np.uint32(P**U))
    capacity = most_candidates(U, P, top_k)
    row_bytes = (2 * capacity + P) * 2 * sums.itemsize  # of keys, 8 bytes for float and 16 for double
    if row_bytes > MOST_BYTES:
        raise ValueError(
            f"top_k = {top_k} of P**U = {P}**{U} slots needs {row_bytes:,} bytes to sort one token's addresses on the "
            f"GPU, more than {MOST_BYTES:,}; choose a smaller top_k"
        )
    # a warp selects a few of many faster than a larger block sorts them all
    threads = 32 if top_k <= MOST_SELECTED and capacity >= 4 * top_k else _power_of_two(capacity // 2, 32, 512)
    blocks, scratch, shared = rows, 0, row_bytes
    if row_bytes > SHARED_BYTES:
        blocks = max(1, min(rows, GLOBAL_BLOCKS, GLOBAL_BYTES // row_bytes))
        scratch, shared = blocks * row_bytes, 0
    backward_threads = _power_of_two(P, 32, 256)
    held = 8 * (backward_threads + 2 * min(top_k, MOST_HELD))
    return _Plan(
        (B, T, H, top_k), sums, scratch,
        Launch(specialisation, forward, (blocks,), threads, (*constants, np.int32(capacity)), 8 * threads + shared),
        Launch(specialisation, backward, (rows,), backward_threads, constants, held),
    )  # fmt: skip


def _forward(
    logits: tuple[Any, ...], top_k: int, renorms: tuple[bool, ...], cape_heads: int, positions: Any
) -> list[tuple[Any, Any, DecodeContext]]:
    """Of one side, or of both with one launch."""
    import cupy

    logits = tuple(map(plain, logits))
    plan = _plan(logits[0].shape, logits[0].dtype, top_k, renorms, cape_heads, token_strides(positions))
    arrays = cut(*[(plan.shape, INDEX)] * len(logits), *[(plan.shape, plan.dtype)] * len(logits))
    indices, weights = arrays[: len(logits)], arrays[len(logits) :]
    if indices[0].size:
        at = null_or(positions)
        if plan.forward.name == "decode_forward":
            plan.forward(logits[0], logits[-1], at, indices[0], indices[-1], weights[0], weights[-1])
        else:
            scratch = cupy.empty(plan.scratch, dtype=np.uint8) if plan.scratch else NULL
            plan.forward(logits[0], at, indices[0], weights[0], scratch)
    return [
        (index, weight, DecodeContext(x, index, weight, positions, cape_heads, renorm))
        for x, index, weight, renorm in zip(logits, indices, weights, renorms, strict=True)
    ]


def _backward(dweights: tuple[Any, ...], contexts: tuple[DecodeContext, ...]) -> list[Any]:
    """Of one side, or of both with one launch."""
    import cupy

    a, b = contexts[0], contexts[-1]
    renorms = tuple(ctx.renorm for ctx in contexts)
    shape, dtype, top_k = a.logits.shape, a.logits.dtype, a.weight.shape[3]
    plan = _plan(shape, dtype, top_k, renorms, a.cape_heads, token_strides(a.positions))
    dlogits = [cupy.empty(shape, dtype=dtype) for _ in contexts]
    if dlogits[0].size == 0:
        return dlogits
    dweights = tuple(plain(dweight.astype(plan.dtype, copy=False)) for dweight in dweights)
    at = null_or(a.positions)
    if plan.backward.name == "decode_backward":
        plan.backward(
            dweights[0], dweights[-1], a.logits, b.logits, at, a.index, b.index, a.weight, b.weight,
            dlogits[0], dlogits[-1],
        )  # fmt: skip
    else:
        plan.backward(dweights[0], a.logits, at, a.index, a.weight, dlogits[0])
    return dlogits


def _in_registers(logits: Any, top_k: int) -> bool:
    return decode_specialisation(type_name(logits.dtype), *logits.shape[3:], top_k).kernels[0] == "decode_forward"


@cache
def most_candidates(order: int, radix: int, top_k: int) -> int:
    """The longest list that the beam search sorts: the staircase of the last digit, or the values of one digit.

    >>> most_candidates(order=5, radix=4, top_k=8)  # rows of 8, 4, 2 and 2
    16
    """
    partial = min(top_k, radix ** (order - 1))
    return max(radix, sum(min(partial, top_k // (j + 1)) for j in range(min(radix, top_k))))


def _power_of_two(n: int, least: int, most: int) -> int:
    """The smallest power of two that is at least ``n``, between two others."""
    return min(max(1 << (n - 1).bit_length(), least), most)
