"""Cross-entropy on the GPU: loss, hits and gradient in one pass over the logits; see ``loss.cu``."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.layers.loss import IGNORE_INDEX, LossAndGradient, require_labels

from ..runtime.arrays import contiguous_aligned, empty
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name
from ..runtime.params import INT, LONG, POINTER, ParamStruct

THREADS, ONE_BLOCK = 256, 1024  # of a block with a row of logits; of the block that looks at all rows
ROW_BYTES = 64 * 1024  # of shared memory for a row of logits; longer ones are read three times


class CrossEntropyContext(NamedTuple):
    """What ``cross_entropy_backward`` needs: a pass over the logits again, instead of arrays of their size."""

    logits: Array  # (..., V)
    labels: Array  # (...,)
    ignore_index: int


@cache
def loss_params(sums: np.dtype) -> ParamStruct:
    """``LossParams``, with numbers of the dtype ``sums``."""
    return ParamStruct(
        "LossParams", logits=POINTER, labels=POINTER, dlogits=POINTER, losses=POINTER, hits=POINTER, loss=POINTER,
        correct=POINTER, count=POINTER, rows=LONG, width=INT, ignored=INT, in_shared=INT, scale=sums,
    )  # fmt: skip


@cache
def loss_specialisation(element: str) -> Specialisation:
    """For logits of the type ``element``."""
    sums = np.dtype(np.float64 if element == "double" else np.float32)
    kernels = "count_labels", "cross_entropy", "add_losses"
    return Specialisation("layers/loss.cu", kernels, (("ELEMENT", element),), (loss_params(sums),))


def cross_entropy_forward(
    logits: Array, labels: Array, ignore_index: int = IGNORE_INDEX
) -> tuple[Array, CrossEntropyContext]:
    """The mean loss of the labels that count, an array of no axes, and ctx."""
    require_labels(labels, logits)
    loss, _, _ = _cross_entropy(logits, labels, ignore_index, None)
    return loss, CrossEntropyContext(logits, labels, ignore_index)


def cross_entropy_backward(dloss: Array, ctx: CrossEntropyContext) -> Array:
    """Gradient of the logits, (..., V)."""
    dlogits = empty(ctx.logits.shape, ctx.logits.dtype)
    _cross_entropy(ctx.logits, ctx.labels, ctx.ignore_index, dlogits)
    dlogits *= dloss
    return dlogits


def cross_entropy_and_gradient(
    logits: Array, labels: Array, ignore_index: int = IGNORE_INDEX, count: Array | None = None
) -> LossAndGradient:
    """Loss, hits, count and gradient, all on the device; the gradient takes the place of C-contiguous ``logits``."""
    require_labels(labels, logits)
    logits = contiguous_aligned(logits)
    return LossAndGradient(*_cross_entropy(logits, labels, ignore_index, logits, count), logits)


def _cross_entropy(
    logits: Array, labels: Array, ignore_index: int, dlogits: Array, divisor: Array | None = None
) -> tuple[Array, Array, Array]:
    """Loss, how many labels have the largest logit, and how many count (or ``divisor``), all of no axes.

    ``dlogits``: where the gradient of the loss is written, C-contiguous: the logits or another array; None leaves it.
    """
    width = logits.shape[-1]
    logits = contiguous_aligned(logits)
    labels = contiguous_aligned(labels.reshape(-1).astype(np.int32, copy=False))
    rows, sums = labels.size, sum_dtype(logits.dtype)
    loss = empty((), sums)
    correct = empty((), np.int32)
    count = empty((), np.int32) if divisor is None else divisor.astype(np.int32, copy=False)
    losses, hits = empty((rows,), sums), empty((rows,), np.int32)
    row_bytes = width * logits.itemsize
    in_shared = row_bytes <= ROW_BYTES
    specialisation = loss_specialisation(type_name(logits.dtype))
    params = loss_params(sums)(
        logits=logits, labels=labels, dlogits=dlogits, losses=losses, hits=hits, loss=loss, correct=correct,
        count=count, rows=rows, width=width, ignored=ignore_index, in_shared=in_shared, scale=1,
    )  # fmt: skip
    if divisor is None:
        get_kernel(specialisation, "count_labels")((1,), (ONE_BLOCK,), (params,))
    if rows:
        kernel = get_kernel(specialisation, "cross_entropy")
        kernel((rows,), (THREADS,), (params,), shared_mem=row_bytes if in_shared else 0)
    get_kernel(specialisation, "add_losses")((1,), (ONE_BLOCK,), (params,))
    return loss, correct, count
