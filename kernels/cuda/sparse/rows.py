"""The rows of a sparse state on the GPU: a table there finds them, in its own memory or in pinned memory of the host.

Pages of rows are taken on the GPU up to its capacity, then in the host's memory. The GPU reads and writes the latter
over the bus by itself, in the launch that wants them, so nothing is fetched before and nothing waits for the host. From
time to time rows of the host that were asked for change places with rows of the GPU that were not asked for longest.

The host knows a bound of how many rows there are, and asks the GPU only when that bound reaches what there is room for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ramnet_np.contract import Array, MemoryTiers

from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, LONG, POINTER, UNSIGNED, ParamStruct

THREADS = 128
PAGE_ROWS = 1024  # PAGE_BITS of rows.cuh
EXCHANGE_EVERY = 512  # calls that add rows
CALLS_AHEAD, ROWS_AHEAD = 32, 16 * PAGE_ROWS  # for which there is room after the host has asked, as asking waits
EXCHANGED = 4096  # rows at once, at most
ROW_TABLE = ParamStruct(
    "RowTable",
    entries=POINTER, pages=POINTER, initial=POINTER, key_of_row=POINTER, used=POINTER, count=POINTER, mask=UNSIGNED,
    shift=INT, row_bytes=INT, capacity=INT,
)  # fmt: skip
ROWS_PARAMS = ParamStruct(
    "RowsParams",
    table=POINTER, keys=POINTER, rows=POINTER, here=POINTER, there=POINTER, count=LONG, words=INT,
)  # fmt: skip
ROWS = Specialisation(
    "sparse/rows.cu",
    ("gather_rows", "scatter_rows", "enter_rows", "exchange_rows"),
    (("THREADS", THREADS),),
    (ROW_TABLE, ROWS_PARAMS),
)


class DeviceRows:
    """Rows of ``channels`` contents and a mass, by the keys of their slots, with ``core/tiered_rows.py``'s methods.

    ``initial_mass``: of a slot that was never stored; ``tiers``: capacities of the GPU and of the host.
    ValueError for a tier that cannot be used.
    """

    stays = True  # a graph finds the rows again: the table it is given changes in place

    def __init__(self, channels: int, dtype: np.dtype, initial_mass: float, tiers: MemoryTiers):
        import cupy

        if tiers.disk is not None:
            raise ValueError(f"memory.disk must be None for a state on the GPU, got {str(tiers.disk)!r}")
        if tiers.host is not None and tiers.gpu is None:
            raise ValueError("memory.gpu must say how much of the GPU may be used where memory.host is given, got None")
        self._cupy, self._dtype, self._width, self._tiers = cupy, dtype, channels + 1, tiers
        self._row_bytes = -(-self._width * dtype.itemsize // 16) * 16
        initial = np.zeros(self._row_bytes // dtype.itemsize, dtype=dtype)
        initial[channels] = initial_mass
        self._initial, self._count = cupy.asarray(initial), cupy.zeros(1, dtype=np.int32)
        self._pages: list[int] = []  # addresses: those on the GPU, then those of the host
        self._held: list[Any] = []  # what the pages are parts of
        self._gpu_pages, self._calls, self._bound, self._new = 0, 0, 0, 0
        self._key_of_row, self._used = cupy.empty(0, dtype=np.int64), cupy.empty(0, dtype=np.int32)
        self._entries: Any = None
        self.table = cupy.zeros(ROW_TABLE.dtype.itemsize, dtype=np.uint8)  # a RowTable
        self._grow(1)

    @property
    def written(self) -> int:
        """How many slots were ever stored; waits for the GPU."""
        return int(self._count.get()[0])

    @property
    def nbytes(self) -> int:
        """Bytes on the GPU."""
        arrays = (self._key_of_row, self._used, self._entries, self._initial)
        return self._gpu_pages * self._page_bytes + sum(array.nbytes for array in arrays)

    @property
    def host_nbytes(self) -> int:
        """Bytes in the host's memory."""
        return (len(self._pages) - self._gpu_pages) * self._page_bytes

    @property
    def disk_nbytes(self) -> int:
        """There is no disk below a GPU."""
        return 0

    def prepare(self, new: int | None = None) -> None:
        """Make room for ``new`` rows more (None: as last time), before the launch that may add them.

        MemoryError if there is none. While a graph is captured nothing is done: whoever launches the graph calls this
        before each launch.
        """
        if self._cupy.cuda.get_current_stream().is_capturing():
            return
        self._new = new = self._new if new is None else new
        if self._bound + new > self._capacity:
            self._bound = self.written
            self._grow(self._bound + new, min(CALLS_AHEAD * new, ROWS_AHEAD))
        self._bound += new
        self._calls += 1
        if self._calls % EXCHANGE_EVERY == 0:
            self.exchange()

    def gather(self, keys: Array) -> Array:
        """The rows (N, C + 1), contents and mass, of slots by their ``keys`` (N,), which differ."""
        rows = self._cupy.empty((keys.size, self._width), dtype=self._dtype)
        self._launch("gather_rows", keys.size, keys=keys, rows=rows)
        return rows

    def scatter(self, keys: Array, rows: Array) -> None:
        """Store ``rows`` (N, C + 1) of slots by their ``keys`` (N,), which differ. MemoryError if there is no room."""
        self.prepare(keys.size)
        self._launch("scatter_rows", keys.size, keys=keys, rows=self._cupy.ascontiguousarray(rows))

    def blocks(self, size: int) -> Iterator[tuple[Array, Array]]:
        """Every slot that was stored, keys and rows (N, C + 1), ``size`` at a time; nothing moves meanwhile."""
        count = self.written
        for start in range(0, count, size):
            keys = self._key_of_row[start : min(start + size, count)].copy()
            yield keys, self.gather(keys)

    def exchange(self) -> None:
        """Let rows of the host that were asked for last change places with rows of the GPU not asked for longest."""
        here, there = self._gpu_pages * PAGE_ROWS, min(self._bound, self._capacity)
        count = min(EXCHANGED, here, there - here)
        if count <= 0:
            return
        oldest = self._cupy.argsort(self._used[:here])[:count].astype(np.int32)
        latest = (here + self._cupy.argsort(-self._used[here:there])[:count]).astype(np.int32)
        self._launch("exchange_rows", count, here=oldest, there=latest)

    def close(self) -> None:
        """The memory goes with the object."""

    @property
    def _capacity(self) -> int:
        return len(self._pages) * PAGE_ROWS

    @property
    def _page_bytes(self) -> int:
        return PAGE_ROWS * self._row_bytes

    def _grow(self, rows: int, ahead: int = 0) -> None:
        """Pages for so many rows, and for some ``ahead`` if there is room. MemoryError where ``rows`` do not fit."""
        before = len(self._pages)
        needed, wanted = -(-rows // PAGE_ROWS), -(-(rows + ahead) // PAGE_ROWS)
        if wanted >= 2**31 // PAGE_ROWS:
            raise MemoryError(f"a sparse state on the GPU must have fewer than {2**31:,} slots written, got {rows:,}")
        shortage = None
        try:
            while len(self._pages) < wanted:
                self._add_pages(wanted + before // 4 - len(self._pages))
        except MemoryError as error:
            shortage = error if len(self._pages) < needed else None
        if len(self._pages) > before:
            self._make_tables()
        if shortage is not None:
            raise shortage

    def _make_tables(self) -> None:
        """What finds the rows of all pages."""
        cupy = self._cupy
        size = self._capacity
        for name, fill in (("_key_of_row", -1), ("_used", 0)):
            old = getattr(self, name)
            new = cupy.full(size, fill, dtype=old.dtype)
            new[: old.size] = old
            setattr(self, name, new)
        self._addresses = cupy.asarray(np.array(self._pages, dtype=np.uint64))
        entries = 1 << (2 * size - 1).bit_length()
        is_larger = self._entries is None or entries > self._entries.shape[0]
        if is_larger:
            self._entries = cupy.full((entries, 2), -1, dtype=np.int64)  # of which the second is two numbers of 4 bytes
        table = ROW_TABLE(
            entries=self._entries, pages=self._addresses, initial=self._initial, key_of_row=self._key_of_row,
            used=self._used, count=self._count, mask=self._entries.shape[0] - 1,
            shift=64 - (self._entries.shape[0].bit_length() - 1), row_bytes=self._row_bytes, capacity=size,
        )  # fmt: skip
        self.table.set(np.frombuffer(table.tobytes(), dtype=np.uint8))
        if is_larger:
            self._launch("enter_rows", size, warps=False)

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
            memory = self._cupy.cuda.alloc_pinned_memory(count * size)
            address = memory.ptr
        self._held.append(memory)
        self._pages += [address + n * size for n in range(count)]

    def _launch(self, name: str, count: int, warps: bool = True, **values: Any) -> None:
        if count:
            params = {"keys": None, "rows": None, "here": None, "there": None} | values
            words = self._width * self._dtype.itemsize // 4
            blocks = -(-count * (32 if warps else 1) // THREADS)
            Launch(ROWS, name, (blocks,), THREADS)(ROWS_PARAMS(table=self.table, **params, count=count, words=words))
