"""The gradients of all ranks, added up in one flat buffer while the backward still runs.

    buffer    last norm | last block | ... | first block | embeddings | loss | correct | for each rank: is it finite?
              └── bucket 0 ──┴── bucket 1 ──┴─ ...     ──┴────────────── last bucket ──────────────────────────────┘

    n       = sum_r n_r                labels of the whole batch, summed before the backward
    loss_r  = sum over own labels / n
    grads   = sum_r grads_r            the gradient of sum_r loss_r, the mean loss of the batch

So the sum needs neither weights nor a division. The buffer has the order in which a backward makes the gradients: a
bucket whose gradients are complete is summed beside the backward of the blocks before. Nothing is read back from a GPU,
so that a step can be captured as a graph.
Source of the buckets: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (2020).
"""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.model.parameters import Params
from ramnet_np.train.gradients import Gradients
from ramnet_np.train.ranks import Ranks

BUCKET = 2**24  # numbers, at least, in all buckets but the last: 64 MB
_ALIGNED = 64  # numbers: where a gradient begins in the buffer, so that kernels can read it as it is


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
        starts, ends, end = {}, [0], 0  # ends: of the buckets
        for name, param in reversed(params.items()):
            if end >= ends[-1] + bucket:
                ends.append(end)
            starts[name] = end
            end += param.size + -param.size % _ALIGNED
        self._ranks = ranks
        self._buffer = xp.zeros(end + 2 + ranks.size, first.dtype)
        self._loss, self._correct, self._marks = (
            self._buffer[end : end + 1], self._buffer[end + 1 : end + 2], self._buffer[end + 2 :],
        )  # fmt: skip
        self._views = {n: self._buffer[starts[n] : starts[n] + p.size].reshape(p.shape) for n, p in params.items()}
        self._ends = [*ends[1:], len(self._buffer)]
        self._sent = 0  # buckets of this step
        self._missing = [sum(begin <= at < e for at in starts.values()) for begin, e in zip(ends, self._ends)]
        self._bucket_of = {n: sum(at >= e for e in self._ends) for n, at in starts.items()}
        self._count = xp.zeros(1, np.int32)
        self._seen = xp.zeros(ranks.size, first.dtype)  # the marks of all steps so far
