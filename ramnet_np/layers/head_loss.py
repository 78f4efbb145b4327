"""The head of a language model and its cross-entropy, some tokens after others: no logits of all tokens at once.

Logits are the largest array of a model: 65,536 tokens with a vocabulary of 32,000 have two billion. The loss needs each
of them once, and so does its gradient, so a piece of them is made, used and given up before the next one.
"""

from __future__ import annotations

from typing import NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import require_array, require_width
from ramnet_np.layers.linear import matrix_product, weight_product
from ramnet_np.layers.loss import IGNORE_INDEX, cross_entropy_and_gradient

PIECE = 2**28  # logits at once, at most


class HeadLoss(NamedTuple):
    """What a training step wants of its last hidden vectors; the first three as in ``LossAndGradient``."""

    loss: Array  # mean over the labels that count
    correct: Array  # how many of them have the largest logit
    count: Array  # how many they are
    x: Array  # (N, D), gradient of the loss
    weight: Array  # (V, D), gradient of the loss, of the dtype of its sums


@on_gpu_of_arrays
def head_loss_and_gradients(
    x: Array, weight: Array, labels: Array, count: Array | None = None, piece: int = PIECE
) -> HeadLoss:
    """Logits, their cross-entropy, and the gradients of what they are made of.

        logits = x W^T        loss = mean of cross_entropy(logits, labels)        dx = dlogits W        dW = dlogits^T x

    ``x``: (N, D); ``weight``: (V, D); ``labels``: (N,), where ``IGNORE_INDEX`` counts for nothing; ``count``: divide by
    so many labels instead of those of ``labels``, as for a part of a batch; ``piece``: logits at once. Memory: two
    times ``piece`` numbers. Cost: three products of 2 N D V operations, and one pass over the logits.
    ValueError or TypeError where shapes or dtypes do not fit.

    >>> import numpy as np
    >>> x, weight, labels = np.array([[1.0], [2.0]]), np.array([[0.0], [1.0]]), np.array([1, 0])
    >>> whole, parts = (head_loss_and_gradients(x, weight, labels, piece=piece) for piece in (4, 2))
    >>> round(float(whole.loss), 6), all(np.allclose(a, b) for a, b in zip(whole, parts))
    (1.220095, True)
    """
    rows, width = require_array("weight", weight).shape
    require_width("x", x, width, weight)
    N, step = x.shape[0], max(1, piece // rows)
    if step < N and count is None:
        count = (labels != IGNORE_INDEX).sum()
    loss = correct = dweight = None
    dx = None if step >= N else namespace_of(x).empty_like(x)
    for begin in range(0, max(1, N), step):
        part = x[begin : begin + step]
        logits = matrix_product(part, weight.T)
        found = cross_entropy_and_gradient(logits, labels[begin : begin + step], count=count)
        loss = found.loss if loss is None else loss + found.loss
        correct = found.correct if correct is None else correct + found.correct
        dweight = weight_product(found.dlogits, part, accumulate_into=dweight)
        if dx is None:
            dx = matrix_product(found.dlogits, weight)
        else:
            dx[begin : begin + step] = matrix_product(found.dlogits, weight)
    return HeadLoss(loss, correct, found.count if count is None else count, dx, dweight)
