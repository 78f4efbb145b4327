"""Rows of touched slots in tiers: in memory up to a capacity, the others in a file.

Rows that were not asked for longest leave the host's memory for a file (``disk_pages.py``), a page of neighbouring
slots at a time, and come up again when one of the page is asked for. A page's rows are all up or all down, so a row has
one place. Source: paper section 7; least recently used: P. Denning, The working set model (1968).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ramnet_np.contract import Array, MemoryTiers
from ramnet_np.core.slot_rows import PAGE, SlotRows
from ramnet_np.core.sparse_checks import check_tiers_of_cpu

LEAST_ROWS = 16 * PAGE  # that the host must hold where it has a capacity


class TieredRows:
    """Rows by the keys of their slots, in ``tiers``.

    ``initial``: the row (W,) of a slot that was never stored; ``xp``: NumPy, or CuPy without tiers.
    ValueError or OSError, naming the tier, for one that cannot be used.

    >>> rows = TieredRows(np.array([0, 0, 0.5], np.float32), MemoryTiers())
    >>> rows.scatter(np.array([7]), np.array([[1, 2, 3]], np.float32))
    >>> rows.gather(np.array([7, 9])).tolist()
    [[1.0, 2.0, 3.0], [0.0, 0.0, 0.5]]
    """

    stays = False  # where it is, so that a CUDA graph could find it

    def __init__(self, initial: np.ndarray, tiers: MemoryTiers, xp: Any = np):
        self._up, self._now, self._xp = SlotRows(initial.size, initial.dtype, xp), 0, xp
        self.is_whole = True  # but for the moments in which rows change, and after an error that came in one of them
        self._initial, row = xp.asarray(initial), initial.nbytes
        if xp is np:
            check_tiers_of_cpu(tiers)
        elif tiers._replace(rows=None) != MemoryTiers():
            raise ValueError("memory must have no limits for arrays on the GPU without backend 'cupy'")
        self._capacity = None if tiers.host is None else tiers.host // row
        if self._capacity is not None and self._capacity < LEAST_ROWS:
            raise ValueError(
                f"memory.host must hold at least {LEAST_ROWS} slots of a layer, {LEAST_ROWS * row} bytes, "
                f"got {tiers.host} bytes for each layer"
            )
        self._disk: Any = None
        if tiers.disk is not None:
            from ramnet_np.core.disk_pages import DiskPages  # the operation is imported without what files need

            self._disk = DiskPages(Path(tiers.disk), tiers.disk_bytes, initial.size, initial.dtype)

    @property
    def written(self) -> int:
        """How many slots were ever stored."""
        return self._up.count + (0 if self._disk is None else self._disk.down_slots)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._up.nbytes

    @property
    def disk_nbytes(self) -> int:
        """Bytes in the file."""
        return 0 if self._disk is None else self._disk.nbytes

    def is_up(self, keys: Array) -> Array:
        """Whether the row of each slot, by its key (N,), is in memory; not if it was never stored."""
        return self._up.find(keys) >= 0

    def gather(self, keys: Array) -> Array:
        """The rows (N, W) of slots by their ``keys`` (N,), which differ."""
        rows = self._xp.empty((keys.size, self._initial.size), dtype=self._initial.dtype)
        rows[...] = self._initial
        for part in self._parts(keys):
            self._bring_up(keys[part])
            at = self._up.find(keys[part])
            self._up.used[at[at >= 0]] = self._now
            rows[part][at >= 0] = self._up.rows[at[at >= 0]]
        return rows

    def scatter(self, keys: Array, rows: Array) -> None:
        """Store ``rows`` (N, W) of slots by their ``keys`` (N,), which differ.

        MemoryError or OSError where there is no room: unless ``is_whole``, some rows are then new and some old.
        """
        for part in self._parts(keys):
            self._bring_up(keys[part])
            self._make_room(int((self._up.find(keys[part]) < 0).sum()), keys[part])
            put = self._up.putting(keys[part], rows[part], self._now)
            self.is_whole = False  # until the last part is there
            put()
        self.is_whole = True

    def blocks(self, size: int) -> Iterator[tuple[Array, Array]]:
        """Every slot that was written, keys and rows (N, W), about ``size`` at a time; nothing moves meanwhile."""
        for start in range(0, self._up.count, size):
            part = slice(start, min(start + size, self._up.count))
            yield self._up.key[part].copy(), self._up.rows[part].copy()
        if self._disk is not None:
            yield from self._disk.blocks(size)

    def all_in_memory(self, new: int) -> SlotRows | None:
        """The rows with room for ``new`` more, where none is ever in the file, for a kernel that changes them there."""
        if self._capacity is not None or self._xp is not np:
            return None
        self._up.reserve(new)
        return self._up

    def close(self) -> None:
        """Give the room in the file back."""
        if self._disk is not None:
            self._disk.close()

    def _parts(self, keys: Array) -> Iterator[slice]:
        """Pieces of ``keys`` whose pages fit into half of the capacity; the disk reads the next behind one's work."""
        self._now += 1
        size = max(1, len(keys) if self._capacity is None else self._capacity // (2 * PAGE))
        for start in range(0, len(keys), size):
            if self._disk is not None:
                self._disk.expect(keys[start + size : start + 2 * size])
            yield slice(start, start + size)

    def _bring_up(self, keys: Array) -> None:
        """Load the pages of those slots that are in the file only."""
        if self._disk is None:
            return
        at = self._up.find(keys)
        self._up.used[at[at >= 0]] = self._now
        down = self._disk.down(keys[at < 0])
        if len(down):
            found, rows = self._disk.load(down)
            self._make_room(len(found), keys)
            put = self._up.putting(found, rows, self._now, changed=False)
            mark = self._disk.marking(down, up=True)
            with changing(self):
                put()
                mark()

    def _make_room(self, new: int, keys: Array) -> None:
        """Send pages that were not asked for longest, and have none of ``keys``, to the file until ``new`` rows fit."""
        if self._capacity is None or self._up.count + new <= self._capacity:
            return
        if self._disk is None:
            raise MemoryError(
                f"memory.host must hold every slot that is written where there is no memory.disk, "
                f"got room for {self._capacity} slots of a layer, all of them full"
            )
        held = slice(self._up.count)
        leave = max(self._up.count + new - self._capacity, self._capacity // 8)  # some more: finding them takes long
        going, stored, clean = leaving(self._up.key[held], self._up.used[held], self._up.changed[held], keys, leave)
        store = self._disk.storing(self._up.key[held][stored], self._up.rows[held][stored])
        mark = self._disk.marking(clean, up=False)
        forget = self._up.forgetting(np.nonzero(going)[0])
        with changing(self):
            store()
            mark()
            forget()


@contextmanager
def changing(rows: Any) -> Iterator[None]:
    """Rows move between tiers within the block: an error there leaves them half moved, with ``is_whole`` False.

    What may fail for want of room is done before.

    >>> rows = TieredRows(np.zeros(2, np.float32), MemoryTiers())
    >>> with changing(rows):
    ...     rows.is_whole
    False
    >>> rows.is_whole
    True
    """
    before, rows.is_whole = rows.is_whole, False
    yield
    rows.is_whole = before


def leaving(
    keys: np.ndarray, used: np.ndarray, changed: np.ndarray, wanted: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows leave memory: pages that were not asked for longest, until ``count`` rows have left.

    Of all rows in memory: ``keys`` (N,), when each was ``used`` last (N,), whether it has ``changed`` (N,) since it
    came from the disk. ``wanted``: keys of slots whose pages stay, as they are asked for now.
    Returns (N,) bool, whether a row leaves; (N,) bool, whether it is to be stored, as its page has changed; and the
    other pages that leave, which the disk has as they are.

    >>> keys, used, changed = np.array([3, 4, 99, 77]), np.array([5, 1, 2, 1]), np.array([True, False, False, False])
    >>> leaving(keys, used, changed, np.array([70]), 1)
    (array([False, False,  True, False]), array([False, False, False, False]), array([6]))
    """
    pages, which = np.unique(keys // PAGE, return_inverse=True)
    last, size = np.zeros(len(pages), dtype=np.int64), np.bincount(which, minlength=len(pages))
    np.maximum.at(last, which, used)
    page_changed = np.bincount(which, changed, minlength=len(pages)) > 0
    stays = np.isin(pages, wanted // PAGE)  # as a whole, whichever of its slots are in memory
    oldest = np.argsort(last, kind="stable")
    oldest = oldest[~stays[oldest]]
    going = np.zeros(len(pages), dtype=np.bool_)
    going[oldest[: np.searchsorted(np.cumsum(size[oldest]), count) + 1]] = True
    return going[which], going[which] & page_changed[which], pages[going & ~page_changed]
