"""Rows of touched slots on a GPU and in its host's memory, over a file: the third tier of a state on a GPU.

    GPU -> pinned memory of the host       the backend's rows, which its kernels find by themselves
            -> file                        pages of 16 neighbouring slots (``disk_pages.py``), as below the CPU's rows

A kernel cannot wait for a file. So the host looks at the keys of a launch before it, and brings up the pages that are
in the file alone. While there are none, it does not look, and nothing waits for the GPU. When the memories are full,
the pages that were not asked for longest go down, an eighth of the capacity at once. Source: paper section 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ramnet_np.contract import Array, MemoryTiers
from ramnet_np.core.disk_pages import DiskPages
from ramnet_np.core.slot_rows import PAGE
from ramnet_np.core.tiered_rows import changing, leaving

AT_ONCE = 2**16  # rows that are copied from the GPU together


class RowsOverDisk:
    """The rows ``up`` of a backend over a file, with the methods of :class:`~ramnet_np.core.tiered_rows.TieredRows`.

    ``initial``: the row (W,) of a slot that was never stored; ``tiers``: with the folder, and the capacities of the
    memories above it; ``xp``: of the arrays.
    ValueError or OSError, naming the tier, for one that cannot be used.
    """

    def __init__(self, up: Any, initial: np.ndarray, tiers: MemoryTiers, xp: Any):
        if tiers.host is None:
            raise ValueError("memory.host must say how many bytes stay above memory.disk, got None")
        assert tiers.disk is not None  # as the caller looked
        self.up, self._xp = up, xp
        self.is_whole = True  # as of TieredRows
        self._disk = DiskPages(Path(tiers.disk), tiers.disk_bytes, initial.size, initial.dtype)

    @property
    def stays(self) -> bool:
        """Whether a launch finds all its rows without the host, so that a CUDA graph may be made of it."""
        return not self._disk.down_pages

    @property
    def written(self) -> int:
        """How many slots were ever stored; waits for the GPU."""
        return self.up.written + self._disk.down_slots

    @property
    def nbytes(self) -> int:
        """Bytes on the GPU."""
        return self.up.nbytes

    @property
    def host_nbytes(self) -> int:
        """Bytes in the host's memory."""
        return self.up.host_nbytes

    @property
    def disk_nbytes(self) -> int:
        """Bytes in the file."""
        return self._disk.nbytes

    def prepare(self) -> None:
        """Make room for as many new rows as last time, before a graph is launched; ``stays`` may change."""
        self._make_room(None, np.empty(0, dtype=np.int64))
        self.up.prepare()

    def all_up(self, new: int) -> bool:
        """Whether a launch that adds ``new`` rows at most needs nothing of the file and sends nothing there."""
        return self.stays and self.up.shortage(new) <= 0

    def bring_up(self, keys: np.ndarray, new: int) -> None:
        """Load the pages of the slots ``keys`` (N,) that are in the file alone, and leave room for ``new`` rows more.

        MemoryError where they do not fit into the memories together; OSError for a file that is full or damaged.
        """
        down = self._disk.down(keys)
        found, rows = self._disk.load(down)
        self._make_room(len(found) + new, keys)
        if len(down):
            arrays = self._xp.asarray(found), self._xp.asarray(rows)
            mark = self._disk.marking(down, up=True)
            with changing(self):
                self.up.scatter(*arrays, changed=False)
                mark()

    def gather(self, keys: Array) -> Array:
        """The rows (N, W) of slots by their ``keys`` (N,), which differ."""
        if self.stays:
            return self.up.gather(keys)
        parts, on_host = [], keys.get()
        for part in self._parts(on_host):
            self.bring_up(on_host[part], 0)
            parts.append(self.up.gather(keys[part]))
        return self._xp.concatenate(parts) if parts else self.up.gather(keys)

    def scatter(self, keys: Array, rows: Array) -> None:
        """Store ``rows`` (N, W) of slots by their ``keys`` (N,), which differ.

        MemoryError or OSError where there is no room: unless ``is_whole``, some rows are then new and some old.
        """
        if self.all_up(keys.size):
            with changing(self):
                self.up.scatter(keys, rows)
            return
        on_host = keys.get()
        for part in self._parts(on_host):
            self.bring_up(on_host[part], len(on_host[part]))
            self.is_whole = False  # until the last part is there
            self.up.scatter(keys[part], rows[part])
        self.is_whole = True

    def blocks(self, size: int) -> Iterator[tuple[Array, Array]]:
        """Every slot that was stored, keys and rows (N, W), about ``size`` at a time; nothing moves meanwhile."""
        yield from self.up.blocks(size)
        for keys, rows in self._disk.blocks(size):
            yield self._xp.asarray(keys), self._xp.asarray(rows)

    def close(self) -> None:
        """Give the room in the file back."""
        self._disk.close()

    def _parts(self, keys: np.ndarray) -> Iterator[slice]:
        """Pieces of ``keys`` whose pages fit into half of the memories; the disk reads the next behind one's work."""
        size = max(1, self.up.most_rows // (2 * PAGE))
        self._disk.expect(keys[:size])
        for start in range(0, len(keys), size):
            self._disk.expect(keys[start + size : start + 2 * size])
            yield slice(start, start + size)

    def _make_room(self, new: int | None, wanted: np.ndarray) -> None:
        """Send pages not asked for longest, and without any of ``wanted``, to the file until ``new`` rows fit."""
        short = self.up.shortage(new)
        if short <= 0:
            return
        keys, used, changed = self.up.listing()
        going, stored, clean = leaving(keys, used, changed, wanted, max(short, self.up.most_rows // 8))
        if going.sum() < short:
            raise MemoryError(
                f"memory.gpu and memory.host must hold all slots that a token touches, and the {PAGE - 1} beside each, "
                f"got room for {self.up.most_rows} slots of a layer"
            )
        store = self._disk.storing(keys[stored], self._on_host(keys[stored]))
        mark = self._disk.marking(clean, up=False)
        with changing(self):
            store()
            mark()
            self.up.forget(np.nonzero(going)[0])

    def _on_host(self, keys: np.ndarray) -> np.ndarray:
        """The rows (N, W) of slots that are up, AT_ONCE at a time: the GPU need not have room for copies of all."""
        starts = range(0, max(1, len(keys)), AT_ONCE)
        return np.concatenate([self.up.gather(self._xp.asarray(keys[n : n + AT_ONCE])).get() for n in starts])
