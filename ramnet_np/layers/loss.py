"""Softmax cross-entropy over the labels that count."""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.backend import fused_for
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.require import Like, require_ids

IGNORE_INDEX = -100


class LossAndGradient(NamedTuple):
    """What a training step wants of its logits; the first three are scalars, on the GPU arrays without axes."""

    loss: Any  # mean over the labels that count
    correct: Any  # how many of them have the largest logit
    count: Any  # how many they are
    dlogits: Any  # (N, V), gradient of the loss


class FusedCrossEntropyContext(NamedTuple):
    """What ``cross_entropy_backward`` needs where forward and backward are one pass over the logits each."""

    logits: Any  # (..., V)
    labels: Any  # (...,)
    ignore_index: int


class CrossEntropyContext(NamedTuple):
    """What ``cross_entropy_backward`` needs. N rows count, of V logits each."""

    exps: Any  # (N, V) exp(logits - max): kept, exponentials cost more than memory
    total: Any  # (N, 1) their sums
    labels: Any  # (N,)
    counts: Any  # (...,) bool, which rows of the logits count
    logits: Like


def cross_entropy_forward(
    logits: Any, labels: Any, ignore_index: int = IGNORE_INDEX
) -> tuple[Any, CrossEntropyContext | FusedCrossEntropyContext]:
    """Mean over the labels that count of the negative log-probability of the label.

        loss = mean over n of  log(sum_i exp(x_i)) - x_label,    x = logits[n]

    ``logits``: (..., V); ``labels``: (...,) integers in [0, V), or ``ignore_index``: such a token counts for nothing.
    Returns a scalar of the dtype of the logits and ctx; with no label that counts, 0. The largest logit of each token
    is taken off before the exponential, so none overflows. Cost: five passes over the logits that count.

    >>> import numpy as np
    >>> loss, ctx = cross_entropy_forward(np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), np.array([0, -100]))
    >>> round(float(loss), 6)  # -log 0.5
    0.693147
    """
    _require_labels(logits, labels)
    if fused := fused_for("cross_entropy", logits):
        loss, _, _ = fused(_rows(logits), labels.reshape(-1), ignore_index)
        return loss, FusedCrossEntropyContext(logits, labels, ignore_index)
    xp = namespace_of(logits)
    counts = labels != ignore_index
    rows, kept = logits[counts], labels[counts]  # (N, V) and (N,), copies
    require_ids("labels", kept, logits.shape[-1])
    n = kept.shape[0]
    # 1. x - max, 2. exp, 3. sum
    rows -= rows.max(axis=-1, keepdims=True)
    at_label = rows[xp.arange(n), kept]
    exps = xp.exp(rows, out=rows)
    total = exps.sum(axis=-1, keepdims=True)
    # 4. mean of log(sum) - x_label
    loss = (xp.log(total[:, 0]) - at_label).sum() / max(1, n)
    return loss, CrossEntropyContext(exps, total, kept, counts, Like.of(logits))


def cross_entropy_backward(dloss: Any, ctx: CrossEntropyContext | FusedCrossEntropyContext) -> Any:
    """Gradient of the logits, (..., V); zero for tokens that do not count.

    dlogits = (softmax(logits) - onehot(label)) * dloss / N
    ``dloss``: a number or a scalar array.

    >>> import numpy as np
    >>> loss, ctx = cross_entropy_forward(np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), np.array([0, -100]))
    >>> cross_entropy_backward(1.0, ctx).round(2).tolist()
    [[-0.5, 0.25, 0.25], [0.0, 0.0, 0.0]]
    """
    if isinstance(ctx, FusedCrossEntropyContext):
        dlogits = namespace_of(ctx.logits).empty(ctx.logits.shape, dtype=ctx.logits.dtype)
        fused = fused_for("cross_entropy", ctx.logits)
        assert fused is not None  # the forward had it
        fused(_rows(ctx.logits), ctx.labels.reshape(-1), ctx.ignore_index, _rows(dlogits))
        dlogits *= dloss
        return dlogits
    xp = namespace_of(ctx.exps)
    n = ctx.labels.shape[0]
    dloss = xp.asarray(dloss, dtype=ctx.logits.dtype) / max(1, n)
    drows = ctx.exps * (dloss / ctx.total)
    drows[xp.arange(n), ctx.labels] -= dloss  # one label per row: no index repeats
    if n == ctx.counts.size:
        return drows.reshape(ctx.logits.shape)
    dlogits = xp.zeros(ctx.logits.shape, dtype=ctx.logits.dtype)
    dlogits[ctx.counts] = drows
    return dlogits


def cross_entropy_and_gradient(logits: Any, labels: Any, ignore_index: int = IGNORE_INDEX) -> LossAndGradient:
    """Forward and backward at once, as training wants them, with the count of right answers.

    ``logits``: (N, V), which may be OVERWRITTEN by their gradient; ``labels``: (N,). A token that does not count is
    neither right nor wrong. Equation and errors as :func:`cross_entropy_forward`. On the GPU nothing is waited for.

    >>> import numpy as np
    >>> result = cross_entropy_and_gradient(np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), np.array([0, -100]))
    >>> round(float(result.loss), 6), int(result.correct), int(result.count), result.dlogits.round(2).tolist()
    (0.693147, 1, 1, [[-0.5, 0.25, 0.25], [0.0, 0.0, 0.0]])
    """
    _require_labels(logits, labels)
    if fused := fused_for("cross_entropy", logits):
        if not logits.flags.c_contiguous:
            logits = logits.copy(order="C")
        loss, correct, count = fused(logits, labels, ignore_index, logits)
        return LossAndGradient(loss, correct, count, logits)
    loss, ctx = cross_entropy_forward(logits, labels, ignore_index)
    counts = labels != ignore_index
    correct = ((logits.argmax(axis=-1) == labels) & counts).sum()
    return LossAndGradient(loss, correct, counts.sum(), cross_entropy_backward(1.0, ctx))


def _require_labels(logits: Any, labels: Any) -> None:
    if getattr(labels, "shape", None) != logits.shape[:-1]:
        got = getattr(labels, "shape", type(labels).__name__)
        raise ValueError(f"labels must have one entry per token, shape {logits.shape[:-1]}, got {got}")


def _rows(logits: Any) -> Any:
    """(N, V), C-contiguous."""
    return namespace_of(logits).ascontiguousarray(logits.reshape(-1, logits.shape[-1]))
