"""Rows found by slot number: what a sparse memory holds of the slots that were ever touched.

    key = (b * H + h) * M + slot                        one number for every slot of every head and sequence
    row = the entry that holds key, from hash(key) on   open addressing, linear probing

Rows lie one behind the other in an array that grows by pages. A table of entries, each the number of a row or -1, is at
most half full; a key's entry is the first from ``hash(key)`` on that is free or whose row has the key. The table holds
no keys itself: the row's own key is compared. Memory follows the rows, whatever M is.
Source: D. Knuth, The Art of Computer Programming, vol. 3, section 6.4 (open addressing, the multiplicative hash).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated_everywhere
from ramnet_np.core.arrays import namespace_of

PAGE = 16  # neighbouring slots of a head, which move between tiers together
PAGE_ROWS = 256  # rows that are added at once, at least
FREE = -1
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: spreads runs of slots over the table


@accelerated_everywhere
def find_rows(keys: Array, key_of_row: Array, entries: Array) -> Array:
    """The row of every key, (N,) int64, or -1 where there is none.

    ``keys``: (N,) int64; ``key_of_row``: (R,) int64; ``entries``: (E,) int32, E a power of two.

    >>> key_of_row, entries = np.array([70, 50]), np.full(4, -1, np.int32)
    >>> enter_rows(key_of_row, entries, 0, 2)
    >>> find_rows(np.array([50, 60, 70]), key_of_row, entries).tolist()
    [1, -1, 0]
    """
    xp = namespace_of(keys)
    entry, rows = _first_entry(keys, entries.size), xp.full(keys.shape, FREE, dtype=np.int64)
    left = xp.arange(keys.size)
    while left.size:
        at = entries[entry[left]]
        found = (at >= 0) & (key_of_row[at] == keys[left])  # row -1 is looked at and not taken
        rows[left[found]] = at[found]
        left = left[(at >= 0) & ~found]
        entry[left] = (entry[left] + 1) & (entries.size - 1)
    return rows


@accelerated_everywhere
def enter_rows(key_of_row: Array, entries: Array, start: int, stop: int) -> None:
    """Put rows ``start`` to ``stop`` - 1 into the table; their keys must differ from each other and from all in it.

    >>> entries = np.full(2, -1, np.int32)
    >>> enter_rows(np.array([7]), entries, 0, 1)
    >>> sorted(entries.tolist())
    [-1, 0]
    """
    xp = namespace_of(key_of_row)
    rows = xp.arange(start, stop, dtype=np.int32)
    entry = _first_entry(key_of_row[start:stop], entries.size)
    while rows.size:
        free = entries[entry] == FREE
        entries[entry[free]] = rows[free]  # of several that want one entry, one gets it ...
        lost = entries[entry] != rows  # ... and the others go on to the next
        rows, entry = rows[lost], (entry[lost] + 1) & (entries.size - 1)


class SlotRows:
    """Rows of ``width`` numbers, each under a key of its own.

    >>> held = SlotRows(2, np.float32)
    >>> held.put(np.array([5, 9]), np.array([[1, 2], [3, 4]], np.float32))
    >>> held.rows[held.find(np.array([9]))].tolist(), held.count
    ([[3.0, 4.0]], 2)
    """

    def __init__(self, width: int, dtype: Any, xp: Any = np):
        self._xp, self.count = xp, 0
        self.key = xp.empty(0, dtype=np.int64)  # (R,) of which ``count`` are taken, here and below
        self.rows = xp.empty((0, width), dtype=dtype)
        self.used = xp.empty(0, dtype=np.int64)  # when a row was last asked for
        self.changed = xp.empty(0, dtype=np.bool_)  # since it came from the disk
        self.entries = xp.full(2, FREE, dtype=np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in (self.key, self.rows, self.used, self.changed, self.entries))

    def find(self, keys: Array) -> Array:
        """The row of every key, or -1: see :func:`find_rows`."""
        return find_rows(keys, self.key, self.entries) if self.count else self._xp.full(keys.shape, FREE)

    def reserve(self, new: int) -> None:
        """Room for ``new`` rows more, in the table too. MemoryError where there is none."""
        self._reserve(self.count + new)
        if 2 * (self.count + new) > self.entries.size:
            entries = self._empty_table(self.count + new)
            enter_rows(self.key, entries, 0, self.count)
            self.entries = entries

    def put(self, keys: Array, rows: Array, now: int = 0, changed: bool = True) -> None:
        """Store ``rows`` (N, width) under ``keys`` (N,), which differ: in place of those that are there, else anew.

        ``now``: the time of use that the rows get; ``changed``: whether they differ from what the disk holds.
        MemoryError where there is no memory for them; then nothing has changed.
        """
        self.putting(keys, rows, now, changed)()

    def putting(self, keys: Array, rows: Array, now: int = 0, changed: bool = True) -> Callable[[], None]:
        """Make the room for :meth:`put`, with its error; the call that is returned stores the rows."""
        at = self.find(keys)
        new = at < 0
        start, stop = self.count, self.count + int(new.sum())
        self.reserve(stop - start)
        at[new] = self._xp.arange(start, stop)

        def put() -> None:
            self.key[at] = keys
            self.rows[at] = rows
            self.used[at] = now
            self.changed[at] = changed
            enter_rows(self.key, self.entries, start, stop)
            self.count = stop

        return put

    def forgetting(self, rows: Array) -> Callable[[], None]:
        """Find what giving back the places of ``rows``, (N,) distinct numbers, takes; the call returned does it.

        The last rows move there. MemoryError where there is no memory for it; then nothing has changed.
        """
        kept = self._xp.ones(self.count, dtype=np.bool_)
        kept[rows] = False
        count = self.count - rows.size
        holes, movers = self._xp.nonzero(~kept[:count])[0], count + self._xp.nonzero(kept[count:])[0]
        moved = [(array, array[movers]) for array in (self.key, self.rows, self.used, self.changed)]
        entries = self._empty_table(count)

        def forget() -> None:
            for array, values in moved:
                array[holes] = values
            self.count, self.entries = count, entries
            enter_rows(self.key, entries, 0, count)

        return forget

    def _reserve(self, rows: int) -> None:
        if rows <= len(self.key):
            return
        size = max(rows, len(self.key) + max(PAGE_ROWS, len(self.key) // 4))
        try:
            self.rows = _grown(self.rows, size)  # first what there may be no memory for
        except MemoryError:
            size = rows  # none ahead
            self.rows = _grown(self.rows, size)
        self.used, self.changed, self.key = (_grown(array, size) for array in (self.used, self.changed, self.key))

    def _empty_table(self, rows: int) -> Array:
        """A table with room for twice so many as ``rows``."""
        return self._xp.full(1 << (4 * max(rows, 1) - 1).bit_length(), FREE, dtype=np.int32)


def _grown(array: Array, size: int) -> Array:
    """``array`` (R, ...) with more rows."""
    if isinstance(array, np.ndarray):
        array.resize((size, *array.shape[1:]), refcheck=False)  # where the system can, without a copy
        return array
    larger = namespace_of(array).empty((size, *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


def _first_entry(keys: Array, entries: int) -> Array:
    """Where each key's search starts, (N,) int64."""
    xp = namespace_of(keys)
    shift = np.uint64(64 - (entries.bit_length() - 1))
    return ((keys.view(np.uint64) * xp.uint64(GOLDEN)) >> shift).astype(np.int64)
