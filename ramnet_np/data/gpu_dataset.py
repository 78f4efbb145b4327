"""Training sets that live on the GPU: the host names the rows of a batch, a kilobyte, and the step gathers them there.

For many short steps: what the host does for a batch no longer depends on its length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramnet_np.contract import Array
from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.core.require import require_ids
from ramnet_np.data.batches import Batch, ShuffledSets


class GPUDataset:
    """A set of sequences on the GPU, each with the same number L of labelled tokens; only their labels are kept.

    ``examples``: ids and labels (N, T) on the host; ``vocab``: ids and labels must be below it. ValueError unless both
    hold. ``xp``: the array library, CuPy unless told otherwise.

    >>> ids = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    >>> labels = np.array([[-100, 1, -100], [2, -100, -100], [3, -100, -100]])
    >>> dataset = GPUDataset(Batch(ids, labels), vocab=10, xp=np)
    >>> [array.tolist() for array in dataset.gather(np.array([2, 0]))]  # rows 2 and 0
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
        self._ids = self._xp.asarray(examples.ids.astype(np.int32))  # (N, T)
        self._positions = self._xp.asarray(np.nonzero(labelled)[1].reshape(shape).astype(np.int32))  # (N, L): t
        self._labels = self._xp.asarray(examples.labels[labelled].reshape(shape).astype(np.int32))  # (N, L)

    @property
    def length(self) -> int:
        """T."""
        return self._ids.shape[1]

    def gather(self, rows: Array) -> tuple[Array, Array, Array]:
        """ids (B, T), positions b*T + t (B*L,) of the labelled tokens, and their labels (B*L,).

        ``rows``: (B,), on the GPU.
        """
        take = self._xp.take
        first = self._xp.arange(len(rows), dtype=np.int32)[:, None] * np.int32(self.length)  # token of each sequence
        positions = take(self._positions, rows, axis=0) + first
        return take(self._ids, rows, axis=0), positions.ravel(), take(self._labels, rows, axis=0).ravel()


class GPUBatch(NamedTuple):
    """Some rows of a set on the GPU."""

    source: GPUDataset
    rows: NDArray[np.int64]  # (B,), on the host

    @property
    def tokens(self) -> int:
        """B T."""
        return len(self.rows) * self.source.length


class GPUDatasets:
    """The training batches of ``sets``, row for row, from ``on_gpu``, which holds the same training sets in order."""

    def __init__(self, sets: ShuffledSets, on_gpu: list[GPUDataset]):
        self._sets, self._on_gpu = sets, on_gpu

    def batch(self, step: int) -> GPUBatch:
        number, rows = self._sets.rows(step)
        return GPUBatch(self._on_gpu[number], rows)
