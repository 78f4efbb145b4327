"""A state that holds touched slots only: memory follows the slots ever written, whatever M is.

Every row is under the key (b * H + h) * M + slot (``slot_rows.py``). A slot that was never written is not held: it is
s = 0 and z = the initial mass, as in a dense state. With tiers, rows that were not asked for longest leave the host's
memory for a file (``disk_pages.py``), a page of neighbouring slots at a time, and come up again when one of the page is
asked for. A page's rows are all up or all down, so a row has one place. Whatever the capacities, the bits are the same.
Source: paper section 7; least recently used: P. Denning, The working set model (1968).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array, RAMState
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.disk_pages import PAGE, DiskPages
from ramnet_np.core.slot_rows import SlotRows

LEAST_ROWS = 16 * PAGE  # that the host must hold of a state with a capacity
BLOCK = 2**16  # rows that are moved at once where all are


class MemoryTiers(NamedTuple):
    """Where the rows of a sparse state (B, H, M, C) may be, and how many bytes of them.

    A capacity counts contents and masses; what finds them takes about a tenth more. Source: paper section 7.

    >>> MemoryTiers(host=2**30).shared(2).host
    536870912
    """

    host: int | None = None  # bytes in the host's memory; None: no limit
    disk: Path | None = None  # a folder for what does not fit there; None: there must be room for all
    disk_bytes: int | None = None  # bytes in that folder; None: no limit
    gpu: int | None = None  # bytes on the GPU, of a state there; None: no limit

    def shared(self, parts: int) -> MemoryTiers:
        """The tiers of one of ``parts`` states, such as those of a model's layers, that share these."""
        sizes = (self.host, self.disk_bytes, self.gpu)
        host, disk_bytes, gpu = (None if size is None else size // parts for size in sizes)
        return MemoryTiers(host, self.disk, disk_bytes, gpu)


class SparseRAMState:
    """The memory of every head, as :class:`RAMState`, of which only touched slots take memory.

    It goes wherever a RAMState goes, with three differences. A forward that returns the state updates the given one in
    place. Gradients end where it came in. M may be up to 2**31 - 1 everywhere.

    ``shape``: (B, H, M, C); ``initial_mass``: z of a slot that was never written, None for 1/M; ``tiers``: where rows
    may be. ValueError or OSError, naming the argument. Source: paper section 7; spec section 4.

    >>> state = SparseRAMState.initial(batch=1, heads=2, slots=2**31 - 1, channels=4)
    >>> state.shape, state.written
    ((1, 2, 2147483647, 4), 0)
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        dtype: Any = np.float32,
        xp: Any = np,
        *,
        initial_mass: float | None = None,
        tiers: MemoryTiers | None = None,
    ):
        tiers = tiers or MemoryTiers()
        for name, size, least in zip(("batch", "heads", "slots", "channels"), shape, (0, 0, 1, 0), strict=True):
            if not least <= size < 2**31:
                raise ValueError(f"{name} must be between {least} and {2**31 - 1}, got {size}")
        self.shape, self.dtype, self.xp, self.tiers = shape, np.dtype(dtype), xp, tiers
        self.initial_mass = 1 / shape[2] if initial_mass is None else initial_mass
        self._up, self._now, self._lost = SlotRows(shape[3] + 1, dtype, xp), 0, ""
        row = (shape[3] + 1) * self.dtype.itemsize
        self._capacity = None if tiers.host is None else tiers.host // row
        if self._capacity is not None and self._capacity < LEAST_ROWS:
            raise ValueError(
                f"memory.host must hold at least {LEAST_ROWS} slots of a layer, {LEAST_ROWS * row} bytes, "
                f"got {tiers.host} bytes for each layer"
            )
        if tiers.gpu is not None and xp is np:
            raise ValueError(f"memory.gpu must be None for a state on the CPU, got {tiers.gpu} bytes for each layer")
        if xp is not np and tiers != MemoryTiers():
            raise ValueError("memory must have no limits for a state on the GPU, whose rows all lie there")
        self._disk = None
        if tiers.disk is not None:
            self._disk = DiskPages(tiers.disk, tiers.disk_bytes, shape[3] + 1, self.dtype)

    @classmethod
    def initial(
        cls, batch: int, heads: int, slots: int, channels: int, dtype: Any = np.float32, xp: Any = np, **options: Any
    ) -> SparseRAMState:
        """The state before the first token, as of :meth:`RAMState.initial`; ``options``: as of the class."""
        return cls((batch, heads, slots, channels), dtype, xp, **options)

    def __repr__(self) -> str:
        B, H, M, C = self.shape
        return f"SparseRAMState(B={B}, H={H}, M={M}, C={C}, {self.dtype}, {self.written:,} slots written)"

    @property
    def written(self) -> int:
        """How many slots were ever written."""
        return self._up.count + (0 if self._disk is None else self._disk.down_slots)

    @property
    def nbytes(self) -> int:
        """Bytes in the host's or the GPU's memory."""
        return self._up.nbytes

    @property
    def disk_nbytes(self) -> int:
        """Bytes in the file."""
        return 0 if self._disk is None else self._disk.nbytes

    def gather(self, keys: Array) -> Array:
        """The rows (N, C + 1), contents and mass, of slots by their ``keys`` (N,), which differ."""
        self._require_whole()
        rows = self.xp.zeros((keys.size, self.shape[3] + 1), dtype=self.dtype)
        rows[:, -1] = self.initial_mass
        for part in self._parts(keys):
            self._bring_up(keys[part])
            at = self._up.find(keys[part])
            self._up.used[at[at >= 0]] = self._now
            rows[part][at >= 0] = self._up.rows[at[at >= 0]]
        return rows

    def scatter(self, keys: Array, rows: Array) -> None:
        """Store ``rows`` (N, C + 1) of slots that were written; their ``keys`` (N,) differ.

        MemoryError or OSError where there is no room: then some rows are new and some old, and every later use of the
        state says so.
        """
        self._require_whole()
        try:
            for part in self._parts(keys):
                self._bring_up(keys[part])
                self._make_room(int((self._up.find(keys[part]) < 0).sum()), keys[part])
                self._up.put(keys[part], rows[part], self._now)
        except (MemoryError, OSError) as error:
            self._lost = f"that a segment left half written: {error}"
            raise

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[Array, Array]]:
        """Every slot that was written, keys and rows (N, C + 1), about ``size`` at a time; nothing moves."""
        self._require_whole()
        for start in range(0, self._up.count, size):
            part = slice(start, min(start + size, self._up.count))
            yield self._up.key[part].copy(), self._up.rows[part].copy()
        if self._disk is not None:
            down = self._disk.down()
            for start in range(0, len(down), max(1, size // PAGE)):
                yield self._disk.load(down[start : start + max(1, size // PAGE)])

    def take(self, sequences: Sequence[int], tiers: MemoryTiers | None = None) -> SparseRAMState:
        """A copy of some sequences of the batch, by default in the same tiers."""
        return SparseRAMState.joined([self], [sequences], tiers)

    def copy(self) -> SparseRAMState:
        """A state of its own with the same rows, in the same tiers."""
        return self.take(range(self.shape[0]))

    @classmethod
    def joined(
        cls,
        states: Sequence[SparseRAMState],
        sequences: Sequence[Sequence[int]] | None = None,
        tiers: MemoryTiers | None = None,
    ) -> SparseRAMState:
        """One batch of copies of all ``states``, or of some ``sequences`` of each; the others stay as they are.

        >>> states = [SparseRAMState.initial(batch=b, heads=1, slots=8, channels=2) for b in (1, 2)]
        >>> SparseRAMState.joined(states).shape
        (3, 1, 8, 2)
        """
        first = states[0]
        if sequences is None:
            sequences = [range(state.shape[0]) for state in states]
        batch, per_sequence = sum(map(len, sequences)), first.shape[1] * first.shape[2]
        mass, begin = first.initial_mass, 0
        result = cls((batch, *first.shape[1:]), first.dtype, first.xp, initial_mass=mass, tiers=tiers or first.tiers)
        for state, wanted in zip(states, sequences, strict=True):
            for keys, rows in state.blocks():
                for place, sequence in enumerate(wanted, begin):
                    own = keys // per_sequence == sequence
                    result.scatter(keys[own] + (place - sequence) * per_sequence, rows[own])
            begin += len(wanted)
        return result

    @classmethod
    def of_dense(
        cls, state: RAMState, tiers: MemoryTiers | None = None, initial_mass: float | None = None
    ) -> SparseRAMState:
        """The slots of a dense state that differ from s = 0, z = ``initial_mass`` (None: 1/M).

        >>> dense = RAMState.initial(batch=1, heads=1, slots=16, channels=2)
        >>> dense.slots[0, 0, 9] = 3
        >>> SparseRAMState.of_dense(dense).written
        1
        """
        xp, C = namespace_of(state.slots), state.slots.shape[3]
        result = cls(state.slots.shape, state.slots.dtype, xp, initial_mass=initial_mass, tiers=tiers)
        slots, mass = state.slots.reshape(-1, C), state.mass.reshape(-1)
        empty = mass.dtype.type(result.initial_mass)
        for start in range(0, len(mass), BLOCK):
            part = slice(start, start + BLOCK)
            keys = xp.nonzero(slots[part].any(axis=1) | (mass[part] != empty))[0]
            result.scatter(start + keys, xp.concatenate([slots[part][keys], mass[part][keys, None]], axis=1))
        return result

    def dense(self) -> RAMState:
        """The same state with all slots. MemoryError where they do not fit."""
        B, H, M, C = self.shape
        state = RAMState.initial(B, H, M, C, self.dtype, self.xp)
        state.mass[...] = self.initial_mass
        for keys, rows in self.blocks():
            state.slots.reshape(-1, C)[keys], state.mass.reshape(-1)[keys] = rows[:, :-1], rows[:, -1]
        return state

    def close(self) -> None:
        """Give the room in the file back; the state is of no use then."""
        if self._disk is not None:
            self._disk.close()
        self._lost = "that was closed"

    def _require_whole(self) -> None:
        if self._lost:
            raise ValueError(f"state must be whole, got one {self._lost}")

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
