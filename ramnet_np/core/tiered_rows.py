"""Rows of touched slots in tiers: in memory up to a capacity, the others in a file.

Rows that were not asked for longest leave the host's memory for a file (``disk_pages.py``), a page of neighbouring
slots at a time, and come up again when one of the page is asked for. A page's rows are all up or all down, so a row has
one place. Source: paper section 7; least recently used: P. Denning, The working set model (1968).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ramnet_np.contract import Array, MemoryTiers
from ramnet_np.core.slot_rows import PAGE, SlotRows
from ramnet_np.core.sparse_checks import check_tiers_of_cpu

LEAST_ROWS = 16 * PAGE  # that the host must hold where it has a capacity


class TieredRows:
    """Rows of ``channels`` contents and a mass, by the keys of their slots, in ``tiers``.

    ``initial_mass``: of a slot that was never stored; ``xp``: NumPy, or CuPy without tiers.
    ValueError or OSError, naming the tier, for one that cannot be used.

    >>> rows = TieredRows(2, np.dtype(np.float32), 0.5, MemoryTiers())
    >>> rows.scatter(np.array([7]), np.array([[1, 2, 3]], np.float32))
    >>> rows.gather(np.array([7, 9])).tolist()
    [[1.0, 2.0, 3.0], [0.0, 0.0, 0.5]]
    """

    stays = False  # where it is, so that a CUDA graph could find it

    def __init__(self, channels: int, dtype: np.dtype, initial_mass: float, tiers: MemoryTiers, xp: Any = np):
        self._up, self._now, self._xp, self._initial_mass = SlotRows(channels + 1, dtype, xp), 0, xp, initial_mass
        row = (channels + 1) * dtype.itemsize
        if xp is np:
            check_tiers_of_cpu(tiers)
        elif tiers != MemoryTiers():
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

            self._disk = DiskPages(Path(tiers.disk), tiers.disk_bytes, channels + 1, dtype)

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

    def gather(self, keys: Array) -> Array:
        """The rows (N, C + 1), contents and mass, of slots by their ``keys`` (N,), which differ."""
        rows = self._xp.zeros((keys.size, self._up.rows.shape[1]), dtype=self._up.rows.dtype)
        rows[:, -1] = self._initial_mass
        for part in self._parts(keys):
            self._bring_up(keys[part])
            at = self._up.find(keys[part])
            self._up.used[at[at >= 0]] = self._now
            rows[part][at >= 0] = self._up.rows[at[at >= 0]]
        return rows

    def scatter(self, keys: Array, rows: Array) -> None:
        """Store ``rows`` (N, C + 1) of slots by their ``keys`` (N,), which differ.

        MemoryError or OSError where there is no room: then some rows are new and some old.
        """
        for part in self._parts(keys):
            self._bring_up(keys[part])
            self._make_room(int((self._up.find(keys[part]) < 0).sum()), keys[part])
            self._up.put(keys[part], rows[part], self._now)

    def blocks(self, size: int) -> Iterator[tuple[Array, Array]]:
        """Every slot that was written, keys and rows (N, C + 1), about ``size`` at a time; nothing moves meanwhile."""
        for start in range(0, self._up.count, size):
            part = slice(start, min(start + size, self._up.count))
            yield self._up.key[part].copy(), self._up.rows[part].copy()
        if self._disk is not None:
            down = self._disk.down()
            for start in range(0, len(down), max(1, size // PAGE)):
                yield self._disk.load(down[start : start + max(1, size // PAGE)])

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

    def _parts(self, keys: Array) -> list[slice]:
        """Pieces of ``keys`` whose pages fit into half of the capacity together."""
        self._now += 1
        size = len(keys) if self._capacity is None else self._capacity // (2 * PAGE)
        return [slice(start, start + size) for start in range(0, len(keys), max(size, 1))]

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
            self._up.put(found, rows, self._now, changed=False)
            self._disk.mark(down, up=True)

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
        pages, which = np.unique(self._up.key[held] // PAGE, return_inverse=True)
        last, size = np.zeros(len(pages), dtype=np.int64), np.bincount(which)
        np.maximum.at(last, which, self._up.used[held])
        last[np.isin(pages, keys // PAGE)] = self._now + 1  # asked for as a whole, whichever of its slots are there
        changed = np.bincount(which, self._up.changed[held]) > 0
        oldest = np.argsort(last, kind="stable")
        leave = max(self._up.count + new - self._capacity, self._capacity // 8)  # some more: finding them takes long
        going = np.zeros(len(pages), dtype=np.bool_)
        going[oldest[: np.searchsorted(np.cumsum(size[oldest]), leave) + 1]] = True
        written = np.nonzero(going[which] & changed[which])[0]
        self._disk.store(self._up.key[written], self._up.rows[written])
        self._disk.mark(pages[going & ~changed], up=False)
        self._up.forget(np.nonzero(going[which])[0])
