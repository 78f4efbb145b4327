"""The gradients of all ranks, added up in one flat buffer and weighted by labels.

    buffer on rank r    n_r grads_r | n_r loss_r | correct_r | n_r | one number for each rank: is it not finite there?
    after the sum       grads = sum_r n_r grads_r / n        n = sum_r n_r, the labels of the whole batch

Loss and gradients of rank r are means over its n_r labels, so this is the mean over the batch: what one process
computes, to rounding. Nothing is read back from a GPU, so that a step can be captured as a graph.
"""

from __future__ import annotations

from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.model.parameters import Params
from ramnet_np.train.gradients import Gradients
from ramnet_np.train.ranks import Ranks

_ALIGNED = 64  # numbers: where a gradient begins in the buffer, so that kernels can read it as it is


class GradientSum:
    """The sum over ``ranks`` of the gradients of ``params``, and the memory that it takes: once more the parameters.

    >>> import numpy as np
    >>> from ramnet_np.train.ranks import ONE
    >>> add_up = GradientSum(ONE, {"a": np.zeros(2)})
    >>> total = add_up(Gradients(np.array(2.0), np.array(1), np.array(4), {"a": np.array([1.0, 3.0])}))
    >>> float(total.loss), total.grads["a"].tolist()
    (2.0, [1.0, 3.0])
    """

    def __init__(self, ranks: Ranks, params: Params):
        first = next(iter(params.values()))
        xp = namespace_of(first)
        starts, end = {}, 0
        for name, param in params.items():
            starts[name] = end
            end += param.size + -param.size % _ALIGNED
        self._ranks = ranks
        self._buffer = xp.zeros(end + 3 + ranks.size, first.dtype)
        self._grads, self._numbers = self._buffer[:end], self._buffer[end : end + 3]
        self._marks = self._buffer[end + 3 :]
        self._views = {n: self._grads[starts[n] : starts[n] + p.size].reshape(p.shape) for n, p in params.items()}
        self._seen = xp.zeros(ranks.size, first.dtype)  # the marks of all steps so far

    def __call__(self, own: Gradients) -> Gradients:
        """Those of the whole batch, the same bits on every rank; the gradients are views of the buffer."""
        xp = namespace_of(self._buffer)
        weight = xp.asarray(own.count).astype(self._buffer.dtype)
        for name, view in self._views.items():
            xp.multiply(own.grads[name], weight, out=view)
        self._numbers[0] = own.loss * weight
        self._numbers[1], self._numbers[2] = own.correct, own.count
        self._marks[...] = 0
        self._marks[self._ranks.rank] = ~xp.isfinite(self._buffer).all()
        total = self._total()
        correct, count = (
            xp.asarray(after).astype(xp.asarray(before).dtype)
            for after, before in ((total.correct, own.correct), (total.count, own.count))
        )
        return Gradients(total.loss, correct, count, total.grads)

    def fail(self) -> None:
        """Take part in the sum of a step that this rank could not compute: the step fails on every rank."""
        self._buffer[...] = 0
        self._grads[...] = self._numbers[0] = float("nan")
        self._marks[self._ranks.rank] = 1
        self._total()

    def where(self) -> str:
        """Which rank had a number that is not finite, for the end of a sentence. Waits for a GPU."""
        found = on_host(self._seen).nonzero()[0].tolist()
        return f" on rank {', '.join(map(str, found))}" if found else ""

    def _total(self) -> Gradients:
        xp = namespace_of(self._buffer)
        self._ranks.all_reduce(self._buffer)
        xp.maximum(self._seen, self._marks, out=self._seen)
        loss, correct, count = (self._numbers[i] for i in range(3))
        labels = xp.maximum(count, 1)
        self._grads /= labels
        return Gradients(loss / labels, correct, count, self._views)
