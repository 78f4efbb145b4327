"""Pages of neighbouring slots in a memory-mapped file: where the rows of a sparse memory go that are seldom asked for.

A page is PAGE neighbouring slots of one head, and has a record of its own in the file:

    page key = key of its first slot // PAGE           record = PAGE rows of C + 1 numbers, of which some are in use

CAPE moves a head by one slot a token, so the next token finds its slots in the page that is up. The index (which record
a page has, which of its slots are in use, a checksum) is in memory. The file has no name where the system can do
without, and it ends with the process: a saved state holds every row itself. So a process that is killed while it
writes here breaks nothing that was saved, and leaves nothing behind. Room is asked for before it is written to, since
a mapped file that meets a full disk would end the process.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ramnet_np.core.slot_rows import PAGE, SlotRows

GROWTH = 2**20  # bytes by which the file grows, at least


class DiskPages:
    """Pages of rows (C + 1 numbers of ``dtype``) in a file in ``folder``, ``capacity`` bytes at most (None: no limit).

    OSError, naming the folder, where no file can be made there.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pages = DiskPages(Path(folder), None, 2, np.dtype(np.float32))
    ...     pages.store(np.array([17, 3]), np.array([[1, 2], [3, 4]], np.float32))
    ...     keys, rows = pages.load(pages.down(np.array([17, 40])))
    ...     pages.close()
    >>> keys.tolist(), rows.tolist()
    ([17], [[1.0, 2.0]])
    """

    def __init__(self, folder: Path, capacity: int | None, width: int, dtype: np.dtype):
        self.folder, self.capacity, self._process = folder, capacity, os.getpid()
        self._row = np.dtype((dtype, width))
        # each page has: the checksum of its record, a bit for each slot in use, whether it is up
        self._index = SlotRows(3, np.int64)
        self.down_pages = 0  # how many pages are in the file alone
        self._map: mmap.mmap | None = None
        self._records: Any = np.empty((0, PAGE, width), dtype=dtype)
        try:
            self._file = tempfile.TemporaryFile(dir=folder, prefix="ramnet-slots-")  # noqa: SIM115 - open as long as we are
        except OSError as error:
            raise OSError(f"memory.disk must be a folder to write in, got {str(folder)!r}: {error.strerror}") from error
        self._close_file = weakref.finalize(self, self._file.close)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in the file."""
        return self._index.count * PAGE * self._row.itemsize

    @property
    def down_slots(self) -> int:
        """How many slots are in the file alone."""
        index = self._index.rows[: self._index.count]
        return int(np.bitwise_count(index[index[:, 2] == 0, 1]).sum())

    def down(self, keys: np.ndarray | None = None) -> np.ndarray:
        """The pages, (P,) distinct, that are in the file alone: of the slots ``keys`` (N,), or None for all."""
        if keys is None:
            held = slice(self._index.count)
            return self._index.key[held][self._index.rows[held, 2] == 0]
        pages = np.unique(keys // PAGE)
        at = self._index.find(pages)
        return pages[(at >= 0) & (self._index.rows[at, 2] == 0)] if self._index.count else pages[:0]

    def mark(self, pages: np.ndarray, up: bool) -> None:
        """Note that ``pages`` (P,) are in memory as well, or that they no longer are."""
        self.marking(pages, up)()

    def marking(self, pages: np.ndarray, up: bool) -> Callable[[], None]:
        """Find ``pages`` for :meth:`mark`; the call that is returned notes it."""
        at = self._index.find(pages)

        def mark() -> None:
            self.down_pages += int(self._index.rows[at, 2].sum()) - up * len(pages)
            self._index.rows[at, 2] = up

        return mark

    def store(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Write ``rows`` (N, C + 1) of slots ``keys`` (N,), every row that their pages have; the pages are down then.

        OSError or MemoryError where there is no room; then nothing has changed.
        """
        self.storing(keys, rows)()

    def storing(self, keys: np.ndarray, rows: np.ndarray) -> Callable[[], None]:
        """Make the room and the records for :meth:`store`, with its errors; the call that is returned writes them."""
        self._require_own()
        pages, which = np.unique(keys // PAGE, return_inverse=True)
        at = self._index.find(pages)
        is_new = at < 0
        at[is_new] = self._index.count + np.arange(is_new.sum())
        self._reserve(self._index.count + int(is_new.sum()))
        records = np.zeros((len(pages), *self._records.shape[1:]), dtype=self._row.base)
        records[which, keys % PAGE] = rows
        index = np.zeros((len(pages), 3), dtype=np.int64)
        index[:, 0] = [zlib.crc32(record) for record in records]
        np.bitwise_or.at(index[:, 1], which, np.int64(1) << (keys % PAGE))
        put = self._index.putting(pages, index)
        more = len(pages) - int((self._index.rows[at[~is_new], 2] == 0).sum())

        def write() -> None:
            self._records[at] = records
            put()
            self.down_pages += more

        return write

    def load(self, pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The slots in use of ``pages`` (P,), each of which has a record: keys (N,) and rows (N, C + 1).

        OSError for a record that is not what was written.
        """
        self._require_own()
        at = self._index.find(pages)
        records, index = self._records[at], self._index.rows[at]
        for page, record, checksum in zip(pages, records, index[:, 0], strict=True):
            if zlib.crc32(record) != checksum:
                raise OSError(
                    f"memory.disk {str(self.folder)!r} is damaged: the page of slots from key {page * PAGE} on "
                    "has changed since it was written"
                )
        which, slot = np.nonzero(index[:, 1:2] >> np.arange(PAGE) & 1)
        return pages[which] * PAGE + slot, records[which, slot]

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All slots of pages that are in the file alone, as of :meth:`load`, about ``size`` at a time."""
        down, pages = self.down(), max(1, size // PAGE)
        for start in range(0, len(down), pages):
            yield self.load(down[start : start + pages])

    def expect(self, keys: np.ndarray) -> None:
        """Let the system read the pages of the slots ``keys`` (N,) that are down, behind other work."""
        if not self.down_pages or self._map is None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        at, size = np.sort(self._index.find(self.down(keys))), PAGE * self._row.itemsize
        for run in np.split(at, np.nonzero(np.diff(at) > 1)[0] + 1) if len(at) else []:  # of records side by side
            start = int(run[0]) * size // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, (int(run[-1]) + 1) * size - start)

    def close(self) -> None:
        """Give the file's room back."""
        self._records = self._records[:0].copy()
        if self._map is not None:
            self._map.close()
        self._close_file()

    def _require_own(self) -> None:
        """OSError in a process that was forked: both would write to one file, each by an index of its own."""
        if os.getpid() != self._process:
            raise OSError(
                f"memory.disk must be used by the process that opened it, {self._process}, got one that was forked "
                f"from it, {os.getpid()}: open a state of its own there"
            )

    def _reserve(self, records: int) -> None:
        """Room for so many records."""
        size, have = PAGE * self._row.itemsize, len(self._records)
        if records <= have:
            return
        limit = records if self.capacity is None else self.capacity // size
        if records > limit:
            raise OSError(
                f"memory.disk must have room for the slots that leave memory.host, got {self.capacity} bytes, "
                f"which hold {limit} pages of {PAGE} slots, all of them full"
            )
        wanted = max(records, have + max(GROWTH // size, have // 4))
        wanted = self._allocated(records, wanted if self.capacity is None else min(wanted, limit))
        shape = (wanted, *self._records.shape[1:])
        old, self._map = self._map, mmap.mmap(self._file.fileno(), wanted * size)
        self._records = np.ndarray(shape, self._row.base, self._map)
        if old is not None:
            old.close()

    def _allocated(self, records: int, wanted: int) -> int:
        """Room on the disk for ``wanted`` records, or for fewer, at least ``records``; returns for how many."""
        size, have = PAGE * self._row.itemsize, len(self._records)
        while True:
            try:
                _allocate(self._file, have * size, wanted * size)
                return wanted
            except OSError as error:
                with suppress(OSError):
                    self._file.truncate(have * size)
                if wanted == records:
                    raise OSError(
                        f"memory.disk {str(self.folder)!r} must have room for {records * size:,} bytes, "
                        f"got: {error.strerror}"
                    ) from error
            wanted = records + (wanted - records) // 2  # less ahead


def _allocate(file: Any, start: int, stop: int) -> None:
    """Make the bytes ``start`` to ``stop`` of a file exist on the disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, stop - start)
        return
    file.seek(start)
    while start < stop:
        start += file.write(bytes(min(stop - start, GROWTH)))
    file.flush()
