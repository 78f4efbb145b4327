"""Softmax attention of 16-bit numbers, one launch forward and three back; ``flash_attention.cu``.

Same mathematics as ``ramnet_np/layers/softmax_attention.py``, which serves what the kernels do not: float32, float64,
more than 128 channels, a number of channels that 8 does not divide, and GPUs before compute capability 8.0.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.require import ArraySpec, readable, require_like
from ramnet_np.layers.softmax_attention import SoftmaxAttentionGrads, require_attention

from ..runtime.arrays import contiguous_aligned, empty
from ..runtime.module import Specialisation, get_kernel, type_name
from ..runtime.params import INT, LONG, POINTER, ParamStruct
from .attention import ALL

THREADS = 128  # of a block
TILE = 64  # rows of a tile in shared memory
PIECE, MOST_CHANNELS = 8, 128  # channels of one 16-byte access, and of a row that registers hold

FLASH_PARAMS = ParamStruct(
    "FlashParams", q=POINTER, k=POINTER, v=POINTER, dy=POINTER, y=POINTER, log_sums=POINTER, row_sums=POINTER,
    dq=POINTER, dk=POINTER, dv=POINTER, tokens=INT, past=INT, heads=INT, d_k=INT, d_v=INT, window=INT, rows=LONG,
    scale=np.dtype(np.float32),
)  # fmt: skip


@readable
class FlashAttentionContext(NamedTuple):
    """What the backward needs: the inputs, the result and one number per query."""

    q: Array  # (B, T, H, d_k)
    k: Array  # (B, S + T, H, d_k): S earlier keys first
    v: Array  # (B, S + T, H, d_v)
    y: Array  # (B, T, H, d_v)
    log_sums: Array  # (B, H, T)
    window: int | None


@cache
def flash_specialisation(element: str, d_k: int, d_v: int) -> Specialisation:
    """For arrays of the type ``element``; rows of a tile have 64 or 128 channels."""
    kernels = "flash_forward", "flash_row_sums", "flash_keys_backward", "flash_queries_backward"
    own = own_rows(d_k, d_v)
    defines = (
        ("ELEMENT", element), ("D_K", padded(d_k)), ("D_V", padded(d_v)), ("QUERIES", own), ("KEYS", own),
        ("TILE", TILE), ("THREADS", THREADS),
    )  # fmt: skip
    return Specialisation("layers/flash_attention.cu", kernels, defines, (FLASH_PARAMS,))


def softmax_attention_forward(
    q: Array, k: Array, v: Array, window: int | None = None, past: tuple[Array, Array] | None = None
) -> tuple[Array, Any]:
    """y (B, T, H, d_v) and the context; NotImplemented where the kernels do not serve these arrays."""
    require_attention(q, k, v, window, past)
    if not _serves(q, v):
        return NotImplemented
    if past is not None:
        k, v = _joined(past[0], k), _joined(past[1], v)
    q, k, v = contiguous_aligned(q), contiguous_aligned(k), contiguous_aligned(v)
    B, T, H, _ = q.shape
    y, log_sums = empty((B, T, H, v.shape[-1]), q.dtype), empty((B, H, T), np.float32)
    ctx = FlashAttentionContext(q, k, v, y, log_sums, window)
    _launch("flash_forward", ctx, blocks_of(ctx))
    return y, ctx


def softmax_attention_backward(dy: Array, ctx: Any) -> SoftmaxAttentionGrads:
    """dq, dk and dv of the tokens that were given as such; NotImplemented for a context of the mathematics."""
    if not isinstance(ctx, FlashAttentionContext):
        return NotImplemented
    require_like("dy", dy, ArraySpec.of(ctx.y))
    dy = contiguous_aligned(dy)
    B, T, H, d_v = ctx.y.shape
    row_sums = empty(ctx.log_sums.shape, np.float32)
    dq, dk, dv = empty(ctx.q.shape, dy.dtype), empty(ctx.q.shape, dy.dtype), empty(ctx.y.shape, dy.dtype)
    lanes = padded(d_v) // PIECE  # of a row
    _launch("flash_row_sums", ctx, -(-B * T * H * lanes // THREADS), dy=dy, row_sums=row_sums)
    _launch("flash_keys_backward", ctx, blocks_of(ctx), dy=dy, row_sums=row_sums, dk=dk, dv=dv)
    _launch("flash_queries_backward", ctx, blocks_of(ctx), dy=dy, row_sums=row_sums, dq=dq)
    return SoftmaxAttentionGrads(dq, dk, dv)


def shared_bytes(name: str, d_k: int, d_v: int) -> int:
    """Dynamic shared memory of a kernel's block: two stages of two tiles, and of two numbers per query."""
    if name == "flash_row_sums":
        return 0
    numbers = 2 if name == "flash_keys_backward" else 0
    return 2 * TILE * ((padded(d_k) + padded(d_v)) * 2 + numbers * 4)


def padded(channels: int) -> int:
    """Channels of a row in registers and in shared memory: those that an array does not have are 0."""
    return 64 if channels <= 64 else MOST_CHANNELS


def own_rows(d_k: int, d_v: int) -> int:
    """Queries or keys that a block owns: 32 a warp where registers hold them, else 16."""
    return THREADS if max(d_k, d_v) <= 64 else THREADS // 2


def blocks_of(ctx: FlashAttentionContext) -> int:
    """Blocks that own the tokens of all sequences and heads; those of one sequence and head follow one another."""
    B, T, H, d_k = ctx.q.shape
    return B * H * -(-T // own_rows(d_k, ctx.v.shape[-1]))


def _serves(q: Array, v: Array) -> bool:
    fits = all(d % PIECE == 0 and d <= MOST_CHANNELS for d in (q.shape[-1], v.shape[-1]))
    return fits and type_name(q.dtype) in ("float16", "bfloat16") and _has_the_instructions()


def _has_the_instructions() -> bool:
    """Whether the current GPU multiplies these types on its tensor cores and copies to shared memory by itself."""
    import cupy

    return int(cupy.cuda.Device().compute_capability) >= 80


def _joined(before: Array, now: Array) -> Array:
    import cupy

    return cupy.concatenate([before, now], axis=1)


def _launch(name: str, ctx: FlashAttentionContext, blocks: int, **arrays: Array) -> None:
    """``arrays``: those of the backward, by their names in ``FlashParams``."""
    (B, T, H, d_k), d_v = ctx.q.shape, ctx.v.shape[-1]
    given = dict.fromkeys(("dy", "row_sums", "dq", "dk", "dv")) | arrays
    params = FLASH_PARAMS(
        q=ctx.q, k=ctx.k, v=ctx.v, y=ctx.y, log_sums=ctx.log_sums, **given, tokens=T, past=ctx.k.shape[1] - T, heads=H,
        d_k=d_k, d_v=d_v, window=ALL if ctx.window is None else min(ctx.window, ALL), rows=B * T * H, scale=d_k**-0.5,
    )  # fmt: skip
    kernel = get_kernel(flash_specialisation(type_name(ctx.q.dtype), d_k, d_v), name)
    kernel((blocks,), (THREADS,), (params,), shared_mem=shared_bytes(name, d_k, d_v))
