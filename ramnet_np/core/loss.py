"""Softmax cross-entropy over the labels that count."""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.require import Like, require_ids

IGNORE_INDEX = -100


class CrossEntropyContext(NamedTuple):
    """What ``cross_entropy_backward`` needs. N rows count, of V logits each."""

    exps: Any  # (N, V) exp(logits - max): kept, exponentials cost more than memory
    total: Any  # (N, 1) their sums
    labels: Any  # (N,)
    counts: Any  # (...,) bool, which rows of the logits count
    logits: Like


def cross_entropy_forward(
    logits: Any, labels: Any, ignore_index: int = IGNORE_INDEX
) -> tuple[Any, CrossEntropyContext]:
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
    xp = namespace_of(logits)
    if getattr(labels, "shape", None) != logits.shape[:-1]:
        got = getattr(labels, "shape", type(labels).__name__)
        raise ValueError(f"labels must have one entry per token, shape {logits.shape[:-1]}, got {got}")
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


def cross_entropy_backward(dloss: Any, ctx: CrossEntropyContext) -> Any:
    """Gradient of the logits, (..., V); zero for tokens that do not count.

    dlogits = (softmax(logits) - onehot(label)) * dloss / N
    """
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
