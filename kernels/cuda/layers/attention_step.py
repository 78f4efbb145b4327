"""One token's softmax attention over a cache, two launches that a CUDA graph can hold; ``attention_step.cu``.

Same mathematics as ``softmax_attention_step`` in ``ramnet_np/layers/softmax_attention.py``.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.layers.softmax_attention import require_attention_step

from ..runtime.arrays import contiguous_aligned, empty
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name
from ..runtime.params import INT, LONG, POINTER, ParamStruct

THREADS = 64  # of a block: few, so that the pieces of one text are spread over the multiprocessors
PIECE = 64  # keys of a warp


@cache
def attention_step_params(sums: np.dtype) -> ParamStruct:
    """``AttentionStepParams``, with numbers of the dtype ``sums``."""
    return ParamStruct(
        "AttentionStepParams", q=POINTER, k=POINTER, v=POINTER, keys=POINTER, values=POINTER, used=POINTER,
        largest=POINTER, totals=POINTER, sums=POINTER, y=POINTER, rows=LONG, heads=INT, d_k=INT, d_v=INT, room=INT,
        pieces=INT, scale=sums,
    )  # fmt: skip


@cache
def attention_step_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``."""
    params = attention_step_params(np.dtype(np.float64 if element == "double" else np.float32))
    defines = ("ELEMENT", element), ("PIECE", PIECE)
    return Specialisation("layers/attention_step.cu", ("attend_pieces", "join_pieces"), defines, (params,))


def softmax_attention_step(q: Array, k: Array, v: Array, cache: tuple[Array, Array], used: Array) -> Array:
    """y (B, 1, H, d_v) of one token, whose key and value are put into the cache, in place, behind the ``used``."""
    require_attention_step(q, k, v, cache, used)
    q, k, v = contiguous_aligned(q), contiguous_aligned(k), contiguous_aligned(v)
    (B, _, H, d_k), d_v, room = q.shape, v.shape[-1], cache[0].shape[1]
    rows, pieces, sums = B * H, -(-room // PIECE), sum_dtype(q.dtype)
    y, of_values = empty(v.shape, q.dtype), empty((rows, pieces, d_v), sums)
    largest, totals = empty((rows, pieces), sums), empty((rows, pieces), sums)
    params = attention_step_params(sums)(
        q=q, k=k, v=v, keys=cache[0], values=cache[1], used=used, largest=largest, totals=totals,
        sums=of_values, y=y, rows=rows, heads=H, d_k=d_k, d_v=d_v, room=room,
        pieces=pieces, scale=d_k**-0.5,
    )  # fmt: skip
    specialisation = attention_step_specialisation(type_name(q.dtype))
    for name, warps in ("attend_pieces", rows * pieces), ("join_pieces", rows * -(-d_v // 32)):
        get_kernel(specialisation, name)((-(-32 * warps // THREADS),), (THREADS,), (params,))
    return y
