"""Cross-entropy on the GPU: loss, hits and gradient in one pass over the logits; see ``loss.cu``."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..runtime.arrays import contiguous_aligned
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name

ROW_BYTES = 64 * 1024  # of shared memory for a row of logits; longer ones are read three times
_NAMES = ("count_labels", "cross_entropy", "add_losses")


@cache
def loss_specialisation(logit: str) -> Specialisation:
    """For logits of the type ``logit``."""
    return Specialisation("layers/loss.cu", _NAMES, (("LOGIT", logit),))


def cross_entropy(
    logits: Any, labels: Any, ignore_index: int, dlogits: Any = None, scale: float = 1.0
) -> tuple[Any, Any, Any]:
    """Loss (), how many labels have the largest logit (), and how many count (), all on the device.

    ``logits``: (N, V), C-contiguous; ``labels``: (N,); ``dlogits``: (N, V), where the gradient of ``scale`` times the
    loss is written, the logits themselves or another array; None leaves it out.
    """
    import cupy

    rows, width = logits.shape
    labels = contiguous_aligned(labels.astype(np.int32, copy=False))
    sums = sum_dtype(logits.dtype)
    loss = cupy.empty((), dtype=logits.dtype)
    correct, count = cupy.empty((), dtype=np.int32), cupy.empty((), dtype=np.int32)
    losses, right = cupy.empty(rows, dtype=sums), cupy.empty(rows, dtype=np.int32)
    specialisation = loss_specialisation(type_name(logits.dtype))
    sizes = np.int64(rows), np.int32(ignore_index)
    get_kernel(specialisation, "count_labels")((1,), (1024,), (labels, *sizes, count))
    if rows:
        row_bytes = width * sums.itemsize
        kept = row_bytes <= ROW_BYTES
        arguments = (
            logits, labels, count, np.int32(width), np.int32(ignore_index), np.int32(kept), sums.type(scale), losses,
            right, np.uint64(0) if dlogits is None else dlogits,
        )  # fmt: skip
        kernel = get_kernel(specialisation, "cross_entropy")
        kernel((rows,), (256,), arguments, shared_mem=row_bytes if kept else 0)
    get_kernel(specialisation, "add_losses")((1,), (1024,), (losses, right, count, np.int64(rows), loss, correct))
    return loss, correct, count
