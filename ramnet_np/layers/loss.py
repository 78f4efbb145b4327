"""Softmax cross-entropy over the labels that count."""

from __future__ import annotations

from typing import NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.require import ArraySpec, readable, require_array, require_context, require_floats, require_ids

IGNORE_INDEX = -100


class LossAndGradient(NamedTuple):
    """What a training step wants of its logits; the first three are scalars, on the GPU arrays without axes."""

    loss: Array  # mean over the labels that count
    correct: Array  # how many of them have the largest logit
    count: Array  # how many they are, or as many as was said
    dlogits: Array  # (N, V), gradient of the loss


@readable
class CrossEntropyContext(NamedTuple):
    """What ``cross_entropy_backward`` needs. N rows count, of V logits each."""

    exps: Array  # (N, V) exp(logits - max): kept, exponentials cost more than memory
    total: Array  # (N, 1) their sums
    labels: Array  # (N,)
    counts: Array  # (...,) bool, which rows of the logits count
    logits: ArraySpec


@accelerated
def cross_entropy_forward(
    logits: Array, labels: Array, ignore_index: int = IGNORE_INDEX
) -> tuple[Array, CrossEntropyContext]:
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
    require_labels(labels, logits)
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
    return loss, CrossEntropyContext(exps, total, kept, counts, ArraySpec.of(logits))


@accelerated
def cross_entropy_backward(dloss: Array, ctx: CrossEntropyContext) -> Array:
    """Gradient of the logits, (..., V); zero for tokens that do not count.

    dlogits = (softmax(logits) - onehot(label)) * dloss / N
    ``dloss``: a number or a scalar array.

    >>> import numpy as np
    >>> loss, ctx = cross_entropy_forward(np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), np.array([0, -100]))
    >>> cross_entropy_backward(1.0, ctx).round(2).tolist()
    [[-0.5, 0.25, 0.25], [0.0, 0.0, 0.0]]
    """
    require_context(ctx, CrossEntropyContext, "cross_entropy_forward")
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


@accelerated
def cross_entropy_and_gradient(
    logits: Array, labels: Array, ignore_index: int = IGNORE_INDEX, count: Array | None = None
) -> LossAndGradient:
    """Forward and backward at once, as training wants them, with the count of right answers.

    ``logits``: (N, V), which may be OVERWRITTEN by their gradient; ``labels``: (N,). A token that does not count is
    neither right nor wrong. ``count``: a scalar, how many labels to divide by where these are a part of them; None:
    those of ``labels``. Equation and errors as :func:`cross_entropy_forward`. On the GPU nothing is waited for.

    >>> import numpy as np
    >>> result = cross_entropy_and_gradient(np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), np.array([0, -100]))
    >>> round(float(result.loss), 6), int(result.correct), int(result.count), result.dlogits.round(2).tolist()
    (0.693147, 1, 1, [[-0.5, 0.25, 0.25], [0.0, 0.0, 0.0]])
    """
    require_labels(labels, logits)
    loss, ctx = cross_entropy_forward(logits, labels, ignore_index)
    counts = labels != ignore_index
    correct = ((logits.argmax(axis=-1) == labels) & counts).sum()
    if count is None:
        return LossAndGradient(loss, correct, counts.sum(), cross_entropy_backward(1.0, ctx))
    share = counts.sum() / max(1, int(count))
    return LossAndGradient(loss * loss.dtype.type(share), correct, count, cross_entropy_backward(share, ctx))


def require_labels(labels: Array, logits: Array) -> None:
    """ValueError or TypeError unless ``labels`` has one entry for each row of ``logits``, which are floats.

    >>> import numpy as np
    >>> require_labels(np.zeros(3, int), np.zeros((2, 5)))
    Traceback (most recent call last):
        ...
    ValueError: labels must have one entry per token, shape (2,), got (3,)
    """
    require_floats("logits", logits)
    if hasattr(labels, "dtype"):
        require_array("labels", labels)
    if getattr(labels, "shape", None) != logits.shape[:-1]:
        got = getattr(labels, "shape", type(labels).__name__)
        raise ValueError(f"labels must have one entry per token, shape {logits.shape[:-1]}, got {got}")
