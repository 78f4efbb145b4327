"""Rows of a sparse state as one would write them first: a Python dictionary and rows in the host's memory.

What a sparse memory on a GPU is compared with: addresses come to the host, a dictionary finds the rows, NumPy gathers
them, and they are copied to the GPU and back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


class DictionaryRows:
    """Rows by the keys of their slots, with the methods of ``core/tiered_rows.py``; ``initial``: of a new slot.

    >>> rows = DictionaryRows(np.array([0, 0.5], np.float32), np)
    >>> rows.scatter(np.array([7]), np.array([[1, 2]], np.float32))
    >>> rows.gather(np.array([7, 9])).tolist(), rows.written
    ([[1.0, 2.0], [0.0, 0.5]], 1)
    """

    stays = False

    def __init__(self, initial: np.ndarray, xp: Any):
        self._initial, self._xp = initial, xp
        self._row_of_key: dict[int, int] = {}
        self._rows = np.empty((1024, initial.size), dtype=initial.dtype)

    @property
    def written(self) -> int:
        """How many slots were ever stored."""
        return len(self._row_of_key)

    def gather(self, keys: Any) -> Any:
        """The rows (N, W) of slots by their ``keys`` (N,)."""
        found = [self._row_of_key.get(key, -1) for key in keys.tolist()]
        rows = self._rows[found]
        rows[np.array(found, dtype=int) < 0] = self._initial
        return self._xp.asarray(rows)

    def scatter(self, keys: Any, rows: Any) -> None:
        """Store ``rows`` (N, W) of slots by their ``keys`` (N,)."""
        at = [self._row_of_key.setdefault(key, len(self._row_of_key)) for key in keys.tolist()]
        while len(self._row_of_key) > len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[at] = rows if self._xp is np else rows.get()

    def blocks(self, size: int) -> Iterator[tuple[Any, Any]]:
        """Every slot, keys and rows, ``size`` at a time."""
        keys = np.array(list(self._row_of_key))
        for start in range(0, len(keys), size):
            some = self._xp.asarray(keys[start : start + size])
            yield some, self.gather(some)
