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
        self.folder, self.capacity = folder, capacity
        self._row = np.dtype((dtype, width))
        self._index = SlotRows(
            3, np.int64
        )  # of a page: checksum of its record, a bit for each slot in use, if it is up
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
        self._index.rows[self._index.find(pages), 2] = up

    def store(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Write ``rows`` (N, C + 1) of slots ``keys`` (N,), every row that their pages have; the pages are down then.

        OSError where there is no room; then nothing has changed.
        """
        pages, which = np.unique(keys // PAGE, return_inverse=True)
        at = self._index.find(pages)
        self._reserve(self._index.count + int((at < 0).sum()))
        records = np.zeros((len(pages), *self._records.shape[1:]), dtype=self._row.base)
        records[which, keys % PAGE] = rows
        index = np.zeros((len(pages), 3), dtype=np.int64)
        index[:, 0] = [zlib.crc32(record) for record in records]
        np.bitwise_or.at(index[:, 1], which, np.int64(1) << (keys % PAGE))
        self._index.put(pages, index)
        self._records[self._index.find(pages)] = records

    def load(self, pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The slots in use of ``pages`` (P,), each of which has a record: keys (N,) and rows (N, C + 1).

        OSError for a record that is not what was written.
        """
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

    def close(self) -> None:
        """Give the file's room back."""
        self._records = self._records[:0].copy()
        if self._map is not None:
            self._map.close()
        self._close_file()

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
        wanted = wanted if self.capacity is None else min(wanted, limit)
        try:
            _allocate(self._file, have * size, wanted * size)
        except OSError as error:
            raise OSError(
                f"memory.disk {str(self.folder)!r} must have room for {wanted * size:,} bytes, got: {error.strerror}"
            ) from error
        shape = (wanted, *self._records.shape[1:])
        old, self._map = self._map, mmap.mmap(self._file.fileno(), wanted * size)
        self._records = np.ndarray(shape, self._row.base, self._map)
        if old is not None:
            old.close()


def _allocate(file: Any, start: int, stop: int) -> None:
    """Make the bytes ``start`` to ``stop`` of a file exist on the disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, stop - start)
        return
    file.seek(start)
    while start < stop:
        start += file.write(bytes(min(stop - start, GROWTH)))
    file.flush()
