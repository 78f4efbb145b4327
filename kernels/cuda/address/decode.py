"""The address decoder on the GPU: softmax of every digit, top-K, weights, CAPE; and its backward.

Rows, one for each token and head, are independent. With K <= 32 and P <= 32 (16 for float64) a row is one thread's: U,
P and K are compiled in and the beam search runs in registers as sorting networks, O(U K log(K)**2 + U P log(P)**2).
There writes and reads of the same K are decoded by one launch. Beyond, a row is one block's: candidates are sorted in
shared memory or, where they do not fit, in global memory, O(U n log(n)**2) with n = K log K + P. The backward takes
O(U P K). Same mathematics as ``ramnet_np/core/decoder.py``, same slots to the bit. Launches go to the current stream,
memory comes from CuPy's pool, and nothing synchronises.

What a launch needs beside its arrays follows from shapes, dtypes and options: ``plan_decode`` works it out once for
each signature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array

from ..runtime.arrays import allocate_together, contiguous_aligned, ptr, token_strides
from ..runtime.module import Launch, Specialisation, sum_dtype, type_name
from ..runtime.params import INT, LONG, POINTER, UNSIGNED, ParamStruct

THREADS = 128  # rows of a block, one a thread
GENERIC = "address/decode_generic.cu"  # serves what does not fit the registers
SHARED_BYTES = 44 * 1024  # for the keys of a block; with its sums they stay under the 48 KiB that need no request
GLOBAL_BYTES = 2**28  # for the keys of all blocks, where they do not fit there
GLOBAL_BLOCKS = 1024
MAX_BYTES = 2**32  # for the keys of one block
MAX_SELECTED = 64  # keys that a warp selects; more are sorted
MAX_HELD = 1024  # slots that the generic backward looks at together
INDEX = np.dtype(np.int32)
NEITHER = (0, 0)  # null for both sides

DECODE_PARAMS = ParamStruct(
    "DecodeParams",
    write_logits=POINTER, read_logits=POINTER, dwrite_weight=POINTER, dread_weight=POINTER,
    dwrite_logits=POINTER, dread_logits=POINTER, write_index=POINTER, read_index=POINTER,
    write_weight=POINTER, read_weight=POINTER, positions=POINTER, batch_stride=LONG, token_stride=LONG,
    tokens=UNSIGNED, heads=UNSIGNED, cape_heads=UNSIGNED, rows=UNSIGNED,
    write_renorm=INT, read_renorm=INT, both_sides=UNSIGNED,
)  # fmt: skip
GENERIC_DECODE_PARAMS = ParamStruct(
    "GenericDecodeParams",
    logits=POINTER, dweight=POINTER, dlogits=POINTER, index=POINTER, weight=POINTER, scratch=POINTER,
    positions=POINTER, batch_stride=LONG, token_stride=LONG,
    tokens=UNSIGNED, heads=UNSIGNED, cape_heads=UNSIGNED, rows=UNSIGNED,
    renorm=INT, order=INT, radix=INT, top_k=INT, slots=UNSIGNED, capacity=INT,
)  # fmt: skip


@cache
def decode_specialisation(element: str, order: int, radix: int, top_k: int) -> Specialisation:
    """For logits of the type ``element``, U, P, K: one thread a row where its keys fit the registers, else one block.

    They do up to K = P = 32, and in double precision, where a key takes twice the space, up to 16.
    """
    if max(radix, top_k) > (16 if element == "double" else 32):
        return Specialisation(
            GENERIC,
            ("decode_forward_generic", "decode_backward_generic"),
            (("ELEMENT", element), ("MAX_SELECTED", MAX_SELECTED), ("MAX_HELD", MAX_HELD)),
            (GENERIC_DECODE_PARAMS,),
        )
    return Specialisation(
        "address/decode.cu",
        ("decode_forward", "decode_backward"),
        (("ELEMENT", element), ("ORDER", order), ("RADIX", radix), ("TOP_K", top_k), ("THREADS", THREADS)),
        (DECODE_PARAMS,),
    )


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


class DecodePlan(NamedTuple):
    """What the calls of one signature share."""

    shape: tuple[int, ...]  # of index and weight
    dtype: np.dtype  # of weight
    scratch: int  # bytes of global memory for the keys
    forward: Launch
    backward: Launch
    params: Callable[..., Any]  # the addresses of the arrays, in the struct's order, to the kernels' argument


@lru_cache(maxsize=1024)
def plan_decode(
    shape: tuple[int, int, int, int, int],
    dtype: np.dtype,
    top_k: int,
    renorms: tuple[bool, ...],
    cape_heads: int,
    strides: tuple[int, int],
) -> DecodePlan:
    """The plan for logits of this shape (B, T, H, U, P) and dtype, of one side or of both (as many as ``renorms``).

    ``strides``: those of positions, in elements (``token_strides``). ValueError for sizes that the kernels cannot take.

    >>> plan = plan_decode((2, 64, 4, 5, 4), np.dtype(np.float32), 8, (False, False), 4, (0, 1))
    >>> plan.forward.name, plan.forward.grid, plan.scratch  # 512 rows, 128 a block, of both sides
    ('decode_forward', (8,), 0)
    """
    B, T, H, U, P = shape
    rows = B * T * H
    if rows >= 2**31:
        raise ValueError(f"logits must hold fewer than 2**31 tokens and heads in all for the GPU, got {rows}")
    specialisation = decode_specialisation(type_name(dtype), U, P, top_k)
    signature = {
        "batch_stride": strides[0], "token_stride": strides[1],
        "tokens": T, "heads": H, "cape_heads": cape_heads, "rows": rows,
    }  # fmt: skip
    if specialisation.source == GENERIC:
        return _plan_generic(specialisation, shape, dtype, top_k, renorms[0], signature)
    forward, backward = (
        Launch(specialisation, name, (-(-rows // THREADS) * len(renorms),), THREADS) for name in specialisation.kernels
    )
    params = DECODE_PARAMS.partial(
        **signature, write_renorm=renorms[0], read_renorm=renorms[-1], both_sides=len(renorms) - 1
    )
    return DecodePlan((B, T, H, top_k), sum_dtype(dtype), 0, forward, backward, params)


def _plan_generic(
    specialisation: Specialisation,
    shape: tuple[int, int, int, int, int],
    dtype: np.dtype,
    top_k: int,
    renorm: bool,
    signature: dict[str, int],
) -> DecodePlan:
    """The plan of decode_generic.cu: a block for each row, and where its keys lie."""
    B, T, H, U, P = shape
    rows, sums = B * T * H, sum_dtype(dtype)
    capacity = most_candidates(U, P, top_k)
    row_bytes = (2 * capacity + P) * 2 * sums.itemsize  # of keys, 8 bytes for float and 16 for double
    if row_bytes > MAX_BYTES:
        raise ValueError(
            f"top_k = {top_k} of P**U = {P}**{U} slots needs {row_bytes:,} bytes to sort one token's addresses on the "
            f"GPU, more than {MAX_BYTES:,}; choose a smaller top_k"
        )
    # a warp selects a few of many faster than a larger block sorts them all
    threads = 32 if top_k <= MAX_SELECTED and capacity >= 4 * top_k else _power_of_two(capacity // 2, 32, 512)
    blocks, scratch, shared = rows, 0, row_bytes
    if row_bytes > SHARED_BYTES:
        blocks = max(1, min(rows, GLOBAL_BLOCKS, GLOBAL_BYTES // row_bytes))
        scratch, shared = blocks * row_bytes, 0
    backward_threads = _power_of_two(P, 32, 256)
    held = 8 * (backward_threads + 2 * min(top_k, MAX_HELD))
    forward, backward = specialisation.kernels
    return DecodePlan(
        (B, T, H, top_k), sums, scratch,
        Launch(specialisation, forward, (blocks,), threads, 8 * threads + shared),
        Launch(specialisation, backward, (rows,), backward_threads, held),
        GENERIC_DECODE_PARAMS.partial(
            **signature, renorm=renorm, order=U, radix=P, top_k=top_k, slots=P**U, capacity=capacity
        ),
    )  # fmt: skip


def _forward(
    logits: tuple[Any, ...], top_k: int, renorms: tuple[bool, ...], cape_heads: int, positions: Any
) -> list[tuple[Any, Any, DecodeContext]]:
    """Decode one side, or both with one launch."""
    import cupy

    logits = tuple(map(contiguous_aligned, logits))
    plan = plan_decode(logits[0].shape, logits[0].dtype, top_k, renorms, cape_heads, token_strides(positions))
    sides = len(logits)
    arrays = allocate_together(*[(plan.shape, INDEX)] * sides, *[(plan.shape, plan.dtype)] * sides)
    indices, weights = arrays[:sides], arrays[sides:]
    if indices[0].size:
        x, index, weight = _addresses(logits), _addresses(indices), _addresses(weights)
        if plan.forward.name == "decode_forward":
            plan.forward(plan.params(*x, *NEITHER, *NEITHER, *index, *weight, ptr(positions)))
        else:
            scratch = cupy.empty(plan.scratch, dtype=np.uint8) if plan.scratch else None
            plan.forward(plan.params(x[0], 0, 0, index[0], weight[0], ptr(scratch), ptr(positions)))
    return [
        (index, weight, DecodeContext(x, index, weight, positions, cape_heads, renorm))
        for x, index, weight, renorm in zip(logits, indices, weights, renorms, strict=True)
    ]


def _backward(dweights: tuple[Any, ...], contexts: tuple[DecodeContext, ...]) -> list[Any]:
    """Gradients of one side's logits, or of both sides' with one launch."""
    import cupy

    ctx, renorms = contexts[0], tuple(ctx.renorm for ctx in contexts)
    shape, dtype, top_k = ctx.logits.shape, ctx.logits.dtype, ctx.weight.shape[3]
    plan = plan_decode(shape, dtype, top_k, renorms, ctx.cape_heads, token_strides(ctx.positions))
    dlogits = [cupy.empty(shape, dtype=dtype) for _ in contexts]
    if dlogits[0].size == 0:
        return dlogits
    dweights = tuple(contiguous_aligned(dweight.astype(plan.dtype, copy=False)) for dweight in dweights)
    x, dweight, dx = _addresses([c.logits for c in contexts]), _addresses(dweights), _addresses(dlogits)
    index, weight = _addresses([c.index for c in contexts]), _addresses([c.weight for c in contexts])
    if plan.backward.name == "decode_backward":
        plan.backward(plan.params(*x, *dweight, *dx, *index, *weight, ptr(ctx.positions)))
    else:
        plan.backward(plan.params(x[0], dweight[0], dx[0], index[0], weight[0], 0, ptr(ctx.positions)))
    return dlogits


def _addresses(sides: Sequence[Any]) -> tuple[int, int]:
    """Where the arrays of the writes and of the reads lie; 0 for a side that is not decoded."""
    return sides[0].data.ptr, sides[1].data.ptr if len(sides) == 2 else 0


def _in_registers(logits: Any, top_k: int) -> bool:
    return decode_specialisation(type_name(logits.dtype), *logits.shape[3:], top_k).source != GENERIC


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
