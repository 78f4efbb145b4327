"""The rows of a sparse state on the GPU: a table there finds them, in its own memory or in pinned memory of the host.

Pages of rows are taken on the GPU up to its capacity, then in the host's memory. The GPU reads and writes the latter
over the bus by itself, in the launch that wants them, so nothing is fetched before and nothing waits for the host. From
time to time rows of the host that were asked for change places with rows of the GPU that were not asked for longest.

The host knows a bound of how many rows there are, and asks the GPU only when that bound reaches what there is room for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from ramnet_np.contract import Array, MemoryTiers

from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, LONG, POINTER, UNSIGNED, ParamStruct
from .arriving import LEAST_BYTES, Arriving
from .beside import Beside
from .numbers import number_on_gpu
from .segment_rows import SegmentRows

THREADS = 128
PAGE_ROWS = 1024  # PAGE_BITS of rows.cuh
ENTRY = 32  # bytes of an Entry of rows.cuh
MOST_ROWS = 2**31 - PAGE_ROWS
EXCHANGE_EVERY = 512  # calls that add rows
CALLS_AHEAD, ROWS_AHEAD = 32, 16 * PAGE_ROWS  # for which there is room after the host has asked, as asking waits
EXCHANGED = 4096  # rows at once, at most
ROW_TABLE = ParamStruct(
    "RowTable",
    entries=POINTER, pages=POINTER, initial=POINTER, initial_mass=LONG, key_of_row=POINTER, used=POINTER,
    changed=POINTER, count=POINTER, mask=UNSIGNED, shift=INT, row_bytes=INT, capacity=INT,
)  # fmt: skip
ROWS_PARAMS = ParamStruct(
    "RowsParams",
    table=POINTER, keys=POINTER, rows=POINTER, here=POINTER, there=POINTER, old=POINTER, count=LONG, old_mask=UNSIGNED,
    old_shift=INT, words=INT, mass_words=INT, changed=INT,
)  # fmt: skip
ROWS = Specialisation(
    "sparse/rows.cu",
    ("gather_rows", "scatter_rows", "enter_rows", "exchange_rows", "move_rows"),
    (("THREADS", THREADS),),
    (ROW_TABLE, ROWS_PARAMS),
)


def mass_bytes(dtype: Any) -> int:
    """Bytes of the mass that ends a row of this dtype, as ``core/row_format.py`` makes it.

    >>> mass_bytes(np.uint16), mass_bytes(np.float64)
    (4, 8)
    """
    return max(4, np.dtype(dtype).itemsize)


def row_bytes(initial: np.ndarray) -> int:
    """Bytes of a row like ``initial`` in a page: its contents alone, since its mass is in the table.

    >>> row_bytes(np.zeros(65, np.float32)), row_bytes(np.zeros(66, np.uint16))
    (256, 128)
    """
    return -(-(initial.nbytes - mass_bytes(initial.dtype)) // 16) * 16


def table_of(rows: int, slots: int) -> tuple[int, int]:
    """(entries, shift) of a table for so many rows, of ``slots`` slots in all.

    An entry for every slot, whose place is its key (shift 0), or a hash table that is at most half full. Both are even,
    as entries are looked at in pairs.

    >>> table_of(rows=1000, slots=2047)
    (2048, 0)
    >>> table_of(rows=1000, slots=2049)
    (2048, 53)
    """
    bits = max(1, (2 * rows - 1).bit_length())
    return (slots + slots % 2, 0) if slots <= 1 << bits else (1 << bits, 64 - bits)


class DeviceRows:
    """Rows by the keys of their slots, with the methods of ``core/tiered_rows.py``.

    ``initial``: the row (W,) of a slot that was never stored; ``tiers``: capacities of the GPU and of the host;
    ``slots``: how many there are, and so the most rows.
    ValueError for a tier that cannot be used.
    """

    stays = True  # a graph finds the rows again: the table it is given changes in place

    def __init__(self, initial: np.ndarray, tiers: MemoryTiers, slots: int):
        import cupy

        if tiers.host is not None and tiers.gpu is None:
            raise ValueError("memory.gpu must say how much of the GPU may be used where memory.host is given, got None")
        self._cupy, self._dtype, self._width, self._tiers = cupy, initial.dtype, initial.size, tiers
        self._slots = slots
        self._mass_bytes, self._row_bytes = mass_bytes(initial.dtype), row_bytes(initial)
        mass = initial.size - self._mass_bytes // initial.itemsize  # where it is
        filled = np.zeros(self._row_bytes // initial.itemsize, dtype=initial.dtype)
        filled[:mass] = initial[:mass]
        self._initial_mass = int.from_bytes(initial[mass:].tobytes(), "little", signed=True)
        self._initial, self._count = cupy.asarray(filled), cupy.zeros(1, dtype=np.int32)
        self._pages: list[int] = []  # addresses: those on the GPU, then those of the host
        self._held: list[Any] = []  # what the pages are parts of
        self._gpu_pages, self._calls, self._bound, self._new = 0, 0, 0, 0
        self._key_of_row, self._used = cupy.empty(0, dtype=np.int64), cupy.empty(0, dtype=np.int32)
        self._changed = cupy.empty(0, dtype=np.bool_)
        self._write_back = Beside("back")
        self._entries, self._hashed = cupy.empty((0, ENTRY // 8), dtype=np.int64), (0, 0)  # its mask and shift
        self.table = cupy.zeros(ROW_TABLE.dtype.itemsize, dtype=np.uint8)  # a RowTable
        self._grow(1)

    @property
    def written(self) -> int:
        """How many slots were ever stored; waits for the GPU."""
        self._write_back.wait()
        return int(self._count.get()[0])

    @property
    def nbytes(self) -> int:
        """Bytes on the GPU."""
        arrays = (self._key_of_row, self._used, self._changed, self._entries, self._initial)
        return self._gpu_pages * self._page_bytes + sum(array.nbytes for array in arrays)

    @property
    def rows_on_gpu(self) -> int:
        """How many rows the GPU has room for: those with the lowest numbers."""
        return self._gpu_pages * PAGE_ROWS

    @property
    def host_nbytes(self) -> int:
        """Bytes in the host's memory."""
        return (len(self._pages) - self._gpu_pages) * self._page_bytes

    @property
    def disk_nbytes(self) -> int:
        """Bytes of these rows in a file: none, as ``core/rows_over_disk.py`` counts its own."""
        return 0

    @property
    def most_rows(self) -> int:
        """How many rows the capacities are enough for."""
        unlimited = self._tiers.gpu is None or self._tiers.host is None
        pages = sum((size or 0) // self._page_bytes for size in (self._tiers.gpu, self._tiers.host))
        return MOST_ROWS if unlimited else min(MOST_ROWS, pages * PAGE_ROWS)

    def shortage(self, new: int | None) -> int:
        """How many rows of ``new`` more (None: as last time) there is no room for; 0 or less: there is for all.

        0 while a graph is captured, as whoever launches the graph asks before each launch.
        """
        if self._cupy.cuda.get_current_stream().is_capturing():
            return 0
        new = self._new if new is None else new
        if self._bound_after(new) > self.most_rows:
            self._bound = self.written
        return self._bound_after(new) - self.most_rows

    def prepare(self, new: int | None = None) -> None:
        """Make room for ``new`` rows more (None: as last time), before the launch that may add them.

        MemoryError if there is none. While a graph is captured nothing is done: whoever launches the graph calls this
        before each launch.
        """
        if self._cupy.cuda.get_current_stream().is_capturing():
            return
        self._write_back.wait()
        self._new = new = self._new if new is None else new
        if self._bound_after(new) > self._capacity:
            self._bound = self.written
            self._grow(self._bound_after(new), min(CALLS_AHEAD * new, ROWS_AHEAD))
        self._bound = self._bound_after(new)
        self._calls += 1
        if self._calls % EXCHANGE_EVERY == 0:
            self.exchange()

    def gather(self, keys: Array) -> Array:
        """The rows (N, W) of slots by their ``keys`` (N,), which differ."""
        self._write_back.wait()
        rows = self._cupy.empty((keys.size, self._width), dtype=self._dtype)
        self._launch("gather_rows", keys.size, keys=keys, rows=rows)
        return rows

    def scatter(self, keys: Array, rows: Array, changed: bool = True) -> None:
        """Store ``rows`` (N, W) of slots by their ``keys`` (N,), which differ. MemoryError if there is no room.

        ``changed``: whether they differ from what a disk below has.
        """
        self.prepare(keys.size)
        rows = self._cupy.ascontiguousarray(rows)
        self._launch("scatter_rows", keys.size, keys=keys, rows=rows, changed=changed)

    def segment(self, write: Array, read: Array, mask: Array | None, slots: int, channels: int) -> tuple[Any, ...]:
        """A small dense state of the slots that a segment touches: their rows go there, and back.

        ``write``, ``read``: (B, T, H, K) slots; ``mask``: as of ``number_slots``; ``slots``: M; ``channels``: C.
        Returns ``write`` and ``read`` with numbers in place of slots, contents (B*H, n, C), masses (B*H, n), what says
        when the contents are there (None: they are), and a function that stores the rows of written slots from such
        arrays; MemoryError if there is no room for them. Where some rows are in the host's memory, they come and go
        beside other work (``beside.py``).
        n is M where a head has no more slots than tokens: then the host need not wait for how many are touched. Else it
        is the most that a head touches. NotImplemented where numbers.py is.
        """
        self._write_back.wait()
        numbers = number_on_gpu(write, read, mask, slots)
        if numbers is NotImplemented:
            return NotImplemented
        most = slots if slots <= write.shape[1] else int(np.diff(numbers.on_host[0]).max())
        rows = SegmentRows(self.table, numbers, most, channels, self._dtype)

        def put_back(contents: Array, mass: Array) -> None:
            new = min(write.size, numbers.heads * slots)
            self.prepare(new if self._bound_after(new) <= self._capacity else int(numbers.on_host[1].sum()))
            if self.host_nbytes:
                self._write_back.run(partial(rows.scatter, contents, mass, beside=True), (rows, contents, mass))
            else:
                rows.scatter(contents, mass)

        arriving, on_host = None, max(0, self._bound - self.rows_on_gpu)
        if min(rows.nbytes, on_host * self._row_bytes) > LEAST_BYTES:
            contents, mass = rows.gather_masses()
            arriving = Arriving(rows, write.shape[1], contents, self._held)
        else:
            contents, mass = rows.gather()
        return numbers.write, numbers.read, contents, mass, arriving, put_back

    def blocks(self, size: int) -> Iterator[tuple[Array, Array]]:
        """Every slot that was stored, keys and rows (N, W), ``size`` at a time; nothing moves meanwhile."""
        count = self.written
        for start in range(0, count, size):
            keys = self._key_of_row[start : min(start + size, count)].copy()
            yield keys, self.gather(keys)

    def listing(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each row's key, when it was last asked for, and whether it has changed, by row number. Waits for the GPU."""
        count = self.written
        return self._key_of_row[:count].get(), self._used[:count].get(), self._changed[:count].get()

    def forget(self, rows: np.ndarray) -> None:
        """Give the places of ``rows``, (N,) distinct numbers, back: the last rows move there."""
        kept = np.ones(self.written, dtype=np.bool_)
        kept[rows] = False
        count = int(kept.sum())
        holes, movers = np.nonzero(~kept[:count])[0], count + np.nonzero(kept[count:])[0]
        here, there = (self._cupy.asarray(numbers.astype(np.int32)) for numbers in (holes, movers))
        self._launch("move_rows", len(holes), here=here, there=there)
        self._used[count:] = 0
        self._bound = count
        self._count[...] = count
        self._enter(count, len(self._entries), self._hashed[1])

    def exchange(self) -> None:
        """Let rows of the host that were asked for last change places with rows of the GPU not asked for longest."""
        self._write_back.wait()
        here, there = self.rows_on_gpu, min(self._bound, self._capacity)
        count = min(EXCHANGED, here, there - here)
        if count <= 0:
            return
        oldest = self._cupy.argsort(self._used[:here])[:count].astype(np.int32)
        latest = (here + self._cupy.argsort(-self._used[here:there])[:count]).astype(np.int32)
        self._launch("exchange_rows", count, here=oldest, there=latest)

    def close(self) -> None:
        """The memory goes with the object."""

    def __del__(self) -> None:
        if hasattr(self, "_write_back"):  # not where the constructor raised
            self._write_back.finish()

    @property
    def _capacity(self) -> int:
        return len(self._pages) * PAGE_ROWS

    @property
    def _page_bytes(self) -> int:
        return PAGE_ROWS * self._row_bytes

    def _bound_after(self, new: int) -> int:
        """How many rows there are at most when ``new`` more were added."""
        return min(self._bound + new, self._slots)

    def _grow(self, rows: int, ahead: int = 0) -> None:
        """Pages for so many rows, and for some ``ahead`` if there is room. MemoryError where ``rows`` do not fit."""
        before = len(self._pages)
        needed, wanted, most = (-(-n // PAGE_ROWS) for n in (rows, min(rows + ahead, self._slots), self._slots))
        if wanted * PAGE_ROWS > MOST_ROWS:
            raise MemoryError(f"a sparse state must have at most {MOST_ROWS:,} slots on a GPU, got {rows:,}")
        shortage = None
        for least, size in ((wanted, min(wanted + before // 4, most)), (needed, needed)):  # with room ahead, or without
            try:
                while len(self._pages) < least:
                    self._add_pages(size - len(self._pages))
                break
            except MemoryError as error:
                shortage = error
        if len(self._pages) > before:
            self._make_tables()
        if shortage is not None and len(self._pages) < needed:
            raise shortage

    def _make_tables(self) -> None:
        """What finds the rows of all pages."""
        cupy = self._cupy
        size = self._capacity
        for name, fill in (("_key_of_row", -1), ("_used", 0), ("_changed", True)):
            old = getattr(self, name)
            new = cupy.full(size, fill, dtype=old.dtype)
            new[: old.size] = old
            setattr(self, name, new)
        self._addresses = cupy.asarray(np.array(self._pages, dtype=np.uint64))
        entries, shift = table_of(size, self._slots)
        if entries > len(self._entries):
            self._enter(size, entries, shift)
        else:
            self._fill_table()

    def _fill_table(self) -> None:
        """What a launch is told of all this."""
        mask, shift = self._hashed
        table = ROW_TABLE(
            entries=self._entries, pages=self._addresses, initial=self._initial, initial_mass=self._initial_mass,
            key_of_row=self._key_of_row, used=self._used, changed=self._changed, count=self._count, mask=mask,
            shift=shift, row_bytes=self._row_bytes, capacity=self._capacity,
        )  # fmt: skip
        self.table.set(np.frombuffer(table.tobytes(), dtype=np.uint8))

    def _enter(self, most: int, entries: int, shift: int) -> None:
        """Make the table anew, of all rows, of which there are at most so many."""
        old, (mask, old_shift) = self._entries, self._hashed
        self._entries = self._cupy.zeros((entries, ENTRY // 8), dtype=np.int64)
        self._entries[:, 0] = -1
        self._hashed = entries - 1 if shift else 2**32 - 1, shift
        self._fill_table()
        if len(old):
            self._launch("enter_rows", most, warps=False, old=old, old_mask=mask, old_shift=old_shift)

    def _add_pages(self, count: int) -> None:
        """Pages on the GPU while there is room, then in the host's memory; fewer than ``count`` where that is all."""
        size, host_pages = self._page_bytes, len(self._pages) - self._gpu_pages
        on_gpu = count if self._tiers.gpu is None else min(count, self._tiers.gpu // size - self._gpu_pages)
        if on_gpu > 0:
            memory = self._cupy.empty(on_gpu * size, dtype=np.uint8)
            address, count, self._gpu_pages = memory.data.ptr, on_gpu, self._gpu_pages + on_gpu
        else:
            if self._tiers.host is not None:
                count = min(count, self._tiers.host // size - host_pages)
            if count <= 0:
                raise MemoryError(
                    f"memory.gpu and memory.host must hold every slot that is written, got room for {self._capacity} "
                    f"slots of a layer ({self._tiers.gpu} and {self._tiers.host} bytes), all of them full"
                )
            memory = self._pinned(count * size)
            address = memory.ptr
        self._held.append(memory)
        self._pages += [address + n * size for n in range(count)]

    def _pinned(self, size: int) -> Any:
        """Memory of the host that the GPU can reach; MemoryError where there is none, for which CUDA has its own."""
        try:
            return self._cupy.cuda.alloc_pinned_memory(size)
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise MemoryError(f"memory.host: no room for {size:,} bytes more that the GPU can reach") from error

    def _launch(self, name: str, count: int, warps: bool = True, **values: Any) -> None:
        if count:
            pointers = dict.fromkeys(("keys", "rows", "here", "there", "old"))
            params = pointers | {"old_mask": 0, "old_shift": 0, "changed": True} | values
            words, mass_words = self._width * self._dtype.itemsize // 4, self._mass_bytes // 4
            blocks = -(-count * (32 if warps else 1) // THREADS)
            Launch(ROWS, name, (blocks,), THREADS)(
                ROWS_PARAMS(table=self.table, **params, count=count, words=words, mass_words=mass_words)
            )
