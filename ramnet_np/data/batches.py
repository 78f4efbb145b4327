"""Batches in an order that depends on (seed, step) alone, so that a resumed run sees what an unbroken one would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Batch(NamedTuple):
    """Sequences of one length. A label below 0 is not trained on nor counted."""

    ids: Any  # (B, T) integers
    labels: Any  # (B, T) integers

    @property
    def tokens(self) -> int:
        """B T."""
        return self.ids.size


class DataSource(Protocol):
    """What the training loop needs of a data set."""

    def batch(self, step: int) -> Batch:
        """The training batch of a step; the same step always gives the same batch."""

    def held_out(self) -> Mapping[str, Batch]:
        """Sequences to measure on, by a name that the metrics will show."""


class ShuffledSets:
    """Epochs over sets of sequences: each epoch visits every sequence once, in a fresh order.

    A batch holds sequences of one set, since sets differ in length; batches of all sets come mixed. The last sequences
    of a set that do not fill a batch sit out that epoch.
    """

    def __init__(self, train: Sequence[Batch], held_out: Mapping[str, Batch], batch: int, seed: int):
        self._train = train
        self._held_out = held_out
        self._size = batch
        self._seed = seed
        counts = [len(s.ids) // batch for s in self._train]
        for i, count in enumerate(counts):
            if count == 0:
                raise ValueError(
                    f"batch must be at most the number of training examples, got batch {batch} "
                    f"and {len(self._train[i].ids)} examples in training set {i}"
                )
        self._owner = np.repeat(np.arange(len(counts)), counts)  # batch of the epoch -> its set, before shuffling
        self._place = np.concatenate([np.arange(count) for count in counts])  # and which of the set's batches it is
        self._epoch: tuple[int, NDArray[np.int64], list[NDArray[np.int64]]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        return len(self._owner)

    def batch(self, step: int) -> Batch:
        owner, chosen = self.rows(step)
        ids, labels = self._train[owner]
        return Batch(ids[chosen], labels[chosen])

    def rows(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The training set that the batch of a step is from, and its rows there."""
        epoch, number = divmod(step, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:  # one epoch's order at a time is kept
            rng = np.random.default_rng([self._seed, epoch])
            order = rng.permutation(self.batches_per_epoch)
            self._epoch = epoch, order, [rng.permutation(len(s.ids)) for s in self._train]
        _, order, rows = self._epoch
        owner, place = self._owner[order[number]], self._place[order[number]]
        return int(owner), rows[owner][place * self._size : (place + 1) * self._size]

    def held_out(self) -> Mapping[str, Batch]:
        return self._held_out
