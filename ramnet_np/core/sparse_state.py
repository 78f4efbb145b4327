"""A state that holds touched slots only: memory follows the slots ever written, whatever M is.

Every row is under the key (b * H + h) * M + slot. A slot that was never written is not held: it is s = 0 and z = the
initial mass, as in a dense state. Rows may lie in tiers (``tiered_rows.py``). Whatever their capacities, the bits are
the same. Source: paper section 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ramnet_np.backend import backend_for
from ramnet_np.contract import Array, MemoryTiers, RAMState
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.row_format import row_format
from ramnet_np.core.sparse_checks import (
    check_dense,
    check_keys,
    check_rows,
    check_tiers,
    checked_block,
    checked_dtype,
    checked_mass,
    checked_sequences,
    checked_shape,
)
from ramnet_np.core.tiered_rows import TieredRows

BLOCK = 2**16  # rows that are moved at once where all are


class SparseRAMState:
    """The memory of every head, as :class:`RAMState`, of which only touched slots take memory.

    It goes wherever a RAMState goes, with three differences. A forward that returns the state updates the given one in
    place. Gradients end where it came in. M may be up to 2**31 - 1 everywhere.

    ``shape``: (B, H, M, C); ``initial_mass``: z of a slot that was never written, None for 1/M; ``tiers``: where rows
    may be. TypeError, ValueError or OSError, naming the argument. Source: paper section 7.

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
        self.tiers = MemoryTiers() if tiers is None else tiers
        check_tiers(self.tiers)
        self.shape, self.dtype, self.xp = checked_shape(shape), checked_dtype(dtype), xp
        self.initial_mass = 1 / self.shape[2] if initial_mass is None else checked_mass(initial_mass, self.dtype)
        self._lost = ""
        self.format = row_format(self.shape[3], self.dtype, self.tiers.rows)
        self.rows = _rows(xp, self.format.initial(self.initial_mass), self.tiers, math.prod(self.shape[:3]))

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
        return self.rows.written

    @property
    def nbytes(self) -> int:
        """Bytes in the host's or the GPU's memory."""
        return self.rows.nbytes

    @property
    def disk_nbytes(self) -> int:
        """Bytes in the file."""
        return self.rows.disk_nbytes

    @property
    def up(self) -> Any:
        """The rows in the memories that the backend's kernels reach."""
        return getattr(self.rows, "up", self.rows)

    def gather(self, keys: Array) -> Array:
        """The rows (N, C + 1), contents and mass, of slots by their ``keys`` (N,), which differ.

        OSError or MemoryError where they cannot be read, or where no room can be made for them; TypeError or ValueError
        for other keys. Then nothing has changed.
        """
        check_keys(keys, self.xp)
        with self._moving_rows():
            return self.format.unpack(self.rows.gather(keys))

    def bring_up(self, keys: np.ndarray, new: int) -> None:
        """Bring rows up from a disk below a GPU, and make room for new ones: ``RowsOverDisk.bring_up``."""
        with self._moving_rows():
            self.rows.bring_up(keys, new)

    def scatter(self, keys: Array, rows: Array) -> None:
        """Store ``rows`` (N, C + 1) of slots that were written; their ``keys`` (N,) differ.

        MemoryError or OSError where there is no room. If some rows are then new and some old, every later use of the
        state says so. The same holds where Ctrl-C interrupts it. TypeError or ValueError for other keys or rows; then
        nothing has changed. Which slots keys on a GPU name is not looked at.
        """
        check_rows(keys, rows, self.shape, self.dtype, self.xp)
        with self._moving_rows():
            self.rows.scatter(keys, self.format.pack(rows))

    def segment(
        self, write: Array, read: Array, mask: Array | None
    ) -> tuple[Array, Array, RAMState, Any, Callable[[RAMState], None]]:
        """What a segment touches, by rows of a backend that go to a small dense state and back by themselves.

        ``write``, ``read``: (B, T, H, K) slots; ``mask``: (B, T) or None.
        Returns both with numbers in place of slots, the dense state (B, H, n, C), what says when its contents are there
        (None: they are), and what stores the slots that were written. NotImplemented where rows know keys alone. Errors
        as of :meth:`gather` and :meth:`scatter`.
        """
        B, H, M, C = self.shape
        if not hasattr(self.rows, "segment"):
            return NotImplemented
        with self._moving_rows():
            taken = self.rows.segment(write, read, mask, M, C)
        if taken is NotImplemented:
            return NotImplemented
        write, read, contents, mass, arriving, store = taken

        def put_back(final: RAMState) -> None:
            with self._moving_rows():
                store(final.slots, final.mass)

        small = RAMState(*(part.reshape(B, H, *part.shape[1:]) for part in (contents, mass)))
        return write, read, small, arriving, put_back

    @contextmanager
    def _moving_rows(self) -> Iterator[None]:
        self.require_whole()
        try:
            yield
        except BaseException as error:  # Ctrl-C too
            if not getattr(self.rows, "is_whole", False):  # rows of a backend do not say
                self.lose(error)
            raise

    def lose(self, error: BaseException) -> None:
        """Note that the state is half written, as ``error`` came between: every later use says so."""
        why = " ".join(str(error).split()) or type(error).__name__
        self._lost = self._lost or f"that a segment left half written: {why}"

    def require_whole(self) -> None:
        """ValueError for a state that was closed or is half written."""
        if self._lost:
            raise ValueError(f"state must be whole, got one {self._lost}")

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[Array, Array]]:
        """Every slot that was written, keys and rows (N, C + 1), about ``size`` at a time; nothing moves."""
        self.require_whole()
        return ((keys, self.format.unpack(rows)) for keys, rows in self.rows.blocks(checked_block(size)))

    def take(self, sequences: Sequence[int], tiers: MemoryTiers | None = None) -> SparseRAMState:
        """A copy of some sequences of the batch, by default in the same tiers. ValueError for one that is not there."""
        return SparseRAMState.joined([self], [sequences], tiers)

    def copy(self) -> SparseRAMState:
        """A state of its own with the same rows, in the same tiers."""
        return self.take(range(self.shape[0]))

    def __copy__(self) -> SparseRAMState:  # one that shares rows would change with this one
        return self.copy()

    def __deepcopy__(self, memo: Any) -> SparseRAMState:
        return self.copy()

    def __reduce__(self) -> Any:
        raise TypeError("a SparseRAMState cannot be pickled, as rows may be in a file: dense() and blocks() have them")

    @classmethod
    def joined(
        cls,
        states: Sequence[SparseRAMState],
        sequences: Sequence[Sequence[int]] | None = None,
        tiers: MemoryTiers | None = None,
    ) -> SparseRAMState:
        """One batch of copies of all ``states``, or of some ``sequences`` of each; the others stay as they are.

        TypeError or ValueError for states that differ in more than their batch.

        >>> states = [SparseRAMState.initial(batch=b, heads=1, slots=8, channels=2) for b in (1, 2)]
        >>> SparseRAMState.joined(states).shape
        (3, 1, 8, 2)
        """
        _check_alike(states)
        first = states[0]
        sequences = [range(state.shape[0]) for state in states] if sequences is None else sequences
        if len(sequences) != len(states):
            raise ValueError(f"sequences must be those of each of the {len(states)} states, got {len(sequences)}")
        sequences = [checked_sequences(*pair) for pair in zip(sequences, (s.shape[0] for s in states), strict=True)]
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
        check_dense(state)
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
        self.rows.close()
        self._lost = "that was closed"


def _check_alike(states: Sequence[SparseRAMState]) -> None:
    if not isinstance(states, Sequence):
        raise TypeError(f"states must be a list of SparseRAMStates, got {type(states).__name__}")
    if not states or not all(isinstance(state, SparseRAMState) for state in states):
        got = ", ".join(type(state).__name__ for state in states) or "none"
        raise TypeError(f"states must be one SparseRAMState or more, got {got}")
    kinds = [(*state.shape[1:], state.dtype.name, state.xp.__name__, state.initial_mass) for state in states]
    if different := [kind for kind in kinds if kind != kinds[0]]:
        raise ValueError(f"states must differ in their batch alone, got {kinds[0]} and {different[0]}")


def _rows(xp: Any, initial: np.ndarray, tiers: MemoryTiers, slots: int) -> Any:
    """The rows of a state for arrays of ``xp``: the backend's own, over a disk where one is given, or the core's."""
    if not hasattr(xp, "empty"):
        raise TypeError(f"xp must be numpy or cupy, got {xp!r}")
    own_rows = None if xp is np else backend_for(xp.empty(0)).sparse_rows
    if own_rows is None:
        return TieredRows(initial, tiers, xp)
    up = own_rows(initial, tiers, slots)
    if tiers.disk is None:
        return up
    from ramnet_np.core.rows_over_disk import RowsOverDisk  # the operation is imported without what files need

    return RowsOverDisk(up, initial, tiers, xp)
