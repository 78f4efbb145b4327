"""The gradients of all ranks, added up in one flat buffer while the backward still runs.

    buffer    last norm | last block | ... | first block | embeddings | loss | correct | for each rank: is it finite?
              └── bucket 0 ──┴── bucket 1 ──┴─ ...     ──┴────────────── last bucket ──────────────────────────────┘

    n       = sum_r n_r                labels of the whole batch, summed before the backward
    loss_r  = sum over own labels / n
    grads   = sum_r grads_r            the gradient of sum_r loss_r, the mean loss of the batch

So the sum needs neither weights nor a division. The buffer has the order in which a backward makes the gradients: a
bucket whose gradients are complete is summed beside the backward of the blocks before. Nothing is read back from a GPU,
so that what stands between the sums can be captured as graphs.
Source of the buckets: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (2020).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.model.parameters import Params
from ramnet_np.train.gradients import Gradients
from ramnet_np.train.ranks import Ranks

BUCKET = 2**24  # numbers, at least, in all buckets but the last: 64 MB
_ALIGNED = 64  # numbers: where a gradient begins in the buffer, so that kernels can read it as it is


class _Bucket(NamedTuple):
    array: Array  # a part of the buffer
    names: frozenset[str]  # the gradients in it


class GradientSum:
    """The sum over ``ranks`` of the gradients of ``params``, and the memory that it takes: once more the parameters.

    ``params``: in the order of the forward; ``bucket``: numbers that are summed at once, at least.
    A step calls :meth:`labels`, :meth:`add` until all gradients were there, :meth:`total`.

    >>> import numpy as np
    >>> from ramnet_np.train.ranks import ONE
    >>> over_ranks = GradientSum(ONE, {"a": np.zeros(2)})
    >>> int(over_ranks.labels(np.array(4)))
    4
    >>> over_ranks.add({"a": np.array([1.0, 3.0])})
    >>> total = over_ranks.total(np.array(2.0), np.array(1))
    >>> float(total.loss), total.grads["a"].tolist()
    (2.0, [1.0, 3.0])
    """

    def __init__(self, ranks: Ranks, params: Params, bucket: int = BUCKET):
        first = next(iter(params.values()))
        xp = namespace_of(first)
        starts, ends, end = {}, [0], 0
        for name, param in reversed(params.items()):
            if end - ends[-1] >= bucket:
                ends.append(end)
            starts[name] = end
            end += param.size + -param.size % _ALIGNED
        self._ranks = ranks
        self._buffer = xp.zeros(end + 2 + ranks.size, first.dtype)
        self._numbers, self._marks = self._buffer[end : end + 2], self._buffer[end + 2 :]
        self._views = {n: self._buffer[starts[n] : starts[n] + p.size].reshape(p.shape) for n, p in params.items()}
        self._buckets = [
            _Bucket(self._buffer[begin:end], frozenset(n for n, at in starts.items() if begin <= at < end))
            for begin, end in pairwise([*ends, len(self._buffer)])
        ]
        self._added: set[str] = set()  # gradients of this step
        self._sent = 0  # buckets of this step
        self._count = xp.zeros(1, np.int32)
        self._seen = xp.zeros(ranks.size, first.dtype)  # the marks of all steps so far

    def labels(self, own: Array) -> Array:
        """How many labels the whole batch has, ``own`` of them on this rank. The step's first call."""
        self._added.clear()
        self._sent = 0
        self._marks[...] = 0
        self._count[...] = own
        self._ranks.all_reduce(self._count)
        return self._count[0]

    def add(self, grads: Params) -> None:
        """Gradients of this rank that are complete; a bucket that now has all of its own is on its way."""
        for name, grad in grads.items():
            self._views[name][...] = grad
        self._added |= grads.keys()
        while self._sent < len(self._buckets) - 1 and self._buckets[self._sent].names <= self._added:
            self._send()

    def total(self, loss: Array, correct: Array) -> Gradients:
        """Those of the whole batch, the same bits on every rank; the gradients are views of the buffer."""
        self._numbers[0], self._numbers[1] = loss, correct
        return self._rest()

    def fail(self) -> None:
        """Take part in the sums of a step that this rank could not compute: the step fails on every rank."""
        for bucket in self._buckets[self._sent :]:
            bucket.array[...] = 0
        self._numbers[0] = float("nan")
        self._rest()

    def where(self) -> str:
        """Which rank had a number that is not finite, for the end of a sentence. Waits for a GPU."""
        found = on_host(self._seen).nonzero()[0].tolist()
        return f" on rank {', '.join(map(str, found))}" if found else ""

    def _send(self) -> None:
        """Start the sum of the next bucket."""
        array = self._buckets[self._sent].array
        with np.errstate(over="ignore", invalid="ignore"):  # a sum is not finite if a number is not; one pass tells
            self._marks[self._ranks.rank] += ~namespace_of(array).isfinite(array.sum())
        self._ranks.start_all_reduce(array)
        self._sent += 1

    def _rest(self) -> Gradients:
        """Sum what is left, and wait for all sums."""
        while self._sent < len(self._buckets):
            self._send()
        self._ranks.join()
        namespace_of(self._buffer).maximum(self._seen, self._marks, out=self._seen)
        return Gradients(self._numbers[0], self._numbers[1].astype(np.int32), self._count[0], self._views)
