"""The gradient of an embedding table on the GPU, in a fixed order and without waiting: see ``embedding.cu``."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..runtime.arrays import contiguous_aligned
from ..runtime.module import Specialisation, get_kernel, type_name

ORDER = Specialisation("layers/embedding.cu", ("embedding_order",), ())
OWNED, THREADS = 64, 1024  # rows of the table a block looks for, and its threads


@cache
def embedding_specialisation(element: str) -> Specialisation:
    """For gradients of the type ``element``."""
    return Specialisation("layers/embedding.cu", ("embedding_sums",), (("ELEMENT", element),))


def embedding_backward(dy: Any, ids: Any, rows: int) -> Any:
    """dtable (V, D) with V = ``rows``, from dy (N, D) and ids (N,). Cost: N V / 64 comparisons, one pass over dy."""
    import cupy

    tokens, width = dy.shape
    if not tokens * width * rows:
        return cupy.zeros((rows, width), dtype=dy.dtype)
    if tokens >= 2**31:
        raise ValueError(f"ids must be fewer than 2**31 in all for the GPU, got {tokens}")
    dy, ids = contiguous_aligned(dy), contiguous_aligned(ids.astype(np.int32, copy=False))
    order, starts = cupy.empty(tokens, dtype=np.int32), cupy.empty(rows + 1, dtype=np.int32)
    arguments = (ids, np.int32(tokens), np.int32(rows), order, starts)
    get_kernel(ORDER, "embedding_order")((-(-rows // OWNED),), (THREADS,), arguments)
    dtable = cupy.empty((rows, width), dtype=dy.dtype)
    kernel = get_kernel(embedding_specialisation(type_name(dy.dtype)), "embedding_sums")
    grid = -(-rows // 8), -(-width // 32)
    kernel(grid, (256,), (dy, order, starts, np.int32(rows), np.int32(width), dtable))
    return dtable
