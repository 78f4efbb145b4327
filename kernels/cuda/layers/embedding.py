"""The gradient of an embedding table on the GPU, in a fixed order and without waiting: see ``embedding.cu``."""

from __future__ import annotations

from functools import cache

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.require import require_like
from ramnet_np.layers.embedding import EmbeddingContext

from ..runtime.arrays import contiguous_aligned, empty, zeros
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name

OWNED, THREADS = 64, 1024  # rows of the table a block looks for, and its threads
ROWS, COLUMNS = 8, 32  # of the table, whose sums are one block's
MANY = 256  # from how many tokens on the warps of a block share a row's

ORDER = Specialisation("layers/embedding.cu", ("embedding_order",), (("OWNED", OWNED), ("THREADS", THREADS)))


@cache
def embedding_specialisation(element: str) -> Specialisation:
    """For gradients of the type ``element``."""
    defines = ("ELEMENT", element), ("ROWS", ROWS), ("COLUMNS", COLUMNS), ("MANY", MANY)
    return Specialisation("layers/embedding.cu", ("embedding_sums",), defines)


def embedding_backward(dy: Array, ctx: EmbeddingContext) -> Array:
    """dtable (V, D) from dy (..., D). Cost: N V / 64 comparisons, one pass over dy."""
    require_like("dy", dy, ctx.y)
    dy, ids, rows = dy.reshape(-1, dy.shape[-1]), ctx.ids.reshape(-1), ctx.rows
    tokens, width = dy.shape
    if not tokens * width * rows:
        return zeros((rows, width), sum_dtype(dy.dtype))
    if tokens >= 2**31:
        raise ValueError(f"ids must be fewer than 2**31 in all for the GPU, got {tokens}")
    dy, ids = contiguous_aligned(dy), contiguous_aligned(ids.astype(np.int32, copy=False))
    order, starts = empty((tokens,), np.int32), empty((rows + 1,), np.int32)
    arguments = (ids, np.int32(tokens), np.int32(rows), order, starts)
    get_kernel(ORDER, "embedding_order")((-(-rows // OWNED),), (THREADS,), arguments)
    dtable = empty((rows, width), sum_dtype(dy.dtype))
    kernel = get_kernel(embedding_specialisation(type_name(dy.dtype)), "embedding_sums")
    grid = -(-rows // ROWS), -(-width // COLUMNS)
    kernel(grid, (ROWS * COLUMNS,), (dy, order, starts, np.int32(rows), np.int32(width), dtable))
    return dtable
