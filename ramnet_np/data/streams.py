"""Whole documents in order, B of them side by side: what a model with carried state is trained on.

    row 0   | Emma 0 | Emma 1 | Emma 2 . | Dracula 0 | Dracula 1 | ...
    row 1   | Ulysses 0 | Ulysses 1 | Ulysses 2 | Ulysses 3 | ...          a column is a step, "." has no label

Each step takes the next window of every row's document. A row whose document has ended takes the next one, whatever
the other rows do: no row waits. Each epoch has an order of its own. Which windows belong to a step follows from the
sizes of the documents, the seed and the step alone.
Source: truncated backpropagation, Williams and Peng, "An efficient gradient-based algorithm for on-line training of
recurrent network trajectories" (1990).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramnet_np.data.checks import check_count, check_seed


class Place(NamedTuple):
    """Where a row of a batch is from."""

    document: int
    start: int  # its first token there


class Streams:
    """Which window of which document each row of each step reads.

    ``sizes``: tokens of each document, 2 or more; ``length``: of a window. A document of n tokens has n - 1 to predict,
    in windows of ``length`` of which the last may be shorter.

    >>> streams = Streams([5, 3], length=2, batch=1, seed=0)
    >>> [tuple(streams.places(step)[0]) for step in range(4)]
    [(0, 0), (0, 2), (1, 0), (0, 0)]
    """

    def __init__(self, sizes: Sequence[int], length: int, batch: int, seed: int):
        check_count("length", length)
        check_count("batch", batch)
        check_seed(seed)
        if not sizes or min(sizes) < 2:
            raise ValueError(f"sizes must be of documents of two tokens or more, got {min(sizes, default='none')}")
        self._windows = [-(-(size - 1) // length) for size in sizes]
        self._length, self._batch, self._seed = length, batch, seed
        self._order: tuple[int, NDArray[np.int64]] | None = None  # of one epoch, which is kept
        self._step, self._taken = 0, 0
        self._ends: list[tuple[int, int]] = []  # the step at which a row is free again, and the row: the next first
        self._rows = [(0, 0)] * batch  # its document, and the step of that one's first window
        self._begin()

    def places(self, step: int) -> list[Place]:
        """A place for each row. Going forward is quick; an earlier step than the last one begins at step 0 again."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        if step < self._step:
            self._begin()
        self._step = step
        while self._ends[0][0] <= step:
            end, row = heapq.heappop(self._ends)
            self._take(row, end)
        return [Place(document, (step - first) * self._length) for document, first in self._rows]

    def _begin(self) -> None:
        self._step, self._taken = 0, 0
        self._ends.clear()
        for row in range(self._batch):
            self._take(row, 0)

    def _take(self, row: int, step: int) -> None:
        """From ``step`` on ``row`` reads the next document."""
        epoch, position = divmod(self._taken, len(self._windows))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._windows))
        document = int(self._order[1][position])
        self._taken += 1
        self._rows[row] = document, step
        heapq.heappush(self._ends, (step + self._windows[document], row))
