"""Training sets that live on the GPU: the host names the rows of a batch, a kilobyte, and the step gathers them there.

For many short steps: what the host does for a batch no longer depends on its length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.core.require import require_ids
from ramnet_np.data.batches import Batch, ShuffledSets


class ResidentSet:
    """A set of sequences on the GPU, each with the same number of labelled tokens; their labels are kept alone.

    ``examples``: ids and labels (N, T) on the host; ``vocab``: ids and labels must be below it. ValueError unless both
    hold. ``xp``: the array library, CuPy unless told otherwise.

    >>> ids = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    >>> labels = np.array([[-100, 1, -100], [2, -100, -100], [3, -100, -100]])
    >>> kept = ResidentSet(Batch(ids, labels), vocab=10, xp=np)
    >>> [array.tolist() for array in kept.gather(np.array([2, 0]))]  # of rows 2 and 0
    [[[7, 8, 9], [1, 2, 3]], [0, 4], [3, 1]]
    """

    def __init__(self, examples: Batch, vocab: int, xp: Any = None):
        self._xp = gpu_namespace() if xp is None else xp
        labelled = examples.labels >= 0
        counts = labelled.sum(axis=1)
        if counts.min() != counts.max() or not counts[0]:
            raise ValueError(
                f"sequences of a set must have equally many labelled tokens, got {counts.min()} to {counts.max()}"
            )
        require_ids("ids", examples.ids, vocab)
        require_ids("labels", examples.labels[labelled], vocab)
        shape = (len(counts), int(counts[0]))
        self._ids = self._xp.asarray(examples.ids.astype(np.int32))
        self._places = self._xp.asarray(np.nonzero(labelled)[1].reshape(shape).astype(np.int32))
        self._labels = self._xp.asarray(examples.labels[labelled].reshape(shape).astype(np.int32))

    @property
    def length(self) -> int:
        """T."""
        return self._ids.shape[1]

    def gather(self, rows: Any) -> tuple[Any, Any, Any]:
        """ids (B, T), positions b*T + t (N,) of the labelled tokens, their labels (N,); ``rows``: (B,), on the GPU."""
        take = self._xp.take
        first = self._xp.arange(len(rows), dtype=np.int32)[:, None] * np.int32(self.length)  # token of each sequence
        positions = take(self._places, rows, axis=0) + first
        return take(self._ids, rows, axis=0), positions.ravel(), take(self._labels, rows, axis=0).ravel()


class ResidentBatch(NamedTuple):
    """Some rows of a set on the GPU."""

    source: ResidentSet
    rows: NDArray[np.int64]  # (B,), on the host

    @property
    def tokens(self) -> int:
        """B T."""
        return len(self.rows) * self.source.length


class ResidentSets:
    """The training batches of ``sets``, row for row, out of ``resident``, which holds its training sets in order."""

    def __init__(self, sets: ShuffledSets, resident: list[ResidentSet]):
        self._sets, self._resident = sets, resident

    def batch(self, step: int) -> ResidentBatch:
        owner, rows = self._sets.rows(step)
        return ResidentBatch(self._resident[owner], rows)
