"""Batches in an order that depends on (seed, step) alone, so that a resumed run sees what an unbroken one would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ramnet_np.contract import Array
from ramnet_np.core.require import require_array
from ramnet_np.data.checks import check_count, check_seed


class Batch(NamedTuple):
    """Sequences of one length. A label below 0 is not trained on nor counted."""

    ids: Array  # (B, T) integers
    labels: Array  # (B, T) integers

    @property
    def tokens(self) -> int:
        """B T."""
        return self.ids.size


class StreamBatch(NamedTuple):
    """Sequences that go on with those of the batch before, row by row; only a row that starts at 0 begins anew."""

    ids: Array  # (B, T) integers
    labels: Array  # (B, T) integers
    start: Array  # (B,) integers: how many tokens of its document come before the row's first; 0: its memory is empty

    @property
    def tokens(self) -> int:
        """B T."""
        return self.ids.size


class PackedBatch(NamedTuple):
    """Rows that hold several sequences each, one after another: none goes on with what is before it."""

    ids: Array  # (B, T) integers
    labels: Array  # (B, T) integers
    lengths: tuple[tuple[int, ...], ...]  # of the sequences of each row

    @property
    def tokens(self) -> int:
        """B T."""
        return self.ids.size

    def cu_seqlens(self, begin: int, end: int) -> NDArray[np.int64]:
        """The offsets (N + 1,) of the sequences of some rows that stand in one.

        >>> ids = np.zeros((2, 3), int)
        >>> PackedBatch(ids, ids, ((2, 1), (3,))).cu_seqlens(0, 2).tolist()
        [0, 2, 3, 6]
        """
        return np.cumsum([0, *(length for row in self.lengths[begin:end] for length in row)])


class Share(NamedTuple):
    """Which rows of every batch a process wants: part ``rank`` of ``size`` equal parts.

    >>> Share(rank=1, size=2).of([10, 11, 12, 13])
    [12, 13]
    """

    rank: int = 0
    size: int = 1

    def of(self, rows: Any) -> Any:
        """Those of ``rows``. ValueError where the parts would not be equal."""
        if len(rows) % self.size:
            raise ValueError(f"batch must be a multiple of the {self.size} parts that it is shared in, got {len(rows)}")
        each = len(rows) // self.size
        return rows[self.rank * each : (self.rank + 1) * each]


WHOLE = Share()


class BatchSource(Protocol):
    """Training batches by step."""

    def batch(self, step: int) -> Any:
        """The training batch of a step: the same step always gives the same batch.

        A :class:`Batch`, a :class:`StreamBatch`, a :class:`PackedBatch`, or a
        :class:`~ramnet_np.data.gpu_dataset.GPUBatch` for a model on the GPU.
        """


class DataSource(BatchSource, Protocol):
    """A data set: training batches, and sequences to measure on."""

    def held_out(self) -> Mapping[str, Batch]:
        """Sequences to measure on, by a name that the metrics will show."""


def _check_set(name: str, examples: Batch) -> None:
    ids, labels = (require_array(f"{part} of {name}", x) for part, x in zip(("ids", "labels"), examples, strict=True))
    if len(ids.shape) != 2 or 0 in ids.shape or labels.shape != ids.shape:
        raise ValueError(
            f"ids and labels of {name} must have one shape (N, T), none of them 0, got {ids.shape} and {labels.shape}"
        )


class ShuffledSets:
    """Epochs over sets of sequences: each epoch visits every sequence once, in a new order.

    A batch holds sequences of one set, since sets differ in length; batches of all sets come mixed. The last sequences
    of a set that do not fill a batch are left out of that epoch. ``share``: the rows of every batch that are wanted.
    ValueError or TypeError for sets that are none, are empty, or have ids and labels that do not belong together.
    """

    def __init__(
        self, train: Sequence[Batch], held_out: Mapping[str, Batch], batch: int, seed: int, share: Share = WHOLE
    ):
        check_count("batch", batch)
        check_seed(seed)
        if not train:
            raise ValueError("train must hold at least one set, got none")
        for name, one in (*((f"train[{i}]", one) for i, one in enumerate(train)), *held_out.items()):
            _check_set(name, one)
        self._train = train
        self._held_out = held_out
        self._size = batch
        self._seed, self._share = seed, share
        counts = [len(s.ids) // batch for s in self._train]
        for i, count in enumerate(counts):
            if count == 0:
                raise ValueError(
                    f"batch must be at most the number of training examples, got batch {batch} "
                    f"and {len(self._train[i].ids)} examples in training set {i}"
                )
        # before shuffling: which set each batch of the epoch is from, and which of that set's batches it is
        self._set_of = np.repeat(np.arange(len(counts)), counts)
        self._number_of = np.concatenate([np.arange(count) for count in counts])
        self._epoch: tuple[int, NDArray[np.int64], list[NDArray[np.int64]]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        return len(self._set_of)

    def batch(self, step: int) -> Batch:
        number, rows = self.rows(step)
        ids, labels = self._train[number]
        return Batch(ids[rows], labels[rows])

    def rows(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The number of the training set that the batch of a step is from, and the rows wanted there."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        epoch, position = divmod(step, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:  # one epoch's order at a time is kept
            rng = np.random.default_rng([self._seed, epoch])
            order = rng.permutation(self.batches_per_epoch)
            self._epoch = epoch, order, [rng.permutation(len(s.ids)) for s in self._train]
        _, order, rows = self._epoch
        number, batch = self._set_of[order[position]], self._number_of[order[position]]
        return int(number), self._share.of(rows[number][batch * self._size : (batch + 1) * self._size])

    def held_out(self) -> Mapping[str, Batch]:
        return self._held_out
