"""Documents packed into rows of one length: every token of a row is trained on, and no row is filled up.

    documents   aaaaaaa bbb cccccccccccc        in the order of the epoch
    row 0       a a a a a a b b                 2 sequences
    row 1       c c c c c c c c                 1
    row 2       c c c ...                       what is left of it, and the next document

A document of n tokens has n - 1 to predict, and these follow one another. A row ends after ``length`` of them, wherever
that is; what is left of a document opens the next row, as a sequence of its own. Each epoch has an order of its own.
Its last tokens, too few for a row, are left out. Which documents a row has follows from their sizes, the seed and the
number of the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramnet_np.data.checks import check_count, check_seed


class Piece(NamedTuple):
    """Tokens of a document that follow one another."""

    document: int
    start: int
    size: int  # tokens that are read; as many are predicted, each one later


class PackedRows:
    """Which pieces of which documents each row has.

    ``sizes``: tokens of each document, 2 or more; ``length``: of a row. ValueError where all documents together do not
    fill a row.

    >>> rows = PackedRows([8, 4, 13], length=8, seed=2)
    >>> [[tuple(piece) for piece in rows.row(number)] for number in range(2)]
    [[(2, 0, 8)], [(2, 8, 4), (0, 0, 4)]]
    """

    def __init__(self, sizes: Sequence[int], length: int, seed: int):
        check_count("length", length)
        check_seed(seed)
        if not sizes or min(sizes) < 2:
            raise ValueError(f"sizes must be of documents of two tokens or more, got {min(sizes, default='none')}")
        self._predicted = np.array(sizes, dtype=np.int64) - 1
        self._length, self._seed = length, seed
        self.per_epoch = int(self._predicted.sum()) // length
        if not self.per_epoch:
            raise ValueError(
                f"data.length must be at most the {self._predicted.sum()} tokens that documents have to predict, "
                f"got {length}"
            )
        self._epoch: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None  # the last one that was asked for

    def row(self, number: int) -> list[Piece]:
        """The pieces of a row, in their order; ``number``: counted through all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._predicted.size)
            self._epoch = epoch, order, np.concatenate([[0], self._predicted[order].cumsum()])
        _, order, before = self._epoch
        at, end, pieces = place * self._length, (place + 1) * self._length, []
        position = int(np.searchsorted(before, at, side="right")) - 1
        while at < end:
            stop = min(end, int(before[position + 1]))
            pieces.append(Piece(int(order[position]), at - int(before[position]), stop - at))
            at, position = stop, position + 1
        return pieces
